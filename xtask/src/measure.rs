//! Durations of several runs, and how they are shown.

use std::{fmt, time::Duration};

/// The durations of the counted runs of one thing.
#[derive(Debug, Default, Clone)]
pub(crate) struct Runs(Vec<Duration>);

impl Runs {
    pub(crate) fn add(&mut self, run: Duration) {
        let at = self.0.partition_point(|other| *other < run);
        self.0.insert(at, run);
    }

    /// Takes all of `other` in.
    pub(crate) fn append(&mut self, other: Runs) {
        self.0.extend(other.0);
        self.0.sort_unstable();
    }

    pub(crate) fn min(&self) -> Duration {
        self.0.first().copied().unwrap_or_default()
    }

    pub(crate) fn median(&self) -> Duration {
        self.0.get(self.0.len() / 2).copied().unwrap_or_default()
    }

    /// What 99 of 100 runs do not exceed.
    pub(crate) fn p99(&self) -> Duration {
        self.0.get((self.0.len() * 99).div_ceil(100).saturating_sub(1)).copied().unwrap_or_default()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn max(&self) -> Duration {
        self.0.last().copied().unwrap_or_default()
    }

    /// The median as a multiple of another's.
    pub(crate) fn times(&self, other: &Runs) -> f64 {
        self.median().as_secs_f64() / other.median().as_secs_f64()
    }
}

impl fmt::Display for Runs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>9} {:>9} {:>9}", ms(self.min()), ms(self.median()), ms(self.max()))
    }
}

/// Milliseconds with two digits.
pub(crate) fn ms(time: Duration) -> String {
    format!("{:.2}", time.as_secs_f64() * 1e3)
}

/// The machine in one line: processors, memory, kernel.
pub(crate) fn machine() -> String {
    let line = |path: &str, key: &str| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines()
            .find(|line| line.starts_with(key))
            .and_then(|line| line.split_once(':'))
            .map(|(_, value)| value.trim().to_owned())
    };
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let model = line("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown processor".to_owned());
    let memory = line("/proc/meminfo", "MemTotal").unwrap_or_default();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{processors} x {model}, {memory}, Linux {}", kernel.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn min_median_and_max_do_not_depend_on_the_order() {
        let mut runs = Runs::default();
        for run in [5, 1, 9, 3, 4] {
            runs.add(Duration::from_millis(run));
        }
        assert_eq!((runs.min().as_millis(), runs.median().as_millis(), runs.max().as_millis()), (1, 4, 9));
        assert_eq!((runs.p99().as_millis(), runs.len()), (9, 5));
        assert_eq!(runs.to_string(), "     1.00      4.00      9.00");
    }
}
