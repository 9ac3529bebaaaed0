//! Time that is not surprised by a restore.

use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior};

/// Ticks every `period`, the first time at once. After a sleep - of the machine, or between checkpoint and restore - it ticks once and
/// keeps to its old beat from then on; `tokio::time::interval` would make up for every tick missed, all at once.
///
/// # Panics
///
/// If `period` is zero, or outside of a tokio runtime with a time driver.
pub fn interval(period: Duration) -> Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
    interval
}
