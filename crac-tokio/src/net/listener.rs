//! The TCP listener that takes part in checkpoints.

use std::{
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crac_core::{
    BoxError, CheckpointContext, Context, Gate, Mode, Phase, Registration, Resource, ResourceOptions, RestoreContext, async_trait,
};
use tokio::net::ToSocketAddrs;

use super::{
    Connection,
    socket::{Socket, Turn},
};
use crate::lock;

/// How long the server may take to pick up what has queued up before the process ends.
const LAST_CALL_MAX: Duration = Duration::from_secs(1);
/// How long the connections picked up then may take to be answered.
const LAST_ANSWERS_MAX: Duration = Duration::from_secs(2);
/// How long an aborted round tries to get its address back.
const BIND_AGAIN_MAX: Duration = Duration::from_secs(5);

/// Listeners with a context that have not accepted yet: open listeners count as ready when there are none left.
static IDLE_LISTENERS: AtomicUsize = AtomicUsize::new(0);

/// A listening TCP socket that drains for a checkpoint and comes back.
///
/// | when | what happens |
/// |---|---|
/// | a round begins | nothing is accepted any more; clients wait in the kernel's queue, of at most 1024 |
/// | the process is about to end (`exit`, `become`), all else has let go | what is in the queue is accepted and handed to the server, which answers that it is being checkpointed; then the socket is closed, and who comes now is refused |
/// | the process goes on beside its image (`continue`) | the socket stays, with its queue, and is no part of the image |
/// | the process goes on, or the round is aborted | the same socket accepts again; if it was closed already, the same address is bound again |
/// | a restored life | the address is bound again: what [`on_restore`](Self::on_restore) says, else the same; or the socket that a supervisor handed over for it (`LISTEN_FDS`, sd_listen_fds(3)) is taken, so that nobody was refused meanwhile |
///
/// It accepts again when the door of its context opens, after the server's own. An engine that keeps sockets keeps this one. The
/// first call of [`accept`](Self::accept) on every listener suggests that the service is ready.
///
/// Without a context it is a plain listener.
pub struct TcpListener {
    shared: Arc<Shared>,
    context: Option<Context>,
    /// Shut while a round runs. Made at the first accept, so that the gates of the server, which was made before, open earlier.
    door: OnceLock<Gate>,
    waits_for_first_accept: AtomicBool,
    _registrations: Vec<Registration>,
}

type OnRestore = Box<dyn Fn(&RestoreContext) -> Option<SocketAddr> + Send + Sync>;

struct Shared {
    socket: Socket,
    on_restore: Mutex<Option<OnRestore>>,
    /// Whether somebody has ever accepted: otherwise nobody answers a last call.
    serves: AtomicBool,
}

impl TcpListener {
    /// Binds `addr` and listens, in the ambient context.
    ///
    /// # Errors
    ///
    /// As `tokio::net::TcpListener::bind`.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub async fn bind(addr: impl ToSocketAddrs) -> io::Result<Self> {
        Self::from_tokio(Context::current().as_ref(), tokio::net::TcpListener::bind(addr).await?)
    }

    /// Binds `addr` and listens, in `context`.
    ///
    /// # Errors
    ///
    /// As `tokio::net::TcpListener::bind`.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub async fn bind_in(context: &Context, addr: impl ToSocketAddrs) -> io::Result<Self> {
        Self::from_tokio(Some(context), tokio::net::TcpListener::bind(addr).await?)
    }

    /// Takes a socket that listens already, in the ambient context; for sockets with options of their own.
    ///
    /// In a restored life its address is bound again, without those options.
    ///
    /// # Errors
    ///
    /// If the socket cannot be made nonblocking, or is none that listens.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn from_std(listener: std::net::TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Self::from_tokio(Context::current().as_ref(), tokio::net::TcpListener::from_std(listener)?)
    }

    fn from_tokio(context: Option<&Context>, listener: tokio::net::TcpListener) -> io::Result<Self> {
        let shared =
            Arc::new(Shared { socket: Socket::new(listener)?, on_restore: Mutex::default(), serves: AtomicBool::new(false) });
        let addr = shared.socket.addr();
        let registrations = context.map(|context| {
            let options =
                |what: &str, phase| ResourceOptions::new(format!("{what} {addr}")).phase(phase).concurrent(true).brief();
            vec![
                context.register(options("last call of", Phase::Egress).only_before(), LastCall(shared.clone())),
                context.register(options("listener", Phase::Ingress).begin_at_once(), Ingress(shared.clone())),
            ]
        });
        if context.is_some() {
            IDLE_LISTENERS.fetch_add(1, Ordering::AcqRel);
        }
        Ok(Self {
            shared,
            context: context.cloned(),
            door: OnceLock::new(),
            waits_for_first_accept: AtomicBool::new(context.is_some()),
            _registrations: registrations.unwrap_or_default(),
        })
    }

    /// Sets what address a restored life binds; `None` stands for the same as before. The closure may look at the arguments and the
    /// environment of the restore; it must not block.
    #[must_use]
    pub fn on_restore<A: Into<Option<SocketAddr>>>(self, addr: impl Fn(&RestoreContext) -> A + Send + Sync + 'static) -> Self {
        *lock(&self.shared.on_restore) = Some(Box::new(move |life| addr(life).into()));
        self
    }

    /// The next connection, and its client's address. Waits while the context is in a round, except for the last call before
    /// the process ends.
    ///
    /// May be dropped at any time without losing a connection; several tasks may wait at once.
    ///
    /// # Errors
    ///
    /// As `tokio::net::TcpListener::accept`.
    pub async fn accept(&self) -> io::Result<(Connection, SocketAddr)> {
        self.first_accept();
        let Some(door) = self.door() else { return std::future::poll_fn(|cx| self.shared.socket.poll_accept(cx)).await };
        loop {
            let accepted = std::future::poll_fn(|cx| {
                // Between the begin of a round and the first hook the socket has not heard of it yet; at the end of a round it
                // hears of it before the door opens.
                if door.is_shut() && self.shared.socket.turn() == Turn::Accepting {
                    return std::task::Poll::Ready(None);
                }
                self.shared.socket.poll_accept(cx).map(Some)
            });
            match accepted.await {
                Some(accepted) => return accepted,
                None => {
                    tokio::select! {
                        () = door.opened() => {}
                        () = self.shared.socket.reached(Turn::Paused) => {}
                        () = self.shared.socket.reached(Turn::LastCall) => {}
                    }
                }
            }
        }
    }

    /// The address this listener is bound to, or will be again while it is closed for a checkpoint.
    ///
    /// # Errors
    ///
    /// None; the signature is that of tokio's listener.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.shared.socket.addr())
    }

    /// Shut while a round runs; counts connections of servers that cannot count themselves.
    pub(super) fn door(&self) -> Option<&Gate> {
        let context = self.context.as_ref()?;
        Some(self.door.get_or_init(|| context.gate(format!("connections at {}", self.shared.socket.addr()))))
    }

    fn first_accept(&self) {
        self.shared.serves.store(true, Ordering::Release);
        if !self.waits_for_first_accept.swap(false, Ordering::AcqRel) {
            return;
        }
        if let (1, Some(context)) = (IDLE_LISTENERS.fetch_sub(1, Ordering::AcqRel), &self.context) {
            context.suggest_ready();
        }
    }
}

