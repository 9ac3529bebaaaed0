//! Fetches the memory of a restored life from the disk before somebody waits for it.
//!
//! Memory that was mapped from the image is read where it is touched. Where the image is not in the page cache, as on another host or
//! after a reboot, each such read waits for the disk, and the next one begins only then. So once the door is open, and if there
//! have been such waits, a thread has the kernel read the rest in the order of the file (`MADV_POPULATE_READ`, Linux 5.14). The
//! kernel does that one window of its read-ahead after the other, so that what somebody waits for queues behind one of them at most.
//! Nothing becomes the process's own by that: what is read lies in the page cache, which clones share, and the kernel takes it back
//! when memory is short.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crac_sys::{
    fs,
    mem::{self, PAGE_SIZE},
    process,
    signal::{self, SignalSet},
};

use crate::madvise;

/// Read by one call. A capture that begins meanwhile waits for its end. A page in it that cannot be read ends it.
const PIECE: usize = 4 << 20;
/// How often is looked whether the thread has ended.
const LOOK: Duration = Duration::from_micros(500);
/// All signals but the one by which glibc has every thread change its user (`SIGSETXID`, 33): it would wait for ever.
pub(crate) const BLOCKED: SignalSet = SignalSet::MAX & !(1 << 32);
/// What the thread is called.
const THREAD: &str = "crac-prefetch";
/// Pages that are looked at to tell how much is there.
const SAMPLES: usize = 64;

/// Page faults that waited for a disk before this life's own.
static WAITS_BEFORE: AtomicU64 = AtomicU64::new(0);
/// Instead of them.
const NOTHING_TO_FETCH: u64 = u64::MAX;
static AT_WORK: Mutex<Option<Fetcher>> = Mutex::new(None);

/// A thread that fetches.
#[derive(Debug)]
struct Fetcher {
    thread: JoinHandle<()>,
    stop: Arc<AtomicBool>,
}

/// At the beginning of a restored life, whose memory `is_fetched` already or not. Allocates nothing.
pub(crate) fn note(is_fetched: bool) {
    WAITS_BEFORE.store(if is_fetched { NOTHING_TO_FETCH } else { process::major_faults() }, Ordering::Relaxed);
}

