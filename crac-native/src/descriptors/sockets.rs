//! Reads what the kernel tells about a socket.

use core::ffi::CStr;
use std::os::fd::{AsRawFd, OwnedFd};

use crac_sys::{
    Errno, descriptor, fs,
    socket::{self, OptionName},
    unix_diag::{Asker, UnixDiag},
};

use super::{
    facts::{Address, Fact, FileFact, OptionFact, Queue, SocketFact},
    keep,
    observe::file_fact,
};
use crate::arena::{Arena, ArenaVec};

/// Looks at sockets; keeps what it needs for all of them.
pub(super) struct Sockets<'a> {
    arena: &'a Arena,
    asker: Option<Asker>,
    /// Fresh sockets of the kinds met so far: what an option is like when nobody has set it.
    fresh: ArenaVec<'a, Fresh>,
    /// Closed when this goes.
    owned: [Option<OwnedFd>; KINDS_MAX],
    buffer: &'a mut [u8],
}

#[derive(Debug, Clone, Copy)]
struct Fresh {
    kind: (i32, i32, i32),
    number: i32,
}

impl<'a> Sockets<'a> {
    pub(super) fn new(arena: &'a Arena) -> Self {
        Self { arena, asker: None, fresh: ArenaVec::new(arena), owned: [const { None }; KINDS_MAX], buffer: &mut [] }
    }

    /// Everything about the socket `fact`.
    pub(super) fn observe(&mut self, fact: &Fact<'_>) -> Result<SocketFact<'a>, Errno> {
        let number = fact.number;
        let mut seen = SocketFact {
            domain: socket::option_number(number, OptionName::DOMAIN)?,
            socket_type: socket::option_number(number, OptionName::TYPE)?,
            protocol: socket::option_number(number, OptionName::PROTOCOL)?,
            listening: socket::option_number(number, OptionName::LISTENING)? != 0,
            backlog: -1,
            ..SocketFact::default()
        };
        if !matches!(seen.domain, libc::AF_UNIX | libc::AF_INET | libc::AF_INET6) {
            return Ok(seen);
        }
        let mut address = [0; socket::ADDRESS_BYTES_MAX];
        let len = socket::local_address(number, &mut address)?;
        seen.local = keep(self.arena, address.get(..len).unwrap_or_default())?;
        if let Ok(len) = socket::peer_address(number, &mut address) {
            seen.connected = true;
            seen.peer = keep(self.arena, address.get(..len).unwrap_or_default())?;
        }
        seen.read_hangup = descriptor::ready(number, libc::POLLRDHUP)? & libc::POLLRDHUP != 0;
        // A filter program cannot be read back as it was; its length can, and EACCES means an eBPF one.
        seen.filtered = socket::filter_instructions(number) != Ok(0);
        if seen.domain == libc::AF_UNIX {
            self.unix(fact, &mut seen)?;
        } else if seen.socket_type == libc::SOCK_STREAM {
            tcp(number, &mut seen);
        }
        if seen.connected && seen.domain != libc::AF_UNIX && seen.socket_type == libc::SOCK_STREAM {
            // Comes back dead or not at all; there may be thousands, and there are dozens of options.
            return Ok(seen);
        }
        let Some(fresh) = self.fresh((seen.domain, seen.socket_type, seen.protocol))? else { return Ok(seen) };
        seen.foreign_namespace = namespace(number).is_some_and(|cookie| namespace(fresh).is_some_and(|own| own != cookie));
        seen.options = self.options(number, fresh)?;
        Ok(seen)
    }

    fn unix(&mut self, fact: &Fact<'_>, seen: &mut SocketFact<'a>) -> Result<(), Errno> {
        if self.asker.is_none() {
            self.asker = Asker::open().ok();
        }
        let diag = self.asker.as_ref().and_then(|asker| asker.ask(fact.file.inode).ok());
        if let Some(diag) = &diag {
            seen.peer_inode = diag.peer;
            seen.shutdown = diag.shutdown;
            if seen.listening {
                (seen.waiting, seen.backlog) = match diag.queue {
                    Some((waiting, backlog)) => (waiting, i32::try_from(backlog).unwrap_or(-1)),
                    None => (0, -1),
                };
            }
        }
        if let Some(path) = Address(seen.local).path() {
            seen.file = socket_file(self.arena, path, diag.as_ref())?;
        }
        if !seen.listening {
            seen.queue = self.queue(fact.number, seen.socket_type)?;
        }
        Ok(())
    }

    /// What waits to be received from a Unix socket.
    fn queue(&mut self, number: i32, socket_type: i32) -> Result<Queue<'a>, Errno> {
        let empty = |errno: Errno| matches!(errno.number(), libc::EAGAIN | libc::ENOTCONN | libc::EINVAL);
        let first = match socket::peek(number, &mut []) {
            // Looking at no byte of a stream answers before it looks: ask for one.
            Ok(peeked) if peeked.bytes == 0 => socket::peek(number, &mut [0]),
            other => other,
        };
        match first {
            Err(errno) if empty(errno) => return Ok(Queue::Empty),
            Ok(peeked) if peeked.bytes == 0 && socket_type == libc::SOCK_STREAM => return Ok(Queue::Empty),
            Err(_) => return Ok(Queue::Opaque),
            Ok(_) => {}
        }
        let queued = descriptor::ioctl_number(number, descriptor::NumberRequest::Readable)?.max(0) as usize;
        if socket_type == libc::SOCK_STREAM {
            self.room(queued + 1)?;
            return match socket::peek(number, self.buffer) {
                Ok(peeked) if peeked.bytes == queued && !peeked.with_control => {
                    let content = keep(self.arena, self.buffer.get(..queued).unwrap_or_default())?;
                    let mut messages = ArenaVec::new(self.arena);
                    messages.push(content)?;
                    Ok(Queue::Messages(messages.into_slice()))
                }
                _ => Ok(Queue::Opaque),
            };
        }
        self.messages(number)
    }

