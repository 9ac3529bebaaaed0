//! `madvise` for a process whose anonymous memory lies in an image.
//!
//! After a lazy restore, memory that was anonymous is a private mapping of the image file. `MADV_DONTNEED` on it would bring
//! back the bytes of the checkpoint where allocators expect zeros, and `MADV_FREE` would be refused. This crate therefore
//! defines the symbol `madvise`: linked into an executable it takes the C library's place for everything that calls it by
//! name. For memory of the image it maps fresh anonymous memory instead; for all else it is the system call. That splits mappings,
//! of which a process may have 65 530: from half of them on, memory of the image is overwritten with zeros where it is.
//!
//! Whoever calls it by its number through `syscall(3)` comes here by way of the shim of the clocks, where that is in place;
//! who has an instruction of its own is found beforehand ([`raw_advice`](crate::raw_advice)). glibc's own trimming does not rely
//! on zeros.
//!
//! After an eager restore memory is what it was, and there is nothing to do.
#![allow(unsafe_code, reason = "replaces a function of the C library and mappings of the image")]

use std::{
    cell::Cell,
    os::fd::AsFd,
    ptr, slice,
    sync::atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering, compiler_fence},
};

use crac_sys::{
    Errno, fs,
    mem::{self, Mapped, PAGE_SIZE},
};

use crate::{
    layout::{RunRecord, run},
    plan::BackingFile,
};

/// The table of this life: address and number of [`Range`]s; zero in a life that began cold.
static RANGES: AtomicUsize = AtomicUsize::new(0);
static COUNT: AtomicUsize = AtomicUsize::new(0);
/// Whether memory of this life is mapped from an image.
static CAME_BACK: AtomicBool = AtomicBool::new(false);
/// The image's device and inode as `maps` shows them, once somebody has asked.
static DEVICE: AtomicUsize = AtomicUsize::new(0);
static INODE: AtomicUsize = AtomicUsize::new(0);

/// See [`room`]; zero: to be counted.
static ROOM: AtomicIsize = AtomicIsize::new(0);

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Range {
    start: usize,
    end: usize,
}

/// `madvise(2)`.
///
/// # Safety
///
/// As of the system call: the caller owns the range.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn madvise(address: *mut libc::c_void, len: usize, advice: i32) -> i32 {
    // SAFETY: the caller's promise.
    answer(unsafe { advise(address.addr(), len, advice) })
}

/// The same for whoever calls it by its number: zero, or the negative number of an error. Called by the shim, on any thread.
///
/// # Safety
///
/// As of the system call.
pub(crate) unsafe extern "C" fn by_number(address: usize, len: usize, advice: i32) -> isize {
    // SAFETY: the caller's promise.
    match unsafe { advise(address, len, advice) } {
        Ok(()) => 0,
        Err(errno) => -(errno.number() as isize),
    }
}

/// Gives advice about a range as the system call does, but for what is still the image's.
///
/// # Safety
///
/// As of the system call.
unsafe fn advise(start: usize, len: usize, advice: i32) -> Result<(), Errno> {
    let _inside = Inside::enter();
    let is_ours = matches!(advice, libc::MADV_DONTNEED | MADV_DONTNEED_LOCKED | libc::MADV_FREE);
    let end = start.checked_add(len).and_then(|end| end.checked_next_multiple_of(PAGE_SIZE));
    let end = end.filter(|_| is_ours && start.is_multiple_of(PAGE_SIZE) && COUNT.load(Ordering::Acquire) != 0);
    if let Some(end) = end {
        let touched = ranges().is_some_and(|ranges| overlaps(ranges, start, end));
        // The kernel refuses MADV_FREE for anything but anonymous memory, so this tells in one call whether some of the image
        // is left in the range. The content is given up in either case.
        // SAFETY: the caller's promise.
        let still_mapped = touched && unsafe { mem::advise(start, len, libc::MADV_FREE) }.is_err();
        if still_mapped {
            // SAFETY: the caller's promise.
            return unsafe { give_up(start, end, advice) };
        }
    }
    // SAFETY: the caller's promise.
    unsafe { mem::advise(start, len, advice) }
}

/// Gives locked memory back, too (Linux 5.18).
const MADV_DONTNEED_LOCKED: i32 = 24;

