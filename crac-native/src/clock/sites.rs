//! The instructions of the C library that enter the kernel for waits, and the jumps that replace them: pure.
//!
//! ```text
//! before    b8 ca 00 00 00   mov eax, 202          after    e9 .. .. .. ..   jmp trampoline
//!           0f 05            syscall                        0f 05            (not reached any more, but by a call that was
//!                                                                             under way and is restarted by the kernel)
//!
//! trampoline   mov eax, 202            as it was
//!              lea rsp, [rsp - 128]    past the red zone
//!              push [rip + ...]        the address behind the syscall
//!              jmp [rip + ...]         the shim, which returns there and takes both off the stack
//! ```
//!
//! A trampoline lies within reach of the jump: in what is left of the last page of the library's code, or in a page of its own.

use std::ops::Range;

/// Bytes of a trampoline, its address included.
const TRAMPOLINE: usize = 32;
/// The instruction that a jump takes the place of, and the `syscall` behind it.
const FIRST: usize = 5;
pub(crate) const SITE: usize = 7;
/// The system calls that can wait until a moment or set a timer to one, as numbers in `mov eax, ...`.
const NUMBERS: [libc::c_long; 4] =
    [libc::SYS_futex, libc::SYS_clock_nanosleep, libc::SYS_timerfd_settime, libc::SYS_timer_settime];
/// `mov r9, [rsp + 8]; syscall`: the end of `syscall(3)`, whose number is a parameter.
const GENERIC: [u8; SITE] = [0x4c, 0x8b, 0x4c, 0x24, 0x08, 0x0f, 0x05];
/// More would be something else than a C library.
const SITES_MAX: usize = 120;

/// Bytes that replace others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Patch {
    pub(crate) at: usize,
    pub(crate) before: Vec<u8>,
    pub(crate) after: Vec<u8>,
}

/// Everything that is to be written, in this order: nothing jumps to a trampoline that is not there yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Patches {
    pub(crate) trampolines: Patch,
    pub(crate) jumps: Vec<Patch>,
}

impl Patches {
    /// Addresses behind the system calls that were patched: where a thread goes on that was in one before.
    pub(crate) fn behind(&self) -> impl Iterator<Item = usize> + '_ {
        self.jumps.iter().map(|jump| jump.at + SITE)
    }
}

/// Addresses of the sites in `code`, which lies at `start`.
pub(crate) fn find(code: &[u8], start: usize) -> Vec<usize> {
    let mut sites = Vec::new();
    // Every site ends with the instruction `syscall`.
    for (at, window) in code.windows(SITE).enumerate() {
        let [first, .., 0x0f, 0x05] = window else { continue };
        let number = window.get(1..FIRST).and_then(|number| number.try_into().ok()).map(u32::from_le_bytes);
        let named = *first == 0xb8 && number.is_some_and(|number| NUMBERS.contains(&number.into()));
        if named || *window == GENERIC {
            sites.push(start + at);
        }
    }
    sites
}

/// Bytes that the trampolines of `count` sites take.
pub(crate) const fn room(count: usize) -> usize {
    // The address of the shim comes first.
    TRAMPOLINE * (count + 1)
}

