//! What becomes of every mapping: pure decisions over what `smaps` says.

use crac_core::ObstacleKind;
use crac_sys::{
    Errno,
    proc::{MappingName, SmapsEntry},
};

use crate::{
    arena::ArenaVec,
    layout::{MappingRecord, PAGE, RangeRecord, RunRecord, advice},
};

/// The mapped file of an image, as `maps` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BackingFile {
    pub(crate) device: (u32, u32),
    pub(crate) inode: u64,
}

/// What becomes of a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// The kernel gives every process its own, or its place is noted apart.
    Kernel,
    /// Stands in the way.
    Refused(ObstacleKind),
    /// Anonymous memory: existing pages are saved.
    Anonymous,
    /// Anonymous memory that is not to survive (`MADV_WIPEONFORK`, `MADV_DONTDUMP`, `MAP_DROPPABLE`): comes back empty.
    Forgotten,
    /// Memory that came from the image this life was restored from.
    Image,
    /// A private mapping of a program or library: saved whole, so that an upgrade of the file does not matter.
    Object,
    /// A private mapping of another file: referred to; changed pages are saved.
    FilePrivate,
    /// A shared mapping of a file that cannot be written: referred to.
    FileShared,
    /// A mapping of memory without a file that others may share: comes back as a memfd.
    Memory,
}

/// Decides about `entry`. `image` is the file this life came from, if any; `is_object` tells whether a file is mapped
/// executable anywhere.
pub(crate) fn classify(entry: &SmapsEntry<'_>, image: Option<BackingFile>, is_object: bool) -> Class {
    use ObstacleKind as Kind;

    let (mapping, flags) = (&entry.mapping, &entry.flags);
    match mapping.name() {
        MappingName::Vsyscall => return Class::Kernel,
        MappingName::Vdso | MappingName::Vvar => {
            return if flags.contains(b"sl") { Class::Refused(Kind::Kernel) } else { Class::Kernel };
        }
        MappingName::Special(b"uprobes") => return Class::Refused(Kind::Breakpoint),
        MappingName::Special(b"shadow stack") => return Class::Refused(Kind::Cpu),
        MappingName::Sysv => return Class::Refused(Kind::MemorySysv),
        MappingName::AnonInode(b"[io_uring]") => return Class::Refused(Kind::IoUring),
        MappingName::AnonInode(_) => return Class::Refused(Kind::MemoryDevice),
        _ => {}
    }
    if entry.protection_key != 0 || flags.contains(b"ss") {
        return Class::Refused(Kind::Cpu);
    }
    if flags.contains(b"io") || flags.contains(b"pf") {
        return Class::Refused(Kind::MemoryDevice);
    }
    if [b"ht", b"um", b"uw", b"ui", b"sl"].iter().any(|flag| flags.contains(flag)) {
        return Class::Refused(Kind::MemoryOther);
    }
    if mapping.inode == 0 {
        return match mapping.name() {
            _ if mapping.shared => Class::Refused(Kind::MemoryShared),
            MappingName::Special(_) => Class::Refused(Kind::MemoryOther),
            _ if flags.contains(b"wf") || flags.contains(b"dd") || flags.contains(b"dp") => Class::Forgotten,
            _ => Class::Anonymous,
        };
    }
    if image == Some(BackingFile { device: mapping.device, inode: mapping.inode }) && !mapping.shared {
        // Secret memory may lie where memory of the image was.
        return if flags.contains(b"dd") { Class::Forgotten } else { Class::Image };
    }
    match mapping.name() {
        MappingName::File { path, .. } if path.starts_with(b"/dev/") && !path.starts_with(b"/dev/shm/") => {
            Class::Refused(Kind::MemoryDevice)
        }
        MappingName::SharedAnonymous | MappingName::SharedNamed(_) | MappingName::Memfd(_) if mapping.shared => Class::Memory,
        MappingName::Memfd(_) | MappingName::File { deleted: true, .. } if !mapping.shared => Class::Object,
        MappingName::File { .. } if is_object && !mapping.shared => Class::Object,
        MappingName::File { deleted: true, .. } => Class::Refused(Kind::MemoryFileDeleted),
        MappingName::File { .. } if mapping.shared && mapping.write => Class::Refused(Kind::MemoryFileShared),
        MappingName::File { .. } if mapping.shared => Class::FileShared,
        MappingName::File { .. } => Class::FilePrivate,
        _ => Class::Refused(Kind::MemoryOther),
    }
}

