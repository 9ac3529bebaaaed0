//! HTTP servers that drain for a checkpoint, and the tower layer that shuts the door.
//!
//! * [`CheckpointLayer`] goes around any tower service, such as an axum router: it counts what is in flight and answers what
//!   arrives meanwhile with 503 and `Retry-After`.
//! * [`serve`] runs a service on a listener, HTTP/1 and HTTP/2, and drains its connections too: `Connection: close`, GOAWAY,
//!   upgraded connections tracked. It counts requests itself: a layer around its service is not needed.
//!
//! What happens to a request in a round:
//!
//! | the request | what it gets |
//! |---|---|
//! | was let in before | its whole response; the checkpoint waits until the last byte of the body is handed over |
//! | arrives while the door is shut | 503, `Retry-After`, and on HTTP/1 `Connection: close` |
//! | never ends | the checkpoint is aborted at the drain deadline and says `1 http requests still in flight`; it goes on |
//!
//! Without a context (see [`crac_core::Context::current`]) both are inert: the door stays open.

mod accept;
mod app;
mod checkpoint;
mod connection;
mod door;
mod io;
mod serve;

pub use accept::{Accept, ConnectionInfo};
pub use app::{App, HyperService, TowerService, ViaHyper};
pub use checkpoint::{Checkpoint, CheckpointLayer, ResponseBody, ResponseFuture};
pub use connection::Draining;
pub use serve::{Serve, serve, serve_in};
