//! What is known about the open descriptors: plain data, read once, decided upon by [`plan`](super::plan).

use crac_sys::proc::{FdInfo, FdLink};
pub(crate) use crac_sys::text::{Address, Bytes};

/// One open descriptor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fact<'a> {
    pub(crate) number: i32,
    /// `FD_CLOEXEC` or nothing.
    pub(crate) descriptor_flags: u32,
    /// Access mode and status flags (`F_GETFL`).
    pub(crate) status_flags: u32,
    /// The text of its link in `/proc/self/fd`, without the NUL behind it.
    pub(crate) link: &'a [u8],
    pub(crate) file: FileFact,
    pub(crate) info: FdInfo<'a>,
    /// The lowest number of the same open file description; the own number if it has no other.
    pub(crate) original: i32,
    pub(crate) state: State<'a>,
}

/// What `fstat(2)` tells.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct FileFact {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) mode: u32,
    pub(crate) device_number: u64,
    pub(crate) size: u64,
    pub(crate) modified_s: i64,
    pub(crate) modified_ns: i64,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// What must be asked separately, by kind. Only read for originals.
#[derive(Debug, Clone, Copy)]
pub(crate) enum State<'a> {
    /// Nothing more.
    Plain,
    /// The link names a path.
    Named {
        /// Whether the path still leads to this very file.
        reachable: bool,
        /// When the inode was made, seconds and nanoseconds; zero if unknown.
        born: (i64, u32),
    },
    Pipe(PipeFact<'a>),
    Timer(TimerFact),
    /// An eventfd that was found to be a semaphore, on a kernel that does not tell.
    Semaphore,
    Epoll(&'a [Registration]),
    Socket(SocketFact<'a>),
    /// A memfd in ordinary pages.
    Memory {
        seals: u32,
    },
}

/// One end of a pipe.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PipeFact<'a> {
    pub(crate) capacity: u32,
    /// What waits to be read, seen from a reading end; nothing if it could not be copied.
    pub(crate) unread: Option<&'a [u8]>,
    /// Whether the other end is closed.
    pub(crate) severed: bool,
}

/// A timerfd, seconds and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TimerFact {
    pub(crate) remaining: (i64, i64),
    pub(crate) interval: (i64, i64),
    /// Wall clock when `remaining` was read.
    pub(crate) realtime: (i64, i64),
}

/// A registration of an epoll instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Registration {
    pub(crate) number: i32,
    pub(crate) events: u32,
    pub(crate) data: u64,
    pub(crate) target: Target,
}

/// What a registration was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// The open file under this descriptor.
    Descriptor(i32),
    /// A descriptor of the round itself.
    Own,
    /// A file no descriptor of this process stands for, or that cannot be told from another one.
    Unknown,
}

/// A socket.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SocketFact<'a> {
    pub(crate) domain: i32,
    pub(crate) socket_type: i32,
    pub(crate) protocol: i32,
    pub(crate) listening: bool,
    /// Length of the accept queue; -1 if unknown.
    pub(crate) backlog: i32,
    /// Connections that wait to be accepted.
    pub(crate) waiting: u32,
    /// TCP's state as a number; zero for others.
    pub(crate) tcp_state: u8,
    /// `sockaddr` bytes; empty if unbound.
    pub(crate) local: &'a [u8],
    /// `sockaddr` bytes; empty if unconnected or if the peer has no name.
    pub(crate) peer: &'a [u8],
    /// Whether `getpeername(2)` answered.
    pub(crate) connected: bool,
    /// Whether the peer has closed or shut down its sending direction.
    pub(crate) read_hangup: bool,
    /// Shut down directions of a Unix socket: 1 receiving, 2 sending.
    pub(crate) shutdown: u32,
    /// Inode of a Unix socket's peer; zero if that has no descriptor any more.
    pub(crate) peer_inode: Option<u64>,
    /// Received and not yet read, as far as it can be looked at.
    pub(crate) queue: Queue<'a>,
    /// Options that differ from a fresh socket's.
    pub(crate) options: &'a [OptionFact<'a>],
    /// Whether a packet filter is attached, or that cannot be known.
    pub(crate) filtered: bool,
    /// Whether it belongs to another network namespace.
    pub(crate) foreign_namespace: bool,
    /// The socket file of a bound Unix socket, if it is this socket's.
    pub(crate) file: Option<FileFact>,
}

/// What waits in a socket's receive queue.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) enum Queue<'a> {
    #[default]
    Empty,
    /// Messages in order; for a stream one.
    Messages(&'a [&'a [u8]]),
    /// Something that cannot be looked at, or that carries descriptors or credentials.
    Opaque,
}

/// A socket option that differs from a fresh socket's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OptionFact<'a> {
    pub(crate) level: i32,
    pub(crate) name: i32,
    pub(crate) value: &'a [u8],
}

impl Fact<'_> {
    /// What the link says.
    pub(crate) fn link(&self) -> FdLink<'_> {
        FdLink::parse(self.link)
    }

    /// `S_IFREG` and so on.
    pub(crate) fn file_type(&self) -> u32 {
        self.file.mode & libc::S_IFMT
    }

    /// `O_RDONLY`, `O_WRONLY` or `O_RDWR`.
    pub(crate) fn access(&self) -> i32 {
        self.status_flags as i32 & libc::O_ACCMODE
    }

    /// Whether the status flags hold all of `flags`.
    pub(crate) fn has_status(&self, flags: i32) -> bool {
        self.status_flags as i32 & flags == flags
    }
}
