//! `/proc/net/tcp`, `tcp6`, `udp`, `udp6` and `unix` (proc_pid_net(5)).

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::text::{Fields, Malformed, lines, narrow, number, split_once};

/// One socket of `tcp`, `tcp6`, `udp` or `udp6`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InetSocket {
    /// Own address.
    pub local: SocketAddr,
    /// The peer's address; unspecified without a peer.
    pub remote: SocketAddr,
    /// State; meaningful for TCP.
    pub state: TcpState,
    /// Inode: the number in `socket:[INODE]`. Zero when no descriptor is left.
    pub inode: u64,
}

/// State of a TCP connection, RFC 9293 section 3.3.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the RFC's")]
pub enum TcpState {
    Established,
    SynSent,
    SynReceived,
    FinWait1,
    FinWait2,
    TimeWait,
    Close,
    CloseWait,
    LastAck,
    Listen,
    Closing,
    /// A number this program does not know.
    Other(u8),
}

impl InetSocket {
    /// The sockets of a whole table; the heading is passed over.
    pub fn all(text: &[u8]) -> impl Iterator<Item = Result<InetSocket, Malformed>> + Clone {
        lines(text).skip(1).map(Self::parse)
    }

    /// Reads one line.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if it is no line of these tables.
    pub fn parse(line: &[u8]) -> Result<Self, Malformed> {
        Self::read(line).ok_or(Malformed { what: "net/tcp" })
    }

    fn read(line: &[u8]) -> Option<Self> {
        let mut fields = Fields::of(line);
        fields.next()?.strip_suffix(b":")?;
        let (local, remote) = (address(fields.next()?)?, address(fields.next()?)?);
        let state = TcpState::from_number(narrow(fields.next()?, 16)?);
        // Queues, timer, retransmissions, user, timeout.
        let inode = number(fields.nth(5)?, 10)?;
        Some(Self { local, remote, state, inode })
    }
}

impl TcpState {
    /// The state with the kernel's number, as in `tcp_info`.
    pub const fn from_number(number: u8) -> Self {
        match number {
            1 => TcpState::Established,
            2 => TcpState::SynSent,
            3 => TcpState::SynReceived,
            4 => TcpState::FinWait1,
            5 => TcpState::FinWait2,
            6 => TcpState::TimeWait,
            7 => TcpState::Close,
            8 => TcpState::CloseWait,
            9 => TcpState::LastAck,
            10 => TcpState::Listen,
            11 => TcpState::Closing,
            other => TcpState::Other(other),
        }
    }

    /// The name ss(8) and netstat(8) use.
    pub const fn name(self) -> &'static str {
        match self {
            TcpState::Established => "ESTABLISHED",
            TcpState::SynSent => "SYN-SENT",
            TcpState::SynReceived => "SYN-RECV",
            TcpState::FinWait1 => "FIN-WAIT-1",
            TcpState::FinWait2 => "FIN-WAIT-2",
            TcpState::TimeWait => "TIME-WAIT",
            TcpState::Close => "CLOSE",
            TcpState::CloseWait => "CLOSE-WAIT",
            TcpState::LastAck => "LAST-ACK",
            TcpState::Listen => "LISTEN",
            TcpState::Closing => "CLOSING",
            TcpState::Other(_) => "UNKNOWN",
        }
    }
}

/// `ADDRESS:PORT`. The kernel prints the address as words of 32 bits in the host's byte order, the port as a number.
fn address(text: &[u8]) -> Option<SocketAddr> {
    let (address, port) = split_once(text, b':')?;
    let word = |at: usize| -> Option<[u8; 4]> {
        address.get(at * 8..at * 8 + 8).and_then(|digits| narrow::<u32>(digits, 16)).map(u32::to_ne_bytes)
    };
    let ip = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut octets = [0; 16];
            for (at, chunk) in octets.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(at)?);
            }
            IpAddr::V6(Ipv6Addr::from(octets))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, narrow(port, 16)?))
}

