//! Code that gives memory back by a system call of its own.
//!
//! `madvise` by name is this crate's ([`madvise`](crate::madvise)), and `syscall(3)` leads through the shim of the clocks
//! ([`shim`](crate::clock::shim)). An instruction of a program's own (`rustix::mm::madvise`, the Go runtime) leads to the kernel,
//! for which lazily restored memory is a file's: where zeros are expected, the old bytes would come back. So all code is looked
//! through before a capture for a `syscall` in front of which the number of `madvise` is put into `eax`.
//!
//! What is not seen: a number that comes from elsewhere (memory, another register, a parameter), and code that is mapped only
//! after the capture.

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    sync::{Mutex, PoisonError},
};

use crac_sys::proc::{Mapping, MappingName};
use memchr::memmem;

/// How far in front of the instruction its number may be put into the register: all arguments are loaded in between.
const REACH: usize = 64;
/// The instruction `syscall`.
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// Larger numbers are no system calls.
const NUMBERS_END: u32 = 1024;
/// How much is looked through at once.
const PIECE: usize = 1 << 20;

/// Addresses of the instructions in `code`, which lies at `start`, that are a `madvise`.
pub(crate) fn find(code: &[u8], start: u64) -> impl Iterator<Item = u64> + '_ {
    memmem::find_iter(code, &SYSCALL).filter_map(move |at| {
        let before = code.get(at.saturating_sub(REACH)..at)?;
        (last_number(before)? == libc::SYS_madvise as u32).then_some(start + at as u64)
    })
}

/// The number that the last instruction that loads one, in the code right in front of a system call, puts into `eax`.
fn last_number(before: &[u8]) -> Option<u32> {
    (0..before.len()).rev().find_map(|at| {
        let number = match before.get(at..)? {
            // With a prefix for the upper registers it is another one's.
            [0xb8, rest @ ..] if at.checked_sub(1).is_none_or(|at| before[at] & 0xf1 != 0x41) => immediate(rest)?,
            [0x48, 0xc7, 0xc0, rest @ ..] => immediate(rest)?,
            // push NUMBER; pop rax
            [0x6a, number, 0x58, ..] => u32::from(*number),
            _ => return None,
        };
        (number < NUMBERS_END).then_some(number)
    })
}

fn immediate(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.first_chunk()?))
}

/// A mapping with code, as it was looked through.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Code {
    addresses: Range<u64>,
    offset: u64,
    device: (u32, u32),
    inode: u64,
    /// A person's word for it.
    name: String,
}

/// A place that gives memory back by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The file that the code is from, or what else it is.
    pub(crate) name: String,
    pub(crate) address: u64,
}

/// Looks through the code of this process. Of each file the first place is told that is not in `known`. Allocates; the other
/// threads may run.
///
/// # Errors
///
/// As `/proc/self/maps` and `/proc/self/mem` have them.
pub(crate) fn look(known: &[Range<usize>]) -> io::Result<Vec<Place>> {
    /// Files do not change while they are executed, so what was seen once holds.
    static SEEN: Mutex<(Vec<Code>, Vec<Place>)> = Mutex::new((Vec::new(), Vec::new()));
    let all = code(&std::fs::read("/proc/self/maps")?);
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    if all.iter().any(|code| code.inode == 0) || seen.0 != all {
        let memory = File::open("/proc/self/mem")?;
        let mut places: Vec<Place> = Vec::new();
        for code in &all {
            if places.iter().any(|place| place.name == code.name) {
                continue;
            }
            places.extend(first_in(&memory, code, known)?.map(|address| Place { name: code.name.clone(), address }));
        }
        *seen = (all, places);
    }
    Ok(seen.1.clone())
}

fn code(maps: &[u8]) -> Vec<Code> {
    let mappings = Mapping::all(maps).flatten().filter(|mapping| mapping.read && mapping.execute);
    let mappings = mappings.filter(|mapping| !matches!(mapping.name(), MappingName::Vdso | MappingName::Vsyscall));
    let code = mappings.map(|mapping| Code {
        addresses: mapping.start..mapping.end,
        offset: mapping.offset,
        device: mapping.device,
        inode: mapping.inode,
        name: match mapping.path {
            [] => "memory without a file".into(),
            path => String::from_utf8_lossy(path).into_owned(),
        },
    });
    code.collect()
}