/// The patches for `sites` in `code` at `start`, with trampolines in `room`, whose bytes are zero, and the shim at `shim`.
///
/// # Errors
///
/// What does not fit.
pub(crate) fn patches(
    code: &[u8],
    start: usize,
    sites: &[usize],
    room: Range<usize>,
    shim: usize,
) -> Result<Patches, &'static str> {
    if sites.len() > SITES_MAX {
        return Err("the C library has more such places than a C library has");
    }
    if room.len() < self::room(sites.len()) {
        return Err("the trampolines do not fit where they were to lie");
    }
    let mut bytes = (shim as u64).to_le_bytes().to_vec();
    bytes.resize(TRAMPOLINE, 0);
    let mut jumps = Vec::new();
    for site in sites {
        let before = code.get(site - start..).and_then(|rest| rest.get(..FIRST)).ok_or("a site lies outside the code")?;
        let trampoline = room.start + bytes.len();
        let distance = trampoline.wrapping_sub(site + FIRST) as isize;
        let distance = i32::try_from(distance).map_err(|_| "the trampolines are out of reach of the C library's code")?;
        let mut jump = vec![0xe9];
        jump.extend(distance.to_le_bytes());
        jumps.push(Patch { at: *site, before: before.to_vec(), after: jump });
        bytes.extend(before);
        // lea rsp, [rsp - 128]
        bytes.extend([0x48, 0x8d, 0x64, 0x24, 0x80]);
        // push [rip + 6], over the jump
        bytes.extend([0xff, 0x35, 6, 0, 0, 0]);
        // jmp [rip + ...], to the first word of the room
        let back = room.start as isize - (room.start + bytes.len() + 6) as isize;
        bytes.extend([0xff, 0x25]);
        bytes.extend((back as i32).to_le_bytes());
        bytes.extend(((site + SITE) as u64).to_le_bytes());
        bytes.resize(bytes.len().next_multiple_of(TRAMPOLINE), 0);
    }
    let trampolines = Patch { at: room.start, before: vec![0; bytes.len()], after: bytes };
    Ok(Patches { trampolines, jumps })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `mov eax, NUMBER; syscall` and the generic form, between other instructions.
    fn code() -> Vec<u8> {
        let mut code = vec![0x90; 3];
        code.extend([0xb8, 202, 0, 0, 0, 0x0f, 0x05]);
        code.extend([0xb8, 1, 0, 0, 0, 0x0f, 0x05]);
        code.extend(GENERIC);
        code.extend([0xb8, 230, 0, 0, 0, 0x0f, 0x05, 0xc3]);
        code
    }

    #[test]
    fn only_what_can_wait_until_a_moment_is_found() {
        assert_eq!(find(&code(), 0x1000), [0x1003, 0x1011, 0x1018]);
        assert_eq!(find(&[0x0f, 0x05], 0), [0; 0]);
    }

    #[test]
    fn a_trampoline_does_what_it_stands_for_and_leads_to_the_shim() {
        let sites = find(&code(), 0x1000);
        let patches = patches(&code(), 0x1000, &sites, 0x2000..0x3000, 0x5555_0000_1234).unwrap();
        assert_eq!(patches.behind().collect::<Vec<_>>(), [0x100a, 0x1018, 0x101f]);
        let bytes = &patches.trampolines.after;
        assert_eq!(bytes.len(), room(3));
        assert_eq!(bytes[..8], 0x5555_0000_1234_u64.to_le_bytes());
        for (at, jump) in patches.jumps.iter().enumerate() {
            let to = jump.at + FIRST + i32::from_le_bytes(jump.after[1..].try_into().unwrap()) as usize;
            assert_eq!((jump.after[0], to), (0xe9, 0x2000 + TRAMPOLINE * (at + 1)));
            let trampoline = &bytes[to - 0x2000..][..TRAMPOLINE];
            assert_eq!(trampoline[..5], jump.before);
            // The push reads the address of the site's end, the jump the first word of the room.
            let pushed = 5 + 5 + 6 + i32::from_le_bytes(trampoline[12..16].try_into().unwrap()) as usize;
            assert_eq!(trampoline[pushed..][..8], ((jump.at + SITE) as u64).to_le_bytes());
            let jumped = (to + 22) as i64 + i64::from(i32::from_le_bytes(trampoline[18..22].try_into().unwrap()));
            assert_eq!(jumped, 0x2000);
        }
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let sites = find(&code(), 0x1000);
        assert!(patches(&code(), 0x1000, &sites, 0x2000..0x2020, 0).unwrap_err().contains("fit"));
        let far = 0x2_0000_0000..0x2_0000_1000;
        assert!(patches(&code(), 0x1000, &sites, far, 0).unwrap_err().contains("reach"));
    }
}
