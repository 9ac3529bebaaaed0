//! Which database a pool connects to, and what it is called in front of people.

use std::{any::Any, fmt};

use sqlx::Database;

use crate::ConnectOptions;

/// What a pool connects to when it comes back.
#[non_exhaustive]
pub enum Target<DB: Database> {
    /// The same as before. A URL is parsed again, so that what sqlx takes from the environment and from files (`PGPASSWORD`, a
    /// `.pgpass`) is fresh.
    Same,
    /// This URL, from now on.
    Url(String),
    /// These options, from now on.
    Options(ConnectOptions<DB>),
}

impl<DB: Database> From<String> for Target<DB> {
    fn from(url: String) -> Self {
        Target::Url(url)
    }
}

impl<DB: Database> From<&str> for Target<DB> {
    fn from(url: &str) -> Self {
        Target::Url(url.to_owned())
    }
}

impl<DB: Database> Target<DB> {
    /// The options to connect with.
    pub(crate) fn options(&self) -> Result<ConnectOptions<DB>, sqlx::Error> {
        match self {
            Target::Same => unreachable!("a pool always has a target of its own"),
            Target::Url(url) => url.parse(),
            Target::Options(options) => Ok(options.clone()),
        }
    }
}

/// Without passwords.
impl<DB: Database> fmt::Display for Target<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Same => f.write_str("the same database"),
            Target::Url(url) => f.write_str(&without_secrets(url)),
            Target::Options(options) => f.write_str(&name_of::<DB>(options)),
        }
    }
}

impl<DB: Database> fmt::Debug for Target<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({self})")
    }
}

/// A URL without its password and without its parameters, which may hold one too.
fn without_secrets(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    match authority.rsplit_once('@') {
        Some((user, host)) => format!("{scheme}://{}@{host}{path}", user.split(':').next().unwrap_or_default()),
        None => url.to_owned(),
    }
}

fn name_of<DB: Database>(options: &ConnectOptions<DB>) -> String {
    let options: &dyn Any = options;
    #[cfg(feature = "sqlite")]
    if let Some(options) = options.downcast_ref::<sqlx::sqlite::SqliteConnectOptions>() {
        return format!("sqlite:{}", options.get_filename().display());
    }
    #[cfg(feature = "postgres")]
    if let Some(options) = options.downcast_ref::<sqlx::postgres::PgConnectOptions>() {
        let host = options.get_socket().map_or_else(|| options.get_host().to_owned(), |socket| socket.display().to_string());
        return format!("postgres://{host}:{}/{}", options.get_port(), options.get_database().unwrap_or_default());
    }
    #[cfg(feature = "mysql")]
    if let Some(options) = options.downcast_ref::<sqlx::mysql::MySqlConnectOptions>() {
        return format!("mysql://{}:{}/{}", options.get_host(), options.get_port(), options.get_database().unwrap_or_default());
    }
    let _ = options;
    format!("a {} database", DB::NAME)
}

/// Whether the database is gone with its last connection.
pub(crate) fn is_in_memory<DB: Database>(options: &ConnectOptions<DB>) -> bool {
    // There is no other way to ask: the URL that sqlx makes of such options cannot be made without a panic.
    DB::NAME == "SQLite" && format!("{options:?}").contains("in_memory: true")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_shown_without_secrets() {
        for (url, shown) in [
            ("sqlite:orders.db?mode=rwc", "sqlite:orders.db"),
            ("sqlite:///var/lib/orders.db", "sqlite:///var/lib/orders.db"),
            ("postgres://app:p@ss:w0rd@db:5432/orders?password=x", "postgres://app@db:5432/orders"),
            ("postgres://app@db/orders", "postgres://app@db/orders"),
            ("postgres:///orders?host=/run&password=x", "postgres:///orders"),
            ("mysql://root:@127.0.0.1", "mysql://root@127.0.0.1"),
        ] {
            assert_eq!(without_secrets(url), shown);
        }
    }

    #[cfg(feature = "sqlite")]
    #[test]
    fn databases_in_memory_are_known() {
        let in_memory = |url: &str| is_in_memory::<sqlx::Sqlite>(&url.parse().unwrap());
        assert!(in_memory("sqlite::memory:") && in_memory("sqlite://shared?mode=memory"));
        assert!(!in_memory("sqlite:orders.db") && !in_memory("sqlite://memory.db?mode=rwc"));
        assert!(is_in_memory::<sqlx::Sqlite>(&sqlx::sqlite::SqliteConnectOptions::new().in_memory(true)));
    }
}
