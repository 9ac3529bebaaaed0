//! The state that makes a start slow: pages of numbers and an index over them, built by work rather than by sleeping.

use std::{collections::HashMap, sync::Arc};

use serde::Serialize;

/// Words in an entry: 4 KiB.
const ENTRY_WORDS: usize = 512;
/// Entries in a MiB.
const MIB_ENTRIES: usize = 256;

/// The warmed-up cache. Cheap to clone; never changes once it is built.
#[derive(Debug, Clone)]
pub(crate) struct Warm {
    index: Arc<HashMap<String, Box<[u64]>>>,
}

/// What a look-up answers: whoever knows the seed can compute it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Found {
    /// The number asked for.
    pub(crate) n: u64,
    /// All words of the entry folded into one.
    pub(crate) digest: u64,
}

/// What reading everything answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Read {
    /// How many entries there are.
    pub(crate) entries: usize,
    /// The sum of their digests.
    pub(crate) digest: u64,
}

impl Warm {
    /// Fills `mib` MiB of entries. Takes about as long as drawing that many numbers.
    pub(crate) fn build(mib: usize) -> Self {
        let entries = (0..(mib * MIB_ENTRIES) as u64).map(|n| (key(n), entry(n))).collect();
        Self { index: Arc::new(entries) }
    }

    /// Looks `n` up, reading every word of its entry.
    pub(crate) fn look_up(&self, n: u64) -> Option<Found> {
        self.index.get(&key(n)).map(|words| Found { n, digest: digest(words) })
    }

    /// Reads every word of every entry; what they fold to, in no particular order.
    pub(crate) fn read_all(&self) -> Read {
        let digest = self.index.values().fold(0, |sum: u64, words| sum.wrapping_add(digest(words)));
        Read { entries: self.index.len(), digest }
    }
}

fn key(n: u64) -> String {
    format!("item-{n}")
}

/// Entry `n`, from a generator that is seeded with its number: the same in every life on purpose.
fn entry(n: u64) -> Box<[u64]> {
    let mut random = fastrand::Rng::with_seed(n);
    (0..ENTRY_WORDS).map(|_| random.u64(..)).collect()
}

fn digest(words: &[u64]) -> u64 {
    words.iter().fold(0, |sum: u64, word| sum.rotate_left(1) ^ word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_found_with_the_value_its_seed_gives() {
        let warm = Warm::build(1);
        for n in 0..MIB_ENTRIES as u64 {
            assert_eq!(warm.look_up(n), Some(Found { n, digest: digest(&entry(n)) }));
        }
        assert_eq!(warm.look_up(MIB_ENTRIES as u64), None);
        assert_ne!(warm.look_up(0).unwrap().digest, warm.look_up(1).unwrap().digest);
    }

    #[test]
    fn reading_everything_reads_every_entry() {
        let digests = (0..MIB_ENTRIES as u64).map(|n| digest(&entry(n)));
        let digest = digests.fold(0, |sum: u64, digest| sum.wrapping_add(digest));
        assert_eq!(Warm::build(1).read_all(), Read { entries: MIB_ENTRIES, digest });
    }

    #[test]
    fn nothing_to_warm_is_an_empty_cache() {
        assert_eq!(Warm::build(0).look_up(0), None);
    }
}
