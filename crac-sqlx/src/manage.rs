//! Draining an sqlx pool in place.

use std::time::Duration;

use crac_core::{
    BoxError, CheckpointContext, Context, Phase, Registration, Resource, ResourceOptions, RestoreContext, async_trait,
};
use sqlx::Database;
use tokio::{runtime::Handle, time::sleep};

use crate::{
    runtime::on,
    target::{Target, is_in_memory},
    workers::Workers,
};

const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Drains `pool` in each round of the ambient context, for code that needs an [`sqlx::Pool`]. Without a context it does nothing.
///
/// The pool stays the same and open. In a round its idle connections are closed, and those that are checked out when they
/// come back; afterwards one connection is made before the door opens, with the options the pool has: see
/// [`sqlx::Pool::set_connect_options`] for fresh credentials.
///
/// There is no door in front of such a pool: code that is no request in flight, such as a timer's, may connect again just before the
/// process is saved. The audit then finds the connection and the round is aborted. [`Pool`](crate::Pool) makes that code wait.
///
/// # Errors
///
/// [`ManageError`]: the pool is one that cannot be drained in place.
///
/// # Panics
///
/// Outside of a tokio runtime.
pub fn manage<DB: Database>(pool: &sqlx::Pool<DB>) -> Result<Managed, ManageError> {
    manage_if(Context::current().as_ref(), pool)
}

/// Like [`manage`], in `context`.
///
/// # Errors
///
/// As for [`manage`].
///
/// # Panics
///
/// Outside of a tokio runtime.
pub fn manage_in<DB: Database>(context: &Context, pool: &sqlx::Pool<DB>) -> Result<Managed, ManageError> {
    manage_if(Some(context), pool)
}

/// Keeps a pool managed until it is dropped. It keeps the pool alive, too.
#[derive(Debug)]
#[must_use = "dropping it leaves the pool to itself"]
pub struct Managed {
    registration: Option<Registration>,
}

impl Managed {
    /// Keeps the pool managed for the rest of the context's life.
    pub fn forever(self) {
        if let Some(registration) = self.registration {
            registration.forever();
        }
    }
}

/// Why a pool cannot be managed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManageError {
    /// It connects by itself.
    #[error(
        "cannot manage a pool whose min_connections is {0}: it connects again as soon as connections are closed\n\
         hint: set min_connections to 0, or use crac_sqlx::Pool, which keeps any number"
    )]
    MinConnections(u32),
    /// It would lose its data.
    #[error("cannot manage a pool of an SQLite database in memory: it is gone with its last connection\nhint: use a file")]
    InMemory,
}

fn manage_if<DB: Database>(context: Option<&Context>, pool: &sqlx::Pool<DB>) -> Result<Managed, ManageError> {
    match pool.options().get_min_connections() {
        0 => {}
        some => return Err(ManageError::MinConnections(some)),
    }
    if is_in_memory::<DB>(&pool.connect_options()) {
        return Err(ManageError::InMemory);
    }
    let registration = context.map(|context| {
        let name = format!("sqlx pool {}", name_of(pool));
        let explained = pool.clone();
        let options =
            ResourceOptions::new(name).phase(Phase::Egress).concurrent(true).brief().explain(move || {
                format!("{} connections or transactions are still checked out or were made anew", explained.size())
            });
        context.register(options, Emptied { pool: pool.clone(), runtime: Handle::current() })
    });
    Ok(Managed { registration })
}

fn name_of<DB: Database>(pool: &sqlx::Pool<DB>) -> String {
    Target::<DB>::Options((*pool.connect_options()).clone()).to_string()
}

struct Emptied<DB: Database> {
    pool: sqlx::Pool<DB>,
    runtime: Handle,
}

impl<DB: Database> Emptied<DB> {
    /// Closes connections until there is none. Nothing says when one comes back, so it looks again and again.
    async fn empty(&self) -> Result<(), BoxError> {
        let workers = Workers::of::<DB>();
        let connections = self.pool.size() as usize;
        loop {
            while let Some(connection) = self.pool.try_acquire() {
                connection.close().await?;
            }
            if self.pool.size() == 0 || self.pool.is_closed() {
                break;
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(workers.gone(connections).await?)
    }
}

#[async_trait]
impl<DB: Database> Resource for Emptied<DB> {
    async fn before_checkpoint(&self, _context: &CheckpointContext) -> Result<(), BoxError> {
        on(&self.runtime, self.empty()).await
    }

    async fn after_restore(&self, _context: &RestoreContext) -> Result<(), BoxError> {
        if self.pool.is_closed() {
            return Ok(());
        }
        let connection = on(&self.runtime, self.pool.acquire()).await;
        let connection = connection.map_err(|error| format!("cannot connect to {} again: {error}", name_of(&self.pool)))?;
        // Its drop gives it back by a task of the runtime.
        let _inside = self.runtime.enter();
        drop(connection);
        Ok(())
    }
}
