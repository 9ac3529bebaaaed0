//! The pool as a resource.
//!
//! ```text
//!   before_checkpoint   shut ─► calls gone ─► sqlx pool closed (waits for what is checked out) ─► worker threads gone
//!   after_restore       retarget ─► parse ─► connect ─► put behind the door ─► open
//! ```
//!
//! Either way down or up may be dropped anywhere, when a deadline strikes. In the same process the door opens in any case, before
//! a pool that connects when it is used: an aborted round ends in a service that serves.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crac_core::{BoxError, CheckpointContext, Resource, RestoreContext, async_trait};
use sqlx::{Database, pool::PoolOptions};
use tokio::runtime::Handle;

use crate::{
    ConnectOptions,
    admission::Admission,
    builder::Retarget,
    runtime::on,
    target::{Target, is_in_memory},
    workers::{StillThere, Workers},
};

pub(crate) struct Drain<DB: Database> {
    admission: Arc<Admission<DB>>,
    runtime: Handle,
    options: PoolOptions<DB>,
    target: Mutex<Target<DB>>,
    retarget: Option<Retarget<DB>>,
    lazy: bool,
    /// The sqlx pool was closed, for this round and not for good.
    closed: AtomicBool,
}

/// Why a pool cannot let go or come back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DrainError {
    #[error(
        "cannot let go of {0}: a database in memory is gone with its last connection\n\
         hint: use a file, or write what matters to one in a resource of your own and close this pool before"
    )]
    InMemory(String),
    #[error("closed all connections to {target}, but {source}")]
    Workers { target: String, source: StillThere },
    #[error("cannot say what to connect to instead of {target}")]
    Retarget { target: String, source: BoxError },
    #[error("cannot connect to {target} again")]
    Connect { target: String, source: sqlx::Error },
    #[error(
        "cannot connect to {target} again within {limit:?}\nhint: is it reachable from where this life runs? a longer deadline is in the context's"
    )]
    Late { target: String, limit: Duration },
}

impl<DB: Database> Drain<DB> {
    pub(crate) fn new(
        admission: Arc<Admission<DB>>,
        runtime: Handle,
        options: PoolOptions<DB>,
        target: Target<DB>,
        retarget: Option<Retarget<DB>>,
        lazy: bool,
    ) -> Self {
        Self { admission, runtime, options, target: Mutex::new(target), retarget, lazy, closed: AtomicBool::new(false) }
    }

    fn target(&self) -> MutexGuard<'_, Target<DB>> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn let_go(&self) -> Result<(), DrainError> {
        self.admission.gate.shut();
        // Whoever asks the sqlx pool for a connection while it is closed gets an error: so first nobody asks any more.
        self.admission.gate.drained().await;
        let pool = self.admission.inner();
        let workers = Workers::of::<DB>();
        let connections = pool.size() as usize;
        self.closed.store(true, Ordering::Release);
        pool.close().await;
        workers.gone(connections).await.map_err(|source| DrainError::Workers { target: self.target().to_string(), source })
    }

    async fn come_back(&self, context: &RestoreContext) -> Result<(), DrainError> {
        let mut ajar = Ajar { drain: self, restored: context.is_restored(), done: false };
        let options = self.fresh_options(context).await?;
        let target = self.target().to_string();
        let pool = if self.lazy {
            self.options.clone().connect_lazy_with(options)
        } else {
            // A little less than the deadline, so that it is us who say what was late.
            let limit = context.deadline().mul_f32(0.9);
            match tokio::time::timeout(limit, self.options.clone().connect_with(options)).await {
                Ok(Ok(pool)) => pool,
                Ok(Err(source)) => return Err(DrainError::Connect { target, source }),
                Err(_late) => return Err(DrainError::Late { target, limit }),
            }
        };
        self.admission.replace(pool);
        self.admission.gate.open();
        ajar.done = true;
        Ok(())
    }

    async fn fresh_options(&self, context: &RestoreContext) -> Result<ConnectOptions<DB>, DrainError> {
        if let Some(retarget) = &self.retarget {
            let target = retarget(context.clone()).await;
            match target.map_err(|source| DrainError::Retarget { target: self.target().to_string(), source })? {
                Target::Same => {}
                other => *self.target() = other,
            }
        }
        let target = self.target();
        target.options().map_err(|source| DrainError::Connect { target: target.to_string(), source })
    }
}

#[async_trait]
impl<DB: Database> Resource for Drain<DB> {
    async fn before_checkpoint(&self, _context: &CheckpointContext) -> Result<(), BoxError> {
        let pool = self.admission.inner();
        if pool.is_closed() {
            return Ok(());
        }
        if is_in_memory::<DB>(&pool.connect_options()) {
            return Err(DrainError::InMemory(self.target().to_string()).into());
        }
        Ok(on(&self.runtime, self.let_go()).await?)
    }

    async fn after_restore(&self, context: &RestoreContext) -> Result<(), BoxError> {
        if !self.closed.swap(false, Ordering::AcqRel) {
            // It never came to that; the door may have been shut already.
            self.admission.gate.open();
            return Ok(());
        }
        Ok(on(&self.runtime, self.come_back(context)).await?)
    }
}

/// Makes sure that the same process serves on when coming back fails or is late: with a pool that connects when it is used, with the
/// options of before. A restored life whose database is out of reach stays shut.
struct Ajar<'a, DB: Database> {
    drain: &'a Drain<DB>,
    restored: bool,
    done: bool,
}

impl<DB: Database> Drop for Ajar<'_, DB> {
    fn drop(&mut self) {
        if self.done || self.restored {
            return;
        }
        let _inside = self.drain.runtime.enter();
        let admission = &self.drain.admission;
        let options = ConnectOptions::<DB>::clone(&admission.inner().connect_options());
        admission.replace(self.drain.options.clone().connect_lazy_with(options));
        admission.gate.open();
    }
}
