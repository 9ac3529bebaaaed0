//! Sockets: made anew, given their options, bound, listening or connected.

use core::cell::Cell;

use super::{BROKEN, F_DUPFD_CLOEXEC, close_on_exec, detail, place, place_pair, set_status};
use crate::{
    layout::{
        DescriptorStep, LISTENERS_MAX, Listeners,
        descriptors::{DescriptorRecord, Message, Socket, SocketOption, SocketPair, Span, find, sequence},
    },
    report::{self, Decimal},
    sys::{self, Errno, Result, Stat},
    syscall,
};

/// Listening sockets that a supervisor handed over (`LISTEN_FDS`, sd_listen_fds(3)): taken instead of binding again, so that
/// nobody is refused meanwhile.
pub struct Inherited {
    /// Where they were moved to, ascending; -1 where there is none.
    numbers: Listeners,
    /// Bit by bit: a recorded descriptor has taken it.
    taken: Cell<u32>,
}
const _: () = assert!(LISTENERS_MAX <= u32::BITS as usize);

impl Inherited {
    /// What was handed over, where it is.
    pub fn look(environment: *const *const u8) -> Self {
        let mut inherited = Self { numbers: [-1; LISTENERS_MAX], taken: Cell::new(0) };
        let is_meant = variable(environment, b"LISTEN_PID=").and_then(decimal) == syscall!(sys::SYS_GETPID).ok();
        let count = variable(environment, b"LISTEN_FDS=").and_then(decimal).unwrap_or(0);
        if is_meant {
            for (number, place) in (FIRST_INHERITED..).zip(inherited.numbers.iter_mut()).take(count) {
                *place = number;
            }
        }
        inherited
    }

    /// Moves what was handed over above the image's descriptor, out of the way of recorded numbers.
    pub fn step_aside(step: &DescriptorStep) -> Self {
        let mut inherited = Self::look(step.environment);
        let mut least = step.object_fd.wrapping_add(step.objects.len() as i32);
        for number in inherited.numbers.iter_mut().filter(|number| **number >= 0) {
            // One that cannot be moved is closed with the rest, and its address is bound again.
            let moved =
                if *number == step.image_fd { Err(BROKEN) } else { syscall!(sys::SYS_FCNTL, *number, F_DUPFD_CLOEXEC, least) };
            *number = moved.map_or(-1, |moved| moved as i32);
            least = least.max(*number);
        }
        inherited
    }

    pub fn numbers(&self) -> impl Iterator<Item = i32> + '_ {
        self.numbers.iter().copied().filter(|number| *number >= 0)
    }

    /// The one that listens at `address`.
    fn at(&self, address: &[u8]) -> Option<i32> {
        self.numbers().find(|number| {
            let (mut bytes, mut len) = ([0_u8; ADDRESS_BYTES_MAX], ADDRESS_BYTES_MAX as u32);
            let named = syscall!(sys::SYS_GETSOCKNAME, *number, bytes.as_mut_ptr(), &raw mut len);
            named.is_ok() && listens(*number) && bytes.get(..len as usize) == Some(address)
        })
    }

    /// Notes that a recorded descriptor has become a duplicate of `number`.
    fn take(&self, number: i32) {
        if let Some(at) = self.numbers.iter().position(|candidate| *candidate == number) {
            self.taken.set(self.taken.get() | 1 << at);
        }
    }

    /// Those that listen and nobody has taken, at the lowest free numbers: the service may bind their addresses itself. Closes the
    /// rest.
    pub fn leave_listeners(self) -> Listeners {
        let mut left = [0; LISTENERS_MAX];
        for (at, (number, place)) in self.numbers.iter().zip(left.iter_mut()).enumerate() {
            if *number < 0 {
                continue;
            }
            if self.taken.get() & 1 << at == 0 && listens(*number) {
                *place = syscall!(sys::SYS_FCNTL, *number, F_DUPFD_CLOEXEC, FIRST_INHERITED).map_or(0, |moved| moved as i32);
            }
            crate::check::close(*number);
        }
        left
    }
}

