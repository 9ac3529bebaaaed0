//! The copy that stands in for the vdso in a restored life: pure.
//!
//! It is the vdso of the first life's kernel, byte for byte, so that whoever looks functions up in it finds them; but each function
//! begins with a jump: `clock_gettime` leads to the shim, every other one through a word of a table to the function of the same
//! name in the real vdso, which lies elsewhere. The words are data, so that a life on another build of the kernel, whose vdso has
//! its functions at other places, only has to find them there by their names.

/// A jump to any address: `mov r11, ADDRESS; jmp r11`, or `jmp [r11]`.
const JUMP: usize = 13;
const FUNCTION: u8 = 2;
const DYNAMIC_SYMBOLS: u32 = 11;
const SYMBOL: usize = 24;

/// More functions than any vdso was ever seen with.
pub(crate) const FUNCTIONS_MAX: usize = 32;

/// Where the functions of the real vdso are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Proxy {
    /// Address of `clock_gettime`.
    pub(crate) real_read: u64,
    /// Addresses of all, in the order that they have in the stand-in; zero behind the last.
    pub(crate) functions: [u64; FUNCTIONS_MAX],
}

/// Turns `copy`, the bytes of a vdso, into its stand-in for a life in which the real one lies at `real`, with the shim for
/// `clock_gettime` at `shim` and the table of the others at `table`.
///
/// # Errors
///
/// What is not as it is in a vdso; the bytes are then of no use.
pub(crate) fn stand_in(copy: &mut [u8], real: u64, shim: u64, table: u64) -> Result<Proxy, &'static str> {
    let functions = Functions::of(copy)?;
    let all = functions.all();
    if all.windows(2).any(|pair| matches!(pair, [(first, _), (second, _)] if second - first < JUMP)) {
        return Err("two functions of the vdso lie too close together");
    }
    let Some((read, _)) = all.iter().find(|(_, reads)| *reads).copied() else {
        return Err("the vdso has no clock_gettime");
    };
    let mut proxy = Proxy { real_read: real + read as u64, functions: [0; FUNCTIONS_MAX] };
    for (at, ((start, reads), function)) in all.iter().copied().zip(&mut proxy.functions).enumerate() {
        *function = real + start as u64;
        let place = copy.get_mut(start..).and_then(|rest| rest.get_mut(..JUMP));
        let place = place.ok_or("a function of the vdso lies outside of it")?;
        let (to, jump) = if reads { (shim, [0x41, 0xff, 0xe3]) } else { (table + 8 * at as u64, [0x41, 0xff, 0x23]) };
        place[..2].copy_from_slice(&[0x49, 0xbb]);
        place[2..10].copy_from_slice(&to.to_le_bytes());
        place[10..].copy_from_slice(&jump);
    }
    Ok(proxy)
}

/// Finds the functions of `stand_in` by their names in `real`, another vdso, which lies at `real_at`. What it does not have is
/// `instead` of the name.
///
/// # Errors
///
/// What is not as it is in a vdso.
pub(crate) fn found_again(
    stand_in: &[u8],
    real: &[u8],
    real_at: u64,
    instead: impl Fn(&[u8]) -> u64,
) -> Result<Proxy, &'static str> {
    let functions = Functions::of(stand_in)?;
    // One without symbols has no functions, which is as good as any that lacks them.
    let there = Tables::of(real).ok();
    let find = |name: &[u8]| {
        let mut symbols = there.iter().flat_map(|tables| tables.functions(real)).flatten();
        symbols.find(|(_, other)| *other == name).map(|(start, _)| real_at + start as u64)
    };
    let mut proxy = Proxy { real_read: 0, functions: [0; FUNCTIONS_MAX] };
    for ((start, reads), function) in functions.all().iter().zip(&mut proxy.functions) {
        let names = || Tables::of(stand_in).into_iter().flat_map(|tables| tables.functions(stand_in)).flatten();
        let own = || names().filter(|(other, _)| other == start).map(|(_, name)| name);
        *function = own().find_map(find).unwrap_or_else(|| own().map(&instead).next().unwrap_or(0));
        if *reads {
            proxy.real_read = *function;
        }
    }
    if proxy.real_read == 0 { Err("the vdso has no clock_gettime") } else { Ok(proxy) }
}

