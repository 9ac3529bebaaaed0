//! Reads what a process holds and names what a checkpoint would not survive.
//!
//! # What is looked for
//!
//! One rule keeps the audit and the engines apart: **the audit reports what has another half outside the process**, which no
//! engine that saves one process carries over, and for which a policy or a hook is the answer:
//!
//! | kind | found in |
//! |---|---|
//! | `tcp-established` | every TCP socket with a peer, whatever its state |
//! | `unix-connected` | every Unix stream whose peer is another process (standard streams exempt) |
//! | `io-uring` | `anon_inode:[io_uring]`: work in flight in the kernel |
//! | `file-lock` | `lock:` lines of `/proc/self/fdinfo` |
//! | `child` | child processes, those included that have ended and were not waited for |
//! | `tracer` | `TracerPid` |
//! | `breakpoint` | an `[uprobes]` mapping |
//!
//! What an engine cannot rebuild although it lies in the process (files, memory, timers, kinds of descriptors) the engine
//! itself reports when it plans: it alone knows. Where both see the same thing they use the same words, so that it counts
//! once. Runtimes that are not held are the business of who holds runtimes.
//!
//! An engine that keeps descriptors (a virtual machine's snapshot) says so by [`Needs::descriptors`]; the audit then finds
//! nothing. The policies `sever` and `keep` take a finding off the list.
//!
//! ```no_run
//! # use crac_core::{Mode, Needs, Policy};
//! let auditor = crac_audit::Auditor::new();
//! for obstacle in auditor.audit(&Needs::new("native", &[Mode::Exit]), &Policy::new(), &[])? {
//!     eprintln!("{obstacle}");
//! }
//! # Ok::<(), crac_audit::AuditError>(())
//! ```
//!
//! [`Needs::descriptors`]: crac_core::Needs::descriptors

mod cgroup;
mod host;
mod threads;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod descriptors;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod linux;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod owner;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod processes;

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
#[path = "elsewhere.rs"]
mod linux;

use crac_core::{Audit, BoxError, Needs, Obstacle, Policy};

pub use host::ThisHost;
pub use threads::{Thread, ThreadFamily};

/// Looks at this process. Holds nothing; cheap to make.
#[derive(Debug, Clone, Copy, Default)]
pub struct Auditor {
    _private: (),
}

impl Auditor {
    /// An auditor of this process.
    pub fn new() -> Self {
        Self::default()
    }

    /// Everything that stands in the way of `needs.engine`, all at once.
    ///
    /// `own` are descriptors of the round itself: exempt. Blocks for as long as reading `/proc` takes, some microseconds per
    /// descriptor and thread. Other threads may run meanwhile; a descriptor that vanishes under the look is passed over.
    ///
    /// # Errors
    ///
    /// If `/proc` cannot be read, or the kernel's text is not understood.
    pub fn audit(&self, needs: &Needs, policy: &Policy, own: &[i32]) -> Result<Vec<Obstacle>, AuditError> {
        if !needs.descriptors {
            return Ok(Vec::new());
        }
        let obstacles = linux::audit(policy, own)?;
        tracing::debug!(engine = needs.engine, obstacles = obstacles.len(), "audited the process");
        Ok(obstacles)
    }

    /// The threads of this process by name, with what is known about the names.
    ///
    /// # Errors
    ///
    /// If `/proc/self/task` cannot be read.
    pub fn threads(&self) -> Result<Vec<Thread>, AuditError> {
        linux::threads()
    }

    /// How many epoll instances there are, duplicates counted once as far as their registrations tell them apart.
    ///
    /// A tokio runtime with I/O has one; more than the runtimes known mean a runtime that is not held.
    ///
    /// # Errors
    ///
    /// As [`audit`](Self::audit).
    pub fn epoll_instances(&self) -> Result<usize, AuditError> {
        linux::epoll_instances()
    }
}

impl Audit for Auditor {
    fn audit(&self, needs: &Needs, policy: &Policy, own: &[i32]) -> Result<Vec<Obstacle>, BoxError> {
        Ok(Auditor::audit(self, needs, policy, own)?)
    }
}

/// Why the process could not be looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// A file of `/proc` could not be read.
    #[error("cannot audit the process: reading {path}: {source}; is /proc mounted?")]
    Unreadable {
        /// Which file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file of `/proc` was not understood.
    #[error(
        "cannot audit the process: {path} is not understood; this kernel is newer than this version of crac, please report it"
    )]
    Malformed {
        /// Which file.
        path: String,
    },
    /// There is no audit for this system.
    #[error("cannot audit the process: only Linux on x86_64 can be audited so far; use an engine that needs no audit")]
    Unsupported,
}
