//! One `criu swrk`: a CRIU that serves a single connection, which it inherits.

use std::{
    ffi::OsString,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crac_sys::warden::{self, Orders, Tether};
use prost::Message;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, FdFlags, fcntl_setfd},
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair},
};

use crate::{
    program::{Criu, CriuError},
    rpc::{Request, Response},
};

/// The longest answer; CRIU's are some hundred bytes.
const ANSWER_MAX: usize = 64 * 1024;

/// Our end of a connection.
#[derive(Debug)]
pub(crate) struct Conversation {
    socket: OwnedFd,
}

/// A worker that is a child of this process.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) conversation: Conversation,
    child: Child,
}

impl Worker {
    /// Starts one. It inherits `descriptors` under their numbers, which must not be those of standard streams.
    pub(crate) fn start(criu: &Criu, descriptors: &[BorrowedFd<'_>]) -> Result<Self, CriuError> {
        let (conversation, theirs) = Conversation::pair()?;
        for descriptor in descriptors {
            inherit(*descriptor)?;
        }
        let child =
            command(criu, &theirs)?.spawn().map_err(|source| CriuError::Start { path: criu.path().to_owned(), source })?;
        Ok(Self { conversation, child })
    }

    /// Waits for its end, which its last answer has announced.
    pub(crate) fn end(mut self) {
        // Killed by the drop if it does not end by itself within the time it takes to close its files.
        let deadline = Instant::now() + Duration::from_secs(5);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a worker that is no child of this process, guarded by a warden with `orders`.
pub(crate) fn start_guarded(criu: &Criu, orders: Orders) -> Result<(Conversation, Tether), CriuError> {
    let (conversation, theirs) = Conversation::pair()?;
    let mut command = command(criu, &theirs)?;
    let tether =
        warden::spawn(&mut command, orders).map_err(|source| CriuError::Start { path: criu.path().to_owned(), source })?;
    Ok((conversation, tether))
}

fn command(criu: &Criu, theirs: &OwnedFd) -> Result<Command, CriuError> {
    inherit(theirs.as_fd())?;
    let mut command = Command::new(criu.path());
    command.arg("swrk").arg(OsString::from(theirs.as_raw_fd().to_string()));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(command)
}

fn inherit(descriptor: BorrowedFd<'_>) -> Result<(), CriuError> {
    fcntl_setfd(descriptor, FdFlags::empty()).map_err(io_error("hand a descriptor to CRIU"))
}

impl Conversation {
    fn pair() -> Result<(Self, OwnedFd), CriuError> {
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let (ours, theirs) = pair.map_err(io_error("make a connection to CRIU"))?;
        Ok((Self { socket: ours }, theirs))
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sends `request` without waiting for an answer.
    pub(crate) fn tell(&self, request: &Request) -> Result<(), CriuError> {
        let bytes = request.encode_to_vec();
        send(&self.socket, &bytes, SendFlags::NOSIGNAL).map(drop).map_err(io_error("talk to CRIU"))
    }

    /// Sends `request` to `criu` and waits for the answer, for at most `limit`.
    pub(crate) fn ask(
        &mut self,
        criu: &Criu,
        request: &Request,
        what: &'static str,
        limit: Duration,
    ) -> Result<Response, CriuError> {
        // A worker that has ended already is noticed when it does not answer.
        let _ = self.tell(request);
        if !readable(&[self.socket.as_fd()], Instant::now() + limit).map_err(io_error("wait for CRIU"))? {
            return Err(CriuError::Late { path: criu.path().to_owned(), what, limit });
        }
        self.hear(criu)?.ok_or_else(|| criu.nonsense(format!("ended when it was to {what}")))
    }

    /// One answer; nothing if the other end is closed. Blocks.
    pub(crate) fn hear(&self, criu: &Criu) -> Result<Option<Response>, CriuError> {
        let mut buffer = vec![0; ANSWER_MAX];
        let filled = loop {
            match recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
                Ok((filled, _)) => break filled,
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => break 0,
                Err(errno) => return Err(io_error("listen to CRIU")(errno)),
            }
        };
        match buffer.get(..filled) {
            None | Some([]) => Ok(None),
            Some(bytes) => Response::decode(bytes)
                .map(Some)
                .map_err(|error| criu.nonsense(format!("said what is not its protocol ({error})"))),
        }
    }
}

/// Whether one of `descriptors` has something to tell before `deadline`.
pub(crate) fn readable(descriptors: &[BorrowedFd<'_>], deadline: Instant) -> rustix::io::Result<bool> {
    let mut watched: Vec<_> = descriptors.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match poll(&mut watched, Timespec::try_from(left).ok().as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

pub(crate) fn io_error<E: Into<io::Error>>(what: &str) -> impl FnOnce(E) -> CriuError {
    move |source| CriuError::Io { what: what.to_owned(), source: source.into() }
}
