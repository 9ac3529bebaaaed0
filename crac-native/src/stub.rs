//! The restorer stub, ready to be put at an address.
//!
//! `build.rs` compiles it to a position-independent ELF file whose only relocations are "add the base address".

use crate::layout::{Boot, PAGE};

/// Whole pages of the file that this program is in: [`launch`](crate::launch) maps the stub's code from there.
#[repr(C, align(4096))]
struct Pages<T: ?Sized>(T);

static ELF: &Pages<[u8]> = &Pages(*include_bytes!(concat!(env!("OUT_DIR"), "/stub.elf")));

/// The stub as it lies in memory, from its first byte on.
#[derive(Debug)]
pub(crate) struct Stub {
    /// Contents, without what is zero at the end; whole pages.
    pub(crate) bytes: Vec<u8>,
    /// Bytes in memory; whole pages.
    pub(crate) memory_bytes: u64,
    /// Offset of the first instruction.
    entry: u64,
    segments: Vec<Segment>,
    /// Offsets of words, and what they hold relative to the base.
    relocations: Vec<(u64, u64)>,
}

/// A part of the stub with one protection.
#[derive(Debug, Clone, Copy)]
struct Segment {
    offset: u64,
    /// Where it is in the embedded file.
    file_offset: u64,
    file_bytes: u64,
    memory_bytes: u64,
    /// `PF_*`.
    flags: u32,
}

/// Pages of the stub with one protection, in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    /// Offset from the base, and bytes; whole pages.
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    pub(crate) writable: bool,
    /// Code, at this address of this program and in the file it is mapped from.
    pub(crate) code_at: Option<usize>,
}

/// Bytes in front of the stub in an image: the ELF header and the segment list.
pub(crate) const ELF_HEADER_BYTES: u64 = PAGE;

impl Stub {
    /// Takes the embedded file apart. `None` means that the build made something else than this module expects.
    pub(crate) fn load() -> Option<Self> {
        Self::parse(&ELF.0)
    }

    fn parse(elf: &[u8]) -> Option<Self> {
        const PT_LOAD: u64 = 1;
        const PT_DYNAMIC: u64 = 2;
        const DT_RELA: u64 = 7;
        const DT_RELA_BYTES: u64 = 8;
        const R_X86_64_RELATIVE: u64 = 8;

        let (entry, table, size, count) = (number(elf, 24, 8)?, number(elf, 32, 8)?, number(elf, 54, 2)?, number(elf, 56, 2)?);
        let mut stub = Self { bytes: Vec::new(), memory_bytes: 0, entry, segments: Vec::new(), relocations: Vec::new() };
        let mut dynamic = None;
        for at in (0..count).map(|at| table + at * size) {
            let field = |offset, bytes| number(elf, at + offset, bytes);
            let (kind, flags, offset, address) = (field(0, 4)?, field(4, 4)?, field(8, 8)?, field(16, 8)?);
            let (file_bytes, memory_bytes) = (field(32, 8)?, field(40, 8)?);
            match kind {
                PT_LOAD => {
                    let content = elf.get(usize::try_from(offset).ok()?..)?.get(..usize::try_from(file_bytes).ok()?)?;
                    let end = usize::try_from((address + file_bytes).next_multiple_of(PAGE)).ok()?;
                    stub.bytes.resize(end.max(stub.bytes.len()), 0);
                    stub.bytes.get_mut(usize::try_from(address).ok()?..)?.get_mut(..content.len())?.copy_from_slice(content);
                    stub.memory_bytes = stub.memory_bytes.max((address + memory_bytes).next_multiple_of(PAGE));
                    stub.segments.push(Segment {
                        offset: address,
                        file_offset: offset,
                        file_bytes,
                        memory_bytes,
                        flags: u32::try_from(flags).ok()?,
                    });
                }
                PT_DYNAMIC => dynamic = Some((address, memory_bytes)),
                _ => {}
            }
        }
        let (dynamic, bytes) = dynamic?;
        let value = |tag| {
            let mut entries = (0..bytes / 16).map(|at| dynamic + at * 16);
            let at = entries.find(|at| number(&stub.bytes, *at, 8) == Some(tag))?;
            number(&stub.bytes, at + 8, 8)
        };
        if let (Some(table), Some(bytes)) = (value(DT_RELA), value(DT_RELA_BYTES)) {
            for at in (0..bytes / 24).map(|at| table + at * 24) {
                let field = |offset| number(&stub.bytes, at + offset, 8);
                if field(8)? != R_X86_64_RELATIVE || field(0)? + 8 > stub.bytes.len() as u64 {
                    return None;
                }
                stub.relocations.push((field(0)?, field(16)?));
            }
        }
        (stub.segments.len() + 3 <= 16).then_some(stub)
    }

