//! Nothing but tests: one program for every allocator, in a package of its own because some of them are C.
