//! Facts and plan put into the records of an image.

use std::{
    ffi::CStr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use crac_core::{Action, ObstacleKind, Policy};
use crac_sys::{
    Errno, fs,
    proc::{MappingName, SmapsEntry},
};

use crate::{
    arena::{Arena, ArenaVec},
    descriptors,
    facts::Problem,
    findings::ObstacleSink,
    layout::{FileRecord, MappingRecord, PAGE, RangeRecord, RunRecord, Text, VdsoRecord, file, place_data, run, xxh64::Xxh64},
    madvise,
    objects::Objects,
    pages::{Found, Pages, Wanted},
    plan::{self, BackingFile, Class},
};

/// The memory of an image: everything but the bytes.
#[derive(Debug)]
pub(crate) struct Memory<'a> {
    pub(crate) mappings: ArenaVec<'a, MappingRecord>,
    pub(crate) runs: ArenaVec<'a, RunRecord>,
    /// For every run, whether it must be read through `/proc/self/mem`.
    pub(crate) indirect: ArenaVec<'a, u8>,
    pub(crate) guards: ArenaVec<'a, RangeRecord>,
    pub(crate) files: ArenaVec<'a, FileRecord>,
    /// Memory that mappings or descriptors share.
    pub(crate) objects: Objects<'a>,
    pub(crate) text: ArenaVec<'a, u8>,
    pub(crate) vdso: VdsoRecord,
    /// Page data that is not in memory: where it belongs, and the bytes. A copy of the vdso, for its place in another life.
    pub(crate) stand_in: Option<(u64, &'a mut [u8])>,
}

/// Gaps between runs that are filled with zeros rather than mapped apart.
const GAP: u64 = 16 * PAGE;
/// Mappings a process may have (`vm.max_map_count`), with room for what it maps later.
const MAPPINGS_MAX: usize = 40_000;

/// What the memory is planned from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sources<'a, 's> {
    pub(crate) arena: &'a Arena,
    pub(crate) entries: &'a [SmapsEntry<'a>],
    /// The file of the image this life came from.
    pub(crate) image: Option<BackingFile>,
    /// `MAP_STACK` keeps huge pages away (Linux 6.7).
    pub(crate) stack_flag: bool,
    /// Whether programs and libraries are referred to.
    pub(crate) data_only: bool,
    /// The vdso, if a copy is to take its place.
    pub(crate) stand_in: Option<&'a [u8]>,
    pub(crate) policy: &'s Policy,
    /// Of all threads, sorted.
    pub(crate) stack_pointers: &'a [u64],
    /// Memory behind open memfds.
    pub(crate) memories: &'s [descriptors::Memory<'a>],
}

impl<'a> Memory<'a> {
    /// Plans every mapping. What cannot be saved goes to `obstacles`.
    pub(crate) fn plan(
        sources: &Sources<'a, '_>,
        pages: &mut Pages<'a>,
        obstacles: &mut ObstacleSink<'_>,
    ) -> Result<Self, Problem> {
        let mut gap = GAP;
        loop {
            let before = obstacles.len();
            let memory = Self::plan_with(sources, pages, gap, obstacles).map_err(|errno| ("looking at memory pages", errno))?;
            let mapped = memory.runs.iter().filter(|run| run.flags & run::COPY == 0);
            if memory.mappings.len() + 2 * mapped.count() < MAPPINGS_MAX || gap >= 1 << 30 || obstacles.len() != before {
                return Ok(memory);
            }
            gap *= 4;
        }
    }