    /// The messages of a datagram or packet socket: `SO_PEEK_OFF` moves on by what each look has seen.
    fn messages(&mut self, number: i32) -> Result<Queue<'a>, Errno> {
        let before = socket::option_number(number, OptionName::PEEK_OFFSET)?;
        if socket::set_peek_offset(number, 0).is_err() {
            return Ok(Queue::Opaque);
        }
        let mut messages = ArenaVec::new(self.arena);
        let whole = loop {
            self.room(MESSAGE_BYTES_MAX)?;
            match socket::peek(number, self.buffer) {
                Err(errno) if errno.number() == libc::EAGAIN => break true,
                // An empty message does not move the offset; the end of a packet stream looks the same.
                Ok(peeked) if (1..=self.buffer.len()).contains(&peeked.bytes) && !peeked.with_control => {
                    messages.push(keep(self.arena, self.buffer.get(..peeked.bytes).unwrap_or_default())?)?;
                }
                _ => break false,
            }
        };
        socket::set_peek_offset(number, before)?;
        Ok(if whole { Queue::Messages(messages.into_slice()) } else { Queue::Opaque })
    }

    fn room(&mut self, bytes: usize) -> Result<(), Errno> {
        if self.buffer.len() < bytes {
            self.buffer = self.arena.zeroed(bytes)?;
        }
        Ok(())
    }

    /// A socket of `kind` on which nothing has been set; nothing if it cannot be had.
    fn fresh(&mut self, kind: (i32, i32, i32)) -> Result<Option<i32>, Errno> {
        if let Some(fresh) = self.fresh.iter().find(|fresh| fresh.kind == kind) {
            return Ok(Some(fresh.number));
        }
        let Ok(opened) = socket::open(kind.0, kind.1, kind.2) else { return Ok(None) };
        let Some(place) = self.owned.iter_mut().find(|place| place.is_none()) else { return Ok(None) };
        let number = opened.as_raw_fd();
        *place = Some(opened);
        self.fresh.push(Fresh { kind, number })?;
        Ok(Some(number))
    }

    /// The options in which `number` differs from `fresh`.
    fn options(&self, number: i32, fresh: i32) -> Result<&'a [OptionFact<'a>], Errno> {
        let mut differing = ArenaVec::new(self.arena);
        for option in OptionName::KEPT {
            let (mut value, mut usual) = ([0; OptionName::BYTES_MAX], [0; OptionName::BYTES_MAX]);
            let Ok(len) = socket::option(number, *option, &mut value) else { continue };
            let usual = match socket::option(fresh, *option, &mut usual) {
                Ok(len) => usual.get(..len),
                Err(_) => None,
            };
            let value = value.get(..len).unwrap_or_default();
            if Some(value) == usual {
                continue;
            }
            let (level, name) = (option.level(), option.name());
            // The kernel answers with twice what was set, to account for its own bookkeeping.
            let halved = match (level, name, value.first_chunk()) {
                (libc::SOL_SOCKET, libc::SO_RCVBUF | libc::SO_SNDBUF, Some(bytes)) => {
                    Some((i32::from_ne_bytes(*bytes) / 2).to_ne_bytes())
                }
                _ => None,
            };
            let value = keep(self.arena, halved.as_ref().map_or(value, |halved| &halved[..]))?;
            differing.push(OptionFact { level, name, value })?;
        }
        Ok(differing.into_slice())
    }
}

/// The file a Unix socket is bound to, if the path still leads to the one it made.
fn socket_file(arena: &Arena, path: &[u8], diag: Option<&UnixDiag>) -> Result<Option<FileFact>, Errno> {
    let mut terminated = ArenaVec::new(arena);
    terminated.extend_from_slice(path)?;
    terminated.push(0)?;
    let Ok(name) = CStr::from_bytes_with_nul(&terminated) else { return Ok(None) };
    let Ok(stat) = fs::stat_path(name) else { return Ok(None) };
    let made = diag.and_then(|diag| diag.file);
    let device = libc::major(stat.st_dev) << 20 | libc::minor(stat.st_dev);
    let ours = made.is_none_or(|made| made == (stat.st_ino as u32, device));
    Ok((ours && stat.st_mode & libc::S_IFMT == libc::S_IFSOCK).then(|| file_fact(&stat)))
}

/// State and queue length, from the start of `struct tcp_info`.
fn tcp(number: i32, seen: &mut SocketFact<'_>) {
    let mut info = [0; 32];
    let Ok(len) = socket::option(number, OptionName::TCP_INFO, &mut info) else { return };
    seen.tcp_state = info[0];
    if seen.listening && len >= 32 {
        // tcpi_unacked and tcpi_sacked of a listening socket.
        seen.waiting = u32::from_ne_bytes([info[24], info[25], info[26], info[27]]);
        seen.backlog = i32::from_ne_bytes([info[28], info[29], info[30], info[31]]);
    }
}

/// The cookie of a socket's network namespace (Linux 5.14).
fn namespace(number: i32) -> Option<[u8; 8]> {
    let mut cookie = [0; 8];
    (socket::option(number, OptionName::NAMESPACE, &mut cookie) == Ok(8)).then_some(cookie)
}

/// Kinds of sockets for which a fresh one is kept: families, types and protocols that come back.
const KINDS_MAX: usize = 16;
/// Longest message that is looked at.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
