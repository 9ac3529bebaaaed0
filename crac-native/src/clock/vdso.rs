//! The copy that stands in for the vdso in a restored life: pure.
//!
//! It is the vdso of the checkpoint, byte for byte, so that whoever looks functions up in it finds them; but each function begins
//! with a jump to the function of the same name in the real one, which lies elsewhere, or to the shim.

/// A jump to any address: `mov r11, ADDRESS; jmp r11`.
const JUMP: usize = 13;
const FUNCTION: u8 = 2;
const DYNAMIC_SYMBOLS: u32 = 11;

/// What became of the copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Proxy {
    /// Address of the real `clock_gettime`.
    pub(crate) real_read: u64,
}

/// Turns `copy`, the bytes of a vdso, into its stand-in for a life in which the real one lies at `real`, with the shim for
/// `clock_gettime` at `shim`.
///
/// # Errors
///
/// What is not as it is in a vdso; the bytes are then of no use.
pub(crate) fn stand_in(copy: &mut [u8], real: u64, shim: u64) -> Result<Proxy, &'static str> {
    let u16_at = |bytes: &[u8], at: usize| Some(u16::from_le_bytes(bytes.get(at..)?.get(..2)?.try_into().ok()?));
    let u32_at = |bytes: &[u8], at: usize| Some(u32::from_le_bytes(bytes.get(at..)?.get(..4)?.try_into().ok()?));
    let word = |bytes: &[u8], at: usize| {
        let word = u64::from_le_bytes(bytes.get(at..)?.get(..8)?.try_into().ok()?);
        usize::try_from(word).ok()
    };
    if !copy.starts_with(b"\x7fELF\x02\x01") {
        return Err("the vdso is no 64-bit ELF file");
    }
    let sections = || {
        let (offset, size, count) = (word(copy, 40)?, usize::from(u16_at(copy, 58)?), usize::from(u16_at(copy, 60)?));
        let starts = (0..count).map(move |index| offset + index * size);
        starts.clone().find(|start| u32_at(copy, start + 4) == Some(DYNAMIC_SYMBOLS)).map(|symbols| {
            let strings = starts.clone().nth(u32_at(copy, symbols + 40).unwrap_or(0) as usize);
            (word(copy, symbols + 24), word(copy, symbols + 32), strings.and_then(|strings| word(copy, strings + 24)))
        })
    };
    let Some((Some(symbols), Some(bytes), Some(strings))) = sections() else { return Err("the vdso has no symbols") };
    // Several names may stand for one function: kept sorted by address, without a heap.
    let mut functions = [(0_usize, false); 32];
    let mut count = 0;
    for at in (symbols..symbols.saturating_add(bytes)).step_by(24) {
        let (Some(name), Some(info), Some(section), Some(value)) =
            (u32_at(copy, at), copy.get(at + 4), u16_at(copy, at + 6), word(copy, at + 8))
        else {
            return Err("a symbol of the vdso lies outside of it");
        };
        if info & 0xf != FUNCTION || section == 0 {
            continue;
        }
        let name = copy.get(strings + name as usize..).unwrap_or_default();
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        let reads = [&b"clock_gettime"[..], b"__vdso_clock_gettime"].contains(&name);
        match functions.iter_mut().take(count).find(|(start, _)| *start == value) {
            Some((_, known)) => *known |= reads,
            None => {
                *functions.get_mut(count).ok_or("the vdso has more functions than were ever seen")? = (value, reads);
                count += 1;
            }
        }
    }
    let functions = functions.get_mut(..count).unwrap_or_default();
    functions.sort_unstable();
    let is_close = |pair: &[(usize, bool)]| matches!(pair, [(first, _), (second, _)] if second - first < JUMP);
    if functions.windows(2).any(is_close) {
        return Err("two functions of the vdso lie too close together");
    }
    let Some((read, _)) = functions.iter().find(|(_, reads)| *reads).copied() else {
        return Err("the vdso has no clock_gettime");
    };
    for (start, reads) in functions.iter().copied() {
        let to = if reads { shim } else { real + start as u64 };
        let place = copy.get_mut(start..).and_then(|rest| rest.get_mut(..JUMP));
        let place = place.ok_or("a function of the vdso lies outside of it")?;
        place[..2].copy_from_slice(&[0x49, 0xbb]);
        place[2..10].copy_from_slice(&to.to_le_bytes());
        place[10..].copy_from_slice(&[0x41, 0xff, 0xe3]);
    }
    Ok(Proxy { real_read: real + read as u64 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_of_this_kernels_vdso_gets_its_jump() {
        let vdso = crate::exec::vdso().unwrap();
        let mut copy = vdso.to_vec();
        let proxy = stand_in(&mut copy, 0x7000_0000_0000, 0x5555_0000_0040).unwrap();
        let changed: Vec<_> = vdso.iter().zip(&copy).enumerate().filter(|(_, (old, new))| old != new).map(|(at, _)| at).collect();
        let jumps = copy.windows(JUMP).filter(|code| code.starts_with(&[0x49, 0xbb]) && code.ends_with(&[0x41, 0xff, 0xe3]));
        let targets: Vec<u64> = jumps.map(|code| u64::from_le_bytes(code[2..10].try_into().unwrap())).collect();
        assert!(targets.len() >= 5, "{targets:x?}");
        assert_eq!(targets.iter().filter(|target| **target == 0x5555_0000_0040).count(), 1, "{targets:x?}");
        assert!(changed.len() <= JUMP * targets.len(), "nothing but the jumps is different");
        let read = (proxy.real_read - 0x7000_0000_0000) as usize;
        assert_eq!(copy[read + 2..read + 10], 0x5555_0000_0040_u64.to_le_bytes());
    }

    #[test]
    fn what_is_no_vdso_is_refused() {
        assert!(stand_in(&mut [0; 4096], 0, 0).is_err());
        let mut copy = crate::exec::vdso().unwrap()[..4096].to_vec();
        assert!(stand_in(&mut copy, 0, 0).is_err(), "its tables are cut off");
    }
}