/// Where an ELF file has its dynamic symbols and their names.
#[derive(Debug, Clone, Copy)]
struct Tables {
    symbols: usize,
    bytes: usize,
    strings: usize,
}

impl Tables {
    fn of(file: &[u8]) -> Result<Self, &'static str> {
        if !file.starts_with(b"\x7fELF\x02\x01") {
            return Err("the vdso is no 64-bit ELF file");
        }
        let sections = || {
            let (offset, size, count) = (word(file, 40)?, usize::from(u16_at(file, 58)?), usize::from(u16_at(file, 60)?));
            let starts = (0..count).map(move |index| offset.saturating_add(index * size));
            let symbols = starts.clone().find(|start| u32_at(file, start.saturating_add(4)) == Some(DYNAMIC_SYMBOLS))?;
            let strings = starts.clone().nth(u32_at(file, symbols + 40)? as usize)?;
            Some(Self {
                symbols: word(file, symbols + 24)?,
                bytes: word(file, symbols + 32)?,
                strings: word(file, strings + 24)?,
            })
        };
        sections().ok_or("the vdso has no symbols")
    }

    /// Offset and name of every function that is defined, an error for a symbol that lies outside.
    fn functions(self, file: &[u8]) -> impl Iterator<Item = Result<(usize, &[u8]), &'static str>> {
        (self.symbols..self.symbols.saturating_add(self.bytes)).step_by(SYMBOL).filter_map(move |at| {
            let (Some(name), Some(info), Some(section), Some(value)) =
                (u32_at(file, at), file.get(at + 4), u16_at(file, at + 6), word(file, at + 8))
            else {
                return Some(Err("a symbol of the vdso lies outside of it"));
            };
            if info & 0xf != FUNCTION || section == 0 {
                return None;
            }
            let name = file.get(self.strings.saturating_add(name as usize)..).unwrap_or_default();
            Some(Ok((value, name.split(|byte| *byte == 0).next().unwrap_or_default())))
        })
    }
}

/// The functions of a vdso by address: several names may stand for one. Without a heap.
#[derive(Debug)]
struct Functions {
    sorted: [(usize, bool); FUNCTIONS_MAX],
    count: usize,
}

impl Functions {
    fn of(file: &[u8]) -> Result<Self, &'static str> {
        let mut functions = Self { sorted: [(0, false); FUNCTIONS_MAX], count: 0 };
        for function in Tables::of(file)?.functions(file) {
            let (value, name) = function?;
            let reads = [&b"clock_gettime"[..], b"__vdso_clock_gettime"].contains(&name);
            match functions.sorted.iter_mut().take(functions.count).find(|(start, _)| *start == value) {
                Some((_, known)) => *known |= reads,
                None => {
                    let place = functions.sorted.get_mut(functions.count);
                    *place.ok_or("the vdso has more functions than were ever seen")? = (value, reads);
                    functions.count += 1;
                }
            }
        }
        functions.sorted.get_mut(..functions.count).unwrap_or_default().sort_unstable();
        Ok(functions)
    }

    /// Offset of each, and whether it is `clock_gettime`.
    fn all(&self) -> &[(usize, bool)] {
        self.sorted.get(..self.count).unwrap_or_default()
    }
}

