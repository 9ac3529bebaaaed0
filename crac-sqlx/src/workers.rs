//! The threads of SQLite's connections: sqlx gives each one, and closing the connection only asks it to end.

use std::{collections::HashSet, path::Path, time::Duration};

use sqlx::Database;
use tokio::time::{Instant, sleep};

/// `comm` is cut after 15 bytes; sqlx calls them `sqlx-sqlite-worker-N`.
const WORKER: &str = "sqlx-sqlite-wor";
const ENDED_WITHIN: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// The worker threads that there were at a moment.
#[derive(Debug, Default)]
pub(crate) struct Workers {
    threads: HashSet<String>,
}

/// Threads did not end in time.
#[derive(Debug, thiserror::Error)]
#[error("{0} of its worker threads (`sqlx-sqlite-worker-N`) did not end within 2 s after their connections were closed")]
pub(crate) struct StillThere(usize);

impl Workers {
    /// Looks at the process, if connections of `DB` have threads at all.
    pub(crate) fn of<DB: Database>() -> Self {
        Self { threads: if DB::NAME == "SQLite" { running() } else { HashSet::new() } }
    }

    /// Waits until at least `count` of these threads are gone: whose they are cannot be told, but nobody closes fewer than asked.
    /// Where there is no `/proc`, there is nothing to wait for.
    ///
    /// # Errors
    ///
    /// After two seconds.
    pub(crate) async fn gone(&self, count: usize) -> Result<(), StillThere> {
        let most = self.threads.len().saturating_sub(count);
        let deadline = Instant::now() + ENDED_WITHIN;
        loop {
            let left = running().intersection(&self.threads).count();
            if left <= most {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(StillThere(left - most));
            }
            sleep(LOOK_EVERY).await;
        }
    }
}

fn running() -> HashSet<String> {
    let Ok(tasks) = Path::new("/proc/self/task").read_dir() else { return HashSet::new() };
    tasks
        .filter_map(Result::ok)
        // A thread may end while we look: then it is gone.
        .filter(|task| std::fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.starts_with(WORKER)))
        .map(|task| task.file_name().to_string_lossy().into_owned())
        .collect()
}