impl Drop for TcpListener {
    fn drop(&mut self) {
        if self.waits_for_first_accept.load(Ordering::Acquire) {
            IDLE_LISTENERS.fetch_sub(1, Ordering::AcqRel);
        }
        // A round may still hold the resources; the socket does not wait for it.
        self.shared.socket.close();
    }
}

impl fmt::Debug for TcpListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpListener").field("socket", &self.shared.socket).finish_non_exhaustive()
    }
}

/// Whether the socket has to be gone before the capture.
fn closes(context: &CheckpointContext) -> bool {
    context.mode().ends_original() && !context.keeps_sockets()
}

/// First down: stops accepting. Last up: accepts again, on the old socket or a new one.
struct Ingress(Arc<Shared>);

#[async_trait]
impl Resource for Ingress {
    async fn before_checkpoint(&self, context: &CheckpointContext) -> Result<(), BoxError> {
        self.0.socket.change(Turn::Accepting, Turn::Paused);
        if context.mode() == Mode::Continue && !context.keeps_sockets() {
            self.0.socket.leave_out().into_iter().for_each(|descriptor| context.leave_out(descriptor));
        }
        Ok(())
    }

    async fn after_restore(&self, context: &RestoreContext) -> Result<(), BoxError> {
        let socket = &self.0.socket;
        let before = socket.addr();
        socket.came_back(context.is_restored());
        if context.is_restored() {
            let asked = lock(&self.0.on_restore).as_ref().and_then(|on_restore| on_restore(context));
            let addr = asked.unwrap_or(before);
            let inherited = context
                .take_listener(addr)
                .map_err(|error| format!("cannot look at the sockets that were handed over: {error}; raise RLIMIT_NOFILE"))?;
            socket.bind_again(addr, inherited).map_err(|error| {
                format!(
                    "cannot listen on {addr} in the restored life: {error}; give it another address with TcpListener::on_restore"
                )
            })?;
        } else if socket.turn() == Turn::Closed {
            bind_soon(socket, before, context.deadline().min(BIND_AGAIN_MAX))
                .await
                .map_err(|error| format!("cannot listen on {before} again after the checkpoint was given up: {error}"))?;
        }
        tracing::debug!(addr = %socket.addr(), "accepting");
        socket.change(Turn::LastCall, Turn::Accepting);
        socket.change(Turn::Paused, Turn::Accepting);
        Ok(())
    }
}

/// Binds, and tries again for a while if somebody else was faster.
async fn bind_soon(socket: &Socket, addr: SocketAddr, limit: Duration) -> io::Result<()> {
    let deadline = Instant::now() + limit * 3 / 4;
    loop {
        match socket.bind_again(addr, None) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                // The time is the answer.
                let _ = socket.within(Duration::from_millis(20), std::future::pending::<()>()).await;
            }
            other => return other,
        }
    }
}

/// Last down: hands over what is in the queue and closes.
struct LastCall(Arc<Shared>);

#[async_trait]
impl Resource for LastCall {
    async fn before_checkpoint(&self, context: &CheckpointContext) -> Result<(), BoxError> {
        let socket = &self.0.socket;
        if !closes(context) {
            return Ok(());
        }
        if self.0.serves.load(Ordering::Acquire) {
            let limit = context.deadline() / 4;
            socket.change(Turn::Paused, Turn::LastCall);
            if socket.within(limit.min(LAST_CALL_MAX), socket.reached(Turn::Closed)).await.is_err() {
                tracing::warn!(addr = %socket.addr(), waiting = socket.has_waiters(), "the server did not accept what was in the queue; it is reset");
            }
            socket.close();
            if socket.within(limit.min(LAST_ANSWERS_MAX), socket.last_call().drained()).await.is_err() {
                tracing::warn!(addr = %socket.addr(), open = socket.last_call().inside(), "connections accepted last are still open");
            }
        }
        socket.close();
        Ok(())
    }
}