/// `PROT_*` of a mapping.
pub(crate) fn protection(entry: &SmapsEntry<'_>) -> u32 {
    let bit = |set, bit: i32| if set { bit as u32 } else { 0 };
    let mapping = &entry.mapping;
    bit(mapping.read, libc::PROT_READ) | bit(mapping.write, libc::PROT_WRITE) | bit(mapping.execute, libc::PROT_EXEC)
}

/// The record that recreates a mapping without its content. `file` is the index of the file it refers to. `stack_flag` tells
/// that `MAP_STACK` means "no huge pages" on this kernel, which saves a call per thread stack.
pub(crate) fn record(entry: &SmapsEntry<'_>, class: Class, file: Option<u32>, stack_flag: bool) -> MappingRecord {
    const MAP_DROPPABLE: i32 = 0x08;
    let (mapping, vm_flags) = (&entry.mapping, &entry.flags);
    let has = |flag: &[u8; 2], bit: i32| if vm_flags.contains(flag) { bit } else { 0 };
    let shape = if matches!(class, Class::FileShared | Class::Memory) {
        libc::MAP_SHARED
    } else if vm_flags.contains(b"dp") {
        MAP_DROPPABLE
    } else {
        libc::MAP_PRIVATE
    };
    let anonymous = if file.is_none() { libc::MAP_ANONYMOUS | has(b"gd", libc::MAP_GROWSDOWN) } else { 0 };
    let advised = [
        (b"wf", advice::WIPE_ON_FORK),
        (b"dc", advice::DONT_FORK),
        (b"dd", advice::DONT_DUMP),
        (b"hg", advice::HUGE_PAGES),
        (b"nh", advice::NO_HUGE_PAGES),
        (b"mg", advice::MERGEABLE),
        (b"rr", advice::RANDOM),
        (b"sr", advice::SEQUENTIAL),
        (b"lo", advice::LOCKED),
        (b"lf", advice::LOCKED_ON_FAULT),
    ];
    let as_stack = stack_flag && file.is_none() && vm_flags.contains(b"nh");
    // The kernel sets DONTDUMP itself with droppable memory, and lets nobody change it there.
    let advised = advised.iter().filter(|(flag, _)| vm_flags.contains(flag) && !vm_flags.contains(b"dp"));
    let advised = advised.filter(|(_, bit)| !(as_stack && *bit == advice::NO_HUGE_PAGES));
    let stack = if as_stack { libc::MAP_STACK } else { 0 };
    MappingRecord {
        start: mapping.start,
        end: mapping.end,
        protection: protection(entry),
        flags: (shape | anonymous | stack | has(b"nr", libc::MAP_NORESERVE)) as u32,
        file: file.unwrap_or(0),
        advice: advised.fold(0, |all, (_, bit)| all | bit) | if class == Class::Memory { advice::OBJECT } else { 0 },
        file_offset: if file.is_some() { mapping.offset } else { 0 },
    }
}

/// Joins page ranges of one mapping that are less than `gap` bytes apart: a mapping more costs more than some pages of zeros.
pub(crate) fn runs(
    pages: &[RangeRecord],
    gap: u64,
    protection: u32,
    flags: u32,
    runs: &mut ArenaVec<'_, RunRecord>,
) -> Result<(), Errno> {
    let first = runs.len();
    for range in pages {
        match runs.get_mut(first..).and_then(<[_]>::last_mut) {
            Some(last) if range.start - last.end < gap => last.end = range.end,
            _ => runs.push(RunRecord { start: range.start, end: range.end, protection, flags, ..RunRecord::default() })?,
        }
    }
    Ok(())
}

