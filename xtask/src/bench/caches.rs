//! How long this machine's processors keep what they have in their caches, of which a restore takes a good part of its time.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use crate::measure::Runs;

/// Fits into the second cache of a processor of today.
const KIB: usize = 512;
/// Numbers of a line.
const LINE: usize = 64 / size_of::<usize>();
const ROUNDS: u32 = 15;
/// A pause as there is between two starts.
const PAUSE: Duration = Duration::from_millis(20);

/// A sentence for the head of the page.
pub(super) fn sentence() -> String {
    let lines = Lines::new(KIB * 1024 / 64);
    let [at_once, later] = [Duration::ZERO, PAUSE].map(|pause| lines.time_after(pause));
    format!(
        "{KIB} KiB that have just been read take {at_once:.0} ns a cache line to be read again at once, and {later:.0} ns after {} ms of waiting",
        PAUSE.as_millis()
    )
}

/// Lines in an order that a processor does not foresee: each says where the next is.
struct Lines(Vec<usize>);

impl Lines {
    fn new(count: usize) -> Self {
        let mut order: Vec<usize> = (0..count).collect();
        let mut random = 1_u64;
        for at in (1..count).rev() {
            // The constants of Knuth's MMIX.
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            order.swap(at, (random >> 33) as usize % (at + 1));
        }
        let mut lines = vec![0; count * LINE];
        for (at, next) in order.iter().zip(order.iter().cycle().skip(1)) {
            lines[at * LINE] = next * LINE;
        }
        Self(lines)
    }

    fn read_all(&self) {
        let last = (0..self.0.len() / LINE).fold(0, |at, _| self.0[at]);
        black_box(last);
    }

    /// The time of a line, in nanoseconds: the median of some rounds.
    fn time_after(&self, pause: Duration) -> f64 {
        let mut runs = Runs::default();
        for _ in 0..ROUNDS {
            self.read_all();
            let read = Instant::now();
            // Not asleep, so that the processor stays with this process.
            while read.elapsed() < pause {
                std::hint::spin_loop();
            }
            let begun = Instant::now();
            self.read_all();
            runs.add(begun.elapsed());
        }
        runs.median().as_nanos() as f64 / (self.0.len() / LINE) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_leads_through_every_line_once() {
        let lines = Lines::new(100);
        let mut seen = [false; 100];
        let mut at = 0;
        for _ in 0..100 {
            assert!(!std::mem::replace(&mut seen[at / LINE], true));
            at = lines.0[at];
        }
        assert_eq!(at, 0);
    }
}
