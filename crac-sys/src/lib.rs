//! The wall: the kernel calls crac needs, wrapped.
