//! `axum::serve` on a listener that takes part in checkpoints: axum knows nothing of it, so the connections do the draining.

use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use crac_core::{Gate, Pass};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    time::{Instant, Sleep},
};

use super::{Connection, TcpListener, exchange::Exchange};

/// After an error that is not of one connection: too many open files, usually.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// So long from its beginning a connection may take to ask for the first time, even if the door shuts meanwhile.
const NEWBORN: Duration = Duration::from_millis(250);
/// How long a client may take to ask, and to hear that it should come again.
const REFUSAL_MAX: Duration = Duration::from_secs(1);
/// What a client is told that had queued up when the process was about to end.
const REFUSAL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// A plain `axum::serve(listener, app)` drains:
///
/// * a connection counts as in flight (`connections at ADDR`) until it is closed; the checkpoint waits for it within the drain
///   deadline;
/// * between two responses it is closed as soon as the door shuts, and before its first request when it is 250 ms old: axum sees the
///   end of the file, as if the client had gone;
/// * clients that had queued up get 503 and `Retry-After` before the process ends.
///
/// Where a response ends is read off the HTTP/1 messages that pass. HTTP/2, WebSockets and other upgrades are not understood:
/// such a connection is waited for until its client closes it, or the drain deadline aborts the checkpoint. `crac_hyper::serve` drains
/// those too.
impl axum::serve::Listener for TcpListener {
    type Io = Served;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Served, SocketAddr) {
        loop {
            match TcpListener::accept(self).await {
                Ok((connection, _)) if connection.is_last_call() => drop(tokio::spawn(refuse(connection))),
                Ok((connection, peer)) => return (Served::new(connection, self.door()), peer),
                Err(error) if of_one_connection(&error) => {
                    tracing::debug!(%error, "a connection was gone before it was accepted")
                }
                Err(error) => {
                    tracing::error!(%error, pause_ms = ACCEPT_PAUSE.as_millis(), "cannot accept connections; trying again after a pause");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        TcpListener::local_addr(self)
    }
}

fn of_one_connection(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused)
}

/// Waits for the request, so that the answer is not reset, and tells the client to come again.
async fn refuse(mut connection: Connection) {
    let answered = tokio::time::timeout(REFUSAL_MAX, async {
        let mut request = [0; 4096];
        if connection.read(&mut request).await? == 0 {
            return Ok(());
        }
        connection.write_all(REFUSAL).await?;
        connection.shutdown().await?;
        while connection.read(&mut request).await? != 0 {}
        io::Result::Ok(())
    });
    if let Ok(Err(error)) = answered.await {
        tracing::debug!(%error, "a client had gone before it could be told to come again");
    }
}

/// A connection of `axum::serve`.
pub struct Served {
    connection: Connection,
    drain: Option<Drain>,
}

/// What a connection has to do with its context.
struct Drain {
    _pass: Pass,
    /// Ends when the door shuts.
    shutting: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    born: Instant,
    /// Until when it may ask for the first time, if the door has shut before it did.
    newborn: Option<Pin<Box<Sleep>>>,
    has_asked: bool,
    exchange: Exchange,
    ended: bool,
    /// Who tried to read while an exchange was under way.
    reader: Option<Waker>,
}

impl Served {
    fn new(connection: Connection, door: Option<&Gate>) -> Self {
        let drain = door.map(|door| {
            let pass = door.enter_anyway();
            let door = door.clone();
            let shutting: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async move { door.shutting().await });
            Drain {
                _pass: pass,
                shutting: Some(shutting),
                born: Instant::now(),
                newborn: None,
                has_asked: false,
                exchange: Exchange::default(),
                ended: false,
                reader: None,
            }
        });
        Self { connection, drain }
    }
}

impl Drain {
    /// Whether it is time to end, between two exchanges.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(shutting) = &mut self.shutting {
            ready!(shutting.as_mut().poll(cx));
            self.shutting = None;
        }
        if self.has_asked {
            return Poll::Ready(());
        }
        let born = self.born;
        self.newborn.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(born + NEWBORN))).as_mut().poll(cx)
    }

    fn written(&mut self, bytes: &[u8]) {
        self.exchange.written(bytes);
        // The server flushes the end of a response after it has last tried to read, so it has to be told to try again.
        if self.exchange.is_idle()
            && let Some(reader) = self.reader.take()
        {
            reader.wake();
        }
    }
}

impl AsyncRead for Served {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let Some(drain) = &mut this.drain else { return Pin::new(&mut this.connection).poll_read(cx, buf) };
        if drain.ended {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        match Pin::new(&mut this.connection).poll_read(cx, buf) {
            Poll::Ready(read) => {
                let bytes = buf.filled().get(before..).unwrap_or_default();
                drain.has_asked |= !bytes.is_empty();
                drain.exchange.read(bytes);
                Poll::Ready(read)
            }
            // Not now: the server takes the end of the file as a client that has gone, and drops what it does.
            Poll::Pending if !drain.exchange.is_idle() => {
                drain.reader = Some(cx.waker().clone());
                Poll::Pending
            }
            Poll::Pending => {
                ready!(drain.poll_over(cx));
                drain.ended = true;
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for Served {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.connection).poll_write(cx, buf))?;
        if let Some(drain) = &mut self.drain {
            drain.written(buf.get(..written).unwrap_or(buf));
        }
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.connection).poll_write_vectored(cx, bufs))?;
        if let Some(drain) = &mut self.drain {
            let mut left = written;
            for buf in bufs {
                let part = buf.get(..left.min(buf.len())).unwrap_or_default();
                drain.written(part);
                left -= part.len();
            }
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(cx)
    }
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Served").field("connection", &self.connection).finish_non_exhaustive()
    }
}
