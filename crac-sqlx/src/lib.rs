//! An [sqlx](https://docs.rs/sqlx) pool that drains for a checkpoint and reconnects behind an unchanged handle.
//!
//! ```no_run
//! # #[cfg(feature = "sqlite")]
//! # async fn example() -> Result<(), sqlx::Error> {
//! let pool = crac_sqlx::SqlitePool::connect("sqlite:orders.db").await?;
//! let (orders,): (i64,) = sqlx::query_as("SELECT count(*) FROM orders").fetch_one(&pool).await?;
//! # Ok(())
//! # }
//! ```
//!
//! * [`Pool`] stands where an `sqlx::Pool` would: it is an [`Executor`](sqlx::Executor) and can be
//!   [acquired](sqlx::Acquire) from. In a round it waits for what is checked out, closes every connection, and connects anew with
//!   fresh options before the door opens. Queries that come meanwhile wait.
//! * [`manage`] drains an `sqlx::Pool` in place, for code that needs that type.
//!
//! Both are told in [`Phase::Egress`](crac_core::Phase::Egress), after the requests in flight have ended: those can use the pool
//! to their end. A connection or transaction that is not given back within the hook's deadline aborts the round, which says so
//! by name. Without a context (see [`crac_core::Context::current`]) both do nothing of their own.
//!
//! SQLite databases in memory live only as long as their connections, so that a pool of them refuses every checkpoint.
//!
//! Features: `sqlite`, `postgres`, `mysql`.

mod admission;
mod builder;
mod drain;
mod executor;
mod manage;
mod pool;
mod runtime;
mod target;
mod workers;

pub use builder::PoolBuilder;
pub use manage::{ManageError, Managed, manage, manage_in};
pub use pool::Pool;
pub use target::Target;

/// A pool of SQLite connections.
#[cfg(feature = "sqlite")]
pub type SqlitePool = Pool<sqlx::Sqlite>;
/// A pool of PostgreSQL connections.
#[cfg(feature = "postgres")]
pub type PgPool = Pool<sqlx::Postgres>;
/// A pool of MySQL connections.
#[cfg(feature = "mysql")]
pub type MySqlPool = Pool<sqlx::MySql>;

/// The options that connections of `DB` are made with: `SqliteConnectOptions`, `PgConnectOptions`, ...
pub type ConnectOptions<DB> = <<DB as sqlx::Database>::Connection as sqlx::Connection>::Options;
