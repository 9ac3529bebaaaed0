//! Who may ask a pool for a connection, and when: the pool's own door.

use std::sync::{PoisonError, RwLock};

use crac_core::{Gate, Pass};
use sqlx::{Database, Error};

/// The sqlx pool behind a handle, and the door in front of it.
///
/// The door is not one of the context's gates: those shut when a round begins, and what is in flight then still needs connections.
/// This one shuts only when the pool itself is told to let go.
#[derive(Debug)]
pub(crate) struct Admission<DB: Database> {
    pub(crate) gate: Gate,
    inner: RwLock<sqlx::Pool<DB>>,
}

impl<DB: Database> Admission<DB> {
    pub(crate) fn new(inner: sqlx::Pool<DB>) -> Self {
        Self { gate: Gate::new("database calls"), inner: RwLock::new(inner) }
    }

    /// The sqlx pool of now.
    pub(crate) fn inner(&self) -> sqlx::Pool<DB> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts another sqlx pool behind the door.
    pub(crate) fn replace(&self, inner: sqlx::Pool<DB>) {
        let old = std::mem::replace(&mut *self.inner.write().unwrap_or_else(PoisonError::into_inner), inner);
        drop(old);
    }

    /// Waits for the door, at most the acquire timeout. The pass is kept as long as connections are being asked for: the sqlx pool
    /// is not closed before.
    ///
    /// # Errors
    ///
    /// [`Error::PoolTimedOut`].
    pub(crate) async fn admit(&self) -> Result<(sqlx::Pool<DB>, Pass), Error> {
        if let Ok(pass) = self.gate.enter() {
            return Ok((self.inner(), pass));
        }
        let limit = self.inner().options().get_acquire_timeout();
        let pass = async {
            loop {
                self.gate.opened().await;
                if let Ok(pass) = self.gate.enter() {
                    return pass;
                }
            }
        };
        let pass = tokio::time::timeout(limit, pass).await.map_err(|_late| Error::PoolTimedOut)?;
        Ok((self.inner(), pass))
    }
}
