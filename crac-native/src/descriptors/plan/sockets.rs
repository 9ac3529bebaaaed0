//! Sockets.

use core::fmt;

use crac_core::{Action, ObstacleKind};
use crac_sys::{Errno, proc::TcpState};

use super::{ArenaVec, Planner};
use crate::{
    descriptors::facts::{Address, Fact, OptionFact, Queue, SocketFact, State},
    layout::descriptors::{Duplicate, Message, Socket, SocketOption, SocketPair, Span, kind},
};

impl<'f> Planner<'_, 'f, '_> {
    pub(super) fn socket(&mut self, fact: &'f Fact<'f>, socket: &SocketFact<'_>) -> Result<(), Errno> {
        let text = Description(socket);
        if socket.foreign_namespace {
            let what = format_args!("{text}, in another network namespace");
            return self.refuse_ok(ObstacleKind::SocketOther, fact, what);
        }
        match (socket.domain, socket.socket_type, socket.protocol) {
            (libc::AF_INET | libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_TCP) => self.tcp(fact, socket),
            (libc::AF_INET | libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_UDP) => {
                self.plain(fact, socket, ObstacleKind::UdpSocket, is_bound(socket))
            }
            (libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_DGRAM | libc::SOCK_SEQPACKET, _) => self.unix(fact, socket),
            _ => self.refuse_ok(ObstacleKind::SocketOther, fact, format_args!("{text}")),
        }
    }

    fn tcp(&mut self, fact: &Fact<'_>, socket: &SocketFact<'_>) -> Result<(), Errno> {
        match TcpState::from_number(socket.tcp_state) {
            TcpState::Listen => self.plain(fact, socket, ObstacleKind::TcpListener, true),
            // A connection that is over: its users have yet to find out, and they will.
            TcpState::Close if socket.read_hangup => self.dead(fact, libc::SOCK_STREAM),
            TcpState::Close => self.plain(fact, socket, ObstacleKind::TcpListener, is_bound(socket)),
            _ if self.allows_address(ObstacleKind::TcpEstablished, socket.peer, Action::Sever)? => {
                self.dead(fact, libc::SOCK_STREAM)
            }
            _ => self.refuse_ok(ObstacleKind::TcpEstablished, fact, format_args!("{}", Description(socket))),
        }
    }

    fn unix(&mut self, fact: &'f Fact<'f>, socket: &SocketFact<'_>) -> Result<(), Errno> {
        let text = Description(socket);
        let is_datagram = socket.socket_type == libc::SOCK_DGRAM;
        let refusal = match (socket.listening, is_datagram) {
            (true, _) => ObstacleKind::UnixListener,
            (false, true) => ObstacleKind::UdpSocket,
            (false, false) => ObstacleKind::UnixConnected,
        };
        let is_named = socket.local.len() > 2;
        if !socket.connected || (is_datagram && is_named) {
            return self.plain_unix(fact, socket, refusal, is_named);
        }
        if let Some(number) = self.links.peer(fact, socket) {
            let peer = self.fact(number).map(|peer| (peer, peer.state));
            let Some((peer, State::Socket(peer_socket))) = peer else { return Err(Errno::new(libc::EPROTO)) };
            if number < fact.number {
                return self.push(fact, kind::PARTNER, Span::default());
            }
            return self.pair(fact, socket, Some((peer, &peer_socket)));
        }
        match socket.peer_inode {
            // The peer is closed; what it sent may still be unread.
            Some(0) if socket.shutdown == SHUTDOWN_BOTH || is_datagram => self.pair(fact, socket, None),
            Some(_) if is_datagram && socket.peer.len() > 2 => self.plain_unix(fact, socket, refusal, false),
            peer => {
                let name = if socket.peer.len() > 2 { socket.peer } else { socket.local };
                if self.allows_address(ObstacleKind::UnixConnected, name, Action::Sever)? {
                    return self.dead(fact, socket.socket_type);
                }
                let why = match peer {
                    Some(_) => "its peer is another process",
                    None => "its peer cannot be found out: the kernel offers no sock_diag(7) for Unix sockets",
                };
                self.refuse_ok(ObstacleKind::UnixConnected, fact, format_args!("{text}, {why}"))
            }
        }
    }