/// The first such place in a mapping.
fn first_in(memory: &File, code: &Code, known: &[Range<usize>]) -> io::Result<Option<u64>> {
    let is_new = |address: &u64| !known.iter().any(|known| (known.start as u64..known.end as u64).contains(address));
    let mut piece = vec![0; PIECE + REACH];
    let mut at = code.addresses.start;
    while at < code.addresses.end {
        let wanted = usize::try_from(code.addresses.end - at).unwrap_or(usize::MAX).min(piece.len());
        let read = match memory.read_at(&mut piece[..wanted], at) {
            // Unmapped meanwhile, or behind the end of its file.
            Ok(0) => break,
            Err(error) if error.raw_os_error() == Some(libc::EIO) => break,
            answer => answer?,
        };
        if let Some(found) = find(&piece[..read], at).find(is_new) {
            return Ok(Some(found));
        }
        // The next piece begins early enough for what is in front of its first instructions.
        at += read.saturating_sub(REACH).max(1) as u64;
        if read < wanted || read <= REACH {
            break;
        }
    }
    Ok(None)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    /// `mov eax, 28; mov edi, ..; syscall` and its relatives.
    #[test]
    fn a_call_is_found_however_its_number_is_loaded() {
        for load in [&[0xb8, 28, 0, 0, 0][..], &[0x48, 0xc7, 0xc0, 28, 0, 0, 0], &[0x6a, 28, 0x58]] {
            for between in [&[][..], &[0x48, 0x89, 0xdf], &[0x90; 50]] {
                let code = [&[0xc3][..], load, between, &SYSCALL, &[0xc3]].concat();
                let found: Vec<u64> = find(&code, 0x1000).collect();
                assert_eq!(found, [0x1000 + 1 + (load.len() + between.len()) as u64]);
            }
        }
    }

    #[test]
    fn other_calls_are_not() {
        let number = |number: u8| [0xb8, number, 0, 0, 0];
        // Another number, another one behind it, another register, too far away, no instruction.
        let close = [&number(28)[..], &number(9), &SYSCALL].concat();
        let upper = [&[0x41][..], &number(28), &SYSCALL].concat();
        let far = [&number(28)[..], &[0x90; REACH], &SYSCALL].concat();
        for code in [[&number(27)[..], &SYSCALL].concat(), close, upper, far, number(28).to_vec(), SYSCALL.to_vec()] {
            assert_eq!(find(&code, 0).next(), None, "{code:x?}");
        }
        // What is too large for a number is data.
        let data = [&number(28)[..], &[0xb8, 0, 0, 1, 0], &SYSCALL].concat();
        assert_eq!(find(&data, 0).next(), Some(10));
    }

    #[test]
    fn a_call_is_found_at_the_edge_of_a_piece() {
        let path = std::env::temp_dir().join(format!("crac-raw-advice-{}", std::process::id()));
        let call = [&[0xb8, 28, 0, 0, 0][..], &[0x90; 40], &SYSCALL].concat();
        for place in [0, PIECE - 10, PIECE + REACH - 47, PIECE + REACH - 46, PIECE + REACH - 2, 2 * PIECE] {
            let mut bytes = vec![0x90; 3 * PIECE];
            bytes[place..place + call.len()].copy_from_slice(&call);
            std::fs::write(&path, &bytes).unwrap();
            let code = Code { addresses: 0..bytes.len() as u64, offset: 0, device: (0, 0), inode: 1, name: String::new() };
            let file = File::open(&path).unwrap();
            let found = place as u64 + 45;
            assert_eq!(first_in(&file, &code, &[]).unwrap(), Some(found), "{place}");
            let known = [0..0, found as usize..found as usize + 1];
            assert_eq!(first_in(&file, &code, &known).unwrap(), None, "{place}");
        }
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn code_is_what_can_be_executed_and_read() {
        let maps =
            b"1000-2000 r-xp 00000000 08:01 7 /bin/a\n2000-3000 rw-p 00000000 00:00 0 \n4000-5000 --xp 00000000 08:01 9 /lib/x\n\
            5000-6000 r-xp 00000000 00:00 0 \n7fff0000-7fff1000 r-xp 00000000 00:00 0 [vdso]\n";
        let names: Vec<String> = code(maps).into_iter().map(|code| code.name).collect();
        assert_eq!(names, ["/bin/a", "memory without a file"]);
    }

    #[test]
    fn this_program_has_no_such_call_but_the_c_library_does() {
        assert_eq!(look(&crate::clock::layer::c_library()).unwrap(), []);
        let code = code(&std::fs::read("/proc/self/maps").unwrap());
        let memory = File::open("/proc/self/mem").unwrap();
        assert!(code.iter().any(|code| first_in(&memory, code, &[]).unwrap().is_some()), "{code:?}");
    }
}