/// Once the door is open: has the memory of this life fetched, if some of it is on the disk and there is room for it. In the usual
/// case, in which the image is in the page cache, that is one system call.
pub(crate) fn begin() {
    let before = WAITS_BEFORE.load(Ordering::Relaxed);
    if before == NOTHING_TO_FETCH || process::major_faults() == before {
        return;
    }
    let ranges: Vec<Range<usize>> = madvise::anonymous_ranges().collect();
    let bytes: usize = ranges.iter().map(Range::len).sum();
    let missing = if may_ask() { missing(&ranges) } else { SAMPLES };
    let available = kib("/proc/meminfo", "MemAvailable:").unwrap_or(0) * 1024;
    // What is locked once it is touched must not be touched for others.
    if is_memory_locked() || !is_worthwhile(bytes, missing, available) {
        tracing::debug!(bytes, missing, of = SAMPLES, "the image is not read ahead");
        return;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let fetch = {
        let stop = Arc::clone(&stop);
        move || {
            let begun = Instant::now();
            let fetched = fetch(&ranges, &stop);
            tracing::debug!(bytes = fetched, elapsed = ?begun.elapsed(), "the image was read ahead");
        }
    };
    // The service's signals are for its own threads.
    let mask = signal::set_mask(BLOCKED);
    let spawned = std::thread::Builder::new().name(THREAD.to_owned()).spawn(fetch);
    // The mask was valid when it was read.
    let _ = mask.and_then(signal::set_mask);
    match spawned {
        Ok(thread) => *AT_WORK.lock().unwrap_or_else(PoisonError::into_inner) = Some(Fetcher { thread, stop }),
        // Then it is read where it is touched.
        Err(error) => tracing::debug!(%error, "no thread to read the image ahead"),
    }
}

/// Before a capture: ends the fetching, which takes as long as a [`PIECE`] does. A disk that does not answer within `limit` leaves the
/// thread as it is, and the capture says so, as of any thread that cannot be stopped.
pub(crate) fn end(limit: Duration) {
    let mut at_work = AT_WORK.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(fetcher) = at_work.take() else { return };
    fetcher.stop.store(true, Ordering::Relaxed);
    let deadline = Instant::now() + limit;
    while !fetcher.thread.is_finished() {
        if Instant::now() >= deadline {
            *at_work = Some(fetcher);
            return;
        }
        std::thread::park_timeout(LOOK);
    }
    // It does not panic, and nothing would follow from it.
    let _ = fetcher.thread.join();
}

/// Whether `mincore(2)` tells the truth: of a file that this process neither owns nor may write to it says that all is there. The file
/// that this process executes is the image, or else it is not known.
fn may_ask() -> bool {
    let Ok([_, user, _]) = process::user_ids() else { return false };
    user == 0 || fs::stat_path(c"/proc/self/exe").is_ok_and(|program| program.st_uid == user)
}

/// Whether to read `bytes` of which `missing` of [`SAMPLES`] are on the disk, with so much memory `available`.
fn is_worthwhile(bytes: usize, missing: usize, available: u64) -> bool {
    let expected = bytes as u64 / SAMPLES as u64 * missing as u64;
    // A few are read as soon where they are touched.
    missing > SAMPLES / 16 && expected != 0 && expected <= available / 2
}

/// How many of [`SAMPLES`] pages, evenly spread over the ranges, are on the disk.
fn missing(ranges: &[Range<usize>]) -> usize {
    let is_missing = |page: &usize| {
        let mut there = [0];
        // What is no longer mapped is not missing. What was given back since is, and will be read as zeros.
        mem::resident(*page, PAGE_SIZE, &mut there).is_ok() && there[0] & 1 == 0
    };
    samples(ranges).filter(is_missing).count()
}

/// [`SAMPLES`] addresses of pages, evenly spread over the ranges; one in the middle of each share.
fn samples(ranges: &[Range<usize>]) -> impl Iterator<Item = usize> {
    let pages: usize = ranges.iter().map(|range| range.len() / PAGE_SIZE).sum();
    (0..SAMPLES.min(pages)).filter_map(move |nth| {
        let mut at = (2 * nth + 1) * pages / (2 * SAMPLES.min(pages));
        ranges.iter().find_map(|range| {
            let len = range.len() / PAGE_SIZE;
            let found = (at < len).then(|| range.start + at * PAGE_SIZE);
            at = at.saturating_sub(len);
            found
        })
    })
}

/// The ranges in pieces of at most [`PIECE`] bytes.
fn pieces(ranges: &[Range<usize>]) -> impl Iterator<Item = Range<usize>> {
    ranges.iter().flat_map(|range| range.clone().step_by(PIECE).map(|at| at..range.end.min(at.saturating_add(PIECE))))
}

/// Whether some memory of this process is locked, or may be.
pub(crate) fn is_memory_locked() -> bool {
    kib("/proc/self/status", "VmLck:").is_none_or(|locked| locked != 0)
}

/// A number of KiB in a file of `proc(5)`.
fn kib(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.trim().strip_suffix(" kB")?.parse().ok()
}

/// Has all of it read, until told to stop; the bytes that were.
fn fetch(ranges: &[Range<usize>], stop: &AtomicBool) -> usize {
    let pieces = pieces(ranges).take_while(|_| !stop.load(Ordering::Relaxed));
    // What is no longer mapped, or may not be read, needs no fetching, and what the disk refuses is said to whoever touches it.
    let is_fetched = |piece: &Range<usize>| mem::populate(piece.start, piece.len()).is_ok();
    pieces.filter(is_fetched).map(|piece| piece.len()).sum()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn what_is_there_or_does_not_fit_is_not_fetched() {
        assert!(is_worthwhile(64 * MIB, SAMPLES, 128 << 20));
        assert!(!is_worthwhile(64 * MIB, SAMPLES, 127 << 20));
        assert!(is_worthwhile(64 * MIB, SAMPLES / 2, 64 << 20));
        assert!(!is_worthwhile(64 * MIB, SAMPLES / 16, 1 << 40));
        assert!(!is_worthwhile(64 * MIB, 0, 1 << 40));
        assert!(!is_worthwhile(0, SAMPLES, 1 << 40));
        assert!(kib("/proc/meminfo", "MemAvailable:").unwrap() > 0);
        assert_eq!((kib("/proc/self/status", "VmLck:"), kib("/proc/self/status", "VmSomething:")), (Some(0), None));
    }

    #[test]
    fn samples_are_spread_evenly_and_lie_in_the_ranges() {
        let ranges = [0..PAGE_SIZE, MIB..MIB + 255 * PAGE_SIZE, 9 * MIB..9 * MIB + 256 * PAGE_SIZE];
        let found: Vec<_> = samples(&ranges).collect();
        assert_eq!(found.len(), SAMPLES);
        assert!(found.iter().all(|page| ranges.iter().any(|range| range.contains(page))), "{found:?}");
        assert_eq!(found.iter().filter(|page| **page >= 9 * MIB).count(), SAMPLES / 2);
        assert_eq!(samples(&ranges[..1]).collect::<Vec<_>>(), [0]);
        assert_eq!(samples(&[]).count(), 0);
    }

    #[test]
    fn pieces_cover_the_ranges_and_are_small() {
        let ranges = [MIB..MIB + PAGE_SIZE, 20 * MIB..30 * MIB + PAGE_SIZE];
        let found: Vec<_> = pieces(&ranges).collect();
        assert_eq!(found.iter().map(Range::len).sum::<usize>(), 10 * MIB + 2 * PAGE_SIZE);
        assert!(found.iter().all(|piece| piece.len() <= PIECE));
        assert_eq!((found[0].clone(), found.last().unwrap().clone()), (ranges[0].clone(), 28 * MIB..ranges[1].end));
    }

    #[test]
    fn a_thread_that_does_not_end_is_left_and_told_once_more() {
        let (wake, woken) = std::sync::mpsc::channel::<()>();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn(move || _ = woken.recv());
        *AT_WORK.lock().unwrap() = Some(Fetcher { thread, stop: Arc::clone(&stop) });
        end(Duration::ZERO);
        assert!(stop.load(Ordering::Relaxed) && AT_WORK.lock().unwrap().is_some());
        drop(wake);
        end(Duration::from_secs(60));
        assert!(AT_WORK.lock().unwrap().is_none());
    }

    #[test]
    fn what_is_not_there_is_fetched_and_what_may_not_be_read_is_passed_over() {
        let [address, closed] = [libc::PROT_READ, libc::PROT_NONE]
            .map(|protection| mem::map_anonymous(2 * PIECE, protection, libc::MAP_PRIVATE | libc::MAP_NORESERVE).unwrap());
        let ranges = [address, closed].map(|start| start..start + 2 * PIECE);
        assert_eq!(missing(&ranges), SAMPLES);
        assert_eq!(fetch(&ranges, &AtomicBool::new(true)), 0);
        assert_eq!(missing(&ranges), SAMPLES);
        assert_eq!(fetch(&ranges, &AtomicBool::new(false)), 2 * PIECE);
        assert_eq!(missing(&ranges), SAMPLES / 2);
    }
}
