//! Orders, in a database that may be SQLite or PostgreSQL.

use std::str::FromStr;

use anyhow::{Context, bail};
use crac::sqlx::Pool;
use serde::Serialize;
use sqlx::{
    Postgres, Sqlite,
    postgres::{PgConnectOptions, PgPoolOptions},
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};

/// Connections at a time; SQLite writes one after the other anyway.
const CONNECTIONS_MAX: u32 = 4;
const ADD: &str = "INSERT INTO orders (item) VALUES ($1) RETURNING id, item";
const LIST: &str = "SELECT id, item FROM orders ORDER BY id";

/// The orders in the database. Cheap to clone; stays valid across a restore.
#[derive(Debug, Clone)]
pub(crate) enum Orders {
    /// In a file.
    Sqlite(Pool<Sqlite>),
    /// On a server.
    Postgres(Pool<Postgres>),
}

/// One order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub(crate) struct Order {
    id: i64,
    item: String,
}

impl Orders {
    /// Opens the database at `url` and brings its tables up to date; an SQLite file is created where there is none.
    pub(crate) async fn open(url: &str) -> anyhow::Result<Self> {
        let orders = match url.split_once(':').map(|(scheme, _)| scheme) {
            Some("sqlite") => {
                let options = SqliteConnectOptions::from_str(url)?.create_if_missing(true);
                let pool = SqlitePoolOptions::new().max_connections(CONNECTIONS_MAX);
                Self::Sqlite(Pool::connect_with(pool, options).await.with_context(|| format!("cannot open the database {url}"))?)
            }
            Some("postgres" | "postgresql") => {
                let options = PgConnectOptions::from_str(url)?;
                let pool = PgPoolOptions::new().max_connections(CONNECTIONS_MAX);
                // The URL may hold a password, so that it is not repeated.
                Self::Postgres(Pool::connect_with(pool, options).await.context("cannot connect to the PostgreSQL database")?)
            }
            _ => bail!("cannot tell the database from its URL; hint: begin it with sqlite: or postgres:"),
        };
        orders.migrate().await.context("cannot bring the tables up to date")?;
        Ok(orders)
    }

    /// Adds an order.
    pub(crate) async fn add(&self, item: &str) -> sqlx::Result<Order> {
        match self {
            Self::Sqlite(pool) => sqlx::query_as(ADD).bind(item).fetch_one(pool).await,
            Self::Postgres(pool) => sqlx::query_as(ADD).bind(item).fetch_one(pool).await,
        }
    }

    /// All orders, oldest first.
    pub(crate) async fn list(&self) -> sqlx::Result<Vec<Order>> {
        match self {
            Self::Sqlite(pool) => sqlx::query_as(LIST).fetch_all(pool).await,
            Self::Postgres(pool) => sqlx::query_as(LIST).fetch_all(pool).await,
        }
    }

    async fn migrate(&self) -> anyhow::Result<()> {
        match self {
            Self::Sqlite(pool) => sqlx::migrate!("migrations/sqlite").run(pool).await?,
            Self::Postgres(pool) => sqlx::migrate!("migrations/postgres").run(pool).await?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn orders_are_kept_in_a_file_that_is_created() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", dir.path().join("orders.db").display());
        let first = Orders::open(&url).await.unwrap().add("tea").await.unwrap();
        let orders = Orders::open(&url).await.unwrap();
        let second = orders.add("milk").await.unwrap();
        assert!(first.id < second.id);
        assert_eq!(orders.list().await.unwrap(), [first, second]);
    }

    #[tokio::test]
    async fn an_unknown_kind_of_database_is_refused() {
        let error = Orders::open("redis://localhost").await.unwrap_err();
        assert!(error.to_string().contains("hint: begin it with"), "{error}");
    }
}