    /// Puts the stub at `base` and tells it where the metadata is. Allocates nothing.
    pub(crate) fn relocate(&mut self, base: u64, boot: &Boot) {
        for (offset, value) in &self.relocations {
            put(&mut self.bytes, *offset, &(base + value).to_le_bytes());
        }
        put(&mut self.bytes, 0, &boot.magic);
        let words = [boot.metadata_at, boot.metadata_offset, boot.metadata_bytes, boot.file_bytes, boot.launched_with];
        for (at, word) in words.iter().enumerate() {
            put(&mut self.bytes, 8 + 8 * at as u64, &word.to_le_bytes());
        }
    }

    /// Address of the first instruction with the stub at `base`.
    pub(crate) fn entry(&self, base: u64) -> u64 {
        base + self.entry
    }

    /// The parts to be mapped, in order. Nothing in the code depends on the base.
    pub(crate) fn parts(&self) -> impl Iterator<Item = Part> + '_ {
        self.segments.iter().map(|part| {
            let lead = part.offset % PAGE;
            let code = (part.flags & 1 != 0).then(|| ELF.0.as_ptr().addr() + (part.file_offset - lead) as usize);
            Part {
                offset: part.offset - lead,
                bytes: (part.memory_bytes + lead).next_multiple_of(PAGE),
                writable: part.flags & 2 != 0,
                code_at: code,
            }
        })
    }

    /// The ELF header of an image with the stub at `base` and the metadata of `boot`. Allocates nothing.
    ///
    /// `program` is the path of the program whose process this is. The kernel knows the restored process by the image alone;
    /// a `.gnu_debuglink` section leads those who look for names of functions, as a panic's backtrace does, to the program.
    pub(crate) fn elf_header(&self, base: u64, boot: &Boot, program: &[u8]) -> [u8; ELF_HEADER_BYTES as usize] {
        const HEADER_BYTES: u64 = 64;
        const SEGMENT_BYTES: u64 = 56;
        let mut page = [0; ELF_HEADER_BYTES as usize];
        let mut count = 0_u64;
        let mut segment = |kind: u32, flags: u32, offset: u64, address: u64, file_bytes: u64, memory_bytes: u64, align: u64| {
            let at = HEADER_BYTES + count * SEGMENT_BYTES;
            put(&mut page, at, &kind.to_le_bytes());
            put(&mut page, at + 4, &flags.to_le_bytes());
            for (field, value) in [offset, address, address, file_bytes, memory_bytes, align].iter().enumerate() {
                put(&mut page, at + 8 + 8 * field as u64, &value.to_le_bytes());
            }
            count += 1;
        };
        for part in &self.segments {
            // Segments start at whole pages, so that no page is in two of them.
            let lead = part.offset % PAGE;
            let (offset, address) = (ELF_HEADER_BYTES + part.offset - lead, base + part.offset - lead);
            segment(1, part.flags, offset, address, part.file_bytes + lead, part.memory_bytes + lead, PAGE);
        }
        segment(1, 4, boot.metadata_offset, boot.metadata_at, boot.metadata_bytes, boot.metadata_bytes, PAGE);
        // PT_GNU_STACK: a stack without execute permission.
        segment(0x6474_e551, 6, 0, 0, 0, 0, 16);
        put(&mut page, 0, b"\x7fELF\x02\x01\x01");
        put(&mut page, 16, &2_u16.to_le_bytes());
        put(&mut page, 18, &62_u16.to_le_bytes());
        put(&mut page, 20, &1_u32.to_le_bytes());
        put(&mut page, 24, &(base + self.entry).to_le_bytes());
        put(&mut page, 32, &HEADER_BYTES.to_le_bytes());
        put(&mut page, 52, &(HEADER_BYTES as u16).to_le_bytes());
        put(&mut page, 54, &(SEGMENT_BYTES as u16).to_le_bytes());
        put(&mut page, 56, &(count as u16).to_le_bytes());
        sections(&mut page, program);
        page
    }
}

