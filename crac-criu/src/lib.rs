//! The second engine of crac: [CRIU](https://criu.org), spoken to by its protocol.
//!
//! The in-process engine needs no privileges and is faster; CRIU carries over more of the kernel's state (shared memory, memfds,
//! inotify, pseudo terminals, POSIX timers ...) and restores the process under its old process and thread ids, with clocks that go on where
//! they stood. It needs root, or `CAP_CHECKPOINT_RESTORE` and `CAP_SETPCAP`, at the checkpoint and at the restore.
//!
//! ```text
//!  service                                  warden        criu swrk               crac restore
//!   coordinator ── version?, dump ────────────────────────► │
//!       ┊ stopped                             │             ├─ image directory
//!       ┊                                     ├─ sync, rename (exit mode)
//!   exit(0) or go on ◄────────────────────────┘                                      │
//!                                                           │ ◄─── restore, handover ┤
//!   coordinator goes on here, reads the handover ◄──────────┘                        ├─ waits, passes signals on
//! ```
//!
//! A service without privileges is saved from outside by somebody who has them ([`outside`]): it stands still in its capture, and
//! the command has CRIU dump it.
//!
//! ```text
//!  service                                  crac checkpoint --outside        warden        criu swrk
//!   coordinator ◄── prepare ───────────────── │
//!       ├── ready: what CRIU has to know ───► ├── dump, sync, rename ─────────┼──────────────► │
//!       ┊ stands still                        │                               │
//!   exit(0) or go on ◄── how it ended ────────┴───────────────────────────────┘
//! ```
//!
//! An image is a directory: CRIU's files, and `crac.json` with what crac has to know. [`restore`] looks at one and brings it
//! back; [`CriuEngine`] takes them. A restored life learns its arguments and its environment from a descriptor that takes the
//! place of an empty file of the image: CRIU restores the memory as it was, the old environment included.
//!
//! CRIU 4.2 or later is required, and found on `PATH` unless it is given: older ones cannot dump TCP sockets of Linux 6.16 and
//! later, although their `criu check` says that all is well.

mod engine;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod capture;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod handover;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod holdings;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod image;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod log;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod outside;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod program;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod restore;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod rpc;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod stand;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod wiped;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod worker;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[doc(hidden)]
pub mod fuzzing;

pub use engine::{CriuEngine, VERSION_MIN};
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub use program::{Criu, CriuError};
