//! Work that a checkpoint waits for.

use std::{
    future::Future,
    sync::{Arc, Mutex, Weak},
};

use crac_core::{Context, Engine, Gate, Pass};
use tokio::task::JoinHandle;

use crate::lock;

/// Counts work in flight in one context, under the name `tasks`. Cheap to clone; clones count together.
///
/// A checkpoint waits for the count to come to zero within the drain deadline. What is begun while it waits is counted too, and not
/// held back: it is most likely a consequence of a request in flight, which would wait for it forever.
#[derive(Debug, Clone)]
pub struct Tasks {
    gate: Gate,
}

impl Tasks {
    /// A count in `context`, for the rest of the context's life.
    pub fn new(context: &Context) -> Self {
        Self { gate: context.gate("tasks") }
    }

    /// Spawns `future` on the current runtime and counts it until it has ended, was aborted or has panicked.
    ///
    /// For work that ends. A task that runs as long as the service does would keep it from ever being checkpointed.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        let in_flight = self.in_flight();
        tokio::spawn(async move {
            let _in_flight = in_flight;
            future.await
        })
    }

    /// Counts something until the guard is dropped.
    pub fn in_flight(&self) -> InFlight {
        InFlight { _pass: Some(self.gate.enter_anyway()) }
    }

    /// How much is in flight.
    pub fn count(&self) -> usize {
        self.gate.inside()
    }
}

/// Keeps something counted as in flight.
#[derive(Debug)]
#[must_use = "dropping it ends the count at once"]
pub struct InFlight {
    _pass: Option<Pass>,
}

/// The count of the ambient context, and the engine by which that is told from another.
static AMBIENT: Mutex<Option<(Weak<dyn Engine>, Tasks)>> = Mutex::new(None);

fn ambient() -> Option<Tasks> {
    let context = Context::current()?;
    let mut ambient = lock(&AMBIENT);
    if let Some((engine, tasks)) = &*ambient
        && std::ptr::addr_eq(engine.as_ptr(), Arc::as_ptr(context.engine()))
    {
        return Some(tasks.clone());
    }
    let tasks = Tasks::new(&context);
    *ambient = Some((Arc::downgrade(context.engine()), tasks.clone()));
    Some(tasks)
}

/// Spawns `future` on the current runtime; the ambient context's checkpoints wait for its end: see [`Tasks::spawn`].
///
/// Without a context this is `tokio::spawn`.
///
/// # Panics
///
/// Outside of a tokio runtime.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    match ambient() {
        Some(tasks) => tasks.spawn(future),
        None => tokio::spawn(future),
    }
}

/// Counts something as in flight until the guard is dropped; the ambient context's checkpoints wait for that. Without a context
/// nothing is counted.
pub fn in_flight() -> InFlight {
    ambient().map_or(InFlight { _pass: None }, |tasks| tasks.in_flight())
}
