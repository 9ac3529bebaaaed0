//! Sockets, by number: those of others are looked at, not taken.
#![expect(unsafe_code, reason = "system calls and descriptors received from the kernel")]

use std::{
    mem::MaybeUninit,
    os::fd::{FromRawFd, OwnedFd, RawFd},
    ptr,
};

use crate::{errno::Result, raw::syscall};

/// Room for any socket address (`struct sockaddr_storage`).
pub const ADDRESS_BYTES_MAX: usize = 128;

/// Creates a socket (`socket(2)`). `SOCK_CLOEXEC` is added.
pub fn open(domain: i32, socket_type: i32, protocol: i32) -> Result<OwnedFd> {
    let args = [domain as usize, (socket_type | libc::SOCK_CLOEXEC) as usize, protocol as usize, 0, 0, 0];
    // SAFETY: socket touches no memory.
    let fd = unsafe { syscall(libc::SYS_socket, args) }?;
    // SAFETY: the kernel has just handed this descriptor out and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// A socket option that may be read into any buffer: the kernel writes no more than the buffer holds, and nothing elsewhere.
///
/// There are others: `SO_GET_FILTER` counts in instructions, `TCP_ZEROCOPY_RECEIVE` follows addresses in the buffer. So only
/// the options named here can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionName {
    level: i32,
    name: i32,
}

impl OptionName {
    /// `AF_*`.
    pub const DOMAIN: Self = Self { level: libc::SOL_SOCKET, name: libc::SO_DOMAIN };
    /// `SOCK_*`.
    pub const TYPE: Self = Self { level: libc::SOL_SOCKET, name: libc::SO_TYPE };
    /// `IPPROTO_*`.
    pub const PROTOCOL: Self = Self { level: libc::SOL_SOCKET, name: libc::SO_PROTOCOL };
    /// Whether the socket listens.
    pub const LISTENING: Self = Self { level: libc::SOL_SOCKET, name: libc::SO_ACCEPTCONN };
    /// Where the next look with `MSG_PEEK` begins; -1 if looks do not move on.
    pub const PEEK_OFFSET: Self = Self { level: libc::SOL_SOCKET, name: libc::SO_PEEK_OFF };
    /// Cookie of the network namespace, eight bytes (Linux 5.14).
    pub const NAMESPACE: Self = Self { level: libc::SOL_SOCKET, name: 71 };
    /// `struct tcp_info`, as far as the buffer goes (tcp(7)).
    pub const TCP_INFO: Self = Self { level: libc::IPPROTO_TCP, name: libc::TCP_INFO };

    /// Longest value of an option in [`KEPT`](Self::KEPT): an interface or congestion control name, `struct timeval`.
    pub const BYTES_MAX: usize = 16;