/// One socket of `unix`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnixSocket<'a> {
    /// `SOCK_STREAM` 1, `SOCK_DGRAM` 2, `SOCK_SEQPACKET` 5.
    pub socket_type: u32,
    /// Whether it listens.
    pub listening: bool,
    /// Whether it is connected.
    pub connected: bool,
    /// Inode: the number in `socket:[INODE]`.
    pub inode: u64,
    /// Bound path; empty without; an abstract one has `@` in place of each zero byte.
    pub path: &'a [u8],
}

impl<'a> UnixSocket<'a> {
    /// The sockets of a whole table; the heading is passed over.
    pub fn all(text: &'a [u8]) -> impl Iterator<Item = Result<UnixSocket<'a>, Malformed>> + Clone + use<'a> {
        lines(text).skip(1).map(Self::parse)
    }

    /// Reads one line.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if it is no line of this table.
    pub fn parse(line: &'a [u8]) -> Result<Self, Malformed> {
        Self::read(line).ok_or(Malformed { what: "net/unix" })
    }

    fn read(line: &'a [u8]) -> Option<Self> {
        let mut fields = Fields::of(line);
        fields.next()?.strip_suffix(b":")?;
        // References and protocol.
        let flags: u32 = narrow(fields.nth(2)?, 16)?;
        let socket_type = narrow(fields.next()?, 16)?;
        let state: u32 = narrow(fields.next()?, 16)?;
        let inode = number(fields.next()?, 10)?;
        // One blank stands before the path, which may itself begin with one.
        let path = fields.rest();
        Some(Self { socket_type, listening: flags & SO_ACCEPTCON != 0, connected: state == SS_CONNECTED, inode, path })
    }
}

/// `include/uapi/linux/net.h`.
const SO_ACCEPTCON: u32 = 1 << 16;
const SS_CONNECTED: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcp_lines_name_both_ends() {
        let text = include_bytes!("../../testdata/net-tcp.txt");
        let sockets: Vec<_> = InetSocket::all(text).collect::<Result<_, _>>().unwrap();
        let listener = InetSocket {
            local: "127.0.0.1:45863".parse().unwrap(),
            remote: "0.0.0.0:0".parse().unwrap(),
            state: TcpState::Listen,
            inode: 24146,
        };
        assert_eq!(sockets[0], listener);
        assert_eq!(sockets[1].remote, "10.0.0.9:5432".parse().unwrap());
        assert_eq!(sockets[1].state.name(), "ESTABLISHED");
    }

    #[test]
    fn tcp6_addresses_are_put_together_from_words() {
        let line = b"   0: 00000000000000000000000001000000:ADC5 00000000000000000000000000000000:0000 0A 00000000:00000000 \
                     00:00000000 00000000     0        0 24149 1 000000005cd76620 100 0 0 10 0";
        let socket = InetSocket::parse(line).unwrap();
        assert_eq!((socket.local, socket.inode), ("[::1]:44485".parse().unwrap(), 24149));
    }

    #[test]
    fn unix_lines_may_have_a_path_with_blanks() {
        let text = include_bytes!("../../testdata/net-unix.txt");
        let sockets: Vec<_> = UnixSocket::all(text).collect::<Result<_, _>>().unwrap();
        let seen: Vec<_> =
            sockets.iter().map(|socket| (socket.socket_type, socket.listening, socket.connected, socket.path)).collect();
        let expected = [(1, false, true, &b""[..]), (2, false, false, b"/run/a b.sock"), (1, true, false, b"@abstract")];
        assert_eq!(seen, expected);
    }

    #[test]
    fn wrong_lines_are_refused() {
        for line in [&b""[..], b"0: 0100007F:1F90", b"0: 0100007:1F90 0100007F:0000 0A 0:0 0:0 0 0 0 1", b"sl local_address"] {
            assert!(InetSocket::parse(line).is_err());
            assert!(UnixSocket::parse(line).is_err());
        }
    }
}
