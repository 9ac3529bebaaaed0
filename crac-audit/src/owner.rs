//! Who probably owns a thing: guesses from ports, paths and threads, worded as guesses.

use std::net::SocketAddr;

use crate::threads::{Thread, ThreadFamily};

/// What is known about the process when owners are guessed.
#[derive(Debug, Default)]
pub(crate) struct Clues {
    /// Local addresses of listening TCP sockets.
    pub(crate) listeners: Vec<SocketAddr>,
    pub(crate) threads: Vec<Thread>,
}

impl Clues {
    /// Who probably holds a TCP connection from `local` to `remote`.
    pub(crate) fn connection(&self, local: SocketAddr, remote: Option<SocketAddr>) -> Option<String> {
        let accepted = self
            .listeners
            .iter()
            .find(|listener| listener.port() == local.port() && (listener.ip().is_unspecified() || listener.ip() == local.ip()));
        if let Some(listener) = accepted {
            return Some(format!("a server: accepted on {listener}"));
        }
        let (_, owner) = PORTS.iter().find(|(port, _)| remote.is_some_and(|remote| remote.port() == *port))?;
        Some((*owner).to_owned())
    }

    /// Who probably holds the lock on `path`.
    pub(crate) fn lock(&self, path: &str) -> Option<String> {
        let is_sqlite = ["-wal", "-shm", "-journal", ".db", ".sqlite", ".sqlite3"].iter().any(|end| path.ends_with(end));
        if !is_sqlite {
            return None;
        }
        let worker = self.threads.iter().find(|thread| thread.family == ThreadFamily::SqlxSqlite);
        Some(worker.map_or_else(|| "SQLite".to_owned(), |worker| format!("sqlx, {worker}")))
    }

    /// Who probably holds an io_uring instance.
    pub(crate) fn ring(&self) -> Option<String> {
        let tokio = self.threads.iter().any(|thread| thread.family == ThreadFamily::Tokio);
        Some(
            if tokio {
                "tokio with its `io-uring` feature, or tokio-uring"
            } else {
                "tokio-uring, monoio, glommio or a C library"
            }
            .into(),
        )
    }
}

/// Well-known ports of what services talk to.
const PORTS: &[(u16, &str)] = &[
    (53, "a DNS resolver"),
    (80, "an HTTP client"),
    (443, "an HTTPS client (reqwest, hyper)"),
    (1433, "a SQL Server client"),
    (2379, "an etcd client"),
    (3306, "a MySQL client (sqlx, mysql_async)"),
    (4222, "a NATS client"),
    (4317, "an OpenTelemetry exporter"),
    (4318, "an OpenTelemetry exporter"),
    (5432, "a PostgreSQL client (sqlx, tokio-postgres)"),
    (5672, "an AMQP client"),
    (6379, "a Redis client"),
    (6432, "a PostgreSQL client through pgbouncer"),
    (9042, "a Cassandra client"),
    (9092, "a Kafka client"),
    (11211, "a memcached client"),
    (27017, "a MongoDB client"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn accepted_connections_are_told_from_those_of_clients() {
        let clues = Clues { listeners: vec![address("0.0.0.0:8080"), address("127.0.0.1:5432")], threads: Vec::new() };
        let owner = |local, remote| clues.connection(address(local), Some(address(remote)));
        assert_eq!(owner("10.0.0.5:8080", "10.0.0.9:5432").unwrap(), "a server: accepted on 0.0.0.0:8080");
        assert!(owner("10.0.0.5:5432", "10.0.0.9:6379").unwrap().contains("Redis"), "another address listens there");
        assert!(owner("10.0.0.5:41234", "10.0.0.9:5432").unwrap().contains("PostgreSQL"));
        assert_eq!(owner("10.0.0.5:41234", "10.0.0.9:4711"), None);
    }

    #[test]
    fn locks_on_databases_point_at_their_workers() {
        let mut clues = Clues::default();
        assert_eq!(clues.lock("/var/lib/a.txt"), None);
        assert_eq!(clues.lock("/var/lib/orders.db").as_deref(), Some("SQLite"));
        clues.threads.push(Thread::new(12, "sqlx-sqlite-wor".into()));
        assert_eq!(clues.lock("/var/lib/orders.db-wal").as_deref(), Some("sqlx, thread 12 (sqlx-sqlite-wor)"));
    }
}