/// Whether the descriptor is a socket that listens.
fn listens(number: i32) -> bool {
    let (mut listens, mut four) = (0_u32, 4_u32);
    let asked = syscall!(sys::SYS_GETSOCKOPT, number, SOL_SOCKET, SO_ACCEPTCONN, &raw mut listens, &raw mut four);
    asked.is_ok() && listens != 0
}

/// Whether the socket's address can be had; says what is wrong. Nothing stays bound.
pub fn check(record: &DescriptorRecord, blob: &[u8], inherited: &Inherited) -> Result<()> {
    let socket: Socket = record.detail(blob).ok_or(BROKEN)?;
    let local = socket.local.of(blob).ok_or(BROKEN)?;
    let name = socket.name.of(blob).unwrap_or_default();
    let is_taken_over = socket.backlog >= 0 && inherited.at(local).is_some();
    if local.is_empty() || is_taken_over {
        return Ok(());
    }
    if let Some(file) = SocketFile::of(&socket, local) {
        // Binding would make the file.
        return match file.stat() {
            Ok(stat) if stat.mode & S_IFMT != S_IFSOCK || !is_deserted(&socket, local) => {
                Err(refused(&socket, name, Errno(EADDRINUSE)))
            }
            _ => Ok(()),
        };
    }
    let kind = socket.socket_type as usize | sys::O_CLOEXEC;
    let say = |errno| refused(&socket, name, errno);
    let probe = syscall!(sys::SYS_SOCKET, socket.domain, kind, socket.protocol).map_err(say)? as i32;
    let answer = options(blob, probe, socket.options).map_err(say).and_then(|()| bind(probe, &socket, local, name));
    crate::check::close(probe);
    answer
}

/// A socket that is bound, listens, is connected, or none of that.
pub fn socket(step: &DescriptorStep, record: &DescriptorRecord, inherited: &Inherited) -> Result<()> {
    let socket: Socket = detail(step, record)?;
    let local = socket.local.of(step.blob).ok_or(BROKEN)?;
    let name = socket.name.of(step.blob).unwrap_or_default();
    if socket.backlog >= 0
        && let Some(taken) = inherited.at(local)
    {
        syscall!(sys::SYS_DUP3, taken, record.number, close_on_exec(record))?;
        inherited.take(taken);
        return set_status(record);
    }
    let nonblocking = (record.status_flags & super::O_NONBLOCK) as usize;
    let kind = socket.socket_type as usize | nonblocking | close_on_exec(record);
    let made = syscall!(sys::SYS_SOCKET, socket.domain, kind, socket.protocol)? as i32;
    options(step.blob, made, socket.options)?;
    if !local.is_empty() {
        bind(made, &socket, local, name)?;
    }
    if socket.backlog >= 0
        && let Err(errno) = syscall!(sys::SYS_LISTEN, made, socket.backlog)
    {
        return Err(refused(&socket, name, errno));
    }
    let peer = socket.peer.of(step.blob).ok_or(BROKEN)?;
    if !peer.is_empty() {
        connect(made, &socket, peer)?;
    }
    place(made, record)
}

fn bind(made: i32, socket: &Socket, local: &[u8], name: &[u8]) -> Result<()> {
    if socket.domain != AF_UNIX && socket.socket_type == SOCK_STREAM {
        // Connections of the earlier life may still linger in TIME-WAIT.
        let one = 1_u32;
        syscall!(sys::SYS_SETSOCKOPT, made, SOL_SOCKET, SO_REUSEADDR, &raw const one, 4)
            .map_err(|errno| refused(socket, name, errno))?;
    }
    let path = SocketFile::of(socket, local);
    if let Some(path) = &path {
        path.remove_stale(socket, local);
    }
    match syscall!(sys::SYS_BIND, made, local.as_ptr(), local.len()) {
        Ok(_) => path.map_or(Ok(()), |path| path.give_back(socket)),
        // A client's own address is the kernel's choice: any will do, as long as it is its peer who is asked.
        Err(Errno(EADDRINUSE | EADDRNOTAVAIL)) if socket.domain != AF_UNIX && socket.peer.len != 0 => Ok(()),
        Err(errno) => Err(refused(socket, name, errno)),
    }
}