    fn plan_with(
        sources: &Sources<'a, '_>,
        pages: &mut Pages<'a>,
        gap: u64,
        obstacles: &mut ObstacleSink<'_>,
    ) -> Result<Self, Errno> {
        let arena = sources.arena;
        let mut memory = Self {
            mappings: ArenaVec::new(arena),
            runs: ArenaVec::new(arena),
            indirect: ArenaVec::new(arena),
            guards: ArenaVec::new(arena),
            files: ArenaVec::new(arena),
            objects: Objects::new(arena),
            text: ArenaVec::new(arena),
            vdso: vdso(sources.entries),
            stand_in: None,
        };
        for opened in sources.memories {
            let name = memory.add_text(opened.name)?;
            memory.objects.opened(opened, name)?;
        }
        let mut objects = ArenaVec::new(arena);
        for entry in sources.entries.iter().filter(|entry| entry.mapping.execute && entry.mapping.inode != 0) {
            objects.push((entry.mapping.device, entry.mapping.inode))?;
        }
        let (mut ranges, mut changed) = (ArenaVec::new(arena), ArenaVec::new(arena));
        for entry in sources.entries {
            let mapping = &entry.mapping;
            if arena.ranges().any(|scratch| scratch.start as u64 <= mapping.start && mapping.end <= scratch.end as u64) {
                continue;
            }
            let is_object = objects.contains(&(mapping.device, mapping.inode));
            let class = match plan::classify(entry, sources.image, is_object) {
                Class::Refused(ObstacleKind::MemoryFileShared) if is_reopened(sources.policy, entry) => Class::FileShared,
                class => class,
            };
            ranges.clear();
            changed.clear();
            let first_guard = memory.guards.len();
            let mut found = Found { pages: &mut ranges, guards: &mut memory.guards };
            let (start, end) = (mapping.start as usize, mapping.end as usize);
            let mut file = None;
            match class {
                Class::Kernel => {
                    if let (MappingName::Vdso, Some(code)) = (mapping.name(), sources.stand_in) {
                        let copy = arena.zeroed::<u8>(code.len())?;
                        copy.copy_from_slice(code);
                        memory.stand_in = Some((mapping.start, copy));
                        let protection = plan::protection(entry);
                        let run = RunRecord { start: mapping.start, end: mapping.end, protection, ..RunRecord::default() };
                        memory.runs.push(run)?;
                        memory.indirect.push(0)?;
                    }
                    continue;
                }
                Class::Refused(kind) => {
                    refuse(kind, entry, obstacles);
                    continue;
                }
                Class::Forgotten => {}
                Class::Anonymous => pages.find(start, end, Wanted::Existing, &mut found)?,
                Class::Object if sources.data_only && mapping.execute => {
                    pages.find(start, end, Wanted::Changed, &mut found)?;
                    changed.extend_from_slice(&ranges)?;
                    file = memory.text_file(entry)?;
                    if file.is_none() {
                        // Nobody could find it again: it is saved, and written into memory in the next life.
                        ranges.clear();
                        ranges.push(RangeRecord { start: mapping.start, end: end_of_file(entry, class).min(mapping.end) })?;
                        subtract(&mut ranges, &memory.guards[first_guard..], arena)?;
                    }
                }
                Class::Image | Class::Object => {
                    // All that can be read is saved: a mapping may reach beyond the end of its file, or have guards in it.
                    pages.find(start, end, Wanted::Changed, &mut found)?;
                    if mapping.execute {
                        changed.extend_from_slice(&ranges)?;
                    }
                    ranges.clear();
                    ranges.push(RangeRecord { start: mapping.start, end: end_of_file(entry, class).min(mapping.end) })?;
                    subtract(&mut ranges, &memory.guards[first_guard..], arena)?;
                }
                Class::Memory => {
                    let at = match memory.objects.index(mapping.inode) {
                        Some(at) => at,
                        None => {
                            let name = match mapping.name() {
                                MappingName::Memfd(name) => name,
                                _ => b"shared",
                            };
                            let name = memory.add_text(name)?;
                            memory.objects.closed(mapping.inode, name)?
                        }
                    };
                    file = Some(at);
                    memory.objects.add(at, entry)?;
                }
                Class::FilePrivate | Class::FileShared => match memory.file(entry, is_reopened(sources.policy, entry))? {
                    Some(index) => {
                        file = Some(index);
                        if class == Class::FilePrivate {
                            let mut found = Found { pages: &mut ranges, guards: &mut memory.guards };
                            pages.find(start, end, Wanted::Changed, &mut found)?;
                        }
                    }
                    None => {
                        refuse(ObstacleKind::MemoryFileDeleted, entry, obstacles);
                        continue;
                    }
                },
            }
            if let Some(address) = breakpoint(entry, class, &changed)? {
                obstacles.push(ObstacleKind::Breakpoint, format_args!("at {address:#x}"));
            }
            let record = plan::record(entry, class, file, sources.stack_flag);
            let grows = entry.flags.contains(b"gd") && file.is_none();
            let anonymous = match class {
                Class::Anonymous => true,
                Class::Image => madvise::was_anonymous(mapping.start, mapping.end),
                _ => false,
            };
            let data_bytes = ranges.iter().map(|range| range.end - range.start).sum();
            let copied = grows || (anonymous && plan::is_stack_in_use(entry, data_bytes, sources.stack_pointers));
            let flags = if copied { run::COPY } else { 0 } | if anonymous && !copied { run::ANONYMOUS } else { 0 };
            let first = memory.runs.len();
            // A file's pages between two changed ones are not zeros, guards cannot be read, and what is copied needs no mapping.
            let gap = if file.is_some() || (copied && !grows) || memory.guards.len() > first_guard { 1 } else { gap };
            plan::runs(&ranges, gap, record.protection, flags, &mut memory.runs)?;
            let indirect = !mapping.read || !matches!(class, Class::Anonymous | Class::Image);
            for _ in first..memory.runs.len() {
                memory.indirect.push(u8::from(indirect))?;
            }
            let covered = matches!(&memory.runs[first..], [run] if run.start == mapping.start && run.end == mapping.end);
            // `MAP_STACK` stands for advice against huge pages, which matters where page data are read.
            if !covered || copied || record.advice != 0 || record.flags & libc::MAP_STACK as u32 != 0 {
                memory.mappings.push(record)?;
            }
        }
        Ok(memory)
    }

