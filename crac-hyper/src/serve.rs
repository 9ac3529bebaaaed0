//! The server: accepts, and turns with the door.

use std::{
    fmt,
    future::{Future, IntoFuture, pending},
    io,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use crac_core::{Context, Gate};
use hyper_util::{
    rt::{TokioExecutor, TokioTimer},
    server::conn::auto,
};
use tokio::sync::watch;

use crate::{
    accept::Accept,
    app::App,
    connection::{self, Draining, Shared},
    door::Door,
    io::Tracked,
};

const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(30);
/// After an error that is not of one connection: too many open files, usually.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Serves `app` to whoever connects to `listener`, over HTTP/1 and HTTP/2, in the ambient context.
///
/// `app` is an `axum::Router`, or any other tower or hyper service; requests carry [`ConnectionInfo`](crate::ConnectionInfo) and
/// [`Draining`] as extensions. Without an ambient context at the moment it is awaited the door stays open.
///
/// ```no_run
/// # async fn hello() -> &'static str { "hello" }
/// # async fn example() -> std::io::Result<()> {
/// let app: axum::Router = axum::Router::new().route("/", axum::routing::get(hello));
/// crac_hyper::serve(tokio::net::TcpListener::bind("127.0.0.1:8080").await?, app).await
/// # }
/// ```
///
/// When the door shuts, connections are told to finish (`Connection: close`, GOAWAY), idle ones are closed - one that has asked nothing
/// so far when it is 250 ms old -, and the checkpoint waits for the rest - requests, connections and upgraded connections each by
/// name - within the drain deadline. Afterwards, whatever came of it, the server accepts again.
pub fn serve<L, A, Kind>(listener: L, app: A) -> Serve<L, A, Kind>
where
    L: Accept,
    A: App<Kind>,
{
    Serve::new(None, listener, app)
}

/// Like [`serve`], in `context`.
pub fn serve_in<L, A, Kind>(context: &Context, listener: L, app: A) -> Serve<L, A, Kind>
where
    L: Accept,
    A: App<Kind>,
{
    Serve::new(Some(context.clone()), listener, app)
}

/// A server to be; awaiting it serves. It ends only after [`with_graceful_shutdown`](Self::with_graceful_shutdown).
///
/// Dropping the future stops accepting and tells the connections to finish; they do so on their own tasks.
#[must_use = "nothing is served before it is awaited"]
pub struct Serve<L, A, Kind> {
    context: Option<Context>,
    listener: L,
    app: A,
    stop: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    retry_after: Option<Duration>,
    wait: bool,
    header_read_timeout: Duration,
    kind: PhantomData<fn() -> Kind>,
}

impl<L, A, Kind> Serve<L, A, Kind> {
    fn new(context: Option<Context>, listener: L, app: A) -> Self {
        Self {
            context,
            listener,
            app,
            stop: None,
            retry_after: None,
            wait: false,
            header_read_timeout: HEADER_READ_TIMEOUT,
            kind: PhantomData,
        }
    }

    /// Ends the server after `signal`: it stops accepting at once, and returns when the connections have ended. Upgraded
    /// connections are not waited for.
    pub fn with_graceful_shutdown(mut self, signal: impl Future<Output = ()> + Send + 'static) -> Self {
        self.stop = Some(Box::pin(signal));
        self
    }

    /// Sets what `Retry-After` says to requests that find the door shut, rounded up to whole seconds. Default: 1 s.
    pub fn retry_after(mut self, retry_after: Duration) -> Self {
        self.retry_after = Some(retry_after);
        self
    }

    /// Where the engine keeps sockets, as a VM does: keeps connections over a round, and makes requests that find the door shut wait
    /// for it to open. No effect elsewhere. Default: false.
    pub fn wait(mut self, wait: bool) -> Self {
        self.wait = wait;
        self
    }

    /// Sets how long an HTTP/1 client may take for the head of a request. Default: 30 s.
    pub fn header_read_timeout(mut self, timeout: Duration) -> Self {
        self.header_read_timeout = timeout;
        self
    }
}

impl<L, A, Kind> IntoFuture for Serve<L, A, Kind>
where
    L: Accept,
    A: App<Kind>,
    Kind: 'static,
{
    type Output = io::Result<()>;
    type IntoFuture = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        let context = self.context.or_else(Context::current);
        let mut door = Door::new(context.as_ref()).wait(self.wait);
        if let Some(retry_after) = self.retry_after {
            door = door.retry_after(retry_after);
        }
        let gate = |name: &str| match &context {
            // Where requests wait, their connections stay.
            Some(context) if !door.waits() => context.gate(name),
            _ => Gate::new(name),
        };
        let (connections, upgraded) = (gate("http connections"), gate("upgraded connections"));
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(self.header_read_timeout);
        builder.http2().timer(TokioTimer::new());
        let shared = Arc::new(Shared { builder, door, connections, upgraded });
        Box::pin(run(shared, self.listener, self.app.into_service(), self.stop))
    }
}

async fn run<L, S, B>(
    shared: Arc<Shared>,
    mut listener: L,
    app: S,
    mut stop: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
) -> io::Result<()>
where
    L: Accept,
    S: tower_service::Service<http::Request<hyper::body::Incoming>, Response = http::Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (drain, draining) = watch::channel(false);
    loop {
        let shut = *drain.borrow();
        tokio::select! {
            // The door first: a connection accepted now must know on which side of it it was born.
            biased;
            () = stopped(&mut stop) => break,
            () = turned(shared.door.gate(), shut), if !shared.door.waits() => {
                drain.send_replace(!shut);
            }
            accepted = accept(&mut listener), if !shut || listener.drains() => {
                let (io, info) = accepted;
                // Counted before anybody can look away: the drain of the connections may already be under way.
                let tracked = Tracked::new(io, shared.connections.enter_anyway());
                tokio::spawn(connection::run(shared.clone(), tracked, info, app.clone(), Draining::new(draining.clone())));
            }
        }
    }
    drop(listener);
    drain.send_replace(true);
    shared.connections.drained().await;
    Ok(())
}

async fn stopped(stop: &mut Option<Pin<Box<dyn Future<Output = ()> + Send>>>) {
    match stop {
        Some(stop) => stop.await,
        None => pending().await,
    }
}

/// Waits until the door is no longer as `shut` says.
async fn turned(gate: &Gate, shut: bool) {
    if shut { gate.opened().await } else { gate.shutting().await }
}

/// The next connection. Errors are said and waited out: a server that gave up because of a full table would not come back.
async fn accept<L: Accept>(listener: &mut L) -> (L::Io, crate::ConnectionInfo) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) if of_one_connection(&error) => tracing::debug!(%error, "a connection was gone before it was accepted"),
            Err(error) => {
                tracing::error!(%error, pause_ms = ACCEPT_PAUSE.as_millis(), "cannot accept connections; trying again after a pause");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::NotConnected
    )
}

impl<L, A, Kind> fmt::Debug for Serve<L, A, Kind> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serve").field("wait", &self.wait).field("context", &self.context).finish_non_exhaustive()
    }
}