/// Bytes of the ELF file that `file` begins with, by the end of its section headers, which a vdso has at its end.
pub(crate) fn extent(file: &[u8; 64]) -> Option<usize> {
    let (offset, size, count) = (word(file, 40)?, usize::from(u16_at(file, 58)?), usize::from(u16_at(file, 60)?));
    offset.checked_add(size * count).filter(|_| file.starts_with(b"\x7fELF"))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u64::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REAL: u64 = 0x7000_0000_0000;
    const SHIM: u64 = 0x5555_0000_0040;
    const TABLE: u64 = 0x5555_0000_1000;

    #[test]
    fn every_function_of_this_kernels_vdso_gets_its_jump() {
        let vdso = crate::exec::vdso().unwrap();
        let mut copy = vdso.to_vec();
        let proxy = stand_in(&mut copy, REAL, SHIM, TABLE).unwrap();
        let changed: Vec<_> = vdso.iter().zip(&copy).enumerate().filter(|(_, (old, new))| old != new).map(|(at, _)| at).collect();
        let starts: Vec<_> =
            proxy.functions.iter().take_while(|function| **function != 0).map(|at| (at - REAL) as usize).collect();
        assert!(starts.len() >= 4 && starts.is_sorted(), "{starts:x?}");
        for (at, start) in starts.iter().enumerate() {
            let code = &copy[*start..][..JUMP];
            let (to, last) = if proxy.real_read == REAL + *start as u64 { (SHIM, 0xe3) } else { (TABLE + 8 * at as u64, 0x23) };
            assert_eq!((&code[..2], u64::from_le_bytes(code[2..10].try_into().unwrap())), (&[0x49, 0xbb][..], to));
            assert_eq!(code[10..], [0x41, 0xff, last]);
        }
        assert!(starts.contains(&((proxy.real_read - REAL) as usize)));
        assert!(changed.len() <= JUMP * starts.len(), "nothing but the jumps is different");
    }

    #[test]
    fn what_is_no_vdso_is_refused() {
        assert!(stand_in(&mut [0; 4096], 0, 0, 0).is_err());
        let mut copy = crate::exec::vdso().unwrap()[..4096].to_vec();
        assert!(stand_in(&mut copy, 0, 0, 0).is_err(), "its tables are cut off");
    }

    #[test]
    fn functions_are_found_again_by_name_wherever_they_are() {
        let vdso = crate::exec::vdso().unwrap();
        let mut copy = vdso.to_vec();
        let first = stand_in(&mut copy, REAL, SHIM, TABLE).unwrap();
        let again = found_again(&copy, vdso, REAL + 0x5000, |_| panic!("nothing is missing")).unwrap();
        assert_eq!(again.real_read, first.real_read + 0x5000);
        for (first, again) in first.functions.iter().zip(again.functions) {
            assert_eq!(again, if *first == 0 { 0 } else { first + 0x5000 });
        }
    }

    /// A kernel that has moved one function and lacks another.
    #[test]
    fn what_another_vdso_lacks_is_replaced_and_what_it_has_moved_is_followed() {
        let vdso = crate::exec::vdso().unwrap();
        let mut copy = vdso.to_vec();
        let first = stand_in(&mut copy, REAL, SHIM, TABLE).unwrap();
        let mut other = vdso.to_vec();
        let tables = Tables::of(vdso).unwrap();
        let (mut moved, mut missing) = (0, 0);
        for at in (tables.symbols..tables.symbols + tables.bytes).step_by(SYMBOL) {
            let name = &vdso[tables.strings + u32_at(vdso, at).unwrap() as usize..];
            let name = name.split(|byte| *byte == 0).next().unwrap();
            if name.ends_with(b"getcpu") {
                // No longer defined.
                other[at + 6..at + 8].fill(0);
                missing = word(vdso, at + 8).unwrap();
            } else if name.ends_with(b"clock_gettime") {
                moved = word(vdso, at + 8).unwrap();
                other[at + 8..at + 16].copy_from_slice(&(moved as u64 + 64).to_le_bytes());
            }
        }
        let again = found_again(&copy, &other, REAL, |name| if name.ends_with(b"getcpu") { 7 } else { 8 }).unwrap();
        assert_eq!(again.real_read, REAL + moved as u64 + 64);
        for (first, again) in first.functions.iter().zip(again.functions) {
            let expected = match first.wrapping_sub(REAL) as usize {
                start if start == missing => 7,
                start if start == moved => first + 64,
                _ => *first,
            };
            assert_eq!(again, expected);
        }
        // One that is no vdso has nothing.
        let again = found_again(&copy, &[0; 64], REAL, |_| 8).unwrap();
        assert!(again.real_read == 8 && again.functions.iter().all(|function| [0, 8].contains(function)));
    }
}
