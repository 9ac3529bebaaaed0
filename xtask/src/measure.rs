//! Durations of several runs, and how they are shown.

use std::time::Duration;

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

    /// The one in the middle; of an even number, what lies between the two there.
    pub(crate) fn median(&self) -> Duration {
        let at = |index: usize| self.0.get(index).copied().unwrap_or_default();
        (at(self.0.len().saturating_sub(1) / 2) + at(self.0.len() / 2)) / 2
    }

    /// What 99 of 100 runs do not exceed.
    pub(crate) fn p99(&self) -> Duration {
        self.0.get((self.0.len() * 99).div_ceil(100).saturating_sub(1)).copied().unwrap_or_default()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// In milliseconds; nothing if there was no run.
    pub(crate) fn spread(&self) -> Option<Spread> {
        (!self.0.is_empty()).then(|| self.0.iter().map(|run| run.as_secs_f64() * 1e3).collect())
    }
}

/// The least, the middle and the greatest of several numbers.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) max: f64,
}

impl FromIterator<f64> for Spread {
    fn from_iter<T: IntoIterator<Item = f64>>(numbers: T) -> Self {
        let mut numbers: Vec<f64> = numbers.into_iter().collect();
        numbers.sort_unstable_by(f64::total_cmp);
        let at = |index: usize| numbers.get(index).copied().unwrap_or_default();
        let (last, middle) = (numbers.len().saturating_sub(1), numbers.len() / 2);
        Self { min: at(0), median: f64::midpoint(at(last / 2), at(middle)), max: at(last) }
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
        assert_eq!((runs.min().as_millis(), runs.median().as_millis(), runs.spread().map(|all| all.max)), (1, 4, Some(9.0)));
        assert_eq!((runs.p99().as_millis(), runs.len()), (9, 5));
        assert_eq!(runs.spread(), Some(Spread { min: 1.0, median: 4.0, max: 9.0 }));
        assert_eq!(Runs::default().spread(), None);
        // Of two it is neither.
        let mut two = Runs::default();
        [2, 4].into_iter().for_each(|run| two.add(Duration::from_millis(run)));
        assert_eq!((two.median().as_millis(), two.spread().map(|all| all.median)), (3, Some(3.0)));
    }
}
