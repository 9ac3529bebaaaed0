//! What the links in `/proc/PID/fd` point at.

use super::text::number;

/// The target of a link in `/proc/PID/fd`, by its text (proc_pid_fd(5)).
///
/// The text alone does not prove a thing: a file may be called `/memfd:x`, and one whose name ends in ` (deleted)` may exist.
/// Who must know asks fstat(2) as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FdLink<'a> {
    /// `socket:[INODE]`.
    Socket {
        /// Inode in the socket file system.
        inode: u64,
    },
    /// `pipe:[INODE]`: an anonymous pipe. A FIFO has a path.
    Pipe {
        /// Inode in the pipe file system.
        inode: u64,
    },
    /// `anon_inode:[NAME]` or `anon_inode:NAME`.
    Anon(AnonInode<'a>),
    /// `/memfd:NAME (deleted)`.
    Memfd {
        /// The name given at creation; for messages only.
        name: &'a [u8],
    },
    /// `mnt:[INODE]`, `net:[INODE]` and the like: a namespace.
    Namespace {
        /// Which kind: `mnt`, `net`.
        kind: &'a [u8],
        /// Inode in the namespace file system.
        inode: u64,
    },
    /// A path, relative to the reader's root. It may end in ` (deleted)`: see [`FdLink::deleted`].
    Path(&'a [u8]),
    /// Anything else.
    Other(&'a [u8]),
}

/// Descriptors without a file, by the kernel's name for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnonInode<'a> {
    /// epoll(7).
    Epoll,
    /// eventfd(2).
    Eventfd,
    /// timerfd_create(2).
    Timerfd,
    /// signalfd(2).
    Signalfd,
    /// inotify(7).
    Inotify,
    /// fanotify(7).
    Fanotify,
    /// io_uring_setup(2).
    IoUring,
    /// pidfd_open(2).
    Pidfd,
    /// userfaultfd(2).
    Userfaultfd,
    /// perf_event_open(2).
    PerfEvent,
    /// Whatever else: `bpf-map`, `kvm-vm`, `sync_file`.
    Other(&'a [u8]),
}

impl<'a> FdLink<'a> {
    /// Classifies the text of a link; total.
    pub fn parse(link: &'a [u8]) -> Self {
        if let Some(name) = link.strip_prefix(b"anon_inode:") {
            return FdLink::Anon(AnonInode::parse(bracketed(name).unwrap_or(name)));
        }
        if let Some(name) = link.strip_prefix(b"/memfd:") {
            return FdLink::Memfd { name: name.strip_suffix(DELETED).unwrap_or(name) };
        }
        if link.starts_with(b"/") {
            return FdLink::Path(link);
        }
        let Some(at) = link.iter().position(|byte| *byte == b':') else { return FdLink::Other(link) };
        let (kind, inode) = (link.get(..at), link.get(at + 1..).and_then(bracketed).and_then(|inode| number(inode, 10)));
        match (kind, inode) {
            (Some(b"socket"), Some(inode)) => FdLink::Socket { inode },
            (Some(b"pipe"), Some(inode)) => FdLink::Pipe { inode },
            // A pidfd of a kernel with pidfs (Linux >= 6.9) reads `anon_inode:[pidfd]` in links still, but `pidfd:[INODE]` in some.
            (Some(b"pidfd"), Some(_)) => FdLink::Anon(AnonInode::Pidfd),
            (Some(kind), Some(inode)) => FdLink::Namespace { kind, inode },
            _ => FdLink::Other(link),
        }
    }

    /// The path without ` (deleted)`, if the text says that the file has been deleted.
    pub fn deleted(self) -> Option<&'a [u8]> {
        match self {
            FdLink::Path(path) => path.strip_suffix(DELETED),
            _ => None,
        }
    }
}

impl<'a> AnonInode<'a> {
    fn parse(name: &'a [u8]) -> Self {
        match name {
            b"eventpoll" => AnonInode::Epoll,
            b"eventfd" => AnonInode::Eventfd,
            b"timerfd" => AnonInode::Timerfd,
            b"signalfd" => AnonInode::Signalfd,
            b"inotify" => AnonInode::Inotify,
            b"fanotify" => AnonInode::Fanotify,
            b"io_uring" => AnonInode::IoUring,
            b"pidfd" => AnonInode::Pidfd,
            b"userfaultfd" => AnonInode::Userfaultfd,
            b"perf_event" => AnonInode::PerfEvent,
            other => AnonInode::Other(other),
        }
    }
}

fn bracketed(text: &[u8]) -> Option<&[u8]> {
    text.strip_prefix(b"[")?.strip_suffix(b"]")
}

const DELETED: &[u8] = b" (deleted)";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_recognised() {
        for (link, expected) in [
            (&b"socket:[24128]"[..], FdLink::Socket { inode: 24128 }),
            (b"pipe:[24140]", FdLink::Pipe { inode: 24140 }),
            (b"anon_inode:[eventpoll]", FdLink::Anon(AnonInode::Epoll)),
            (b"anon_inode:inotify", FdLink::Anon(AnonInode::Inotify)),
            (b"anon_inode:[io_uring]", FdLink::Anon(AnonInode::IoUring)),
            (b"anon_inode:bpf-map", FdLink::Anon(AnonInode::Other(b"bpf-map"))),
            (b"/memfd:x (deleted)", FdLink::Memfd { name: b"x" }),
            (b"net:[4026531840]", FdLink::Namespace { kind: b"net", inode: 4_026_531_840 }),
            (b"/dev/null", FdLink::Path(b"/dev/null")),
            (b"socket:[x]", FdLink::Other(b"socket:[x]")),
            (b"", FdLink::Other(b"")),
        ] {
            assert_eq!(FdLink::parse(link), expected);
        }
    }

    #[test]
    fn deleted_is_a_suffix_of_paths_only() {
        assert_eq!(FdLink::parse(b"/tmp/a (deleted)").deleted(), Some(&b"/tmp/a"[..]));
        assert_eq!(FdLink::parse(b"/tmp/a").deleted(), None);
        assert_eq!(FdLink::parse(b"pipe:[1] (deleted)").deleted(), None);
    }
}