    /// Gives all page data its place in a file that holds other things up to `free_at`. Returns where it ends.
    pub(crate) fn place_data(&mut self, mut free_at: u64) -> Result<u64, Errno> {
        for run in self.runs.iter_mut().chain(self.objects.runs.iter_mut()) {
            run.data_offset = place_data(run.start, run.end, free_at).ok_or(Errno::new(libc::EFBIG))?;
            free_at = run.data_offset + (run.end - run.start);
        }
        Ok(free_at)
    }

    /// Bytes of page data.
    pub(crate) fn data_bytes(&self) -> u64 {
        self.runs.iter().chain(self.objects.runs.iter()).map(|run| run.end - run.start).sum()
    }

    /// Adds a NUL-terminated text.
    pub(crate) fn add_text(&mut self, text: &[u8]) -> Result<Text, Errno> {
        let too_long = |_| Errno::new(libc::E2BIG);
        let added = Text { offset: self.text.len().try_into().map_err(too_long)?, len: text.len().try_into().map_err(too_long)? };
        self.text.extend_from_slice(text)?;
        self.text.push(0)?;
        Ok(added)
    }

    /// The index of the file a mapping refers to, if it is still there under its name.
    fn file(&mut self, entry: &SmapsEntry<'_>, may_change: bool) -> Result<Option<u32>, Errno> {
        let may_write = entry.mapping.shared && entry.flags.contains(b"mw");
        let flags =
            if may_write { file::WRITTEN } else { 0 } | if entry.mapping.shared && may_change { file::MAY_CHANGE } else { 0 };
        self.file_for(entry, flags)
    }

    fn file_for(&mut self, entry: &SmapsEntry<'_>, flags: u64) -> Result<Option<u32>, Errno> {
        let MappingName::File { path, deleted: false } = entry.mapping.name() else { return Ok(None) };
        // What only its code is wanted of may be another file, what its data are wanted of may not.
        let is_alike = |record: &FileRecord| record.flags & file::TEXT == flags & file::TEXT;
        let known = self.files.iter().position(|record| is_alike(record) && self.text_of(record.path) == path);
        if let Some(index) = known {
            if let Some(file) = self.files.get_mut(index) {
                file.flags |= flags;
            }
            return Ok(Some(index as u32));
        }
        let text = self.add_text(path)?;
        let Some(Ok(stat)) = self.path(text).map(fs::stat_path) else { return Ok(None) };
        if stat.st_ino != entry.mapping.inode {
            return Ok(None);
        }
        self.files.push(FileRecord {
            path: text,
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size as u64,
            modified_s: stat.st_mtime,
            modified_ns: stat.st_mtime_nsec as u64,
            flags,
            ..FileRecord::default()
        })?;
        Ok(Some(self.files.len() as u32 - 1))
    }

