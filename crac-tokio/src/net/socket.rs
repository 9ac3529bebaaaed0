//! The listening socket behind a listener, through all the lives of the process: whether it accepts is a state.
//!
//! ```text
//!            ingress, down         egress, down (exit, become)         queue empty
//!   Accepting ──────────► Paused ───────────────────────────► LastCall ───────────► Closed
//!       ▲ the door opens    │ ingress, up: the same socket        │ ingress, up: bound again
//!       └───────────────────┴─────────────────────────────────────┘
//! ```

use std::{
    fmt,
    future::Future,
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, RawFd},
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use crac_core::Gate;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    runtime::Handle,
};

use super::{Connection, waiters::Waiters};
use crate::lock;

/// How many connections the kernel keeps for us until we accept them.
const BACKLOG: u32 = 1024;

/// A socket that may be paused, emptied, closed and bound again while tasks wait for it.
pub(super) struct Socket {
    state: Mutex<State>,
    /// Tasks inside `accept`.
    waiters: Arc<Waiters>,
    /// Passes of the connections handed over at the last call.
    last_call: Gate,
    /// The runtime whose driver watches the socket.
    runtime: Handle,
}

struct State {
    turn: Turn,
    listener: Option<TcpListener>,
    addr: SocketAddr,
    /// Whether a restored life has only the number of the socket, which may be anybody's there.
    left_out: bool,
}

/// What the socket does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Accepting,
    Paused,
    LastCall,
    Closed,
}

impl Socket {
    /// Takes a bound listener.
    ///
    /// # Errors
    ///
    /// If the listener does not know its address.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub(super) fn new(listener: TcpListener) -> io::Result<Self> {
        let addr = listener.local_addr()?;
        Ok(Self {
            state: Mutex::new(State { turn: Turn::Accepting, listener: Some(listener), addr, left_out: false }),
            waiters: Arc::default(),
            last_call: Gate::new("connections accepted last"),
            runtime: Handle::current(),
        })
    }

    /// The address it is, was or will be bound to.
    pub(super) fn addr(&self) -> SocketAddr {
        lock(&self.state).addr
    }

    pub(super) fn turn(&self) -> Turn {
        lock(&self.state).turn
    }

    /// Passes of the connections handed over at the last call.
    pub(super) fn last_call(&self) -> &Gate {
        &self.last_call
    }

    /// Changes from `from` to `to` and wakes who waits; nothing if the socket is elsewhere.
    pub(super) fn change(&self, from: Turn, to: Turn) {
        {
            let mut state = lock(&self.state);
            if state.turn != from {
                return;
            }
            state.turn = to;
        }
        self.waiters.wake_all();
    }

    /// Whether a task is inside `accept`.
    pub(super) fn has_waiters(&self) -> bool {
        !self.waiters.is_empty()
    }

    /// The next connection, if the socket hands any out just now.
    pub(super) fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Connection, SocketAddr)>> {
        // First: whoever changes the state afterwards wakes this task.
        self.waiters.add(cx.waker());
        let mut state = lock(&self.state);
        let Some(listener) = &state.listener else { return Poll::Pending };
        match state.turn {
            Turn::Accepting => {
                let waker = self.waiters.waker();
                listener
                    .poll_accept(&mut Context::from_waker(&waker))
                    .map_ok(|(stream, peer)| (Connection::new(stream, None), peer))
            }
            Turn::LastCall => match accept_now(listener) {
                Ok(Some((stream, peer))) => Poll::Ready(Ok((Connection::new(stream, Some(self.last_call.enter_anyway())), peer))),
                Ok(None) => {
                    // At once: what arrives from now on is refused, which tells the client that nothing of it was read.
                    state.listener = None;
                    state.turn = Turn::Closed;
                    drop(state);
                    self.waiters.wake_all();
                    Poll::Pending
                }
                Err(error) => Poll::Ready(Err(error)),
            },
            Turn::Paused | Turn::Closed => Poll::Pending,
        }
    }

    /// Waits for `turn`. May be dropped at any time.
    pub(super) async fn reached(&self, turn: Turn) {
        std::future::poll_fn(|cx| {
            self.waiters.add(cx.waker());
            if self.turn() == turn { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// `future` for at most `limit`, by the clock of the socket's runtime: hooks may run elsewhere.
    pub(super) fn within<F: Future>(&self, limit: Duration, future: F) -> tokio::time::Timeout<F> {
        let _runtime = self.runtime.enter();
        tokio::time::timeout(limit, future)
    }

    /// Notes that a restored life will not have the socket; the descriptor to leave out of the image.
    pub(super) fn leave_out(&self) -> Option<RawFd> {
        let mut state = lock(&self.state);
        let descriptor = state.listener.as_ref().map(AsRawFd::as_raw_fd);
        state.left_out = descriptor.is_some();
        descriptor
    }

    /// A round has ended: in a restored life the number of a socket that was left out is forgotten, else the socket is kept.
    pub(super) fn came_back(&self, restored: bool) {
        let mut state = lock(&self.state);
        if std::mem::take(&mut state.left_out) && restored {
            // Closing it, or telling the driver, would hit whoever has the number now.
            std::mem::forget(state.listener.take());
            state.turn = Turn::Closed;
        }
    }

    /// Closes the socket, whatever it does.
    pub(super) fn close(&self) {
        let closed = {
            let mut state = lock(&self.state);
            state.turn = Turn::Closed;
            state.listener.take()
        };
        drop(closed);
        self.waiters.wake_all();
    }

    /// Binds `addr` in place of what was there and pauses; a socket that is open there already stays, and one that was inherited
    /// is taken.
    ///
    /// # Errors
    ///
    /// What the system said; the socket is then closed.
    pub(super) fn bind_again(&self, addr: SocketAddr, inherited: Option<std::net::TcpListener>) -> io::Result<()> {
        {
            let mut state = lock(&self.state);
            if state.listener.is_some() && state.addr == addr {
                state.turn = Turn::Paused;
                return Ok(());
            }
            state.turn = Turn::Closed;
            let _runtime = self.runtime.enter();
            // The old one first: it may be in the way.
            state.listener = None;
            let listener = match inherited {
                Some(inherited) => {
                    inherited.set_nonblocking(true)?;
                    TcpListener::from_std(inherited)?
                }
                None => bind(addr)?,
            };
            state.addr = listener.local_addr()?;
            state.listener = Some(listener);
            // Whoever waits has nothing to do before the turn changes once more.
            state.turn = Turn::Paused;
        }
        Ok(())
    }
}

/// Binds and listens, with SO_REUSEADDR: connections of an earlier life may linger.
///
/// # Panics
///
/// Outside of a tokio runtime.
fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

/// Accepts what is in the queue right now, without asking the driver, which may not have heard of it yet.
fn accept_now(listener: &TcpListener) -> io::Result<Option<(TcpStream, SocketAddr)>> {
    loop {
        let stream =
            match rustix::net::accept_with(listener, rustix::net::SocketFlags::NONBLOCK | rustix::net::SocketFlags::CLOEXEC) {
                Ok(stream) => std::net::TcpStream::from(stream),
                Err(rustix::io::Errno::AGAIN) => return Ok(None),
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => continue,
                Err(error) => return Err(error.into()),
            };
        // A client that has gone meanwhile needs no answer.
        if let Ok(peer) = stream.peer_addr() {
            return Ok(Some((TcpStream::from_std(stream)?, peer)));
        }
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = lock(&self.state);
        f.debug_struct("Socket").field("addr", &state.addr).field("turn", &state.turn).finish_non_exhaustive()
    }
}
