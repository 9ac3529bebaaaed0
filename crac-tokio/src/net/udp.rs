//! A UDP socket that may come back at another address.

use std::{
    fmt,
    future::poll_fn,
    io,
    net::SocketAddr,
    os::fd::AsRawFd,
    sync::{Arc, Mutex},
    task::{Context as TaskContext, Poll},
};

use crac_core::{
    BoxError, CheckpointContext, Context, Mode, Phase, Registration, Resource, ResourceOptions, RestoreContext, async_trait,
};
use tokio::{io::ReadBuf, net::ToSocketAddrs, runtime::Handle};

use super::waiters::Waiters;
use crate::lock;

/// A UDP socket that stops receiving for a checkpoint and comes back: as it was, or, with [`on_restore`](Self::on_restore), bound
/// where that says. With `on_restore` the socket of a process that goes on beside its image is no part of that image.
///
/// Datagrams can be sent until everything else has let go. Those that arrive in a round wait in the kernel as long as there is room,
/// and are lost with a process that ends. Without a context it is a plain socket.
pub struct UdpSocket {
    shared: Arc<Shared>,
    _registrations: Vec<Registration>,
}

type OnRestore = Box<dyn Fn(&RestoreContext) -> Option<SocketAddr> + Send + Sync>;

struct Shared {
    state: Mutex<State>,
    receivers: Arc<Waiters>,
    senders: Arc<Waiters>,
    on_restore: Mutex<Option<OnRestore>>,
    /// The runtime whose driver watches the socket.
    runtime: Handle,
}

struct State {
    socket: Option<tokio::net::UdpSocket>,
    addr: SocketAddr,
    receives: bool,
    /// Whether a restored life has only the number of the socket, which may be anybody's there.
    left_out: bool,
}

impl UdpSocket {
    /// Binds `addr` in the ambient context.
    ///
    /// # Errors
    ///
    /// As `tokio::net::UdpSocket::bind`.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub async fn bind(addr: impl ToSocketAddrs) -> io::Result<Self> {
        Self::new(Context::current().as_ref(), tokio::net::UdpSocket::bind(addr).await?)
    }

    /// Binds `addr` in `context`.
    ///
    /// # Errors
    ///
    /// As `tokio::net::UdpSocket::bind`.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub async fn bind_in(context: &Context, addr: impl ToSocketAddrs) -> io::Result<Self> {
        Self::new(Some(context), tokio::net::UdpSocket::bind(addr).await?)
    }

    fn new(context: Option<&Context>, socket: tokio::net::UdpSocket) -> io::Result<Self> {
        let addr = socket.local_addr()?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State { socket: Some(socket), addr, receives: true, left_out: false }),
            receivers: Arc::default(),
            senders: Arc::default(),
            on_restore: Mutex::default(),
            runtime: Handle::current(),
        });
        let registrations = context.map(|context| {
            let options =
                |what: &str, phase| ResourceOptions::new(format!("{what} {addr}")).phase(phase).concurrent(true).brief();
            vec![
                context.register(options("sending from", Phase::Egress), Sending(shared.clone())),
                context.register(options("udp socket", Phase::Ingress), Receiving(shared.clone())),
            ]
        });
        Ok(Self { shared, _registrations: registrations.unwrap_or_default() })
    }

    /// Sets what address a restored life binds; `None` stands for the same as before. The old address is let go before the process
    /// ends, so that clones do not fight for it.
    #[must_use]
    pub fn on_restore<A: Into<Option<SocketAddr>>>(self, addr: impl Fn(&RestoreContext) -> A + Send + Sync + 'static) -> Self {
        *lock(&self.shared.on_restore) = Some(Box::new(move |life| addr(life).into()));
        self
    }

    /// Receives one datagram into `buf`; its length, and who sent it. Waits while the context is in a round.
    ///
    /// May be dropped at any time without losing a datagram; several tasks may wait at once.
    ///
    /// # Errors
    ///
    /// As `tokio::net::UdpSocket::recv_from`.
    pub async fn recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let mut buf = ReadBuf::new(buf);
        let peer = poll_fn(|cx| self.shared.poll_recv(cx, &mut buf)).await?;
        Ok((buf.filled().len(), peer))
    }

    /// Sends `buf` as one datagram to `peer`. Waits while the socket is closed for a checkpoint. May be dropped at any time.
    ///
    /// # Errors
    ///
    /// As `tokio::net::UdpSocket::send_to`.
    pub async fn send_to(&self, buf: &[u8], peer: SocketAddr) -> io::Result<usize> {
        poll_fn(|cx| self.shared.poll_send(cx, buf, peer)).await
    }

    /// The address this socket is bound to, or will be again while it is closed for a checkpoint.
    pub fn local_addr(&self) -> SocketAddr {
        lock(&self.shared.state).addr
    }
}

