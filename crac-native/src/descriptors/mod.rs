//! Looks at every open descriptor while the process is stopped, and decides how it comes back.
//!
//! ```text
//! observe ─► duplicates ─► sockets, epoll ─► facts ─► plan ─► records and blob, obstacles
//! └───────────── system calls ─────────────┘         └ pure ┘
//! ```
//!
//! What comes back differently, by nature:
//!
//! * standard streams are those of whoever restores; a pipe inherited beyond them comes back with its other end closed;
//! * datagrams that waited in a UDP socket are dropped, as the network may do at any time, and multicast memberships are lost,
//!   which the kernel does not list by socket;
//! * severed and finished connections are Unix sockets without a peer: options of TCP cannot be set on them;
//! * a one-shot registration that has fired reports errors and hang-ups until it is armed again;
//! * a timer other than one for a moment on the wall has as long to go as it had.
//!
//! Everything here runs while another thread may hold a lock of the allocator: only the arena and bare system calls.

mod duplicates;
mod epoll;
mod facts;
mod observe;
mod plan;
mod recorded;
mod sockets;

pub(crate) use recorded::{changed_files, describe};

use crac_core::Policy;
use crac_sys::Errno;

use crate::{
    arena::{Arena, ArenaVec},
    findings::ObstacleSink,
    layout::descriptors::DescriptorRecord,
};

/// What a survey needs to know.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Survey<'a, 'p> {
    /// Where notes are taken.
    pub(crate) arena: &'a Arena,
    /// Descriptors of the round and of the engine itself: absent in the restored life, never an obstacle.
    pub(crate) own: &'p [i32],
    /// What to do about descriptors that cannot be saved as they are.
    pub(crate) policy: &'p Policy,
    /// Whether the process goes on while a copy of it is saved.
    pub(crate) is_copied: bool,
    /// Whether `F_DUPFD_QUERY` (Linux 6.10) may be used to find duplicates.
    pub(crate) duplicate_query: bool,
    /// Whether `kcmp(2)` may be used to find duplicates, if there is no `F_DUPFD_QUERY`.
    pub(crate) kcmp: bool,
}

/// Every descriptor of the process, ready for the image.
#[derive(Debug)]
pub(crate) struct DescriptorTable<'a> {
    /// By number.
    pub(crate) records: ArenaVec<'a, DescriptorRecord>,
    /// What the records refer to.
    pub(crate) blob: ArenaVec<'a, u8>,
    /// The memory behind memfds, each once.
    pub(crate) memories: ArenaVec<'a, Memory<'a>>,
}

/// The memory behind a memfd.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory<'a> {
    /// One of its descriptors.
    pub(crate) number: i32,
    pub(crate) inode: u64,
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) seals: u32,
    pub(crate) name: &'a [u8],
}

/// Looks at every open descriptor and decides how it comes back.
///
/// # Errors
///
/// The kernel's answer when `/proc/self/fd` cannot be read, a few descriptors cannot be opened (`EMFILE`), or there is no
/// memory. What cannot be saved is no error: it goes to `obstacles`, all of it.
pub(crate) fn survey<'a>(survey: &Survey<'a, '_>, obstacles: &mut ObstacleSink<'a>) -> Result<DescriptorTable<'a>, Errno> {
    let facts = observe::observe(survey)?;
    plan::plan(facts, crac_sys::process::pid(), survey.policy, survey.is_copied, survey.arena, obstacles)
}

/// `bytes`, kept in the arena.
fn keep<'a>(arena: &'a Arena, bytes: &[u8]) -> Result<&'a [u8], Errno> {
    let mut kept = ArenaVec::new(arena);
    kept.extend_from_slice(bytes)?;
    Ok(kept.into_slice())
}

#[cfg(test)]
mod tests;
