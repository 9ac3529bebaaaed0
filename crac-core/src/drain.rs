//! A gate as a resource: the way down waits until it is empty.

use async_trait::async_trait;

use crate::{
    gate::Gate,
    resource::{BoxError, CheckpointContext, Resource},
};

/// Waits for the work behind a gate.
pub(crate) struct Drain(pub(crate) Gate);

#[async_trait]
impl Resource for Drain {
    async fn before_checkpoint(&self, _context: &CheckpointContext) -> Result<(), BoxError> {
        self.0.drained().await;
        Ok(())
    }
}