impl fmt::Debug for UdpSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UdpSocket").field("addr", &self.local_addr()).finish_non_exhaustive()
    }
}

impl Shared {
    fn poll_recv(&self, cx: &mut TaskContext<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<SocketAddr>> {
        self.receivers.add(cx.waker());
        let state = lock(&self.state);
        match &state.socket {
            Some(socket) if state.receives => socket.poll_recv_from(&mut TaskContext::from_waker(&self.receivers.waker()), buf),
            _ => Poll::Pending,
        }
    }

    fn poll_send(&self, cx: &mut TaskContext<'_>, buf: &[u8], peer: SocketAddr) -> Poll<io::Result<usize>> {
        self.senders.add(cx.waker());
        match &lock(&self.state).socket {
            Some(socket) => socket.poll_send_to(&mut TaskContext::from_waker(&self.senders.waker()), buf, peer),
            None => Poll::Pending,
        }
    }

    /// Binds `addr` in place of what was there.
    fn bind_again(&self, addr: SocketAddr) -> io::Result<()> {
        let mut state = lock(&self.state);
        if state.socket.is_some() && state.addr == addr {
            return Ok(());
        }
        state.socket = None;
        let socket = std::net::UdpSocket::bind(addr)?;
        socket.set_nonblocking(true)?;
        state.addr = socket.local_addr()?;
        let _runtime = self.runtime.enter();
        state.socket = Some(tokio::net::UdpSocket::from_std(socket)?);
        Ok(())
    }
}

/// First down, last up.
struct Receiving(Arc<Shared>);

#[async_trait]
impl Resource for Receiving {
    async fn before_checkpoint(&self, _context: &CheckpointContext) -> Result<(), BoxError> {
        lock(&self.0.state).receives = false;
        Ok(())
    }

    async fn after_restore(&self, _context: &RestoreContext) -> Result<(), BoxError> {
        lock(&self.0.state).receives = true;
        self.0.receivers.wake_all();
        Ok(())
    }
}

/// Last down, first up.
struct Sending(Arc<Shared>);

#[async_trait]
impl Resource for Sending {
    async fn before_checkpoint(&self, context: &CheckpointContext) -> Result<(), BoxError> {
        if context.keeps_sockets() || lock(&self.0.on_restore).is_none() {
            return Ok(());
        }
        let mut state = lock(&self.0.state);
        if context.mode().ends_original() {
            let closed = state.socket.take();
            drop(state);
            drop(closed);
        } else if let (Mode::Continue, Some(socket)) = (context.mode(), &state.socket) {
            context.leave_out(socket.as_raw_fd());
            state.left_out = true;
        }
        Ok(())
    }

    async fn after_restore(&self, context: &RestoreContext) -> Result<(), BoxError> {
        let before = {
            let mut state = lock(&self.0.state);
            if std::mem::take(&mut state.left_out) && context.is_restored() {
                // Closing it, or telling the driver, would hit whoever has the number now.
                std::mem::forget(state.socket.take());
            }
            state.addr
        };
        let asked = context.is_restored().then(|| lock(&self.0.on_restore).as_ref().and_then(|on_restore| on_restore(context)));
        let addr = asked.flatten().unwrap_or(before);
        self.0.bind_again(addr).map_err(|error| {
            format!("cannot bind the UDP socket to {addr}: {error}; give it another address with UdpSocket::on_restore")
        })?;
        self.0.senders.wake_all();
        Ok(())
    }
}