/// Page data of a stack that are copied; of more than this, most may be long forgotten.
const STACK_BYTES_MAX: u64 = 16 * PAGE;

/// Whether a mapping is the stack of a thread, and little enough is on it that a thread which goes on writes to most of that at once.
/// To read such page data takes less time than to map them, and to copy them page by page as they are written to. `stack_pointers`,
/// of all threads, are sorted.
pub(crate) fn is_stack_in_use(entry: &SmapsEntry<'_>, data_bytes: u64, stack_pointers: &[u64]) -> bool {
    let mapping = &entry.mapping;
    let first = stack_pointers.partition_point(|sp| *sp < mapping.start);
    let is_stack = stack_pointers.get(first).is_some_and(|sp| *sp < mapping.end);
    is_stack && mapping.read && mapping.write && !mapping.shared && data_bytes <= STACK_BYTES_MAX
}

/// The lowest address from `hint` on where `bytes` are free between `taken`, which is sorted by address. A page stays free on
/// both sides.
pub(crate) fn hole(taken: impl Iterator<Item = (u64, u64)>, hint: u64, bytes: u64, end: u64) -> Option<u64> {
    let mut at = hint;
    for (start, behind) in taken {
        if behind + PAGE <= at {
            continue;
        }
        if start >= at + bytes + PAGE {
            break;
        }
        at = behind + PAGE;
    }
    (at + bytes + PAGE <= end).then_some(at)
}

#[cfg(test)]
mod tests {
    use crac_sys::proc::SmapsEntries;

    use super::*;
    use crate::{
        arena::Arena,
        layout::{HUGE_PAGE, place_data},
    };

    fn class_of(line: &str, flags: &str, is_object: bool) -> Class {
        let text = format!("{line}\nVmFlags: {flags}\n");
        let entry = SmapsEntries::of(text.as_bytes()).next().unwrap().unwrap();
        let image = Some(BackingFile { device: (8, 1), inode: 77 });
        classify(&entry, image, is_object)
    }

    #[test]
    fn every_kind_of_mapping_has_its_place() {
        use ObstacleKind as Kind;
        for (line, flags, is_object, class) in [
            ("1000-2000 rw-p 00000000 00:00 0", "rd wr mr mw me ac", false, Class::Anonymous),
            ("1000-2000 rw-p 00000000 00:00 0", "rd wr wf", false, Class::Forgotten),
            ("1000-2000 rw-p 00000000 00:00 0", "rd wr lo", false, Class::Anonymous),
            ("1000-2000 rw-p 00000000 00:00 0", "rd wr dd", false, Class::Forgotten),
            ("1000-2000 rw-p 00000000 00:00 0", "rd wr ht", false, Class::Refused(Kind::MemoryOther)),
            ("1000-2000 rw-s 00000000 00:01 9 /dev/zero (deleted)", "sh", false, Class::Memory),
            ("1000-2000 rw-s 00000000 00:01 9 /memfd:x (deleted)", "sh", false, Class::Memory),
            ("1000-2000 rw-p 00000000 00:01 9 /memfd:x (deleted)", "", false, Class::Object),
            ("1000-2000 rw-s 00000000 00:01 9 /SYSV00000000 (deleted)", "sh", false, Class::Refused(Kind::MemorySysv)),
            ("1000-2000 rw-s 00000000 08:01 9 /data/x", "sh", false, Class::Refused(Kind::MemoryFileShared)),
            ("1000-2000 r--s 00000000 08:01 9 /data/x", "sh", false, Class::FileShared),
            ("1000-2000 rw-p 00000000 08:01 9 /data/x", "", false, Class::FilePrivate),
            ("1000-2000 rw-p 00000000 08:01 9 /data/x (deleted)", "", false, Class::Object),
            ("1000-2000 r--s 00000000 08:01 9 /data/x (deleted)", "sh", false, Class::Refused(Kind::MemoryFileDeleted)),
            ("1000-2000 r--p 00000000 08:01 9 /lib/x.so (deleted)", "", true, Class::Object),
            ("1000-2000 r--p 00000000 08:01 77 /tmp/x.crac (deleted)", "", false, Class::Image),
            ("1000-2000 r--p 00000000 00:06 3 /dev/fb0", "", false, Class::Refused(Kind::MemoryDevice)),
            ("1000-2000 rw-s 00000000 00:0f 3 anon_inode:[io_uring]", "", false, Class::Refused(Kind::IoUring)),
            ("1000-2000 r-xp 00000000 00:00 0 [vdso]", "rd ex sl", false, Class::Refused(Kind::Kernel)),
            ("1000-2000 r-xp 00000000 00:00 0 [uprobes]", "rd ex", false, Class::Refused(Kind::Breakpoint)),
        ] {
            assert_eq!(class_of(line, flags, is_object), class, "{line} {flags}");
        }
    }

