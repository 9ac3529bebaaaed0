//! Memory that several mappings or descriptors share: what belongs together, and where its content is read.
//!
//! A memfd that is open tells its content itself. Of memory that is only mapped - shared anonymous memory, a memfd that was
//! closed - nothing but its mappings is left: their pages are taken as they lie in the memory, each offset once.

use crac_sys::{Errno, fs, mem, proc::SmapsEntry};

use crate::{
    arena::{Arena, ArenaVec},
    descriptors,
    layout::{ObjectRecord, PAGE, RangeRecord, RunRecord, Text},
    tables::subtract,
    writer::Source,
};

/// The shared memory of an image.
#[derive(Debug)]
pub(crate) struct Objects<'a> {
    pub(crate) records: ArenaVec<'a, ObjectRecord>,
    /// What of them is in the image; the protection is the index of the object.
    pub(crate) runs: ArenaVec<'a, RunRecord>,
    /// For every run, where it is read.
    pub(crate) sources: ArenaVec<'a, Source>,
    /// How many of the objects are open; their content is known from the beginning.
    open: usize,
}

/// Pages asked about at once.
const PIECE: u64 = 4096;

impl<'a> Objects<'a> {
    /// None yet.
    pub(crate) fn new(arena: &'a Arena) -> Self {
        Self { records: ArenaVec::new(arena), runs: ArenaVec::new(arena), sources: ArenaVec::new(arena), open: 0 }
    }

    /// The object with this inode.
    pub(crate) fn index(&self, inode: u64) -> Option<u32> {
        self.records.iter().position(|object| object.inode == inode).map(|at| at as u32)
    }

    /// Adds the memory behind an open memfd, with its content. Before all that is only mapped.
    pub(crate) fn opened(&mut self, memory: &descriptors::Memory<'_>, name: Text) -> Result<(), Errno> {
        let at = self.records.len() as u32;
        let (inode, size, seals, mode) = (memory.inode, memory.size, memory.seals, memory.mode & 0o7777);
        self.records.push(ObjectRecord { inode, size, name, seals, mode })?;
        self.open = self.records.len();
        let before = fs::next_part(memory.number, 0, libc::SEEK_CUR)?;
        let mut end = 0;
        while let Some(start) = fs::next_part(memory.number, end, libc::SEEK_DATA)? {
            end = fs::next_part(memory.number, start, libc::SEEK_HOLE)?.unwrap_or(size).next_multiple_of(PAGE);
            self.run(at, RangeRecord { start: start / PAGE * PAGE, end }, Source::Descriptor(memory.number))?;
        }
        fs::next_part(memory.number, before.unwrap_or_default(), libc::SEEK_SET).map(drop)
    }

    /// Adds memory that is only mapped; its content comes with its mappings.
    pub(crate) fn closed(&mut self, inode: u64, name: Text) -> Result<u32, Errno> {
        self.records.push(ObjectRecord { inode, size: 0, name, seals: 0, mode: 0o777 })?;
        Ok(self.records.len() as u32 - 1)
    }

    /// Adds what a mapping of object `at` shows of it, if nobody else has told.
    pub(crate) fn add(&mut self, at: u32, entry: &SmapsEntry<'_>) -> Result<(), Errno> {
        let mapping = &entry.mapping;
        if (at as usize) < self.open {
            return Ok(());
        }
        let Some(object) = self.records.get_mut(at as usize) else { return Ok(()) };
        object.size = object.size.max(mapping.offset + mapping.size());
        let arena = self.runs.arena();
        let mut found = ArenaVec::new(arena);
        resident(entry, &mut found)?;
        let mut known = ArenaVec::new(arena);
        for run in self.runs.iter().filter(|run| run.protection == at) {
            known.push(RangeRecord { start: run.start, end: run.end })?;
        }
        subtract(&mut found, &known, arena)?;
        for range in found.iter() {
            let address = mapping.start + (range.start - mapping.offset);
            self.run(at, *range, Source::Address(address))?;
        }
        Ok(())
    }

    fn run(&mut self, at: u32, range: RangeRecord, source: Source) -> Result<(), Errno> {
        self.runs.push(RunRecord { start: range.start, end: range.end, protection: at, ..RunRecord::default() })?;
        self.sources.push(source)
    }
}

/// Offsets of the pages of a shared mapping that exist, whoever has made them. All of them if some may have been swapped out,
/// which the kernel does not tell page by page.
fn resident(entry: &SmapsEntry<'_>, found: &mut ArenaVec<'_, RangeRecord>) -> Result<(), Errno> {
    let mapping = &entry.mapping;
    if entry.swap > 0 {
        return found.push(RangeRecord { start: mapping.offset, end: mapping.offset + mapping.size() });
    }
    let mut there = [0; PIECE as usize];
    let mut at = mapping.start;
    while at < mapping.end {
        let pages = PIECE.min((mapping.end - at) / PAGE);
        mem::resident(at as usize, (pages * PAGE) as usize, &mut there)?;
        for (page, _) in there.iter().take(pages as usize).enumerate().filter(|(_, there)| *there & 1 == 1) {
            let start = mapping.offset + (at - mapping.start) + page as u64 * PAGE;
            match found.last_mut() {
                Some(last) if last.end == start => last.end += PAGE,
                _ => found.push(RangeRecord { start, end: start + PAGE })?,
            }
        }
        at += pages * PAGE;
    }
    Ok(())
}
