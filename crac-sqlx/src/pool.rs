//! The handle.

use std::{
    fmt,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};

use crac_core::{Context, Registration};
use futures_core::future::BoxFuture;
use sqlx::{
    Acquire, Database, Error, SqlSafeStr, Transaction,
    pool::{MaybePoolConnection, PoolConnection, PoolOptions},
};

use crate::{ConnectOptions, admission::Admission, builder::PoolBuilder};

/// A pool of connections to a database that outlives checkpoints. Cheap to clone; clones are the same pool.
///
/// It stands where an [`sqlx::Pool`] would, and behaves like one. In a round, in [`Phase::Egress`](crac_core::Phase::Egress):
///
/// * New calls wait, at most the acquire timeout ([`Error::PoolTimedOut`]).
/// * It waits until every connection and transaction that is checked out has come back, within the hook's deadline. The report of an
///   aborted round says how many have not; they stay usable until they do.
/// * All connections are closed, and SQLite's worker threads gone, before the process is saved.
/// * Afterwards, in a restored life as in the same process, it connects anew - one connection at least, so that a database out of
///   reach is found before the door opens - with options as in [`Target`](crate::Target), and the calls that wait go on.
///
/// What connections had of their own is lost with them: temporary tables, settings, prepared statements, advisory locks.
///
/// Dropping the last handle takes the pool out of its context.
pub struct Pool<DB: Database> {
    handle: Arc<Handle<DB>>,
}

struct Handle<DB: Database> {
    admission: Arc<Admission<DB>>,
    registration: Mutex<Option<Registration>>,
}

impl<DB: Database> Pool<DB> {
    /// Connects to the database at `url` in the ambient context, with the default [`PoolOptions`].
    ///
    /// # Errors
    ///
    /// If the URL is none, or the database cannot be reached within the acquire timeout.
    pub async fn connect(url: &str) -> Result<Self, Error> {
        Self::builder().connect(url).await
    }

    /// Like [`connect`](Self::connect), in `context`.
    ///
    /// # Errors
    ///
    /// As for [`connect`](Self::connect).
    pub async fn connect_in(context: &Context, url: &str) -> Result<Self, Error> {
        Self::builder().context(context).connect(url).await
    }

    /// Connects with these options in the ambient context.
    ///
    /// # Errors
    ///
    /// If the database cannot be reached within the acquire timeout.
    pub async fn connect_with(pool_options: PoolOptions<DB>, options: ConnectOptions<DB>) -> Result<Self, Error> {
        Self::builder().options(pool_options).connect_with(options).await
    }

    /// Like [`connect_with`](Self::connect_with), in `context`.
    ///
    /// # Errors
    ///
    /// As for [`connect_with`](Self::connect_with).
    pub async fn connect_with_in(
        context: &Context,
        pool_options: PoolOptions<DB>,
        options: ConnectOptions<DB>,
    ) -> Result<Self, Error> {
        Self::builder().context(context).options(pool_options).connect_with(options).await
    }

    /// Begins a pool about which more is to be said: lazy connections, fresh credentials after a restore.
    pub fn builder() -> PoolBuilder<DB> {
        PoolBuilder::new()
    }

    pub(crate) fn new(admission: Arc<Admission<DB>>, registration: Option<Registration>) -> Self {
        Self { handle: Arc::new(Handle { admission, registration: Mutex::new(registration) }) }
    }

    pub(crate) fn admission(&self) -> &Arc<Admission<DB>> {
        &self.handle.admission
    }

    /// Checks a connection out. May be dropped at any time.
    ///
    /// # Errors
    ///
    /// As for [`sqlx::Pool::acquire`]; the acquire timeout counts anew after a round that was waited for.
    pub fn acquire(&self) -> impl Future<Output = Result<PoolConnection<DB>, Error>> + Send + 'static {
        let admission = self.admission().clone();
        async move {
            let (pool, pass) = admission.admit().await?;
            let connection = pool.acquire().await;
            drop(pass);
            connection
        }
    }

    /// Checks a connection out if one is idle; none while a round lets go of them.
    pub fn try_acquire(&self) -> Option<PoolConnection<DB>> {
        let _pass = self.admission().gate.enter().ok()?;
        self.admission().inner().try_acquire()
    }

    /// Checks a connection out and begins a transaction on it.
    ///
    /// # Errors
    ///
    /// As for [`acquire`](Self::acquire), and what the database says.
    pub async fn begin(&self) -> Result<Transaction<'static, DB>, Error> {
        self.begin_on(None).await
    }

    /// Like [`begin`](Self::begin), with a statement of its own, such as `BEGIN IMMEDIATE`.
    ///
    /// # Errors
    ///
    /// As for [`begin`](Self::begin).
    pub async fn begin_with(&self, statement: impl SqlSafeStr) -> Result<Transaction<'static, DB>, Error> {
        self.begin_on(Some(statement.into_sql_str())).await
    }

    async fn begin_on(&self, statement: Option<sqlx::SqlStr>) -> Result<Transaction<'static, DB>, Error> {
        let connection = self.acquire().await?;
        Transaction::begin(MaybePoolConnection::PoolConnection(connection), statement).await
    }

    /// Closes the pool for good: it leaves its context, calls from now on get [`Error::PoolClosed`], and the future waits for
    /// connections that are checked out.
    pub async fn close(&self) {
        let registration = self.handle.registration.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(registration);
        self.admission().inner().close().await;
    }

    /// Whether [`close`](Self::close) was called.
    pub fn is_closed(&self) -> bool {
        self.admission().inner().is_closed() && !self.admission().gate.is_shut()
    }

    /// How many connections there are: idle, checked out and in between.
    pub fn size(&self) -> u32 {
        self.admission().inner().size()
    }

    /// How many connections are idle.
    pub fn num_idle(&self) -> usize {
        self.admission().inner().num_idle()
    }

    /// The options that connections are made with just now.
    pub fn connect_options(&self) -> Arc<ConnectOptions<DB>> {
        self.admission().inner().connect_options()
    }
}

impl<'c, DB: Database> Acquire<'c> for &'_ Pool<DB> {
    type Database = DB;
    type Connection = PoolConnection<DB>;

    fn acquire(self) -> BoxFuture<'c, Result<PoolConnection<DB>, Error>> {
        Box::pin(self.acquire())
    }

    fn begin(self) -> BoxFuture<'c, Result<Transaction<'c, DB>, Error>> {
        let connection = self.acquire();
        Box::pin(async move { Transaction::begin(MaybePoolConnection::PoolConnection(connection.await?), None).await })
    }
}

impl<DB: Database> Clone for Pool<DB> {
    fn clone(&self) -> Self {
        Self { handle: self.handle.clone() }
    }
}

impl<DB: Database> fmt::Debug for Pool<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The options of the sqlx pool may hold a password.
        f.debug_struct("Pool")
            .field("database", &DB::NAME)
            .field("size", &self.size())
            .field("num_idle", &self.num_idle())
            .field("shut", &self.admission().gate.is_shut())
            .finish()
    }
}
