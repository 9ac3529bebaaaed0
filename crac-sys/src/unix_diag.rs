//! Asks the kernel about Unix sockets by inode (sock_diag(7)): who the peer is, what is shut down, where it is bound.

use std::os::fd::{AsRawFd, OwnedFd};

use crate::{errno::Errno, socket};

/// What the kernel tells about a Unix socket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UnixDiag {
    /// Inode of the peer; zero if no descriptor is left of it; nothing without a peer.
    pub peer: Option<u64>,
    /// 1 receiving, 2 sending.
    pub shutdown: u32,
    /// Of a listening socket: how many connections wait to be accepted, and how many may.
    pub queue: Option<(u32, u32)>,
    /// The socket file's inode and device, in the kernel's own encoding.
    pub file: Option<(u32, u32)>,
}

/// A netlink socket to ask with. `CAP_NET_ADMIN` is not needed.
#[derive(Debug)]
pub struct Asker {
    socket: OwnedFd,
}

impl Asker {
    /// Opens the socket.
    ///
    /// # Errors
    ///
    /// Where netlink or `CONFIG_UNIX_DIAG` is missing or forbidden.
    pub fn open() -> Result<Self, Errno> {
        socket::open(libc::AF_NETLINK, libc::SOCK_RAW, NETLINK_SOCK_DIAG).map(|socket| Self { socket })
    }

    /// What the kernel tells about the Unix socket with this inode.
    ///
    /// # Errors
    ///
    /// `ENOENT` if there is none in this network namespace.
    pub fn ask(&self, inode: u64) -> Result<UnixDiag, Errno> {
        let inode = u32::try_from(inode).map_err(|_| Errno::new(libc::ENOENT))?;
        socket::send(self.socket.as_raw_fd(), &request(inode))?;
        let mut answer = [0; 1024];
        let len = socket::receive(self.socket.as_raw_fd(), &mut answer)?;
        parse(answer.get(..len).unwrap_or_default(), inode)
    }
}

/// `struct nlmsghdr`, then `struct unix_diag_req`.
fn request(inode: u32) -> [u8; 40] {
    let words = [
        40,
        // Type and flags share a word.
        u32::from(SOCK_DIAG_BY_FAMILY) | u32::from(libc::NLM_F_REQUEST as u16) << 16,
        0,
        0,
        libc::AF_UNIX as u32,
        u32::MAX,
        inode,
        UDIAG_SHOW_VFS | UDIAG_SHOW_PEER | UDIAG_SHOW_RQLEN,
        u32::MAX,
        u32::MAX,
    ];
    let mut bytes = [0; 40];
    for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// Reads the kernel's answer about the socket `inode`. Total over any bytes.
///
/// # Errors
///
/// The one that it holds, or `EPROTO` if it is no answer.
pub fn parse(answer: &[u8], inode: u32) -> Result<UnixDiag, Errno> {
    let broken = Errno::new(libc::EPROTO);
    let word =
        |bytes: &[u8], at: usize| bytes.get(at..).and_then(|bytes| bytes.first_chunk()).map(|word| u32::from_ne_bytes(*word));
    let half =
        |bytes: &[u8], at: usize| bytes.get(at..).and_then(|bytes| bytes.first_chunk()).map(|half| u16::from_ne_bytes(*half));
    let len = word(answer, 0).ok_or(broken)? as usize;
    match half(answer, 4).ok_or(broken)? {
        SOCK_DIAG_BY_FAMILY => {}
        NLMSG_ERROR => return Err(Errno::new((word(answer, 16).ok_or(broken)? as i32).saturating_neg())),
        _ => return Err(broken),
    }
    // struct unix_diag_msg: family, type, state, padding, inode, cookie.
    if word(answer, 20) != Some(inode) {
        return Err(broken);
    }
    let mut attributes = answer.get(32..len).ok_or(broken)?;
    let mut diag = UnixDiag::default();
    while !attributes.is_empty() {
        let (Some(size), Some(kind)) = (half(attributes, 0), half(attributes, 2)) else { return Err(broken) };
        let value = attributes.get(4..usize::from(size)).ok_or(broken)?;
        match kind {
            UNIX_DIAG_VFS => diag.file = Some((word(value, 0).ok_or(broken)?, word(value, 4).ok_or(broken)?)),
            UNIX_DIAG_PEER => diag.peer = Some(u64::from(word(value, 0).ok_or(broken)?)),
            UNIX_DIAG_RQLEN => diag.queue = word(value, 0).zip(word(value, 4)),
            UNIX_DIAG_SHUTDOWN => diag.shutdown = u32::from(*value.first().ok_or(broken)?),
            _ => {}
        }
        attributes = attributes.get(usize::from(size).next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(diag)
}

// linux/netlink.h, linux/sock_diag.h, linux/unix_diag.h
const NETLINK_SOCK_DIAG: i32 = 4;
const NLMSG_ERROR: u16 = 2;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const UDIAG_SHOW_VFS: u32 = 2;
const UDIAG_SHOW_PEER: u32 = 4;
const UDIAG_SHOW_RQLEN: u32 = 16;
const UNIX_DIAG_VFS: u16 = 1;
const UNIX_DIAG_PEER: u16 = 2;
const UNIX_DIAG_RQLEN: u16 = 4;
const UNIX_DIAG_SHUTDOWN: u16 = 6;

#[cfg(test)]
mod tests {
    use std::os::{fd::AsFd, unix::net::UnixStream};

    use super::*;

    fn inode(socket: &impl AsFd) -> u64 {
        crate::fs::stat(socket.as_fd()).unwrap().st_ino
    }

    #[test]
    fn a_pair_names_each_other() {
        let asker = Asker::open().unwrap();
        let (left, right) = UnixStream::pair().unwrap();
        assert_eq!(asker.ask(inode(&left)).unwrap().peer, Some(inode(&right)));
        right.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(asker.ask(inode(&left)).unwrap().shutdown, 1);
        assert_eq!(asker.ask(inode(&right)).unwrap().shutdown, 2);
        drop(right);
        let alone = asker.ask(inode(&left)).unwrap();
        assert_eq!((alone.peer, alone.shutdown), (Some(0), 3));
    }

    #[test]
    fn an_unknown_inode_is_an_error() {
        assert_eq!(Asker::open().unwrap().ask(1).unwrap_err().number(), libc::ENOENT);
    }

    #[test]
    fn any_answer_is_survived() {
        for len in 0..64 {
            for byte in [0, 1, 20, 255] {
                assert!(parse(&vec![byte; len], 7).is_err());
            }
        }
    }
}
