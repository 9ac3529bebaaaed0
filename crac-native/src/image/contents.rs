//! What is in an image, for people and tools: the address space, the programs and libraries, memory by address.
//!
//! Nothing here trusts a byte: every length is bounded, and what makes no sense is left out.

use std::{fs::File, io, os::unix::fs::FileExt};

use serde::Serialize;

use super::Image;
use crate::layout::{MappingRecord, PAGE, RunRecord, run};

/// A stretch of the captured address space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Map {
    /// The first address.
    pub start: u64,
    /// The first address behind it.
    pub end: u64,
    /// `r`, `w` and `x`, or `-`.
    pub protection: String,
    /// Bytes of it whose content is in the image.
    pub embedded: u64,
    /// What the rest is.
    pub rest: Rest,
    /// What it is known as: `heap`, `stack`, or the program or library it belongs to.
    pub label: Option<String>,
}

/// What a restored life finds where the image holds nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Rest {
    /// Zeros.
    Zeros,
    /// The content of a file that must be unchanged.
    File {
        /// Where it is.
        path: String,
        /// Where in the file the mapping starts.
        offset: u64,
    },
}

/// A program or library whose code is in the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Library {
    /// Its `DT_SONAME`; of the program, its path.
    pub name: Option<String>,
    /// Where it begins.
    pub start: u64,
    /// Its GNU build id in hexadecimal digits, if the linker has put one in.
    pub build_id: Option<String>,
}

/// Bytes by what they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Sizes {
    /// Anonymous memory in the image: heap, stacks. Zero pages inside count.
    pub anonymous: u64,
    /// Programs, libraries and changed pages of other files in the image.
    pub files: u64,
    /// Memory that comes from files that the image refers to.
    pub referenced: u64,
    /// Memory that comes back as zeros.
    pub zeros: u64,
}

/// The most program headers that are looked at.
const HEADERS_MAX: u16 = 64;
/// The most bytes of a table that are looked at.
const TABLE_MAX: u64 = 64 * 1024;

impl Image {
    /// The address space of a restored life, by address.
    pub fn maps(&self) -> Vec<Map> {
        let mut maps = Vec::new();
        let mut runs = self.runs.iter().peekable();
        for mapping in &self.mappings {
            while let Some(run) = runs.next_if(|run| run.end <= mapping.start) {
                maps.push(self.map_of_run(run));
            }
            let mut embedded = 0;
            while let Some(run) = runs.next_if(|run| run.start < mapping.end) {
                embedded += run.end - run.start;
            }
            maps.push(self.map_of(mapping, embedded));
        }
        maps.extend(runs.map(|run| self.map_of_run(run)));
        maps
    }

    fn map_of(&self, mapping: &MappingRecord, embedded: u64) -> Map {
        let anonymous = mapping.flags & libc::MAP_ANONYMOUS as u32 != 0;
        let file = self.files.get(mapping.file as usize).filter(|_| !anonymous);
        let rest = file.map_or(Rest::Zeros, |(path, _)| Rest::File { path: path.clone(), offset: mapping.file_offset });
        let (start, end) = (mapping.start, mapping.end);
        Map { start, end, protection: letters(mapping.protection), embedded, rest, label: self.place(start, end) }
    }

    fn map_of_run(&self, run: &RunRecord) -> Map {
        let (start, end) = (run.start, run.end);
        let protection = letters(run.protection);
        Map { start, end, protection, embedded: end - start, rest: Rest::Zeros, label: self.place(start, end) }
    }

    /// Heap and stack, as the kernel knows them.
    fn place(&self, start: u64, end: u64) -> Option<String> {
        let [.., brk_start, brk, stack, _, _, _, _] = self.header.process.mm;
        if start < brk && brk_start < end && brk_start < brk {
            return Some("heap".into());
        }
        (start <= stack && stack < end).then(|| "stack".into())
    }

    /// How much of what is in the image, and what is not.
    pub fn sizes(&self) -> Sizes {
        let mut sizes = Sizes::default();
        for run in &self.runs {
            let bytes = run.end - run.start;
            let anonymous = run.flags & (run::ANONYMOUS | run::COPY) != 0;
            *(if anonymous { &mut sizes.anonymous } else { &mut sizes.files }) += bytes;
        }
        for map in self.maps() {
            let rest = (map.end - map.start).saturating_sub(map.embedded);
            *(if map.rest == Rest::Zeros { &mut sizes.zeros } else { &mut sizes.referenced }) += rest;
        }
        sizes
    }

    /// The stretches of memory in the image: address of the first byte, where it is in the file, and how many bytes there are.
    pub fn stretches(&self) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        self.runs.iter().map(|run| (run.start, run.data_offset, run.end - run.start))
    }

    /// Where the captured process had the variables of its start, if that is known: first address, first address behind.
    pub fn environment(&self) -> (u64, u64) {
        let [.., start, end] = self.header.process.mm;
        (start, end)
    }

    /// Reads captured memory into `bytes`; fewer than asked for where the image does not hold it.
    ///
    /// # Errors
    ///
    /// As reading the file.
    pub fn read_memory(&self, file: &File, address: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < bytes.len() {
            let Some(at) = address.checked_add(done as u64) else { break };
            let behind = self.runs.partition_point(|run| run.start <= at);
            let Some(run) = behind.checked_sub(1).and_then(|at| self.runs.get(at)).filter(|run| at < run.end) else { break };
            let room = usize::try_from(run.end - at).unwrap_or(usize::MAX).min(bytes.len() - done);
            let Some(part) = bytes.get_mut(done..done + room) else { break };
            file.read_exact_at(part, run.data_offset + (at - run.start))?;
            done += room;
        }
        Ok(done)
    }

    /// The program and the libraries whose code is in the image, by address: whatever begins like an ELF file.
    ///
    /// # Errors
    ///
    /// As reading the file.
    pub fn libraries(&self, file: &File) -> io::Result<Vec<Library>> {
        let memory = Memory { image: self, file };
        let mut libraries = Vec::new();
        for run in &self.runs {
            if let Some(library) = memory.library(run.start)? {
                libraries.push(library);
            }
        }
        Ok(libraries)
    }
}