    /// The options a socket can be given again, in the order in which they are to be set: socket(7), ip(7), ipv6(7), tcp(7),
    /// udp(7).
    pub const KEPT: &'static [Self] = &[
        Self { level: libc::SOL_SOCKET, name: libc::SO_REUSEADDR },
        Self { level: libc::SOL_SOCKET, name: libc::SO_REUSEPORT },
        Self { level: libc::SOL_SOCKET, name: libc::SO_BINDTODEVICE },
        Self { level: libc::SOL_SOCKET, name: libc::SO_BROADCAST },
        Self { level: libc::SOL_SOCKET, name: libc::SO_KEEPALIVE },
        Self { level: libc::SOL_SOCKET, name: libc::SO_LINGER },
        Self { level: libc::SOL_SOCKET, name: libc::SO_OOBINLINE },
        Self { level: libc::SOL_SOCKET, name: libc::SO_PASSCRED },
        Self { level: libc::SOL_SOCKET, name: libc::SO_PRIORITY },
        Self { level: libc::SOL_SOCKET, name: libc::SO_MARK },
        Self { level: libc::SOL_SOCKET, name: libc::SO_RCVBUF },
        Self { level: libc::SOL_SOCKET, name: libc::SO_SNDBUF },
        Self { level: libc::SOL_SOCKET, name: libc::SO_RCVLOWAT },
        Self { level: libc::SOL_SOCKET, name: libc::SO_RCVTIMEO },
        Self { level: libc::SOL_SOCKET, name: libc::SO_SNDTIMEO },
        Self { level: libc::SOL_SOCKET, name: libc::SO_TIMESTAMP },
        Self { level: libc::SOL_SOCKET, name: libc::SO_TIMESTAMPNS },
        Self { level: libc::SOL_SOCKET, name: libc::SO_RXQ_OVFL },
        Self { level: libc::SOL_SOCKET, name: libc::SO_PEEK_OFF },
        Self { level: libc::SOL_SOCKET, name: libc::SO_BUSY_POLL },
        Self { level: libc::SOL_SOCKET, name: libc::SO_ZEROCOPY },
        Self { level: libc::IPPROTO_IPV6, name: libc::IPV6_V6ONLY },
        Self { level: libc::IPPROTO_IPV6, name: libc::IPV6_UNICAST_HOPS },
        Self { level: libc::IPPROTO_IPV6, name: libc::IPV6_MULTICAST_HOPS },
        Self { level: libc::IPPROTO_IPV6, name: libc::IPV6_MULTICAST_LOOP },
        Self { level: libc::IPPROTO_IPV6, name: libc::IPV6_MULTICAST_IF },
        Self { level: libc::IPPROTO_IPV6, name: libc::IPV6_RECVPKTINFO },
        Self { level: libc::IPPROTO_IPV6, name: libc::IPV6_RECVTCLASS },
        Self { level: libc::IPPROTO_IPV6, name: libc::IPV6_RECVHOPLIMIT },
        Self { level: libc::IPPROTO_IPV6, name: libc::IPV6_TCLASS },
        Self { level: libc::IPPROTO_IPV6, name: libc::IPV6_MTU_DISCOVER },
        Self { level: libc::IPPROTO_IPV6, name: libc::IPV6_RECVERR },
        Self { level: libc::IPPROTO_IPV6, name: libc::IPV6_FREEBIND },
        Self { level: libc::IPPROTO_IP, name: libc::IP_TOS },
        Self { level: libc::IPPROTO_IP, name: libc::IP_TTL },
        Self { level: libc::IPPROTO_IP, name: libc::IP_FREEBIND },
        Self { level: libc::IPPROTO_IP, name: libc::IP_TRANSPARENT },
        Self { level: libc::IPPROTO_IP, name: libc::IP_MULTICAST_TTL },
        Self { level: libc::IPPROTO_IP, name: libc::IP_MULTICAST_LOOP },
        Self { level: libc::IPPROTO_IP, name: libc::IP_PKTINFO },
        Self { level: libc::IPPROTO_IP, name: libc::IP_RECVTOS },
        Self { level: libc::IPPROTO_IP, name: libc::IP_RECVTTL },
        Self { level: libc::IPPROTO_IP, name: libc::IP_RECVERR },
        Self { level: libc::IPPROTO_IP, name: libc::IP_MTU_DISCOVER },
        Self { level: libc::IPPROTO_TCP, name: libc::TCP_NODELAY },
        Self { level: libc::IPPROTO_TCP, name: libc::TCP_KEEPIDLE },
        Self { level: libc::IPPROTO_TCP, name: libc::TCP_KEEPINTVL },
        Self { level: libc::IPPROTO_TCP, name: libc::TCP_KEEPCNT },
        Self { level: libc::IPPROTO_TCP, name: libc::TCP_SYNCNT },
        Self { level: libc::IPPROTO_TCP, name: libc::TCP_LINGER2 },
        Self { level: libc::IPPROTO_TCP, name: libc::TCP_DEFER_ACCEPT },
        Self { level: libc::IPPROTO_TCP, name: libc::TCP_USER_TIMEOUT },
        Self { level: libc::IPPROTO_TCP, name: libc::TCP_FASTOPEN },
        Self { level: libc::IPPROTO_TCP, name: libc::TCP_CONGESTION },
        Self { level: libc::IPPROTO_TCP, name: 25 },
        Self { level: libc::IPPROTO_UDP, name: libc::UDP_CORK },
        Self { level: libc::IPPROTO_UDP, name: libc::UDP_SEGMENT },
        Self { level: libc::IPPROTO_UDP, name: libc::UDP_GRO },
    ];

    /// `SOL_*` or `IPPROTO_*`.
    pub const fn level(self) -> i32 {
        self.level
    }

    /// The number within its level.
    pub const fn name(self) -> i32 {
        self.name
    }
}

/// Reads a socket option into `into` (`getsockopt(2)`) and returns how many bytes the kernel wrote.
pub fn option(fd: RawFd, option: OptionName, into: &mut [u8]) -> Result<usize> {
    let mut len = u32::try_from(into.len()).unwrap_or(u32::MAX);
    let at = ptr::from_mut(&mut len) as usize;
    let args = [fd as usize, option.level as usize, option.name as usize, into.as_mut_ptr() as usize, at, 0];
    // SAFETY: for every `OptionName` getsockopt writes at most `len` bytes into the exclusively borrowed buffer, and the length.
    unsafe { syscall(libc::SYS_getsockopt, args) }?;
    Ok((len as usize).min(into.len()))
}

