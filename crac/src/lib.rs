//! Coordinated Restore at Checkpoint: a tokio service drains itself, is saved whole with its warmed-up state, and comes back -
//! once or as many clones - in a few milliseconds.
//!
//! ```no_run
//! #[crac::main]
//! async fn main() -> std::io::Result<()> {
//!     crac::defer_ready();
//!     // warm up: indexes, caches, models ...
//!     crac::ready();
//!     // ... and serve, with crac::net, crac::http and crac::sqlx
//!     Ok(())
//! }
//! ```
//!
//! This crate puts the others together and decides nothing: the contract is in [`crac_core`], runtimes and sockets in
//! [`crac_tokio`], HTTP in `crac_hyper`, databases in `crac_sqlx`, the in-process engine in `crac_native`.
//!
//! * [`main`](macro@main) runs a service; [`attach`] takes a runtime of one's own.
//! * [`register`] takes a [`Resource`] that lets go and comes back. [`checkpoint`] asks for a checkpoint.
//! * [`generation`] and [`life`] say which life this is.
//!
//! All of these use the ambient context and are inert without one, so that tests of a service need none.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[doc(hidden)]
pub mod __private;
pub mod env;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod secret;
mod service;
mod settings;

pub use crac_core::{
    AbortReason, Action, BoxError, CheckpointContext, CheckpointError, CheckpointRequest, Completed, Context, Deadlines, Denial,
    EnvChange, Gate, HostFacts, ImageId, InstanceId, Mode, Obstacle, ObstacleKind, Outcome, Pass, Phase, Policy, Registration,
    Report, Resource, ResourceOptions, RestoreContext, RestoreFailure, Shut, async_trait,
};
#[cfg(feature = "macros")]
pub use crac_macros::main;
pub use crac_tokio::{Attached, InFlight, attach, attach_in, in_flight, spawn};

/// An allocator for services whose freed memory holds what an image should not.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod alloc {
    pub use crac_sys::secret::Zeroising;
}

/// Listeners and sockets that come back in a restored life.
pub mod net {
    pub use crac_tokio::net::*;
}

/// Time that is not surprised by a restore.
pub mod time {
    pub use crac_tokio::time::*;
}

/// HTTP: `serve`, drain, the tower layer.
#[cfg(feature = "hyper")]
pub mod http {
    pub use crac_hyper::*;
}

/// Databases: the pool that drains and reconnects.
#[cfg(feature = "sqlx")]
pub mod sqlx {
    pub use crac_sqlx::*;
}

/// Everything of the contract, for adapters.
pub mod core {
    pub use crac_core::*;
}

/// Registers a resource with the ambient context until the registration is dropped; without a context it is never told anything.
pub fn register(options: ResourceOptions, resource: impl Resource) -> Registered {
    Registered(Context::current().map(|context| context.register(options, resource)))
}

/// Keeps a resource registered, if there is a context; dropping it takes the resource out.
#[derive(Debug)]
#[must_use = "dropping it takes the resource out again"]
pub struct Registered(Option<Registration>);

impl Registered {
    /// Keeps the resource registered for the rest of the context's life.
    pub fn forever(self) {
        if let Some(registration) = self.0 {
            registration.forever();
        }
    }
}

/// Asks the ambient context for a checkpoint in `mode` and waits for its end; in a restored life this returns too.
///
/// # Errors
///
/// [`CheckpointError`]; the service serves as before. [`CheckpointError::Gone`] without an ambient context.
pub async fn checkpoint(mode: Mode) -> Result<Completed, CheckpointError> {
    match Context::current() {
        Some(context) => context.checkpoint(CheckpointRequest::new(mode)).await,
        None => Err(CheckpointError::Gone),
    }
}

/// Says that the service is ready to serve and its state worth saving: `crac run --checkpoint-on ready` waits for it.
///
/// Without this call a service counts as ready when all its listeners accept. A service that calls it announces that with
/// [`defer_ready`] before it binds.
pub fn ready() {
    if let Some(context) = Context::current() {
        context.mark_ready();
    }
}

/// Announces that the service will call [`ready`]: open listeners do not count as ready then.
pub fn defer_ready() {
    if let Some(context) = Context::current() {
        context.defer_ready();
    }
}

/// Gives the service another name than its attribute did, for example one from its arguments.
pub fn set_name(name: impl Into<String>) {
    if let Some(context) = Context::current() {
        context.rename(name);
    }
}

/// The generation of this life: 0 in a process that was started and without a context, one more with every restore.
pub fn generation() -> u64 {
    Context::current().map_or(0, |context| context.generation())
}

/// This life: who it is, where it came from, what changed. `None` without an ambient context.
pub fn life() -> Option<RestoreContext> {
    Context::current().map(|context| context.life())
}

/// Runs `work` on every held thread of each restored life, before that thread runs anything else: to make what is private to a
/// thread fresh. Without a context it never runs.
pub fn on_sweep(name: impl Into<String>, work: impl Fn() + Send + Sync + 'static) {
    if let Some(context) = Context::current() {
        context.on_sweep(name, work);
    }
}

/// Holds the runtime of this task in every round, with what [`attach`] takes.
///
/// # Panics
///
/// Outside of a tokio runtime.
pub fn attach_current() -> Attached {
    attach(&tokio::runtime::Handle::current())
}

/// The in-process engine with its defaults, for contexts that are built by hand.
#[cfg(feature = "native")]
pub fn native_engine() -> std::sync::Arc<dyn crac_core::Engine> {
    std::sync::Arc::new(crac_native::NativeEngine::new())
}