    /// The index of the program or library whose code a mapping shows, with the checksum of that; nothing if it is no longer there
    /// under its name.
    fn text_file(&mut self, entry: &SmapsEntry<'_>) -> Result<Option<u32>, Errno> {
        let Some(opened) = open_mapped(entry) else { return Ok(None) };
        let Some(at) = self.file_for(entry, file::TEXT)? else { return Ok(None) };
        let arena = self.files.arena();
        let Some(record) = self.files.get_mut(at as usize) else { return Ok(None) };
        // A file whose code is in several parts has one record: its sum is that of all from the first to the last.
        let (mut start, mut end) = (entry.mapping.offset, entry.mapping.offset + entry.mapping.size());
        if record.text_bytes != 0 {
            start = start.min(record.text_offset);
            end = end.max(record.text_offset + record.text_bytes);
        }
        end = end.min(record.size);
        if start >= end {
            return Ok(None);
        }
        (record.text_offset, record.text_bytes) = (start, end - start);
        record.text_sum = sum(opened.as_fd(), start, end, arena)?;
        Ok(Some(at))
    }

    fn path(&self, text: Text) -> Option<&CStr> {
        self.text.get(text.offset as usize..).and_then(|path| CStr::from_bytes_until_nul(path).ok())
    }

    fn text_of(&self, text: Text) -> &[u8] {
        self.text.get(text.offset as usize..).and_then(|rest| rest.get(..text.len as usize)).unwrap_or_default()
    }
}

/// The file of a mapping by its name, if that still leads to it and it may be read.
fn open_mapped(entry: &SmapsEntry<'_>) -> Option<OwnedFd> {
    let MappingName::File { path, deleted: false } = entry.mapping.name() else { return None };
    let mut name = [0; libc::PATH_MAX as usize];
    name.get_mut(..path.len())?.copy_from_slice(path);
    let opened = fs::open(CStr::from_bytes_until_nul(&name).ok()?, libc::O_RDONLY | libc::O_NOCTTY, 0).ok()?;
    let stat = fs::stat(opened.as_fd()).ok()?;
    let is_inside = (stat.st_size as u64) > entry.mapping.offset;
    (stat.st_ino == entry.mapping.inode && is_inside).then_some(opened)
}

/// The checksum of a part of a file.
fn sum(file: BorrowedFd<'_>, start: u64, end: u64, arena: &Arena) -> Result<u64, Errno> {
    const PIECE: u64 = 64 * 1024;
    let buffer = arena.zeroed::<u8>(PIECE as usize)?;
    let mut sum = Xxh64::new();
    let mut at = start;
    loop {
        let wanted = PIECE.min(end - at) as usize;
        let mut filled = 0;
        while let Some(room) = buffer.get_mut(filled..wanted).filter(|room| !room.is_empty()) {
            match fs::read_at(file, room, at + filled as u64)? {
                0 => return Err(Errno::new(libc::EIO)),
                read => filled += read,
            }
        }
        at += wanted as u64;
        let piece = buffer.get(..wanted).unwrap_or_default();
        if at == end {
            return Ok(sum.finish(piece));
        }
        let rest = sum.blocks(piece);
        debug_assert!(rest.is_empty(), "pieces are whole blocks");
    }
}

/// The address up to which a mapping is backed by its file. Beyond it, access is an error.
fn end_of_file(entry: &SmapsEntry<'_>, class: Class) -> u64 {
    if class == Class::Image {
        return entry.mapping.end;
    }
    let MappingName::File { path, deleted: false } = entry.mapping.name() else { return end_of_content(entry) };
    let mut name = [0; libc::PATH_MAX as usize];
    let Some(room) = name.get_mut(..path.len()) else { return entry.mapping.end };
    room.copy_from_slice(path);
    let stat = CStr::from_bytes_until_nul(&name).ok().and_then(|path| fs::stat_path(path).ok());
    match stat.filter(|stat| stat.st_ino == entry.mapping.inode) {
        Some(stat) => {
            let size = (stat.st_size as u64).next_multiple_of(PAGE);
            entry.mapping.start + size.saturating_sub(entry.mapping.offset)
        }
        None => end_of_content(entry),
    }
}

/// The same for a file that cannot be asked: the first page that cannot be read, or the end.
fn end_of_content(entry: &SmapsEntry<'_>) -> u64 {
    let Ok(memory) = fs::open(c"/proc/self/mem", libc::O_RDONLY, 0) else { return entry.mapping.end };
    let is_there = |page: u64| fs::read_at(memory.as_fd(), &mut [0], entry.mapping.start + page * PAGE).is_ok();
    let (mut there, mut behind) = (0, entry.mapping.size() / PAGE);
    if is_there(behind - 1) {
        return entry.mapping.end;
    }
    // What can be read is at the front.
    while there < behind {
        let middle = there + (behind - there) / 2;
        if is_there(middle) { there = middle + 1 } else { behind = middle }
    }
    entry.mapping.start + there * PAGE
}