/// Reads a socket option that is one 32-bit number.
pub fn option_number(fd: RawFd, name: OptionName) -> Result<i32> {
    let mut value = [0; 4];
    option(fd, name, &mut value)?;
    Ok(i32::from_ne_bytes(value))
}

/// How many instructions the socket's packet filter has; zero without one (`SO_GET_FILTER`, socket(7)).
///
/// # Errors
///
/// `EACCES` if the filter is an eBPF program.
pub fn filter_instructions(fd: RawFd) -> Result<usize> {
    let mut len = 0_u32;
    let at = ptr::from_mut(&mut len) as usize;
    let args = [fd as usize, libc::SOL_SOCKET as usize, libc::SO_GET_FILTER as usize, 0, at, 0];
    // SAFETY: with room for no instruction the kernel stores their number and nothing else.
    unsafe { syscall(libc::SYS_getsockopt, args) }?;
    Ok(len as usize)
}

/// Sets where the next look with `MSG_PEEK` begins (`SO_PEEK_OFF`); -1 if looks are not to move on.
pub fn set_peek_offset(fd: RawFd, offset: i32) -> Result<()> {
    let at = ptr::from_ref(&offset) as usize;
    let args = [fd as usize, libc::SOL_SOCKET as usize, libc::SO_PEEK_OFF as usize, at, 4, 0];
    // SAFETY: setsockopt reads four bytes of a live number.
    unsafe { syscall(libc::SYS_setsockopt, args) }.map(drop)
}

/// The address a socket is bound to (`getsockname(2)`); the length may be that of the family alone.
pub fn local_address(fd: RawFd, into: &mut [u8; ADDRESS_BYTES_MAX]) -> Result<usize> {
    address(libc::SYS_getsockname, fd, into)
}

/// The address a socket is connected to (`getpeername(2)`).
pub fn peer_address(fd: RawFd, into: &mut [u8; ADDRESS_BYTES_MAX]) -> Result<usize> {
    address(libc::SYS_getpeername, fd, into)
}

fn address(number: libc::c_long, fd: RawFd, into: &mut [u8; ADDRESS_BYTES_MAX]) -> Result<usize> {
    let mut len = ADDRESS_BYTES_MAX as u32;
    let args = [fd as usize, into.as_mut_ptr() as usize, ptr::from_mut(&mut len) as usize, 0, 0, 0];
    // SAFETY: the call writes at most `len` bytes into the exclusively borrowed buffer, and the length itself.
    unsafe { syscall(number, args) }?;
    Ok((len as usize).min(ADDRESS_BYTES_MAX))
}

/// What [`peek`] saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peeked {
    /// Bytes, or with `MSG_TRUNC` the true length of the message.
    pub bytes: usize,
    /// Whether credentials or descriptors travel with the bytes.
    pub with_control: bool,
}

/// Looks at what could be received without receiving it (`recvmsg(2)` with `MSG_PEEK | MSG_DONTWAIT | MSG_TRUNC`).
///
/// # Errors
///
/// `EAGAIN` if there is nothing. Zero bytes are an empty message or the end of the stream.
pub fn peek(fd: RawFd, into: &mut [u8]) -> Result<Peeked> {
    let mut part = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let mut message = MaybeUninit::<libc::msghdr>::zeroed();
    let header = message.as_mut_ptr();
    // SAFETY: `header` points at the zeroed structure above; an all-zero `msghdr` is valid.
    let header = unsafe { &mut *header };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    // SAFETY: the one part names the exclusively borrowed buffer; there is no room for an address or control data.
    let bytes = unsafe { syscall(libc::SYS_recvmsg, [fd as usize, ptr::from_mut(header) as usize, flags as usize, 0, 0, 0]) }?;
    Ok(Peeked { bytes, with_control: header.msg_flags & libc::MSG_CTRUNC != 0 })
}

/// Sends `bytes` to the kernel's end of a netlink socket, or to a connected peer (`sendto(2)` without an address).
pub fn send(fd: RawFd, bytes: &[u8]) -> Result<usize> {
    let args = [fd as usize, bytes.as_ptr() as usize, bytes.len(), libc::MSG_NOSIGNAL as usize, 0, 0];
    // SAFETY: sendto reads the borrowed buffer; there is no address.
    unsafe { syscall(libc::SYS_sendto, args) }
}

/// Receives without waiting (`recvfrom(2)` with `MSG_DONTWAIT`).
pub fn receive(fd: RawFd, into: &mut [u8]) -> Result<usize> {
    let args = [fd as usize, into.as_mut_ptr() as usize, into.len(), libc::MSG_DONTWAIT as usize, 0, 0];
    // SAFETY: recvfrom writes at most `into.len()` bytes into the exclusively borrowed buffer; no address is asked for.
    unsafe { syscall(libc::SYS_recvfrom, args) }
}