    fn plain_unix(&mut self, fact: &Fact<'_>, socket: &SocketFact<'_>, refusal: ObstacleKind, bind: bool) -> Result<(), Errno> {
        let text = Description(socket);
        let relative = Address(socket.local).path().is_some_and(|path| !path.starts_with(b"/"));
        if relative {
            return self.refuse_ok(refusal, fact, format_args!("{text}, bound to a relative path"));
        }
        if bind && Address(socket.local).path().is_some() && socket.file.is_none() {
            return self.refuse_ok(refusal, fact, format_args!("{text}, whose file was removed or replaced"));
        }
        if !matches!(socket.queue, Queue::Empty) {
            return self.refuse_ok(refusal, fact, format_args!("{text}, with unread messages"));
        }
        self.plain(fact, socket, refusal, bind)
    }

    /// A socket that is made anew, bound if `bind`, and listens or is connected if this one is.
    fn plain(&mut self, fact: &Fact<'_>, socket: &SocketFact<'_>, refusal: ObstacleKind, bind: bool) -> Result<(), Errno> {
        if socket.filtered {
            let what = format_args!("{}, with a packet filter, which cannot be read back", Description(socket));
            return self.refuse_ok(refusal, fact, what);
        }
        if socket.listening && socket.waiting > 0 {
            let kind = if socket.domain == libc::AF_UNIX { ObstacleKind::UnixConnected } else { ObstacleKind::TcpEstablished };
            if !self.allows_address(kind, socket.local, Action::Sever)? {
                let what = format_args!("{}, {} connection(s) wait to be accepted", Description(socket), socket.waiting);
                return self.refuse_ok(kind, fact, what);
            }
        }
        let options = self.options(socket.options)?;
        let local = self.bytes(if bind { socket.local } else { &[] })?;
        let peer = self.bytes(if socket.connected { socket.peer } else { &[] })?;
        let name = self.text(format_args!("{}", Address(socket.local)))?;
        let file = if bind { socket.file.unwrap_or_default() } else { Default::default() };
        let backlog = match (socket.listening, socket.backlog) {
            (false, _) => -1,
            (true, unknown) if unknown < 0 => BACKLOG_UNKNOWN,
            (true, backlog) => backlog,
        };
        let detail = Socket {
            domain: socket.domain,
            socket_type: socket.socket_type,
            protocol: socket.protocol,
            backlog,
            options,
            local,
            peer,
            name,
            file_mode: file.mode,
            file_uid: file.uid,
            file_gid: file.gid,
        };
        self.record(fact, kind::SOCKET, &detail)
    }

    fn pair(
        &mut self,
        fact: &Fact<'_>,
        socket: &SocketFact<'_>,
        peer: Option<(&Fact<'_>, &SocketFact<'_>)>,
    ) -> Result<(), Errno> {
        let empty = SocketFact::default();
        let (partner, peer_socket) = peer.map_or((-1, &empty), |(peer, socket)| (peer.number, socket));
        let (Some(inbound), Some(outbound)) = (self.messages(socket.queue)?, self.messages(peer_socket.queue)?) else {
            let what = format_args!("{}, whose unread messages cannot be copied", Description(socket));
            return self.refuse_ok(ObstacleKind::UnixConnected, fact, what);
        };
        let detail = SocketPair {
            socket_type: socket.socket_type as u32,
            partner,
            // A closed peer shuts down both directions by itself.
            shutdown: if partner == -1 { 0 } else { socket.shutdown },
            partner_shutdown: peer_socket.shutdown,
            inbound,
            outbound,
            options: self.options(socket.options)?,
            partner_options: self.options(peer_socket.options)?,
        };
        self.record(fact, kind::SOCKET_PAIR, &detail)
    }

    /// A socket without a peer: reads end, writes fail. One is made, and shared by all of its type and flags.
    fn dead(&mut self, fact: &Fact<'_>, socket_type: i32) -> Result<(), Errno> {
        let flags = fact.status_flags & libc::O_NONBLOCK as u32;
        let known = self.dead.iter().find(|(kind, same, _)| (*kind, *same) == (socket_type, flags)).map(|(_, _, number)| *number);
        if let Some(of) = known {
            return self.record(fact, kind::DUPLICATE, &Duplicate { of });
        }
        self.dead.push((socket_type, flags, fact.number))?;
        self.record(
            fact,
            kind::SOCKET_PAIR,
            &SocketPair { socket_type: socket_type as u32, partner: -1, ..SocketPair::default() },
        )
    }

