//! The thread that listens.

use std::{
    fs,
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crac_core::{
    CheckpointRequest, Context,
    control::{ControlReply, ControlRequest, REQUEST_BYTES_MAX},
};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    net::sockopt::socket_peercred,
    process::geteuid,
};

use super::{
    asker::Asker,
    directory,
    reply::{Reply, write_line},
};

/// How long a client may take for its one line.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// How long a write to a client may take.
const WRITE_LIMIT: Duration = Duration::from_secs(1);
/// How many clients may be about to send their line.
const CLIENTS_MAX: usize = 64;

/// How many reads of nonsense a client gets before it is reset after all.
const DISCARDS_MAX: usize = 64;

/// A control socket that is served.
pub(super) struct Server {
    path: PathBuf,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Binds `PID.sock` in `directory` and starts the thread.
    pub(super) fn start(context: &Context, directory: &Path) -> io::Result<Self> {
        directory::prepare(directory)?;
        directory::sweep(directory);
        let path = directory.join(format!("{}.sock", std::process::id()));
        // Of an earlier process of this number.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (context, stopped) = (context.clone(), stop.clone());
        let thread = std::thread::Builder::new()
            .name("crac-control".into())
            .spawn(move || Loop { context, listener, stop: stopped, clients: Vec::new() }.run())?;
        Ok(Self { path, stop, thread: Some(thread) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A counter of one does not overflow.
        let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // A panic in there has been printed, and there is nothing to go on with.
            let _ = thread.join();
        }
        // Gone already if somebody tidied up.
        let _ = fs::remove_file(&self.path);
    }
}

/// What the thread owns.
struct Loop {
    context: Context,
    listener: UnixListener,
    stop: Arc<OwnedFd>,
    clients: Vec<Client>,
}

/// A connection that has not sent its whole line.
struct Client {
    stream: UnixStream,
    line: Vec<u8>,
    deadline: Instant,
}

/// What a look at a client brought.
enum Heard {
    /// Nothing yet.
    Part,
    /// A whole line.
    Line,
    /// Too much, or the end.
    Nonsense(&'static str),
}

impl Loop {
    fn run(mut self) {
        loop {
            match self.wait() {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(%error, "the control socket is served no longer");
                    return;
                }
            }
            self.accept();
            self.listen();
        }
    }

    /// Waits for something to do; whether it is time to stop.
    fn wait(&self) -> io::Result<bool> {
        let limit = self.clients.iter().map(|client| client.deadline).min();
        let limit = limit.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        let watched =
            [self.stop.as_fd(), self.listener.as_fd()].into_iter().chain(self.clients.iter().map(|client| client.stream.as_fd()));
        let mut watched: Vec<_> = watched.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        match poll(&mut watched, limit.as_ref()) {
            Ok(_) => Ok(!watched[0].revents().is_empty()),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            match admit(&stream) {
                Ok(()) if self.clients.len() < CLIENTS_MAX => {
                    self.clients.push(Client { stream, line: Vec::new(), deadline: Instant::now() + REQUEST_LIMIT });
                }
                Ok(()) => refuse(stream, "too many clients at once; try again"),
                Err(error) => {
                    tracing::warn!(%error, "turned a client of the control socket away");
                    refuse(stream, &error.to_string());
                }
            }
        }
    }

    fn listen(&mut self) {
        for mut client in std::mem::take(&mut self.clients) {
            match client.hear() {
                Heard::Part if Instant::now() < client.deadline => self.clients.push(client),
                Heard::Part => refuse(client.stream, "no request came in time; send one line of JSON"),
                Heard::Nonsense(what) => refuse(client.stream, what),
                Heard::Line => self.obey(client),
            }
        }
    }

