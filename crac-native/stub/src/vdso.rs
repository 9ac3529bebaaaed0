//! The kernel's own mappings: where they are, and on their way to where the captured process, or nobody, knows them.

use crate::{
    layout::{
        PAGE, STAGING_BYTES, Step, VdsoRecord,
        kernel::{self, Build},
        xxh64::xxh64,
    },
    report::fail,
    sys,
    syscall,
};

const PROT_NONE: usize = 0;
const MAP_PRIVATE: usize = 2;
const MAP_ANONYMOUS: usize = 0x20;
const MREMAP_MAYMOVE_FIXED: usize = 3;

/// Those of this process, adjacent, the code last.
#[derive(Clone, Copy)]
pub struct Vdso {
    pub build: Build,
    /// Bytes of each, in order; unused entries are zero and stand in front.
    bytes: [u64; 4],
    /// Where the first is, once they have been moved.
    start: u64,
}

impl Vdso {
    /// Those of the build that was recorded.
    pub fn recorded(record: &VdsoRecord) -> Self {
        Self { build: Build::Same, bytes: record.bytes, start: 0 }
    }

    /// Those that the kernel has given this process, whose code is at `code`, as `/proc/self/maps` shows them.
    pub fn of_another_build(code: u64) -> Option<Self> {
        let mut text = [0_u8; 8192];
        let mut filled = 0;
        let fd = syscall!(sys::SYS_OPENAT, sys::AT_FDCWD, c"/proc/self/maps".as_ptr(), sys::O_RDONLY | sys::O_CLOEXEC, 0).ok()?;
        // Stub, stack and these: a page of text at most.
        while let Some(room) = text.get_mut(filled..).filter(|room| !room.is_empty()) {
            match syscall!(sys::SYS_READ, fd, room.as_mut_ptr(), room.len()) {
                Ok(0) | Err(_) => break,
                Ok(read) => filled += read,
            }
        }
        crate::check::close(fd as i32);
        let mut bytes = [0; 4];
        let mut expected = None;
        for line in text.get(..filled)?.split(|byte| *byte == b'\n') {
            if !line.ends_with(b"[vdso]") && !line.ends_with(b"[vvar]") && !line.ends_with(b"[vvar_vclock]") {
                continue;
            }
            let mut addresses = line.split(|byte| *byte == b'-' || *byte == b' ').map(hexadecimal);
            let (start, end) = (addresses.next()?, addresses.next()?);
            let [first, second, third, last] = bytes;
            // Adjacent, and there is room for one more in front.
            if first != 0 || start >= end || expected.is_some_and(|expected| expected != start) {
                return None;
            }
            bytes = [second, third, last, end - start];
            expected = Some(end);
            if start == code {
                let found = Self { build: Build::Other, bytes, start: 0 };
                return (found.all() <= STAGING_BYTES).then_some(found);
            }
        }
        None
    }

    fn all(&self) -> u64 {
        self.bytes.iter().sum()
    }

    /// Bytes of the code.
    pub fn code_bytes(&self) -> u64 {
        let [.., code] = self.bytes;
        code
    }

    /// Where the code is if the first of them starts at `start`.
    pub fn code_in(&self, start: u64) -> u64 {
        start + (self.all() - self.code_bytes())
    }

    /// Moves them from where the code is at `code` to where they wait until all other memory is in its place, see
    /// [`kernel::waiting_place`]. Returns where that is.
    pub fn aside(&mut self, code: u64, recorded: u64, zone: [u64; 2], staging: u64) -> [u64; 2] {
        let from = code.wrapping_sub(self.all() - self.code_bytes());
        self.start = kernel::waiting_place(self.build, [from, self.all()], recorded, zone, staging);
        if self.start != from {
            self.shift(from, self.start, Step::Clear);
        }
        [self.start, self.start + self.all()]
    }

    /// Moves them to where the first is to start, or to a place that the kernel chooses if it was recorded for another build; says
    /// where that is. All other memory is in its place.
    pub fn settle(&self, recorded: u64) -> u64 {
        let to = match self.build {
            Build::Same => recorded,
            Build::Other => match syscall!(sys::SYS_MMAP, 0, self.all(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1_isize, 0) {
                Ok(at) => at as u64,
                Err(errno) => fail(Step::Kernel, b"finding a place for the vdso", errno),
            },
        };
        if to != self.start {
            self.shift(self.start, to, Step::Kernel);
        }
        to
    }

    /// All at once where the kernel can (6.17), else singly.
    fn shift(&self, from: u64, to: u64, step: Step) {
        let all = self.all();
        if syscall!(sys::SYS_MREMAP, from, all, all, MREMAP_MAYMOVE_FIXED, to).is_ok() {
            return;
        }
        let mut offset = 0;
        for bytes in self.bytes.iter().filter(|bytes| **bytes != 0) {
            if let Err(errno) = syscall!(sys::SYS_MREMAP, from + offset, *bytes, *bytes, MREMAP_MAYMOVE_FIXED, to + offset) {
                fail(step, b"moving the vdso", errno);
            }
            offset += bytes;
        }
    }
}

/// Whether the vdso at `at` has exactly the code that was recorded.
pub fn is_recorded(at: u64, record: &VdsoRecord) -> bool {
    let [.., code_bytes] = record.bytes;
    at != 0 && code_bytes != 0 && sum(at, code_bytes) == record.code_sum
}

fn sum(at: u64, bytes: u64) -> u64 {
    // SAFETY: the kernel maps its vdso readable at the address in the auxiliary vector. A vdso shorter than the recorded one
    // would end in the pages of the stack or of nothing; it is at least one page, and its own header tells its extent.
    let own = unsafe { extent(at) };
    if own > bytes || own == 0 {
        return 0;
    }
    let pages = own.next_multiple_of(PAGE);
    if pages != bytes {
        return 0;
    }
    // SAFETY: as many pages as the vdso says it has.
    xxh64(unsafe { core::slice::from_raw_parts(at as *const u8, pages as usize) })
}

/// Bytes of the ELF file at `at`, by the end of its section headers, which the kernel's vdso has at its end.
///
/// # Safety
///
/// A vdso is mapped at `at`.
unsafe fn extent(at: u64) -> u64 {
    // SAFETY: e_shoff, e_shentsize and e_shnum of an ELF64 header, inside the first page.
    let (offset, size, count) = unsafe {
        (
            ((at + 40) as *const u64).read_unaligned(),
            ((at + 58) as *const u16).read_unaligned(),
            ((at + 60) as *const u16).read_unaligned(),
        )
    };
    offset.wrapping_add(u64::from(size) * u64::from(count))
}

fn hexadecimal(digits: &[u8]) -> u64 {
    digits.iter().fold(0, |number: u64, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            _ => (digit | 0x20).wrapping_sub(b'a').wrapping_add(10),
        };
        number.wrapping_mul(16).wrapping_add(u64::from(value))
    })
}
