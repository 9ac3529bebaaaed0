//! Everything about a pool that can be chosen.

use std::{fmt, future::Future, sync::Arc};

use crac_core::{BoxError, BoxFuture, Context, Phase, ResourceOptions, RestoreContext};
use sqlx::{Database, Error, pool::PoolOptions};
use tokio::runtime::Handle;

use crate::{ConnectOptions, Pool, Target, admission::Admission, drain::Drain};

/// Says what to connect to after a round.
pub(crate) type Retarget<DB> = Arc<dyn Fn(RestoreContext) -> BoxFuture<Result<Target<DB>, BoxError>> + Send + Sync>;

/// A pool to be.
#[must_use = "call one of the `connect` methods"]
pub struct PoolBuilder<DB: Database> {
    context: Option<Context>,
    name: Option<String>,
    options: PoolOptions<DB>,
    retarget: Option<Retarget<DB>>,
}

impl<DB: Database> PoolBuilder<DB> {
    pub(crate) fn new() -> Self {
        Self { context: None, name: None, options: PoolOptions::new(), retarget: None }
    }

    /// Sets the context. Default: the ambient one, if there is one when it connects.
    pub fn context(mut self, context: &Context) -> Self {
        self.context = Some(context.clone());
        self
    }

    /// Sets the pool's name in reports. Default: what it connects to, without passwords.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets the pool's options. They hold for its whole life, hooks such as `after_connect` too.
    pub fn options(mut self, options: PoolOptions<DB>) -> Self {
        self.options = options;
        self
    }

    /// Asks `retarget` what to connect to, each time the pool comes back: in a restored life, and in the same process after a round
    /// that was aborted or went on ([`RestoreContext::outcome`]). For credentials that are short-lived, and for lives whose database
    /// is another one. It runs within the deadline of the pool's hook, and its error is the hook's.
    ///
    /// ```no_run
    /// # #[cfg(feature = "postgres")]
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use crac_sqlx::{PgPool, Target};
    ///
    /// let pool = PgPool::builder()
    ///     .on_restore(|life| async move {
    ///         // Each clone is started with a database of its own.
    ///         match life.var("DATABASE_URL").and_then(|url| url.to_str()) {
    ///             Some(url) => Ok(Target::from(url)),
    ///             None => Ok(Target::Same),
    ///         }
    ///     })
    ///     .connect(&std::env::var("DATABASE_URL")?)
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_restore<F, R>(mut self, retarget: F) -> Self
    where
        F: Fn(RestoreContext) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Target<DB>, BoxError>> + Send + 'static,
    {
        self.retarget = Some(Arc::new(move |life| Box::pin(retarget(life))));
        self
    }

    /// Connects to the database at `url`; one connection is made at once. After each round the URL is parsed again.
    ///
    /// # Errors
    ///
    /// If the URL is none, or the database cannot be reached within the acquire timeout.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, as all of sqlx.
    pub async fn connect(self, url: &str) -> Result<Pool<DB>, Error> {
        self.connect_to(Target::from(url)).await
    }

    /// Connects with `options`; one connection is made at once. After each round they are used as they are.
    ///
    /// # Errors
    ///
    /// If the database cannot be reached within the acquire timeout.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub async fn connect_with(self, options: ConnectOptions<DB>) -> Result<Pool<DB>, Error> {
        self.connect_to(Target::Options(options)).await
    }

    /// Makes a pool that connects when it is first used, and likewise after each round: whether the database can be reached is not
    /// found out before.
    ///
    /// # Errors
    ///
    /// If the URL is none.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn connect_lazy(self, url: &str) -> Result<Pool<DB>, Error> {
        let target = Target::from(url);
        let inner = self.options.clone().connect_lazy_with(target.options()?);
        Ok(self.finish(target, inner, true))
    }

    async fn connect_to(self, target: Target<DB>) -> Result<Pool<DB>, Error> {
        let inner = self.options.clone().connect_with(target.options()?).await?;
        Ok(self.finish(target, inner, false))
    }

    fn finish(self, target: Target<DB>, inner: sqlx::Pool<DB>, lazy: bool) -> Pool<DB> {
        let admission = Arc::new(Admission::new(inner));
        let context = self.context.or_else(Context::current);
        let registration = context.map(|context| {
            let name = self.name.unwrap_or_else(|| format!("sqlx pool {target}"));
            let explained = admission.clone();
            let options = ResourceOptions::new(name).phase(Phase::Egress).concurrent(true).explain(move || explain(&explained));
            // What the service says itself may block, and do anything.
            let options = if self.retarget.is_none() { options.begin_at_once().brief() } else { options };
            let drain = Drain::new(admission.clone(), Handle::current(), self.options, target, self.retarget, lazy);
            context.register(options, drain)
        });
        Pool::new(admission, registration)
    }
}

/// What a late pool still waits for.
fn explain<DB: Database>(admission: &Admission<DB>) -> String {
    let inner = admission.inner();
    let out = (inner.size() as usize).saturating_sub(inner.num_idle());
    match (out, admission.gate.inside()) {
        (0, 0) => format!("all connections are back, the {} pool is still at work", DB::NAME),
        (out, 0) => format!("{out} connections or transactions are still checked out"),
        (out, calls) => format!("{out} connections are still checked out, {calls} calls are still asking for one or using it"),
    }
}

impl<DB: Database> fmt::Debug for PoolBuilder<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolBuilder").field("database", &DB::NAME).field("name", &self.name).finish_non_exhaustive()
    }
}