/// Captured memory, read with bounds.
struct Memory<'i> {
    image: &'i Image,
    file: &'i File,
}

impl Memory<'_> {
    fn library(&self, base: u64) -> io::Result<Option<Library>> {
        let header = self.bytes(base, 64)?;
        if !header.starts_with(b"\x7fELF\x02\x01") || header.len() < 64 {
            return Ok(None);
        }
        let (offset, size, count) = (word(&header, 32), half(&header, 54), half(&header, 56).min(HEADERS_MAX));
        if size != 56 {
            return Ok(None);
        }
        let headers = self.bytes(base.saturating_add(offset), u64::from(count) * 56)?;
        let headers: Vec<Segment> = headers.chunks_exact(56).map(Segment::read).collect();
        let Some(first) = headers.iter().find(|segment| segment.kind == PT_LOAD) else { return Ok(None) };
        let bias = base.wrapping_sub(first.address / PAGE * PAGE);
        let mut library = Library { name: None, start: base, build_id: None };
        for segment in &headers {
            let at = bias.wrapping_add(segment.address);
            match segment.kind {
                PT_NOTE if library.build_id.is_none() => library.build_id = build_id(&self.bytes(at, segment.bytes)?),
                PT_DYNAMIC => library.name = self.soname(at, segment.bytes, base, bias)?,
                _ => {}
            }
        }
        if library.name.is_none() && headers.iter().any(|segment| segment.kind == PT_INTERP) {
            library.name = Some(self.image.manifest().executable.path.to_string_lossy().into_owned());
        }
        Ok(Some(library))
    }

    fn soname(&self, at: u64, bytes: u64, base: u64, bias: u64) -> io::Result<Option<String>> {
        const DT_STRTAB: u64 = 5;
        const DT_SONAME: u64 = 14;
        let table = self.bytes(at, bytes)?;
        let find = |tag| table.chunks_exact(16).find(|entry| word(entry, 0) == tag).map(|entry| word(entry, 8));
        let (Some(strings), Some(offset)) = (find(DT_STRTAB), find(DT_SONAME)) else { return Ok(None) };
        // The loader has put the address in place of the offset, except where the table cannot be written.
        let strings = if strings < base { bias.wrapping_add(strings) } else { strings };
        let text = self.bytes(strings.saturating_add(offset), 256)?;
        let name = text.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok((!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned()))
    }

    fn bytes(&self, at: u64, bytes: u64) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; bytes.min(TABLE_MAX) as usize];
        let read = self.image.read_memory(self.file, at, &mut buffer)?;
        buffer.truncate(read);
        Ok(buffer)
    }
}

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;

/// A program header, as far as it matters here.
struct Segment {
    kind: u32,
    address: u64,
    bytes: u64,
}

impl Segment {
    fn read(record: &[u8]) -> Self {
        Self { kind: word(record, 0) as u32, address: word(record, 16), bytes: word(record, 40) }
    }
}

/// The GNU build id in a note segment.
fn build_id(mut notes: &[u8]) -> Option<String> {
    const NT_GNU_BUILD_ID: u64 = 3;
    loop {
        let (head, rest) = notes.split_at_checked(12)?;
        let field = |at| word(head, at) & 0xffff_ffff;
        let (name, content, kind) = (field(0) as usize, field(4) as usize, u64::from(half(head, 8)));
        let (owner, rest) = rest.split_at_checked(name.next_multiple_of(4))?;
        let (digest, rest) = rest.split_at_checked(content.next_multiple_of(4).min(rest.len()))?;
        if owner.starts_with(b"GNU\0") && kind == NT_GNU_BUILD_ID {
            return Some(digest.get(..content)?.iter().map(|byte| format!("{byte:02x}")).collect());
        }
        notes = rest;
    }
}

fn letters(protection: u32) -> String {
    [(1, 'r'), (2, 'w'), (4, 'x')].map(|(bit, letter)| if protection & bit != 0 { letter } else { '-' }).iter().collect()
}

/// Eight bytes at `at`, fewer at the end; little-endian.
fn word(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes.get(at..).unwrap_or_default();
    bytes.iter().take(8).rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

fn half(bytes: &[u8], at: usize) -> u16 {
    (word(bytes, at) & 0xffff) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_id_is_found_behind_other_notes() {
        let mut notes = vec![4, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0];
        notes.extend_from_slice(b"GNU\0\x01\x02\x03\x04\x05\0\0\0");
        assert_eq!(build_id(&notes), None);
        notes.extend_from_slice(&[4, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0]);
        notes.extend_from_slice(b"GNU\0\xab\xcd\xef\0");
        assert_eq!(build_id(&notes).as_deref(), Some("abcdef"));
        for cut in 0..notes.len() {
            build_id(&notes[..cut]);
        }
        assert_eq!(build_id(&[0xff; 64]), None, "lengths beyond the end");
    }

    #[test]
    fn numbers_are_read_up_to_the_end() {
        assert_eq!(word(&[1, 2], 0), 0x201);
        assert_eq!((word(&[1, 2], 7), half(&[1, 2, 3], 1)), (0, 0x302));
        assert_eq!(letters(5), "r-x");
    }
}
