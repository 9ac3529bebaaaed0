//! Talking to one service over its control socket; the words are in `crac_core::control`.

use std::{
    io::{self, ErrorKind, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    path::Path,
    time::{Duration, Instant},
};

use crac_core::{
    Status,
    control::{ControlReply, ControlRequest},
};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use serde::Serialize;

/// The longest reply line that is read, in bytes.
const REPLY_BYTES_MAX: usize = 16 << 20;

/// One request and its replies.
#[derive(Debug)]
pub(crate) struct Conversation {
    stream: UnixStream,
    /// What was read and not yet understood.
    pending: Vec<u8>,
    deadline: Instant,
}

/// Why a conversation broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TalkError {
    /// Nobody listens there: the socket is what is left of a process that is gone.
    #[error("nobody listens there")]
    Nobody,
    #[error("it did not answer in time")]
    TimedOut,
    #[error("its socket is served by user {0}, neither root nor the user of this command")]
    Stranger(u32),
    #[error("it said something this version of crac does not understand: {0}")]
    NotUnderstood(String),
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl Conversation {
    /// Connects to `socket` and sends `request`. All of the conversation has to be over by `deadline`.
    ///
    /// # Errors
    ///
    /// [`TalkError`]; the service has then not understood the request.
    pub(crate) fn open(socket: &Path, request: &ControlRequest, deadline: Instant) -> Result<Self, TalkError> {
        let mut this = Self::connect(socket, deadline)?;
        this.tell(request)?;
        Ok(this)
    }

    /// Connects to `socket`, and says nothing yet.
    ///
    /// # Errors
    ///
    /// [`TalkError`].
    pub(crate) fn connect(socket: &Path, deadline: Instant) -> Result<Self, TalkError> {
        Ok(Self { stream: connect(socket, left(deadline)?)?, pending: Vec::new(), deadline })
    }

    /// Says `words`, in one line.
    ///
    /// # Errors
    ///
    /// [`TalkError`]; they are then not understood.
    pub(crate) fn tell(&mut self, words: &impl Serialize) -> Result<(), TalkError> {
        let mut line = serde_json::to_vec(words).map_err(io::Error::from)?;
        line.push(b'\n');
        self.stream.set_write_timeout(Some(left(self.deadline)?))?;
        self.stream.write_all(&line).map_err(timed_out)
    }

    /// Process and user who serve the socket, by the kernel's word (unix(7), `SO_PEERCRED`).
    ///
    /// # Errors
    ///
    /// What the system says.
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    pub(crate) fn peer(&self) -> io::Result<(u32, u32)> {
        let peer = sockopt::socket_peercred(&self.stream)?;
        Ok((peer.pid.as_raw_nonzero().get().unsigned_abs(), peer.uid.as_raw()))
    }

    /// The connection, for whoever looks whether there is something to hear.
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Asks the service at `socket` what it is doing.
    ///
    /// # Errors
    ///
    /// [`TalkError`].
    pub(crate) fn status(socket: &Path, deadline: Instant) -> Result<Status, TalkError> {
        match Self::open(socket, &ControlRequest::Status, deadline)?.next()? {
            Some(ControlReply::Status(status)) => Ok(*status),
            Some(ControlReply::Error { what }) => Err(TalkError::NotUnderstood(what)),
            Some(other) => Err(TalkError::NotUnderstood(format!("{other:?}"))),
            None => Err(TalkError::Io(ErrorKind::UnexpectedEof.into())),
        }
    }

    /// The next reply; `None` at the end of the conversation, which for a service that has just ended may also be a reset.
    ///
    /// # Errors
    ///
    /// [`TalkError`].
    pub(crate) fn next(&mut self) -> Result<Option<ControlReply>, TalkError> {
        loop {
            if let Some(at) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=at).collect();
                return match serde_json::from_slice(&line) {
                    Ok(reply) => Ok(Some(reply)),
                    Err(_) => Err(TalkError::NotUnderstood(String::from_utf8_lossy(&line).trim_end().to_owned())),
                };
            }
            if self.pending.len() > REPLY_BYTES_MAX {
                return Err(TalkError::NotUnderstood(format!("a line of more than {REPLY_BYTES_MAX} bytes")));
            }
            let mut part = [0; 16 * 1024];
            self.stream.set_read_timeout(Some(left(self.deadline)?))?;
            match self.stream.read(&mut part) {
                // What is left was cut off in the middle of a line: nobody meant it to be read.
                Ok(0) => return Ok(None),
                Ok(read) => self.pending.extend_from_slice(&part[..read]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(timed_out(error)),
            }
        }
    }
}

/// Connects within `limit`, and only to a service of this user or of root: others could pretend anything.
fn connect(socket: &Path, limit: Duration) -> Result<UnixStream, TalkError> {
    let fd =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).map_err(io::Error::from)?;
    // Connecting waits while the queue of the service is full; the time limit for sending holds for that, too.
    sockopt::set_socket_timeout(&fd, sockopt::Timeout::Send, Some(limit)).map_err(io::Error::from)?;
    let address = SocketAddrUnix::new(socket).map_err(io::Error::from)?;
    rustix::net::connect(&fd, &address).map_err(|errno| match errno {
        rustix::io::Errno::CONNREFUSED | rustix::io::Errno::NOENT => TalkError::Nobody,
        rustix::io::Errno::AGAIN => TalkError::TimedOut,
        other => TalkError::Io(other.into()),
    })?;
    let peer = sockopt::socket_peercred(&fd).map_err(io::Error::from)?.uid;
    let me = rustix::process::geteuid();
    if !peer.is_root() && !me.is_root() && peer != me {
        return Err(TalkError::Stranger(peer.as_raw()));
    }
    Ok(UnixStream::from(fd))
}

/// The time until `deadline`; never zero, which sockets take for "forever".
fn left(deadline: Instant) -> Result<Duration, TalkError> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left < Duration::from_micros(1) { Err(TalkError::TimedOut) } else { Ok(left) }
}

fn timed_out(error: io::Error) -> TalkError {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => TalkError::TimedOut,
        _ => TalkError::Io(error),
    }
}