    fn obey(&self, client: Client) {
        let peer = socket_peercred(&client.stream).map(|peer| (peer.pid.as_raw_nonzero().get(), peer.uid.as_raw())).ok();
        match serde_json::from_slice(&client.line) {
            Ok(ControlRequest::Checkpoint { mode, image, data_only }) => {
                tracing::info!(?peer, %mode, image = ?image, "checkpoint requested over the control socket");
                self.begin(client.stream, CheckpointRequest::new(mode).data_only(data_only), image, None);
            }
            Ok(ControlRequest::Prepare { mode, image, limit_ms }) => {
                tracing::info!(?peer, %mode, image = ?image, limit_ms, "checkpoint from outside requested over the control socket");
                self.begin(client.stream, CheckpointRequest::new(mode), image, Some(Duration::from_millis(limit_ms)));
            }
            Ok(ControlRequest::Status) => {
                tracing::debug!(?peer, "status asked over the control socket");
                answer(client.stream, &ControlReply::Status(Box::new(self.context.status())));
            }
            Ok(_) => refuse(client.stream, "this service does not know that request; is the command newer than the service?"),
            Err(error) => {
                tracing::warn!(?peer, %error, "a request over the control socket was not understood");
                refuse(client.stream, &format!("the request was not understood: {error}; send one line of JSON"));
            }
        }
    }
}

impl Loop {
    /// Has a round begin, whose course is told over `stream`; with a `limit` it stands still for whoever is at the other end.
    fn begin(&self, stream: UnixStream, request: CheckpointRequest, image: Option<PathBuf>, limit: Option<Duration>) {
        if let Err(error) = prepare_to_write(&stream) {
            tracing::warn!(%error, "the client of the control socket cannot be answered");
            return;
        }
        let reply = Arc::new(Reply::new(stream, self.context.clone()));
        let mut request = request.own_descriptor(reply.descriptor()).watch(reply.clone());
        if let Some(image) = image {
            request = request.image(image);
        }
        if let Some(limit) = limit {
            request = request.outside(Arc::new(Asker::new(reply, limit)));
        }
        // The answer goes to the watcher; nobody waits for the ticket.
        drop(self.context.request(request));
    }
}

impl Client {
    /// Takes what has come, without waiting.
    fn hear(&mut self) -> Heard {
        let mut part = [0; 1024];
        loop {
            match self.stream.read(&mut part) {
                Ok(0) => return Heard::Nonsense("the request ended without a line feed"),
                Ok(bytes) => self.line.extend_from_slice(part.get(..bytes).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Heard::Part,
                Err(_) => return Heard::Nonsense("the request could not be read"),
            }
            if let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
                self.line.truncate(end);
                return Heard::Line;
            }
            if self.line.len() > REQUEST_BYTES_MAX {
                return Heard::Nonsense("the request is too long");
            }
        }
    }
}

/// Whether the peer may ask.
fn admit(stream: &UnixStream) -> io::Result<()> {
    let peer = socket_peercred(stream)?;
    let me = geteuid();
    if peer.uid != me && !peer.uid.is_root() {
        let what = format!("only user {} and root may ask this service, not user {}", me.as_raw(), peer.uid.as_raw());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
    }
    stream.set_nonblocking(true)
}

fn refuse(stream: UnixStream, what: &str) {
    answer(stream, &ControlReply::Error { what: what.to_owned() });
}

/// Sends the one reply and ends the connection.
fn answer(mut stream: UnixStream, reply: &ControlReply) {
    let sent = prepare_to_write(&stream).and_then(|()| write_line(&mut stream, reply));
    if let Err(error) = sent.and_then(|()| discard(&mut stream)) {
        tracing::debug!(%error, "the client of the control socket has gone");
    }
}

/// Reads what has come and nobody wants: closing a socket with something unread resets it, and the answer would be lost.
fn discard(stream: &mut UnixStream) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let mut part = [0; 4096];
    for _ in 0..DISCARDS_MAX {
        match stream.read(&mut part) {
            Ok(0) => break,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Ok(_) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// From reading without waiting to writing with a limit.
fn prepare_to_write(stream: &UnixStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(WRITE_LIMIT))
}
