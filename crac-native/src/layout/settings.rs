//! Records of settings, made.

use super::{SettingRecord, setting};

impl SettingRecord {
    pub const fn new(tid: i32, kind: u32, values: [u64; 4]) -> Self {
        Self { tid, kind, values }
    }

    /// Six supplementary groups from `first` on.
    pub fn groups(first: usize, count: usize, groups: &[u32]) -> Self {
        let group = |at: usize| groups.get(first + at).map_or(0, |group| *group as u64);
        let two = |at: usize| group(at) | group(at + 1) << 32;
        Self::new(0, setting::GROUPS, [first as u64 | (count as u64) << 32, two(0), two(2), two(4)])
    }
}
