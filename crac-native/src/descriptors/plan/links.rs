//! Who belongs to whom: ends of pipes, sockets and their peers.

use crac_sys::Errno;

use super::super::facts::{Fact, SocketFact, State};
use crate::arena::{Arena, ArenaVec};

/// Originals by inode.
#[derive(Debug)]
pub(super) struct Links<'a> {
    /// Inode, access mode, number; pipes and sockets only.
    entries: &'a [Entry],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    inode: u64,
    access: i32,
    number: i32,
    /// Inode of a socket's peer.
    peer: Option<u64>,
    is_unix: bool,
}

/// Which ends of a pipe this process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pipe {
    /// Both, once each.
    Whole { reader: i32, writer: i32 },
    /// One, once.
    Half,
    /// Opened more often, or for both directions: it went through `/proc` or is a FIFO.
    Reopened,
}

impl<'a> Links<'a> {
    pub(super) fn of(arena: &'a Arena, facts: &[Fact<'_>]) -> Result<Self, Errno> {
        let mut entries = ArenaVec::new(arena);
        for fact in facts.iter().filter(|fact| fact.original == fact.number) {
            let (peer, is_unix) = match &fact.state {
                State::Pipe(_) => (None, false),
                State::Socket(socket) => (socket.peer_inode, socket.domain == libc::AF_UNIX),
                _ => continue,
            };
            entries.push(Entry { inode: fact.file.inode, access: fact.access(), number: fact.number, peer, is_unix })?;
        }
        let entries = entries.into_slice();
        entries.sort_unstable();
        Ok(Self { entries })
    }

    fn with_inode(&self, inode: u64) -> &[Entry] {
        let start = self.entries.partition_point(|entry| entry.inode < inode);
        let rest = self.entries.get(start..).unwrap_or_default();
        rest.get(..rest.partition_point(|entry| entry.inode == inode)).unwrap_or_default()
    }

    /// Which ends of the pipe behind `fact` there are.
    pub(super) fn pipe(&self, fact: &Fact<'_>) -> Pipe {
        match self.with_inode(fact.file.inode) {
            [one] if one.access != libc::O_RDWR => Pipe::Half,
            [a, b] if (a.access, b.access) == (libc::O_RDONLY, libc::O_WRONLY) => {
                Pipe::Whole { reader: a.number, writer: b.number }
            }
            _ => Pipe::Reopened,
        }
    }

    /// The descriptor of the Unix socket that `socket` is connected to, if that is connected to it in turn.
    pub(super) fn peer(&self, fact: &Fact<'_>, socket: &SocketFact<'_>) -> Option<i32> {
        let peer = socket.peer_inode.filter(|inode| *inode != 0)?;
        let entry = self.with_inode(peer).first()?;
        (entry.is_unix && entry.peer == Some(fact.file.inode)).then_some(entry.number)
    }
}