    #[test]
    fn a_stack_is_in_use_if_a_thread_is_on_it_and_little_is() {
        let on = |stack_pointers: &[u64], protection: &str, pages: u64| {
            let text = format!("10000-90000 {protection} 00000000 00:00 0\nVmFlags: rd wr\n");
            let entry = SmapsEntries::of(text.as_bytes()).next().unwrap().unwrap();
            is_stack_in_use(&entry, pages * PAGE, stack_pointers)
        };
        assert!(on(&[0x5000, 0x8_f000], "rw-p", 3));
        assert!(on(&[0x1_0000], "rw-p", 16));
        assert!(!on(&[0x1_0000], "rw-p", 17));
        assert!(!on(&[], "rw-p", 3));
        assert!(!on(&[0xf000, 0x9_0000], "rw-p", 3));
        assert!(!on(&[0x8_f000], "r--p", 3));
        assert!(!on(&[0x8_f000], "rw-s", 3));
    }

    #[test]
    fn near_ranges_become_one_run() {
        let arena = Arena::new().unwrap();
        let mut all = ArenaVec::new(&arena);
        let pages = [(0, 1), (2, 3), (20, 21)].map(|(start, end)| RangeRecord { start: start * PAGE, end: end * PAGE });
        runs(&pages, 16 * PAGE, 3, 0, &mut all).unwrap();
        let ranges: Vec<_> = all.iter().map(|run| (run.start / PAGE, run.end / PAGE)).collect();
        assert_eq!(ranges, [(0, 3), (20, 21)]);
        // Ranges of another mapping do not join those before.
        runs(&[RangeRecord { start: 21 * PAGE, end: 22 * PAGE }], 16 * PAGE, 1, 0, &mut all).unwrap();
        assert_eq!(all.len(), 3);
    }

    #[test]
    fn page_data_is_aligned_in_the_file_as_it_is_in_memory() {
        const MIB: u64 = 1 << 20;
        for (start, pages, free_at) in
            [(0x7000, 1, 0x3000), (0x7f12_3456_7000, 3, 0x9000), (0x5555_5555_4000, 200, 7 * PAGE), (0x7000_0000_0000, 4096, MIB)]
        {
            let end = start + pages * PAGE;
            let unit = (1 << (pages * PAGE).ilog2()).min(HUGE_PAGE);
            let at = place_data(start, end, free_at).unwrap();
            assert!((free_at..free_at + unit).contains(&at), "{start:#x}: {at:#x}");
            assert_eq!(at % unit, start % unit, "{start:#x}: {at:#x}");
        }
        assert_eq!(place_data(0, PAGE, u64::MAX), None);
    }

    #[test]
    fn a_hole_keeps_its_distance() {
        let taken = [(0x1000, 0x5000), (0x20_000, 0x30_000), (0x34_000, 0x40_000)];
        let find = |hint, bytes| hole(taken.into_iter(), hint, bytes, 0x50_000);
        assert_eq!(find(0x8000, 0x4000), Some(0x8000));
        assert_eq!(find(0x21_000, 0x2000), Some(0x31_000));
        assert_eq!(find(0x21_000, 0x3000), Some(0x41_000));
        assert_eq!(find(0, 0x10_000), Some(0x6000));
        assert_eq!(find(0x21_000, 0x10_000), None);
    }
}
