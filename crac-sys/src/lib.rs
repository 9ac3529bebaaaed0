//! The wall: the kernel calls crac needs, wrapped.
//!
//! Every call is a bare `syscall` instruction: no `errno`, no lock of the C library, no allocation. That is what an engine
//! needs while the other threads of its process are stopped, some of them inside `malloc`. The wrappers decide nothing.
//!
//! Only `x86_64` Linux has them so far; elsewhere the crate is empty.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

pub mod descriptor;
pub mod environment;
mod errno;
pub mod fs;
pub mod futex;
pub mod mem;
pub mod proc;
pub mod process;
mod raw;
pub mod secret;
pub mod signal;
pub mod socket;
pub mod text;
pub mod unix_diag;
pub mod warden;

pub use errno::{Errno, Result};
pub use raw::syscall;
