//! What the end-to-end tests share: finding the programs, running services in a world of their own, talking HTTP to them.
//!
//! Nothing in here sleeps to wait for something: it polls for the event, under a deadline.

pub mod criu;
pub mod http;
pub mod lab;
pub mod programs;
pub mod skip;

use std::time::{Duration, Instant};

/// How long a test waits for anything. Long, because machines are small and noisy; a test that works never comes near it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What the kernel says a process is doing, if there is the process: `T` if it is stopped, `Z` if it has only not been waited for.
#[must_use]
pub fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Asks `done` again and again until it answers; panics with `what` when patience ends.
pub fn wait_until<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = done() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain for: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
