//! Which pages of a mapping hold something of the process's own.

use std::os::fd::{AsFd, OwnedFd};

use crac_sys::{
    Errno, fs,
    mem::{self, PAGE_SIZE, PageRegion, category},
};

use crate::{
    arena::{Arena, ArenaVec},
    layout::RangeRecord,
};

/// Which pages count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Every page that exists: of anonymous memory.
    Existing,
    /// Pages that are no longer those of the mapped file.
    Changed,
}

/// Asks the kernel about pages, by `PAGEMAP_SCAN` or, before Linux 6.7, from `/proc/self/pagemap` itself.
#[derive(Debug)]
pub(crate) struct Pages<'a> {
    pagemap: OwnedFd,
    scan: bool,
    guards: bool,
    regions: &'a mut [PageRegion],
    words: &'a mut [u64],
}

/// What a scan adds to.
#[derive(Debug)]
pub(crate) struct Found<'r, 'a> {
    /// Ranges of wanted pages, by address; neighbours are joined.
    pub(crate) pages: &'r mut ArenaVec<'a, RangeRecord>,
    /// Guard regions.
    pub(crate) guards: &'r mut ArenaVec<'a, RangeRecord>,
}

impl<'a> Pages<'a> {
    /// Opens the page map. With `scan` false the fallback is used in any case.
    pub(crate) fn open(arena: &'a Arena, scan: bool) -> Result<Self, Errno> {
        let pagemap = fs::open(c"/proc/self/pagemap", libc::O_RDONLY, 0)?;
        let (regions, words) = (arena.zeroed(512)?, arena.zeroed(4096)?);
        Ok(Self { pagemap, scan, guards: true, regions, words })
    }

    /// Finds the wanted pages of `start..end`, one mapping.
    pub(crate) fn find(&mut self, start: usize, end: usize, wanted: Wanted, found: &mut Found<'_, 'a>) -> Result<(), Errno> {
        if self.scan {
            match self.by_scan(start, end, wanted, found) {
                Err(errno) if [libc::ENOTTY, libc::EINVAL].contains(&errno.number()) => self.scan = false,
                done => return done,
            }
        }
        self.by_words(start, end, wanted, found)
    }

    fn by_scan(&mut self, start: usize, end: usize, wanted: Wanted, found: &mut Found<'_, 'a>) -> Result<(), Errno> {
        let mut at = start;
        while at < end {
            let any_of = category::PRESENT | category::SWAPPED;
            let tell = any_of | category::FILE | category::ZERO;
            let tell_guards = if self.guards { tell | category::GUARD } else { tell };
            let answer = mem::pagemap_scan(self.pagemap.as_fd(), at, end, any_of, tell_guards, self.regions);
            let (filled, walked) = match answer {
                Err(errno) if errno.number() == libc::EINVAL && self.guards => {
                    // A kernel before 6.15 does not know guard regions as a category.
                    self.guards = false;
                    continue;
                }
                answer => answer?,
            };
            for region in self.regions.get(..filled).unwrap_or_default() {
                let range = RangeRecord { start: region.start, end: region.end };
                sort(range, region.categories, wanted, found)?;
            }
            if walked <= at {
                break;
            }
            at = walked;
        }
        Ok(())
    }

    fn by_words(&mut self, start: usize, end: usize, wanted: Wanted, found: &mut Found<'_, 'a>) -> Result<(), Errno> {
        let mut at = start;
        while at < end {
            let pages = ((end - at) / PAGE_SIZE).min(self.words.len());
            let words = &mut self.words[..pages];
            // The words are filled through their bytes.
            let mut bytes = [0; 4096];
            let mut read = 0;
            while read < pages * 8 {
                let want = (pages * 8 - read).min(bytes.len());
                let got = fs::read_at(self.pagemap.as_fd(), &mut bytes[..want], (at / PAGE_SIZE * 8 + read) as u64)?;
                if got == 0 || got % 8 != 0 {
                    return Err(Errno::new(libc::EIO));
                }
                for (word, chunk) in words[read / 8..].iter_mut().zip(bytes[..got].as_chunks::<8>().0) {
                    *word = u64::from_ne_bytes(*chunk);
                }
                read += got;
            }
            for (page, word) in words.iter().enumerate() {
                let mut categories = 0;
                for (bit, category) in
                    [(63, category::PRESENT), (62, category::SWAPPED), (61, category::FILE), (58, category::GUARD)]
                {
                    if word >> bit & 1 == 1 {
                        categories |= category;
                    }
                }
                let start = (at + page * PAGE_SIZE) as u64;
                if categories != 0 {
                    sort(RangeRecord { start, end: start + PAGE_SIZE as u64 }, categories, wanted, found)?;
                }
            }
            at += pages * PAGE_SIZE;
        }
        Ok(())
    }
}

/// Puts a range of pages of the same categories where it belongs.
fn sort(range: RangeRecord, categories: u64, wanted: Wanted, found: &mut Found<'_, '_>) -> Result<(), Errno> {
    if categories & category::GUARD != 0 {
        return join(found.guards, range);
    }
    let exists = categories & (category::PRESENT | category::SWAPPED) != 0;
    let own = match wanted {
        Wanted::Existing => categories & category::ZERO == 0,
        Wanted::Changed => categories & category::FILE == 0,
    };
    if exists && own { join(found.pages, range) } else { Ok(()) }
}

fn join(ranges: &mut ArenaVec<'_, RangeRecord>, range: RangeRecord) -> Result<(), Errno> {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range)?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(unsafe_code, reason = "the test needs memory in a known state")]
    use super::*;

    /// Both ways see the touched pages of a fresh mapping, and nothing else.
    #[test]
    fn scan_and_fallback_agree() {
        let len = 64 * PAGE_SIZE;
        let at = mem::map_anonymous(len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE).unwrap();
        for page in [3, 4, 5, 40] {
            // SAFETY: inside the fresh mapping.
            unsafe { std::ptr::with_exposed_provenance_mut::<u8>(at + page * PAGE_SIZE).write(7) };
        }
        let arena = Arena::new().unwrap();
        let page = |page: usize| (at + page * PAGE_SIZE) as u64;
        let expected = [RangeRecord { start: page(3), end: page(6) }, RangeRecord { start: page(40), end: page(41) }];
        for scan in [true, false] {
            let (mut pages, mut guards) = (ArenaVec::new(&arena), ArenaVec::new(&arena));
            let mut found = Found { pages: &mut pages, guards: &mut guards };
            Pages::open(&arena, scan).unwrap().find(at, at + len, Wanted::Existing, &mut found).unwrap();
            assert_eq!(&pages[..], &expected, "scan: {scan}");
            assert!(guards.is_empty());
        }
        // SAFETY: the test's own mapping.
        unsafe { mem::unmap(at, len) }.unwrap();
    }
}