fn connect(made: i32, socket: &Socket, peer: &[u8]) -> Result<()> {
    match syscall!(sys::SYS_CONNECT, made, peer.as_ptr(), peer.len()) {
        // A service that is not there yet: sends fail until the socket's user connects again, as after its restart.
        Err(Errno(ENOENT | ECONNREFUSED)) if socket.domain == AF_UNIX => Ok(()),
        done => done.map(drop),
    }
}

/// Two connected sockets, or one whose peer is closed, with what was on its way.
pub fn pair(step: &DescriptorStep, record: &DescriptorRecord) -> Result<()> {
    let pair: SocketPair = detail(step, record)?;
    let mut ends = [0_i32; 2];
    let kind = pair.socket_type as usize | close_on_exec(record);
    syscall!(sys::SYS_SOCKETPAIR, AF_UNIX, kind, 0, ends.as_mut_ptr())?;
    let [own, other] = ends;
    options(step.blob, own, pair.options)?;
    options(step.blob, other, pair.partner_options)?;
    send(step, other, pair.inbound)?;
    send(step, own, pair.outbound)?;
    for (end, shutdown) in [(own, pair.shutdown), (other, pair.partner_shutdown)] {
        if shutdown != 0 {
            // 1 receiving, 2 sending, 3 both; the call counts from zero.
            syscall!(sys::SYS_SHUTDOWN, end, shutdown.wrapping_sub(1))?;
        }
    }
    let partner = find(step.records, pair.partner);
    place_pair(own, other, record, partner)?;
    set_status(record)?;
    partner.map_or(Ok(()), set_status)
}

/// Sends the messages through `from`, so that its peer receives them.
fn send(step: &DescriptorStep, from: i32, messages: Span) -> Result<()> {
    for message in sequence::<Message>(messages, step.blob) {
        let mut content = message.content.of(step.blob).ok_or(BROKEN)?;
        while !content.is_empty() {
            let sent = syscall!(sys::SYS_SENDTO, from, content.as_ptr(), content.len(), MSG_DONTWAIT, 0, 0)?;
            content = content.get(sent..).unwrap_or_default();
        }
    }
    Ok(())
}

fn options(blob: &[u8], socket: i32, options: Span) -> Result<()> {
    for option in sequence::<SocketOption>(options, blob) {
        let value = option.value.of(blob).ok_or(BROKEN)?;
        syscall!(sys::SYS_SETSOCKOPT, socket, option.level, option.name, value.as_ptr(), value.len())?;
    }
    Ok(())
}

/// The file a Unix socket is bound to.
struct SocketFile {
    path: [u8; ADDRESS_BYTES_MAX],
}

impl SocketFile {
    fn of(socket: &Socket, local: &[u8]) -> Option<Self> {
        let (_family, name) = local.split_at_checked(2)?;
        if socket.domain != AF_UNIX || !name.starts_with(b"/") {
            return None;
        }
        let mut path = [0; ADDRESS_BYTES_MAX];
        // One byte stays for the NUL, which an address of full length lacks.
        for (to, from) in path.iter_mut().take(ADDRESS_BYTES_MAX - 1).zip(name) {
            *to = *from;
        }
        Some(Self { path })
    }

    fn stat(&self) -> Result<Stat> {
        let mut stat = Stat::default();
        syscall!(sys::SYS_NEWFSTATAT, sys::AT_FDCWD, self.path.as_ptr(), &raw mut stat, AT_SYMLINK_NOFOLLOW)?;
        Ok(stat)
    }

    /// Removes the file that an earlier life left behind: a socket that nobody has open any more. Inodes are used again, so
    /// only the kernel's refusal to connect proves that. Any other file stays and makes bind(2) fail.
    fn remove_stale(&self, socket: &Socket, local: &[u8]) {
        let is_socket = self.stat().is_ok_and(|stat| stat.mode & S_IFMT == S_IFSOCK);
        if is_socket && is_deserted(socket, local) {
            // If it cannot be removed, bind(2) says so.
            let _ = syscall!(sys::SYS_UNLINKAT, sys::AT_FDCWD, self.path.as_ptr(), 0);
        }
    }