thread_local! {
    /// Whether this thread is inside of [`madvise`]. Neither lazy nor dropped, so that a signal handler may look.
    static IS_INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Whether the calling thread was interrupted inside of [`madvise`]. It must not be stopped there: what it has decided holds for
/// this life's mappings and this life's table alone, and a discarded page would come back in the next one with its old bytes.
pub(crate) fn is_inside() -> bool {
    IS_INSIDE.get()
}

/// The time that a thread spends in [`madvise`].
struct Inside {
    /// A signal handler may call it while the thread is inside already.
    before: bool,
}

impl Inside {
    fn enter() -> Self {
        let before = IS_INSIDE.replace(true);
        compiler_fence(Ordering::SeqCst);
        Self { before }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        compiler_fence(Ordering::SeqCst);
        IS_INSIDE.set(self.before);
    }
}

pub(crate) fn answer(result: Result<(), Errno>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(errno) => {
            // SAFETY: the C library's address of this thread's errno is always valid.
            let place = unsafe { libc::__errno_location() };
            // SAFETY: as above; it is an int.
            unsafe { place.write(errno.number()) };
            -1
        }
    }
}

/// Whether calls of `madvise` by name reach this crate in this program. Takes the dynamic loader's lock, so it is asked before
/// threads are stopped: one of them may hold it.
#[cfg(not(target_feature = "crt-static"))]
pub(crate) fn is_interposed() -> bool {
    let ours = madvise as unsafe extern "C" fn(*mut libc::c_void, usize, i32) -> i32 as usize;
    // SAFETY: the name is NUL-terminated; looking it up has no other effect.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"madvise".as_ptr()) };
    found.addr() == ours
}

/// In a static program the linker resolves every reference to the one definition it met first; the C library's is weak.
#[cfg(target_feature = "crt-static")]
pub(crate) fn is_interposed() -> bool {
    std::hint::black_box(madvise as unsafe extern "C" fn(*mut libc::c_void, usize, i32) -> i32 as usize) != 0
}

/// The image that memory of this life is mapped from, as `maps` shows it.
///
/// # Errors
///
/// When the mappings cannot be read: no descriptor is left, or there is no `/proc`.
pub(crate) fn backing_file() -> Result<Option<BackingFile>, Errno> {
    if !CAME_BACK.load(Ordering::Acquire) {
        return Ok(None);
    }
    if INODE.load(Ordering::Acquire) == 0 {
        // What this program has written to is a mapping of the image and stays one; its code may be that of the original file.
        let found = mapping_at((&raw const INODE).addr())?;
        DEVICE.store(((u64::from(found.device.0) << 32) | u64::from(found.device.1)) as usize, Ordering::Release);
        INODE.store(found.inode as usize, Ordering::Release);
    }
    let (device, inode) = (DEVICE.load(Ordering::Acquire) as u64, INODE.load(Ordering::Acquire) as u64);
    Ok(Some(BackingFile { device: ((device >> 32) as u32, device as u32), inode }))
}

/// Whether the file that the kernel knows this process by is the image it came from.
///
/// # Errors
///
/// As [`backing_file`].
pub(crate) fn runs_from_image() -> Result<bool, Errno> {
    let Some(image) = backing_file()? else { return Ok(false) };
    Ok(fs::stat_path(c"/proc/self/exe")?.st_ino == image.inode)
}

/// Whether memory of the image in this range was anonymous memory of the service.
pub(crate) fn was_anonymous(start: u64, end: u64) -> bool {
    ranges().is_some_and(|ranges| overlaps(ranges, start as usize, end as usize))
}

/// In a restored life, before the other threads go on: makes the table from the runs that are mapped from the image. There are none
/// after an eager restore.
pub(crate) fn install(runs: &[RunRecord]) -> Result<(), Errno> {
    forget();
    let anonymous = || runs.iter().filter(|record| record.flags & run::ANONYMOUS != 0);
    INODE.store(0, Ordering::Release);
    CAME_BACK.store(!runs.is_empty(), Ordering::Release);
    ROOM.store(0, Ordering::Relaxed);
    let count = anonymous().count();
    if count == 0 {
        return Ok(());
    }
    let bytes = (count * size_of::<Range>()).next_multiple_of(PAGE_SIZE);
    let table = mem::map_anonymous(bytes, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE)?;
    for (at, record) in anonymous().enumerate() {
        let place = ptr::with_exposed_provenance_mut::<Range>(table).wrapping_add(at);
        // SAFETY: the fresh mapping has room for `count` entries.
        unsafe { place.write(Range { start: record.start as usize, end: record.end as usize }) };
    }
    RANGES.store(table, Ordering::Release);
    COUNT.store(count, Ordering::Release);
    Ok(())
}

/// Drops the table of the life before, which came along in the image.
fn forget() {
    let (table, count) = (RANGES.swap(0, Ordering::AcqRel), COUNT.swap(0, Ordering::AcqRel));
    if count != 0 {
        let bytes = (count * size_of::<Range>()).next_multiple_of(PAGE_SIZE);
        // SAFETY: the table was mapped by `install` in an earlier life; no other thread runs yet that could read it.
        let unmapped = unsafe { mem::unmap(table, bytes) };
        debug_assert!(unmapped.is_ok(), "a mapping of our own can be unmapped");
    }
}

