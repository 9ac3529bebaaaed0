//! How long each part of a round may take.

use std::time::Duration;

/// The deadlines of a context. Every wait in a round has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Deadlines {
    /// One hook call of one resource. Default 10 s.
    pub hook: Duration,
    /// Work in flight: until the gates are empty. Default 30 s.
    pub drain: Duration,
    /// Until every runtime thread stands still. Default 2 s.
    pub hold: Duration,
    /// The whole way down, from the shut door to the hold. Default 60 s.
    pub down: Duration,
    /// The whole way up, from the release to the open door. Default 30 s.
    pub up: Duration,
    /// After a late hook was dropped: until it is gone. Default 2 s.
    pub grace: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            hook: Duration::from_secs(10),
            drain: Duration::from_secs(30),
            hold: Duration::from_secs(2),
            down: Duration::from_secs(60),
            up: Duration::from_secs(30),
            grace: Duration::from_secs(2),
        }
    }
}