    /// Gives the fresh file the mode and owner of the earlier one.
    fn give_back(&self, socket: &Socket) -> Result<()> {
        let stat = self.stat()?;
        if (stat.uid, stat.gid) != (socket.file_uid, socket.file_gid) {
            let (uid, gid) = (socket.file_uid, socket.file_gid);
            syscall!(sys::SYS_FCHOWNAT, sys::AT_FDCWD, self.path.as_ptr(), uid, gid, AT_SYMLINK_NOFOLLOW)?;
        }
        if stat.mode != socket.file_mode {
            syscall!(sys::SYS_FCHMODAT, sys::AT_FDCWD, self.path.as_ptr(), socket.file_mode & 0o7777)?;
        }
        Ok(())
    }
}

/// Whether nobody is behind the socket file at `local`: connecting is refused.
fn is_deserted(socket: &Socket, local: &[u8]) -> bool {
    let kind = socket.socket_type as usize | SOCK_NONBLOCK | sys::O_CLOEXEC;
    let Ok(probe) = syscall!(sys::SYS_SOCKET, AF_UNIX, kind, 0) else { return false };
    let answer = syscall!(sys::SYS_CONNECT, probe, local.as_ptr(), local.len());
    crate::check::close(probe as i32);
    answer == Err(Errno(ECONNREFUSED))
}

#[cold]
fn refused(socket: &Socket, name: &[u8], errno: Errno) -> Errno {
    let what: &[u8] = if socket.backlog >= 0 { b"cannot listen on " } else { b"cannot bind to " };
    let number = Decimal::new(errno.0 as u64);
    let why: &[u8] = match errno.0 {
        EADDRINUSE => b"address in use",
        EADDRNOTAVAIL => b"no such address on this host",
        EACCES => b"permission denied",
        _ => b"errno ",
    };
    let number = if why == b"errno " { number.bytes() } else { b"" };
    report::say(&[what, name, b": ", why, number]);
    errno
}

/// The value of a variable; `name` ends in `=`.
pub fn variable(mut environment: *const *const u8, name: &[u8]) -> Option<&'static [u8]> {
    loop {
        // SAFETY: the vector ends with a null.
        let text = unsafe { environment.read() };
        if text.is_null() {
            return None;
        }
        // SAFETY: each entry is a NUL-terminated string, which lives as long as the vector.
        let text = unsafe { core::ffi::CStr::from_ptr(text.cast()) }.to_bytes();
        if let Some(value) = text.strip_prefix(name) {
            return Some(value);
        }
        environment = environment.wrapping_add(1);
    }
}

fn decimal(text: &[u8]) -> Option<usize> {
    let digits = !text.is_empty() && text.len() < 10 && text.iter().all(u8::is_ascii_digit);
    digits.then(|| text.iter().fold(0_usize, |sum, digit| sum.wrapping_mul(10).wrapping_add(usize::from(digit & 15))))
}

/// Behind the last number that a supervisor may hand over.
pub const INHERITED_END: i32 = FIRST_INHERITED + LISTENERS_MAX as i32;
/// `SD_LISTEN_FDS_START`.
const FIRST_INHERITED: i32 = 3;
const ADDRESS_BYTES_MAX: usize = 128;
const ENOENT: i32 = 2;
const EACCES: i32 = 13;
const EADDRINUSE: i32 = 98;
const EADDRNOTAVAIL: i32 = 99;
const ECONNREFUSED: i32 = 111;
const AF_UNIX: i32 = 1;
const SOCK_STREAM: i32 = 1;
const SOCK_NONBLOCK: usize = 0o4000;
const S_IFMT: u32 = 0o170_000;
const S_IFSOCK: u32 = 0o140_000;
const SOL_SOCKET: usize = 1;
const SO_REUSEADDR: usize = 2;
const SO_ACCEPTCONN: usize = 30;
const MSG_DONTWAIT: usize = 0x40;
const AT_SYMLINK_NOFOLLOW: usize = 0x100;