/// Adds a section table with a debug link to `program`, if there is room for it.
fn sections(page: &mut [u8; ELF_HEADER_BYTES as usize], program: &[u8]) {
    const TABLE: u64 = 0x400;
    const SECTION_BYTES: u64 = 64;
    const NAMES: &[u8] = b"\0.shstrtab\0.gnu_debuglink\0";
    const PROGBITS: u32 = 1;
    const STRTAB: u32 = 3;
    let names = TABLE + 3 * SECTION_BYTES;
    let link = (names + NAMES.len() as u64).next_multiple_of(16);
    // The path with its NUL, padded to four bytes; then a checksum that nobody here could compute in time, left zero.
    let link_bytes = (program.len() as u64 + 1).next_multiple_of(4) + 4;
    if program.is_empty() || link + link_bytes > ELF_HEADER_BYTES {
        return;
    }
    put(page, names, NAMES);
    put(page, link, program);
    for (at, name, kind, offset, bytes) in
        [(1, 1_u32, STRTAB, names, NAMES.len() as u64), (2, 11_u32, PROGBITS, link, link_bytes)]
    {
        let at = TABLE + at * SECTION_BYTES;
        put(page, at, &name.to_le_bytes());
        put(page, at + 4, &kind.to_le_bytes());
        put(page, at + 24, &offset.to_le_bytes());
        put(page, at + 32, &bytes.to_le_bytes());
        put(page, at + 48, &1_u64.to_le_bytes());
    }
    put(page, 40, &TABLE.to_le_bytes());
    for (at, value) in [(58, SECTION_BYTES as u16), (60, 3), (62, 1)] {
        put(page, at, &value.to_le_bytes());
    }
}

fn number(bytes: &[u8], at: u64, len: usize) -> Option<u64> {
    let field = bytes.get(usize::try_from(at).ok()?..)?.get(..len)?;
    Some(field.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn put(bytes: &mut [u8], at: u64, value: &[u8]) {
    if let Some(field) = bytes.get_mut(at as usize..).and_then(|bytes| bytes.get_mut(..value.len())) {
        field.copy_from_slice(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::MAGIC;

    #[test]
    fn the_embedded_stub_can_be_put_anywhere() {
        let mut stub = Stub::load().unwrap();
        let base = 0x5000_0000_0000;
        let boot = Boot { magic: MAGIC, metadata_at: 1, metadata_offset: 2, metadata_bytes: 3, file_bytes: 4, launched_with: 5 };
        stub.relocate(base, &boot);
        assert_eq!(&stub.bytes[..8], &MAGIC);
        assert!(!stub.relocations.is_empty());
        for (offset, value) in &stub.relocations {
            assert_eq!(number(&stub.bytes, *offset, 8), Some(base + value));
        }
        let header = stub.elf_header(base, &boot, b"/usr/bin/service");
        assert_eq!(number(&header, 24, 8), Some(base + stub.entry));
        assert!(stub.segments.iter().all(|part| part.flags & 3 != 3), "no part is writable and executable");
        for part in stub.parts().filter(|part| part.code_at.is_some()) {
            let code = part.offset..part.offset + part.bytes;
            assert!(stub.relocations.iter().all(|(offset, _)| !code.contains(offset)), "the code is the same at every address");
            assert!(part.code_at.is_some_and(|at| at % PAGE as usize == 0), "the code can be mapped from its file");
        }
    }
}
