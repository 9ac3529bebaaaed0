//! One connection from its first byte to its end, and what becomes of it when the door shuts.
//!
//! ```text
//!   serving ──door shuts──► told to finish: HTTP/1 `Connection: close`, HTTP/2 GOAWAY, idle: closed;
//!      │                        │             one that has asked nothing so far has until it is 250 ms old
//!      │                        │                    │
//!      │                        │ ends by itself     │ quiet for 2 s and no request inside: closed
//!      ▼                        ▼                    ▼
//!    ended ──────► upgraded? counted on until its owner drops it       answered in the round? linger, then close
//! ```
//!
//! A close with unread bytes in the kernel becomes a reset, and a reset may overtake the response. So whatever was answered while
//! the door was shut lingers: it is read until the client closes, for a second at most.

use std::{error::Error, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use crac_core::Gate;
use http::Request;
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::{TowerToHyperService, TowerToHyperServiceFuture},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    accept::ConnectionInfo,
    checkpoint::Checkpoint,
    door::Door,
    io::{Slot, Tracked},
};

/// Nothing moves for so long and no request is inside: the client has gone quiet in the middle of a request's head, or no longer
/// answers GOAWAY.
const QUIET: Duration = Duration::from_secs(2);
/// A connection has so long from its beginning to send its first request, even if the door shuts meanwhile: its client has just
/// connected, and is told to come again rather than cut off.
const NEWBORN: Duration = Duration::from_millis(250);
const LINGER: Duration = Duration::from_secs(1);

/// An extension of each request: tells long answers, such as WebSockets and event streams, that the service wants to be saved.
///
/// A checkpoint waits for them until its drain deadline. Ending them in time is theirs to do.
///
/// ```
/// # async fn next_message() {}
/// async fn session(mut draining: crac_hyper::Draining) {
///     loop {
///         tokio::select! {
///             () = draining.begun() => break, // say goodbye
///             () = next_message() => {}
///         }
///     }
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Draining(watch::Receiver<bool>);

impl Draining {
    pub(crate) fn new(draining: watch::Receiver<bool>) -> Self {
        Self(draining)
    }

    /// Waits until the server drains: a checkpoint has begun, or the server is shutting down or gone. At once, if it does so now.
    /// May be dropped at any time.
    pub async fn begun(&mut self) {
        // An error means that the server is gone.
        let _ = self.0.wait_for(|draining| *draining).await;
    }

    /// Whether the server drains now.
    pub fn is_draining(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }
}

/// What all connections of a server share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) builder: auto::Builder<TokioExecutor>,
    pub(crate) door: Door,
    pub(crate) connections: Gate,
    pub(crate) upgraded: Gate,
}

/// Serves the connection in `tracked` until its end.
pub(crate) async fn run<Io, S, B>(
    shared: Arc<Shared>,
    (tracked, slot): (Tracked<Io>, Arc<Slot<Io>>),
    info: ConnectionInfo,
    app: S,
    mut draining: Draining,
) where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: tower_service::Service<Request<Incoming>, Response = http::Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn Error + Send + Sync>> + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let requests = Gate::new("requests of a connection");
    let born = Instant::now();
    // How much had been written when the door shut.
    let mut before = draining.is_draining().then_some(0);
    let service = PerConnection {
        checkpoint: Checkpoint::new(shared.door.of_connection(requests.clone()), app),
        info,
        draining: draining.clone(),
    };
    let mut connection = Box::pin(shared.builder.serve_connection_with_upgrades(TokioIo::new(tracked), service));
    let ended = tokio::select! {
        // The connection first: what the kernel already has for it becomes a request and gets an answer.
        biased;
        ended = connection.as_mut() => Some(ended),
        () = async {
            draining.begun().await;
            let traffic = slot.traffic();
            before.get_or_insert(traffic.written);
            if traffic.read == 0 {
                sleep_until(born + NEWBORN).await;
            }
        } => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            finish(connection.as_mut(), &slot, &requests).await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(peer = %info.peer_addr, %error, "http connection ended");
    }
    // The stream is back in its slot only once hyper has let go of it.
    drop(connection);
    let Some(io) = slot.settle(&shared.upgraded) else { return };
    if before.is_some_and(|before| slot.traffic().written > before) {
        linger(io).await;
    }
}

/// Drives a connection that was told to finish to its end, or until it has gone quiet.
async fn finish<Io, C, E>(mut connection: Pin<&mut C>, slot: &Slot<Io>, requests: &Gate) -> Result<(), E>
where
    C: Future<Output = Result<(), E>>,
{
    let mut seen = slot.traffic();
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => return ended,
            () = sleep(QUIET) => {}
        }
        let now = slot.traffic();
        if now == seen && requests.inside() == 0 && !slot.blocked() {
            tracing::debug!("http connection was quiet while the server drained: closed");
            return Ok(());
        }
        seen = now;
    }
}

/// Reads what the client still sends, until it closes.
async fn linger<Io: AsyncRead + AsyncWrite + Unpin>(mut io: Io) {
    let drained = async {
        io.shutdown().await?;
        let mut nowhere = [0; 1024];
        while io.read(&mut nowhere).await? > 0 {}
        std::io::Result::Ok(())
    };
    // Late or broken, it is closed now: the client has been told everything there was to tell.
    let _ = timeout(LINGER, drained).await;
}

/// Gives each request what is known of its connection, and leads it through the door.
#[derive(Debug, Clone)]
struct PerConnection<S> {
    checkpoint: Checkpoint<S>,
    info: ConnectionInfo,
    draining: Draining,
}

impl<S, B> hyper::service::Service<Request<Incoming>> for PerConnection<S>
where
    S: tower_service::Service<Request<Incoming>, Response = http::Response<B>> + Clone,
    B: Body<Data = Bytes>,
{
    type Response = <Checkpoint<S> as tower_service::Service<Request<Incoming>>>::Response;
    type Error = S::Error;
    type Future = TowerToHyperServiceFuture<Checkpoint<S>, Request<Incoming>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let extensions = request.extensions_mut();
        extensions.insert(self.info);
        extensions.insert(self.draining.clone());
        TowerToHyperService::new(self.checkpoint.clone()).call(request)
    }
}
