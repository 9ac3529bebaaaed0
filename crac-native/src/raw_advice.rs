//! Code that may give memory back by a system call of its own.
//!
//! `madvise` by name is this crate's ([`madvise`](crate::madvise)), and `syscall(3)` leads through the shim of the clocks
//! ([`shim`](crate::clock::shim)). An instruction of a program's own (`rustix::mm::madvise`, the Go runtime) leads to the kernel,
//! for which lazily restored memory is a file's: where zeros are expected, the old bytes would come back. So all code is looked
//! through before a capture for a `syscall` in front of which the number of `madvise` is put into `eax`, whatever the advice.
//!
//! What is not seen: a number that comes from elsewhere (memory, another register, a parameter), and code that is mapped only
//! after the capture. `docs/limits.md` has the whole list.

use std::{
    ffi::OsStr,
    fmt,
    fs::{self, File},
    io,
    ops::Range,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt},
    },
    sync::{Mutex, PoisonError},
};

use crac_sys::proc::{Mapping, MappingName};
use memchr::memmem;

use crate::clock::layer::Segment;

/// How far in front of the instruction its number may be put into the register: all arguments are loaded in between.
const REACH: usize = 64;
/// The instruction `syscall`.
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// Larger numbers are no system calls.
const NUMBERS_END: u32 = 1024;
/// Room for what is looked through at once.
pub(crate) const PIECE: usize = 128 << 10;

/// Addresses of the instructions in `code`, which lies at `start`, that are a `madvise`.
fn find(code: &[u8], start: u64) -> impl Iterator<Item = u64> + '_ {
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

/// Code that may give memory back by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The file that it is from, or what else it is.
    pub(crate) name: String,
    /// Nothing if it could not be read.
    pub(crate) address: Option<u64>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => write!(f, "{}, by a system call of its own at {address:#x}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// What is known about the code of this process.
#[derive(Debug)]
pub(crate) struct Known<'a> {
    /// What the loader has mapped: it knows the files also of code that comes from an image.
    pub(crate) segments: &'a [Segment],
    /// The path of the program itself, for which the loader has no name.
    pub(crate) program: &'a [u8],
    /// Addresses at which such a call is none of the program's.
    pub(crate) exempt: &'a [Range<usize>],
}

impl Known<'_> {
    fn name(&self, address: u64, mapping: &Mapping<'_>) -> String {
        let segment = self.segments.iter().find(|segment| segment.addresses.contains(&(address as usize)));
        let path = match (segment, mapping.name()) {
            (Some(segment), _) if segment.name.is_empty() => self.program,
            (Some(segment), _) => &segment.name,
            (None, MappingName::File { path, .. }) => path,
            _ => b"memory without a file",
        };
        String::from_utf8_lossy(path).into_owned()
    }

    fn is_exempt(&self, address: u64) -> bool {
        self.exempt.iter().any(|range| range.contains(&(address as usize)))
    }
}

/// A mapping of a file whose bytes are those of the file, which stays as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Code {
    addresses: Range<u64>,
    offset: u64,
    device: (u32, u32),
    inode: u64,
    /// When the file was changed last, and when anything about it was.
    changed: [(i64, i64); 2],
}

impl Code {
    /// Nothing if the bytes may be others the next time.
    fn of(mapping: &Mapping<'_>) -> Option<Self> {
        let MappingName::File { path, deleted: false } = mapping.name() else { return None };
        if mapping.write || mapping.shared {
            return None;
        }
        let file = fs::metadata(OsStr::from_bytes(path)).ok()?;
        Some(Self {
            addresses: mapping.start..mapping.end,
            offset: mapping.offset,
            device: mapping.device,
            inode: mapping.inode,
            changed: [(file.mtime(), file.mtime_nsec()), (file.ctime(), file.ctime_nsec())],
        })
    }
}

/// Looks through the code of this process, but for files that it has looked through before; of each file the first place is told.
/// The other threads may run.
///
/// # Errors
///
/// As `/proc/self/maps` and `/proc/self/mem` have them.
pub(crate) fn look(known: &Known<'_>, piece: &mut [u8]) -> io::Result<Vec<Place>> {
    static SEEN: Mutex<Vec<(Code, Option<u64>)>> = Mutex::new(Vec::new());
    let maps = fs::read("/proc/self/maps")?;
    let memory = File::open("/proc/self/mem")?;
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut looked_at, mut places) = (Vec::new(), Vec::<Place>::new());
    for mapping in Mapping::all(&maps).flatten().filter(is_code) {
        let code = Code::of(&mapping);
        let before = code.as_ref().and_then(|code| seen.iter().find(|(seen, _)| seen == code));
        let found = match before {
            Some((_, found)) => *found,
            None => first_in(&memory, mapping.start..mapping.end, known, piece)?,
        };
        looked_at.extend(code.map(|code| (code, found)));
        let named = found.map(|address| Place { name: known.name(address, &mapping), address: found });
        places.extend(named.filter(|place| !places.iter().any(|known| known.name == place.name)));
    }
    *seen = looked_at;
    Ok(places)
}

fn is_code(mapping: &Mapping<'_>) -> bool {
    mapping.read && mapping.execute && !matches!(mapping.name(), MappingName::Vdso | MappingName::Vsyscall)
}