    /// The queue's messages; nothing if they cannot be copied.
    fn messages(&mut self, queue: Queue<'_>) -> Result<Option<Span>, Errno> {
        let messages = match queue {
            Queue::Empty => &[],
            Queue::Messages(messages) => messages,
            Queue::Opaque => return Ok(None),
        };
        let mut spans = ArenaVec::new(self.blob.arena());
        for message in messages {
            spans.push(self.bytes(message)?)?;
        }
        let start = self.blob.len();
        for content in spans.iter() {
            self.detail(&Message { content: *content })?;
        }
        super::span(start, self.blob.len()).map(Some)
    }

    fn options(&mut self, options: &[OptionFact<'_>]) -> Result<Span, Errno> {
        let mut kept = ArenaVec::new(self.blob.arena());
        for option in options {
            kept.push(SocketOption { level: option.level, name: option.name, value: self.bytes(option.value)? })?;
        }
        let start = self.blob.len();
        for option in kept.iter() {
            self.detail(option)?;
        }
        super::span(start, self.blob.len())
    }

    fn text(&mut self, text: fmt::Arguments<'_>) -> Result<Span, Errno> {
        let start = self.blob.len();
        fmt::Write::write_fmt(&mut self.blob, text).map_err(|_| Errno::new(libc::ENOMEM))?;
        super::span(start, self.blob.len())
    }

    fn allows_address(&mut self, kind: ObstacleKind, address: &[u8], action: Action) -> Result<bool, Errno> {
        let mut name = ArenaVec::new(self.blob.arena());
        fmt::Write::write_fmt(&mut name, format_args!("{}", Address(address))).map_err(|_| Errno::new(libc::ENOMEM))?;
        Ok(self.allows(kind, &name, action))
    }
}

/// Whether the socket has an address of its own.
fn is_bound(socket: &SocketFact<'_>) -> bool {
    Address(socket.local).internet().is_some_and(|address| address.port() != 0 || !address.ip().is_unspecified())
}

/// A socket for people: `TCP 10.0.0.5:41234 -> 10.0.0.9:5432, ESTABLISHED`.
struct Description<'a>(&'a SocketFact<'a>);

impl fmt::Display for Description<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SocketFact { domain, socket_type, protocol, local, peer, connected, .. } = *self.0;
        let is_tcp = socket_type == libc::SOCK_STREAM && protocol == libc::IPPROTO_TCP;
        match (domain, socket_type) {
            (libc::AF_INET | libc::AF_INET6, libc::SOCK_STREAM) if is_tcp => f.write_str("TCP")?,
            (libc::AF_INET | libc::AF_INET6, libc::SOCK_DGRAM) if protocol == libc::IPPROTO_UDP => f.write_str("UDP")?,
            (libc::AF_UNIX, libc::SOCK_STREAM) => f.write_str("Unix stream")?,
            (libc::AF_UNIX, libc::SOCK_DGRAM) => f.write_str("Unix datagram")?,
            (libc::AF_UNIX, libc::SOCK_SEQPACKET) => f.write_str("Unix seqpacket")?,
            (libc::AF_NETLINK, _) => return write!(f, "netlink socket, protocol {protocol}"),
            (libc::AF_PACKET, _) => return f.write_str("packet socket"),
            (libc::AF_VSOCK, _) => return f.write_str("vsock socket"),
            _ => return write!(f, "socket of family {domain}, type {socket_type}, protocol {protocol}"),
        }
        write!(f, " {}", Address(local))?;
        if connected {
            write!(f, " -> {}", Address(peer))?;
        }
        if is_tcp {
            write!(f, ", {}", TcpState::from_number(self.0.tcp_state).name())?;
        }
        Ok(())
    }
}

const SHUTDOWN_BOTH: u32 = 3;
/// What most programs ask for when the kernel does not tell: `SOMAXCONN`.
const BACKLOG_UNKNOWN: i32 = 4096;
