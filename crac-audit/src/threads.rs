//! The threads of the process: who is likely behind a name.

use std::fmt;

/// A thread of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Thread {
    /// Thread id.
    pub id: i32,
    /// Its name, up to 15 bytes.
    pub name: String,
    /// What is known about threads of this name.
    pub family: ThreadFamily,
}

#[cfg(any(test, all(target_os = "linux", target_arch = "x86_64")))]
impl Thread {
    pub(crate) fn new(id: i32, name: String) -> Self {
        Self { id, family: ThreadFamily::of(&name), name }
    }
}

impl fmt::Display for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "thread {} ({})", self.id, self.name)
    }
}

/// Libraries that start threads, recognised by the names they give them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ThreadFamily {
    /// A worker or a blocking thread of a tokio runtime with default names.
    Tokio,
    /// A connection of sqlx to SQLite.
    SqlxSqlite,
    /// jemalloc's background thread.
    Jemalloc,
    /// librdkafka.
    Rdkafka,
    /// actix.
    Actix,
    /// rayon with default names, as far as they have any.
    Rayon,
    /// tracing-appender.
    TracingAppender,
    /// crac itself.
    Crac,
    /// Anything else.
    Other,
}

impl ThreadFamily {
    /// The beginnings of names. A name is cut off after 15 bytes by the kernel.
    const NAMES: &'static [(&'static str, ThreadFamily)] = &[
        ("tokio-rt-worker", ThreadFamily::Tokio),
        ("tokio-runtime-w", ThreadFamily::Tokio),
        ("sqlx-sqlite-wor", ThreadFamily::SqlxSqlite),
        ("jemalloc_bg_thd", ThreadFamily::Jemalloc),
        ("rdk:", ThreadFamily::Rdkafka),
        ("actix-rt|", ThreadFamily::Actix),
        ("actix-server", ThreadFamily::Actix),
        ("rayon", ThreadFamily::Rayon),
        ("tracing-appende", ThreadFamily::TracingAppender),
        ("crac-", ThreadFamily::Crac),
    ];

    /// The family of threads called `name`.
    pub fn of(name: &str) -> Self {
        Self::NAMES.iter().find(|(start, _)| name.starts_with(start)).map_or(ThreadFamily::Other, |(_, family)| *family)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_recognised_as_the_kernel_cuts_them() {
        for (name, family) in [
            ("tokio-rt-worker", ThreadFamily::Tokio),
            ("sqlx-sqlite-worker-3", ThreadFamily::SqlxSqlite),
            ("sqlx-sqlite-wor", ThreadFamily::SqlxSqlite),
            ("rdk:broker1", ThreadFamily::Rdkafka),
            ("crac-coord", ThreadFamily::Crac),
            ("web-server", ThreadFamily::Other),
        ] {
            assert_eq!(ThreadFamily::of(name), family, "{name}");
        }
    }
}
