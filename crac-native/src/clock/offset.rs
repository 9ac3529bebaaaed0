//! Arithmetic on clocks: pure.

/// Nanoseconds of the clocks that a restored life continues.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Readings {
    pub(crate) monotonic_ns: u64,
    /// `CLOCK_MONOTONIC_RAW`, which no clock discipline touches: it drifts away from the other.
    pub(crate) raw_ns: u64,
    pub(crate) boottime_ns: u64,
}

impl Readings {
    /// What the clocks read when the monotonic one read `monotonic_ns`, a moment ago.
    pub(crate) fn earlier(self, monotonic_ns: u64) -> Self {
        let ago = self.monotonic_ns.saturating_sub(monotonic_ns);
        let before = |ns: u64| ns.saturating_sub(ago);
        Self { monotonic_ns: before(self.monotonic_ns), raw_ns: before(self.raw_ns), boottime_ns: before(self.boottime_ns) }
    }
}

/// What is added to a clock of the kernel: whole seconds, rounded down, and what is missing to them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Offset {
    pub(crate) seconds: i64,
    /// Below 1 000 000 000.
    pub(crate) nanoseconds: i64,
}

const SECOND_NS: i128 = 1_000_000_000;

impl Offset {
    /// An offset of so many nanoseconds.
    pub(crate) fn from_ns(ns: i128) -> Self {
        let seconds = ns.div_euclid(SECOND_NS);
        // The differences of two clocks of 64 bits: far below what seconds of 64 bits hold.
        Self { seconds: seconds as i64, nanoseconds: ns.rem_euclid(SECOND_NS) as i64 }
    }

    /// The offset in nanoseconds.
    pub(crate) fn ns(self) -> i128 {
        i128::from(self.seconds) * SECOND_NS + i128::from(self.nanoseconds)
    }
}

/// The offsets with which clocks that read `now` go on from `stood`, `passed_ns` later: monotonic, raw, boot time.
pub(crate) fn offsets(stood: Readings, now: Readings, passed_ns: u64) -> [Offset; 3] {
    let offset = |stood: u64, now: u64| Offset::from_ns(i128::from(stood) + i128::from(passed_ns) - i128::from(now));
    [offset(stood.monotonic_ns, now.monotonic_ns), offset(stood.raw_ns, now.raw_ns), offset(stood.boottime_ns, now.boottime_ns)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_goes_on_from_where_it_stood() {
        let stood = Readings { monotonic_ns: 900_000_000_000, raw_ns: 900_000_000_007, boottime_ns: 950_500_000_000 };
        let now = Readings { monotonic_ns: 20_000_000_001, raw_ns: 20_000_000_000, boottime_ns: 1_000_600_000_000 };
        let [monotonic, raw, boottime] = offsets(stood, now, 0);
        assert_eq!(monotonic, Offset { seconds: 879, nanoseconds: 999_999_999 });
        assert_eq!(raw, Offset { seconds: 880, nanoseconds: 7 });
        // A negative offset is rounded down.
        assert_eq!(boottime, Offset { seconds: -51, nanoseconds: 900_000_000 });
        assert_eq!(boottime.ns(), -50_100_000_000);
        let entry = now.earlier(20_000_000_000);
        assert_eq!((entry.monotonic_ns, entry.boottime_ns), (20_000_000_000, 1_000_600_000_000 - 1));
        let [later, ..] = offsets(stood, now, 5_000_000_001);
        assert_eq!(later, Offset { seconds: 885, nanoseconds: 0 });
    }
}
