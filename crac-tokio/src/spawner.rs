//! Hooks as tasks of a tokio runtime.

use crac_core::{BoxError, BoxFuture, Spawned, Spawner};
use tokio::{runtime::Handle, task::AbortHandle};

/// Runs each hook as a task of one runtime.
///
/// On a runtime that has been shut down the task is dropped at once, which the round reports as the failure of the hook.
#[derive(Debug, Clone)]
pub struct TokioSpawner {
    handle: Handle,
}

impl TokioSpawner {
    /// Runs hooks on the runtime of `handle`.
    pub fn new(handle: Handle) -> Self {
        Self { handle }
    }
}

impl Spawner for TokioSpawner {
    fn spawn(&self, future: BoxFuture<()>) -> Result<Box<dyn Spawned>, BoxError> {
        Ok(Box::new(Task(self.handle.spawn(future).abort_handle())))
    }

    fn inside(&self, work: &mut dyn FnMut()) {
        let _inside = self.handle.enter();
        work();
    }
}

struct Task(AbortHandle);

impl Spawned for Task {
    fn abort(&self) {
        self.0.abort();
    }
}
