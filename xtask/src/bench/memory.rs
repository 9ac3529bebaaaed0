//! Memory that the host of a virtual machine has taken back, had again before something is timed.

use memmap2::{Advice, MmapMut};

/// More of it takes too long to have again.
const MOST_MIB: u64 = 4 << 10;
/// What is counted besides the state: a program with its libraries, page tables.
const BESIDES_MIB: u64 = 128;

/// Takes as much memory as a restore with `mib` MiB of state can need, an image in the page cache, the memory itself, and as much again,
/// writes to it and gives it back: what is started next is given it again, and waits for no host. Of more than [`MOST_MIB`] that holds for
/// a part.
///
/// Only free memory is taken, so that nothing is driven out of the page cache.
pub(super) fn have_at_hand(mib: usize) {
    let wanted = amount(mib as u64, in_mib("MemFree:").unwrap_or(0));
    let Ok(mut memory) = usize::try_from(wanted << 20).map_err(|_| ()).and_then(|bytes| MmapMut::map_anon(bytes).map_err(drop))
    else {
        eprintln!("{wanted} MiB cannot be had before what is measured next; a host may have taken them back");
        return;
    };
    // The large blocks are those that a host takes back. A kernel that has no huge pages, or cannot populate, does with less.
    let populated = memory.advise(Advice::HugePage).and_then(|()| memory.advise(Advice::PopulateWrite));
    if populated.is_err() {
        memory.chunks_mut(4096).for_each(|page| page[..1].fill(1));
    }
}

/// MiB to take of so many that are free.
fn amount(mib: u64, free: u64) -> u64 {
    (3 * (mib + BESIDES_MIB)).min(MOST_MIB).min(free / 4 * 3)
}

/// A line of `/proc/meminfo`, in MiB.
pub(super) fn in_mib(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_taken_than_is_free_and_than_is_worth_it() {
        assert_eq!(amount(256, 20_000), 1152);
        assert_eq!(amount(256, 1000), 750);
        assert_eq!(amount(4096, 20_000), MOST_MIB);
        assert_eq!(amount(16, 0), 0);
    }

    #[test]
    fn what_is_taken_is_given_back() {
        assert!(in_mib("MemFree:").unwrap() > 0);
        assert_eq!(in_mib("MemNothing:"), None);
        let own = || std::fs::read_to_string("/proc/self/statm").unwrap().split(' ').nth(1).unwrap().parse::<u64>().unwrap();
        let before = own();
        have_at_hand(0);
        assert!(own() < before + (64 << 20) / 4096);
    }
}
