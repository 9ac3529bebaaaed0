//! The in-process checkpoint engine of crac: no privileges, nothing to install.
//!
//! [`NativeEngine`] stops every thread of its own process, writes the process into one executable file, and ends. Running the
//! file is the restore: a small freestanding program in it, the *stub*, puts the memory, the descriptors and the threads back,
//! and the call of [`capture`](crac_core::Engine::capture) returns a second time, in another process, as
//! [`Captured::Restored`](crac_core::Captured).
//!
//! ```text
//! capture  prepare ─► freeze ─► look ─► plan ─► write ─► fsync, link, rename ─► exit | exec the image | thaw
//!                     └─ arena and bare system calls only: another thread may have been stopped inside malloc ─┘
//!
//! restore  check ─► clear ─► memory ─► kernel ─► process ─► descriptors ─► threads ─► capture returns
//!          └ refuses └ point of no return
//! ```
//!
//! Memory comes back lazily: data are private mappings of the image, shared between clones until they are written to, and what
//! was never touched is anonymous. The time until the process runs does not depend on the size of its heap. An image that is on the
//! disk is read ahead from then on. With `CRAC_EAGER=populate` in the environment all of it is fetched first. With `CRAC_EAGER=on` all
//! data are read and checked first, and memory is what it was: anonymous.
//!
//! # What has to hold
//!
//! * `x86_64` Linux with `CONFIG_CHECKPOINT_RESTORE` (every distribution's kernel) and `/proc`; glibc, static or dynamic. On
//!   other targets the crate compiles and `capture` answers [`Unsupported`](crac_core::EngineError::Unsupported).
//! * The crate is linked into the executable itself: it defines the symbol `madvise`, through which allocators give memory
//!   back. Code that does so by a system call of its own is found and refused: see the obstacle
//!   [`AllocatorRaw`](crac_core::ObstacleKind::AllocatorRaw). It defines `sched_getaffinity`, too, for the few
//!   milliseconds in which a restored life is on one processor ([`Engine::spread`](crac_core::Engine::spread)).
//! * An image is restored by the user it was captured as, with at least the same capabilities, on a kernel of the same version or
//!   a later one (the same build, where its clocks are not continued by a proxy), on a processor with the same features. Everything
//!   else is refused before anything is touched, with an exit status that says so: [`EXIT_START_COLD`], [`EXIT_UNTRUSTED`].
//! * The monotonic clocks go on from where they stood, on a host with any uptime, as [`Clock`] and [`Downtime`] say.
//! * The image belongs to that user or to root and nobody else may write to it. It holds the memory of the service: treat it as
//!   a secret.
//!
//! # What is not saved
//!
//! Obstacles are found while everything stands still and are reported together: POSIX timers, pending signals, children, a
//! tracer, breakpoints, seccomp filters and Landlock domains that came after the engine was made, namespaces that were entered,
//! writable shared mappings of files, and the descriptors that [`ObstacleKind`](crac_core::ObstacleKind) lists. Memory that is
//! shared inside the process alone comes back as memfds, still shared. `MADV_WIPEONFORK` memory comes back empty, as after a fork.
//!
//! Thread ids change. Held mutexes of the C library that know their owner by it - recursive, error-checking, robust,
//! priority-inheriting - get the new one; a thread that is about to take one of the last two is an obstacle.
//!
//! What the service was *started* with - resource limits, nice value, scheduling class, processors, I/O priority, groups, the
//! score for the out-of-memory killer - is that of whoever runs the image, as at a cold start. What it has *set* since is
//! brought back, or the image does not fit. `docs/features.md` has the whole list, feature by feature.

mod clock;
mod engine;
mod form;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod arch;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod arena;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod beside;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod capture;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod confined;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod descriptors;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod exec;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod facts;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod fault;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod findings;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod freeze;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod image;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod landlock;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod launch;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[allow(missing_docs, reason = "plain records; their fields' names and the format's drawing say it")]
pub mod layout;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod madvise;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod manifest;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod objects;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod owners;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod pages;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod plan;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod prefetch;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod raw_advice;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod record;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod restore;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod resumed;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod settings;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod stub;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod tables;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod text;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod writer;

pub use clock::{Clock, Downtime, UnknownSetting};
pub use engine::NativeEngine;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub use fault::{FAULT_POINTS, FaultPoint, NotAFault};
pub use form::ImageForm;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub use layout::{EXIT_BUG, EXIT_FAILED, EXIT_START_COLD, EXIT_UNTRUSTED};
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub use manifest::{Executable, Manifest};

/// Prepares this process for clocks that go on in another life ([`Clock::Proxy`]), as its first capture would, and says how many
/// places in the C library lead through the shim now.
///
/// # Errors
///
/// Why this C library, kernel or sandbox cannot do it.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub fn prepare_clocks() -> Result<usize, String> {
    let layer = clock::layer::prepare(std::time::Duration::from_secs(2))?;
    Ok(layer.sites())
}

/// Shifts the monotonic clocks of this process by `by_s` seconds, though not below one second, as a restore on another host does.
/// For tests: what would misfire there misfires at once. Call it while no other thread waits for a moment, best as the first thing
/// in `main`.
///
/// # Errors
///
/// As [`prepare_clocks`], and when they are shifted already.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub fn shift_clocks(by_s: i64) -> Result<(), String> {
    clock::layer::shift(by_s, std::time::Duration::from_secs(2))
}

/// Without the engine there is nothing that could shift them.
///
/// # Errors
///
/// Always: this is no system or processor of the engine.
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
pub fn shift_clocks(_by_s: i64) -> Result<(), String> {
    Err(format!("clocks are shifted on x86_64 Linux alone, not with {} on {}", std::env::consts::OS, std::env::consts::ARCH))
}