/// The first such place at `addresses`.
fn first_in(memory: &File, addresses: Range<u64>, known: &Known<'_>, piece: &mut [u8]) -> io::Result<Option<u64>> {
    /// A call that begins in the last byte of a piece needs so many of it again.
    const AGAIN: usize = REACH + SYSCALL.len() - 1;
    let mut at = addresses.start;
    loop {
        let wanted = usize::try_from(addresses.end - at).unwrap_or(usize::MAX).min(piece.len());
        let read = match memory.read_at(piece.get_mut(..wanted).unwrap_or_default(), at) {
            // Behind the end of its file, or unmapped meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => 0,
            answer => answer?,
        };
        let found = find(piece.get(..read).unwrap_or_default(), at).find(|address| !known.is_exempt(*address));
        if found.is_some() || read < piece.len() || read <= AGAIN {
            return Ok(found);
        }
        at += (read - AGAIN) as u64;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn known<'a>(segments: &'a [Segment], exempt: &'a [Range<usize>]) -> Known<'a> {
        Known { segments, program: b"/bin/program", exempt }
    }

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
        let mut piece = vec![0; 4096];
        let call = [&[0xb8, 28, 0, 0, 0][..], &[0x90; REACH - 5], &SYSCALL].concat();
        let path = std::env::temp_dir().join(format!("crac-raw-advice-{}", std::process::id()));
        for place in 0..10_000 {
            if place > 200 && !(3900..4300).contains(&place) && place < 9_900 {
                continue;
            }
            let mut bytes = vec![0x90; 10_000 + call.len()];
            bytes[place..place + call.len()].copy_from_slice(&call);
            fs::write(&path, &bytes).unwrap();
            let file = File::open(&path).unwrap();
            let found = (place + REACH) as u64;
            assert_eq!(first_in(&file, 0..bytes.len() as u64, &known(&[], &[]), &mut piece).unwrap(), Some(found), "{place}");
            let exempt = [0..0, found as usize..found as usize + 1];
            assert_eq!(first_in(&file, 0..bytes.len() as u64, &known(&[], &exempt), &mut piece).unwrap(), None, "{place}");
        }
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn code_is_what_can_be_executed_and_read_and_has_the_name_the_loader_knows() {
        let maps =
            b"1000-2000 r-xp 00000000 08:01 7 /bin/a\n2000-3000 rw-p 00000000 00:00 0 \n4000-5000 --xp 00000000 08:01 9 /lib/x\n\
            5000-6000 r-xp 00000000 00:00 0 \n6000-7000 r-xp 00000000 08:01 9 /image (deleted)\n\
            7fff0000-7fff1000 r-xp 00000000 00:00 0 [vdso]\n";
        let segments = [(&b""[..], 0x5800..0x5900), (b"/lib/y", 0x5900..0x6000)];
        let segments = segments.map(|(name, addresses)| Segment { name: name.to_vec(), addresses });
        let code: Vec<Mapping<'_>> = Mapping::all(maps).flatten().filter(is_code).collect();
        assert_eq!(code.iter().map(|mapping| mapping.start).collect::<Vec<_>>(), [0x1000, 0x5000, 0x6000]);
        let name = |address: u64, mapping: usize| known(&segments, &[]).name(address, &code[mapping]);
        assert_eq!([name(0x1000, 0), name(0x5000, 1), name(0x6000, 2)], ["/bin/a", "memory without a file", "/image"]);
        assert_eq!([name(0x5800, 1), name(0x5900, 1)], ["/bin/program", "/lib/y"]);
    }

    #[test]
    fn only_files_that_stay_as_they_are_are_remembered() {
        let own = std::env::current_exe().unwrap();
        let own = own.to_str().unwrap();
        let of = |line: &str| Code::of(&Mapping::parse(line.as_bytes()).unwrap());
        let code = of(&format!("1000-2000 r-xp 00000000 08:01 7 {own}")).unwrap();
        assert_eq!(of(&format!("1000-2000 r-xp 00000000 08:01 7 {own}")), Some(code));
        for line in ["rwxp 00000000 08:01 7 OWN", "r-xs 00000000 08:01 7 OWN", "r-xp 00000000 08:01 7 OWN (deleted)"] {
            assert_eq!(of(&format!("1000-2000 {}", line.replace("OWN", own))), None, "{line}");
        }
        assert_eq!(of("1000-2000 r-xp 00000000 00:00 0 "), None);
        assert_eq!(of("1000-2000 r-xp 00000000 08:01 7 /nowhere/at/all"), None);
    }

    #[test]
    fn this_program_has_no_such_call_but_the_c_library_does() {
        let mut piece = vec![0; PIECE];
        let (segments, exempt) = (crate::clock::layer::segments(), crate::clock::layer::c_library());
        for _ in 0..2 {
            assert_eq!(look(&known(&segments, &exempt), &mut piece).unwrap(), []);
        }
        let memory = File::open("/proc/self/mem").unwrap();
        let mut all = exempt.iter().map(|code| code.start as u64..code.end as u64);
        assert!(all.any(|code| first_in(&memory, code, &known(&segments, &[]), &mut piece).unwrap().is_some()));
    }
}