/// Whether the policy wants a shared mapping of a file mapped again.
fn is_reopened(policy: &Policy, entry: &SmapsEntry<'_>) -> bool {
    let MappingName::File { path, deleted: false } = entry.mapping.name() else { return false };
    let path = str::from_utf8(path).unwrap_or_default();
    policy.decide(ObstacleKind::MemoryFileShared, path) == Action::Reopen
}

/// The address of a trap instruction that stands in the changed pages of a program's text in place of something else. A patch
/// of several bytes is the program's own business; debuggers and uprobes change one.
fn breakpoint(entry: &SmapsEntry<'_>, class: Class, changed: &[RangeRecord]) -> Result<Option<u64>, Errno> {
    const TRAP: u8 = 0xcc;
    if changed.is_empty() {
        return Ok(None);
    }
    let mut name = [0; libc::PATH_MAX as usize];
    let path = match (class, entry.mapping.name()) {
        (Class::Image, _) => c"/proc/self/exe",
        (_, MappingName::File { path, deleted: false }) => {
            let Some(room) = name.get_mut(..path.len()) else { return Ok(None) };
            room.copy_from_slice(path);
            CStr::from_bytes_until_nul(&name).unwrap_or_default()
        }
        _ => return Ok(None),
    };
    let Ok(original) = fs::open(path, libc::O_RDONLY, 0) else { return Ok(None) };
    if fs::stat(original.as_fd())?.st_ino != entry.mapping.inode {
        return Ok(None);
    }
    let memory = fs::open(c"/proc/self/mem", libc::O_RDONLY, 0)?;
    let (mut now, mut before) = ([0; PAGE as usize], [0; PAGE as usize]);
    for range in changed {
        for page in (range.start..range.end).step_by(PAGE as usize) {
            let read = fs::read_at(memory.as_fd(), &mut now, page)?;
            let offset = entry.mapping.offset + (page - entry.mapping.start);
            let read = read.min(fs::read_at(original.as_fd(), &mut before, offset)?);
            let differs = |at: usize| at < read && now.get(at) != before.get(at);
            let is_trap = |at: &usize| now.get(*at) == Some(&TRAP) && differs(*at);
            let alone = |at: &usize| !differs(at + 1) && (*at == 0 || !differs(at - 1));
            if let Some(at) = (0..read).find(|at| is_trap(at) && alone(at)) {
                return Ok(Some(page + at as u64));
            }
        }
    }
    Ok(None)
}

fn refuse(kind: ObstacleKind, entry: &SmapsEntry<'_>, obstacles: &mut ObstacleSink<'_>) {
    let mapping = &entry.mapping;
    let path = str::from_utf8(mapping.path).unwrap_or("a file whose name is no text");
    let path = if path.is_empty() { "anonymous" } else { path };
    obstacles.push(kind, format_args!("mapping {:#x}-{:#x}, {path}", mapping.start, mapping.end));
}

/// Takes `holes` out of `ranges`.
pub(crate) fn subtract<'a>(ranges: &mut ArenaVec<'a, RangeRecord>, holes: &[RangeRecord], arena: &'a Arena) -> Result<(), Errno> {
    for hole in holes {
        let mut rest = ArenaVec::new(arena);
        for range in ranges.iter() {
            for part in [
                RangeRecord { start: range.start, end: range.end.min(hole.start) },
                RangeRecord { start: range.start.max(hole.end), end: range.end },
            ] {
                if part.start < part.end {
                    rest.push(part)?;
                }
            }
        }
        *ranges = rest;
    }
    Ok(())
}

/// Where the kernel's own mappings are. Entry by entry from the end, so that the code comes last.
fn vdso(entries: &[SmapsEntry<'_>]) -> VdsoRecord {
    let mut record = VdsoRecord::default();
    let own = entries.iter().filter(|entry| matches!(entry.mapping.name(), MappingName::Vdso | MappingName::Vvar));
    let mut sizes = record.bytes.iter_mut().rev();
    for entry in own.rev() {
        if let Some(size) = sizes.next() {
            *size = entry.mapping.size();
            record.start = entry.mapping.start;
        }
    }
    record
}
