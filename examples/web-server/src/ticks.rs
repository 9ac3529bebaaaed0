//! A 50 ms interval that watches its own clock: after a restore it must neither burst nor stand still.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde::Serialize;

/// Time between two ticks.
const PERIOD: Duration = Duration::from_millis(50);

/// What the interval has seen so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Seen {
    /// Ticks since the service was started.
    ticks: u64,
    /// The longest run of ticks that came without waiting in between; 1 is a regular clock.
    burst_max: u64,
    /// The longest time between two ticks, in milliseconds.
    gap_max_ms: f64,
    #[serde(skip)]
    burst: u64,
}

impl Seen {
    /// One more tick, `gap` after the last; `None` for the first.
    fn tick(&mut self, gap: Option<Duration>) {
        self.ticks += 1;
        let at_once = gap.is_some_and(|gap| gap < PERIOD / 10);
        self.burst = if at_once { self.burst + 1 } else { 1 };
        self.burst_max = self.burst_max.max(self.burst);
        self.gap_max_ms = self.gap_max_ms.max(gap.unwrap_or_default().as_secs_f64() * 1e3);
    }
}

/// The running interval. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ticks(Arc<Mutex<Seen>>);

impl Ticks {
    /// Starts the interval as a task that ends with the runtime.
    pub(crate) fn start() -> Self {
        let ticks = Self::default();
        let counted = ticks.clone();
        tokio::spawn(async move {
            // Missed ticks come in a burst: tokio's default, and what a restored clock must not cause.
            let mut interval = tokio::time::interval(PERIOD);
            let mut last = None;
            loop {
                interval.tick().await;
                let now = Instant::now();
                let gap = last.replace(now).map(|last| now.duration_since(last));
                counted.0.lock().unwrap_or_else(PoisonError::into_inner).tick(gap);
            }
        });
        ticks
    }

    /// What has been seen so far.
    pub(crate) fn seen(&self) -> Seen {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_tick_is_a_gap_and_what_follows_at_once_a_burst() {
        let mut seen = Seen::default();
        for gap_ms in [None, Some(50), Some(400), Some(0), Some(1), Some(49), Some(0)] {
            seen.tick(gap_ms.map(Duration::from_millis));
        }
        assert_eq!((seen.ticks, seen.burst_max, seen.gap_max_ms), (7, 3, 400.0));
    }

    #[test]
    fn a_regular_clock_has_bursts_of_one() {
        let mut seen = Seen::default();
        seen.tick(None);
        (0..10).for_each(|_| seen.tick(Some(PERIOD)));
        assert_eq!((seen.burst_max, seen.gap_max_ms), (1, 50.0));
    }

    #[tokio::test(start_paused = true)]
    async fn the_interval_ticks() {
        let ticks = Ticks::start();
        tokio::time::sleep(PERIOD * 10 + PERIOD / 2).await;
        assert_eq!(ticks.seen().ticks, 11);
    }
}
