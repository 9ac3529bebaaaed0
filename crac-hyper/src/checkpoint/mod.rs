//! The tower middleware: [`CheckpointLayer`], [`Checkpoint`], [`ResponseFuture`], [`ResponseBody`].

mod body;
mod future;
mod layer;
mod service;

pub use body::ResponseBody;
pub use future::ResponseFuture;
pub use layer::CheckpointLayer;
pub use service::Checkpoint;