/// Writes to every page that the statics of this file lie on, so that they are part of every image.
pub(crate) fn touch() {
    CAME_BACK.fetch_or(false, Ordering::SeqCst);
    INODE.fetch_add(0, Ordering::SeqCst);
    COUNT.fetch_add(0, Ordering::SeqCst);
    ROOM.fetch_add(0, Ordering::SeqCst);
}

/// Where memory of this life that was anonymous is, or was, mapped from the image; in the order of the addresses.
pub(crate) fn anonymous_ranges() -> impl Iterator<Item = std::ops::Range<usize>> {
    ranges().unwrap_or_default().iter().map(|range| range.start..range.end)
}

fn ranges() -> Option<&'static [Range]> {
    let count = COUNT.load(Ordering::Acquire);
    if count == 0 {
        return None;
    }
    let table = ptr::with_exposed_provenance::<Range>(RANGES.load(Ordering::Acquire));
    // SAFETY: written by `install` before the count was, never changed while other threads run.
    Some(unsafe { slice::from_raw_parts(table, count) })
}

/// Whether a range overlaps one of the sorted `ranges`.
fn overlaps(ranges: &[Range], start: usize, end: usize) -> bool {
    let first = ranges.partition_point(|range| range.end <= start);
    ranges.get(first).is_some_and(|range| range.start < end)
}

/// Gives up the content of `start..end`, mapping by mapping: what is still the image's becomes fresh anonymous memory of the same
/// protection, or zeros where the process would get too many mappings by that; for all else it is the system call.
///
/// # Safety
///
/// As of [`madvise`].
unsafe fn give_up(start: usize, end: usize, advice: i32) -> Result<(), Errno> {
    let Some(image) = backing_file()? else {
        // SAFETY: the caller's promise.
        return unsafe { mem::advise(start, end - start, advice) };
    };
    let (mut at, mut has_gap) = (start, false);
    while at < end {
        let found = match mapping_at(at) {
            Ok(found) if (found.start as usize) < end => found,
            Ok(_) => return Err(Errno::new(libc::ENOMEM)),
            Err(errno) if errno.number() == libc::ENOENT => return Err(Errno::new(libc::ENOMEM)),
            // The caller must not take the old bytes for zeros.
            Err(errno) => return Err(errno),
        };
        has_gap |= found.start as usize > at;
        let (from, to) = ((found.start as usize).max(start), (found.end as usize).min(end));
        if (BackingFile { device: found.device, inode: found.inode }) == image {
            let is_whole = from == found.start as usize && to == found.end as usize;
            // SAFETY: the caller's promise; the mapping there is the image's.
            unsafe { replace(from..to, found.protection, is_whole, advice) }?;
        } else {
            // SAFETY: the caller's promise.
            unsafe { mem::advise(from, to - from, advice) }?;
        }
        at = found.end as usize;
    }
    // As the kernel answers for such a range once it has been through it.
    if has_gap { Err(Errno::new(libc::ENOMEM)) } else { Ok(()) }
}

/// Replaces a part of a mapping of the image, or all of it.
///
/// # Safety
///
/// The range is mapped like that, and its owner gives up its content.
unsafe fn replace(range: std::ops::Range<usize>, protection: i32, is_whole: bool, advice: i32) -> Result<(), Errno> {
    // Where nothing can be written, there is no other way than to replace.
    let is_writable = protection & libc::PROT_WRITE != 0;
    // A mapping that is replaced is not locked any more.
    let may_be_replaced = !is_writable || advice != MADV_DONTNEED_LOCKED;
    if may_be_replaced && (is_whole || !is_writable || may_split()) {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        // SAFETY: the caller's promise.
        match unsafe { mem::map(range.start, range.len(), protection, flags, -1, 0) } {
            // Too many mappings, in spite of all.
            Err(errno) if errno.number() == libc::ENOMEM && is_writable => {}
            answer => return answer.map(drop),
        }
    }
    // What is freed may stay as it is until it is written to.
    if advice != libc::MADV_FREE {
        // SAFETY: mapped and writable, and the caller has given up its content.
        unsafe { ptr::write_bytes(ptr::with_exposed_provenance_mut::<u8>(range.start), 0, range.len()) };
    }
    Ok(())
}

