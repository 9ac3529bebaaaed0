use std::time::Duration;

use crac_core::Context;
use tower_layer::Layer;

use super::Checkpoint;
use crate::door::Door;

/// Counts requests in flight, and answers those that find the door shut with 503 and `Retry-After`.
///
/// A request is in flight until its response *body* has ended or was dropped, not only until the response is there: the process
/// is not saved while a long download runs. See the crate's page for what happens to which request.
///
/// The layer sees requests, not connections: with `axum::serve` idle keep-alive connections stay open, and an upgraded
/// connection (WebSocket) is no longer counted. [`serve`](crate::serve()) drains both, and needs no layer.
///
/// ```
/// # async fn hello() -> &'static str { "hello" }
/// let app: axum::Router = axum::Router::new()
///     .route("/", axum::routing::get(hello))
///     .layer(crac_hyper::CheckpointLayer::new());
/// ```
///
/// Clones are the same door. Each layer made by [`new`](Self::new) or [`in_context`](Self::in_context) adds a gate to its
/// context for the rest of that context's life: make it once and not per request.
#[derive(Debug, Clone)]
pub struct CheckpointLayer {
    door: Door,
}

impl CheckpointLayer {
    /// A layer of the ambient context; inert if there is none at this moment.
    pub fn new() -> Self {
        Self { door: Door::new(Context::current().as_ref()) }
    }

    /// A layer of `context`.
    pub fn in_context(context: &Context) -> Self {
        Self { door: Door::new(Some(context)) }
    }

    /// Sets what `Retry-After` says, rounded up to whole seconds. Default: 1 s.
    #[must_use]
    pub fn retry_after(self, retry_after: Duration) -> Self {
        Self { door: self.door.retry_after(retry_after) }
    }

    /// Makes requests wait until the door opens instead of turning them away - where the engine keeps sockets, as a VM does.
    /// Elsewhere their connections would not outlive the round, and they are turned away all the same. Default: false.
    #[must_use]
    pub fn wait(self, wait: bool) -> Self {
        Self { door: self.door.wait(wait) }
    }
}

impl Default for CheckpointLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for CheckpointLayer {
    type Service = Checkpoint<S>;

    fn layer(&self, inner: S) -> Checkpoint<S> {
        Checkpoint::new(self.door.clone(), inner)
    }
}
