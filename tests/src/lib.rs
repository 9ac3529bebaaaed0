//! The whole thing as a program: end-to-end and fault tests of crac.