/// Whether one more mapping may be split. The kernel has a limit (`vm.max_map_count`), beyond which the service could not map
/// anything any more, so only half of it is taken.
fn may_split() -> bool {
    let left = ROOM.load(Ordering::Relaxed);
    if left > 0 {
        // Several threads at once take a little more than there is, which the other half makes up for.
        ROOM.fetch_sub(1, Ordering::Relaxed);
        return true;
    }
    if left < 0 {
        ROOM.fetch_add(1, Ordering::Relaxed);
        return false;
    }
    // Mappings that cannot be counted can be split no less than before: the kernel itself refuses the last of them.
    let room = count_mappings().map_or(1, |count| room(count, mappings_max().unwrap_or(MAPPINGS_MAX_USUAL)));
    ROOM.store(room, Ordering::Relaxed);
    room > 0
}

/// How many mappings may be split before they are counted again, each into at most three; if that is none, as a negative number
/// how many requests go by until then. The service makes mappings as well, so they are counted often.
fn room(mappings: usize, mappings_max: usize) -> isize {
    match (mappings_max / 2).saturating_sub(mappings) / 2 {
        0 => -COUNTED_EVERY,
        room => isize::try_from(room).unwrap_or(COUNTED_EVERY).min(COUNTED_EVERY),
    }
}

fn count_mappings() -> Result<usize, Errno> {
    let maps = fs::open(c"/proc/self/maps", libc::O_RDONLY | libc::O_CLOEXEC, 0)?;
    let mut buffer = [0_u8; 4096];
    let mut count = 0;
    loop {
        let filled = fs::read(maps.as_fd(), &mut buffer)?;
        if filled == 0 {
            return Ok(count);
        }
        count += buffer.get(..filled).unwrap_or_default().iter().filter(|byte| **byte == b'\n').count();
    }
}

/// The kernel's limit of mappings in a process.
fn mappings_max() -> Option<usize> {
    let file = fs::open(c"/proc/sys/vm/max_map_count", libc::O_RDONLY | libc::O_CLOEXEC, 0).ok()?;
    let mut buffer = [0_u8; 32];
    let filled = fs::read(file.as_fd(), &mut buffer).ok()?;
    std::str::from_utf8(buffer.get(..filled)?).ok()?.trim().parse().ok()
}

/// Counting a hundred mappings takes as long as replacing some ten of them.
const COUNTED_EVERY: isize = 64;
/// The kernel's own default.
const MAPPINGS_MAX_USUAL: usize = 65_530;

/// The mapping at `address` or the next above, from the kernel or, before Linux 6.11, from the text of `maps`.
fn mapping_at(address: usize) -> Result<Mapped, Errno> {
    let maps = fs::open(c"/proc/self/maps", libc::O_RDONLY, 0)?;
    match mem::query(maps.as_fd(), address as u64) {
        Err(errno) if errno.number() == libc::ENOTTY => {}
        answer => return answer,
    }
    let mut buffer = [0_u8; 16 * 1024];
    let mut kept = 0;
    loop {
        let Some(room) = buffer.get_mut(kept..).filter(|room| !room.is_empty()) else {
            return Err(Errno::new(libc::E2BIG));
        };
        let filled = fs::read(maps.as_fd(), room)?;
        if filled == 0 {
            return Err(Errno::new(libc::ENOENT));
        }
        let text = buffer.get(..kept + filled).unwrap_or_default();
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        for line in crac_sys::proc::lines(text.get(..whole).unwrap_or_default()) {
            let Ok(found) = crac_sys::proc::Mapping::parse(line) else { continue };
            if found.end > address as u64 {
                let bit = |set, bit| if set { bit } else { 0 };
                return Ok(Mapped {
                    start: found.start,
                    end: found.end,
                    protection: bit(found.read, libc::PROT_READ)
                        | bit(found.write, libc::PROT_WRITE)
                        | bit(found.execute, libc::PROT_EXEC),
                    device: found.device,
                    inode: found.inode,
                });
            }
        }
        let end = kept + filled;
        buffer.copy_within(whole..end, 0);
        kept = end - whole;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_mappings_are_left_to_the_service() {
        assert_eq!(room(100, 65_530), COUNTED_EVERY);
        assert_eq!(room(32_755, 65_530), 5);
        assert_eq!(room(32_763, 65_530), 1);
        for crowded in [32_764, 65_530, 70_000] {
            assert_eq!(room(crowded, 65_530), -COUNTED_EVERY);
        }
    }

    #[test]
    fn overlap_is_found_at_both_edges() {
        let ranges = [Range { start: 10, end: 20 }, Range { start: 30, end: 40 }];
        for (start, end, expected) in
            [(0, 10, false), (0, 11, true), (19, 20, true), (20, 30, false), (25, 35, true), (40, 50, false), (0, 100, true)]
        {
            assert_eq!(overlaps(&ranges, start, end), expected, "{start}..{end}");
        }
    }
}
