//! Which kernels a process is captured on, and which an image is restored on; where their mappings of the vdso wait meanwhile: pure.

use super::clock;

/// The oldest kernel that is tested, as [`version`] has it. An image that 5.10 had written was not executed there.
pub const OLDEST: u32 = 6 << 16 | 1;

/// `major << 16 | minor` of a release such as `6.1.0-18-amd64`.
pub fn version(release: impl Iterator<Item = u8>) -> u32 {
    let (mut major, mut minor, mut dots) = (0_u32, 0_u32, 0);
    for byte in release {
        let number = if dots == 0 { &mut major } else { &mut minor };
        match byte {
            b'0'..=b'9' => *number = number.saturating_mul(10).saturating_add((byte - b'0') as u32),
            b'.' if dots == 0 => dots = 1,
            _ => break,
        }
    }
    (if major > 0xffff { 0xffff } else { major }) << 16 | if minor > 0xffff { 0xffff } else { minor }
}

/// The kernel's own mappings that every process gets: `vvar`, `vvar_vclock`, `vdso`, adjacent in this order. Those of another
/// build of the kernel have other sizes; the stub then lets the kernel choose their place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct VdsoRecord {
    /// Where the first of them starts in the restored life.
    pub start: u64,
    /// Bytes of each, in order; unused entries are zero and stand in front.
    pub bytes: [u64; 4],
    /// XXH64 of the last one, the code.
    pub code_sum: u64,
}
const _: () = assert!(size_of::<VdsoRecord>() == 48 && align_of::<VdsoRecord>() == 8);

/// A kernel on which an image may be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    /// That of the checkpoint, as far as programs can see: its vdso is the same.
    Same,
    /// Another one. The functions of its vdso are found by their names.
    Other,
}

/// Where the kernel's mappings of the vdso, `bytes` that start at `from`, wait until all other memory is in its place: where they were
/// `recorded` if that is where they go and they can be there at once, else in the `staging` area. It is in the `zone`, which is in use.
pub fn waiting_place(build: Build, [from, bytes]: [u64; 2], recorded: u64, zone: [u64; 2], staging: u64) -> u64 {
    let is_apart = |[start, end]: [u64; 2]| end <= recorded || recorded.wrapping_add(bytes) <= start;
    let is_there = from == recorded || is_apart([from, from.wrapping_add(bytes)]);
    if matches!(build, Build::Same) && is_there && is_apart(zone) { recorded } else { staging }
}

/// What is outside of two ranges, one of which may be inside of the other: three ranges, some of which may be empty.
pub fn outside(one: [u64; 2], other: [u64; 2], end: u64) -> [[u64; 2]; 3] {
    let ([first_start, first_end], [last_start, last_end]) = if one[0] <= other[0] { (one, other) } else { (other, one) };
    [[0, first_start], [first_end, last_start], [if first_end > last_end { first_end } else { last_end }, end]]
}

/// Whether an image that was `captured` on a kernel of that version, with its clocks continued in the way `clock`, may be restored
/// on one of the version `here`, whose vdso is the same or not.
///
/// A later kernel keeps what an earlier one has promised to programs; an earlier one lacks what they may have found and rely on.
pub fn fit(clock: u32, captured: u32, here: u32, same_vdso: bool) -> Result<Build, &'static str> {
    if here < captured {
        return Err("this kernel is older than the one of the checkpoint: the service may rely on what it lacks");
    }
    match (same_vdso, clock) {
        (true, _) => Ok(Build::Same),
        (false, clock::PROXY) => Ok(Build::Other),
        (false, _) => {
            Err("this kernel is another build than the one of the checkpoint: its vdso differs, and only an image whose clocks \
                 go on by a proxy does without that one")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vdso_waits_where_it_goes_if_nothing_is_in_its_way() {
        const ZONE: [u64; 2] = [0x10_000, 0x20_000];
        const STAGING: u64 = 0x12_000;
        let place = |from, recorded| waiting_place(Build::Same, [from, 0x4000], recorded, ZONE, STAGING);
        // Above the zone, below it, and where it is already.
        for (from, recorded) in
            [(0x80_000, 0x20_000), (0x80_000, 0xc000), (0x80_000, 0x84_000), (0x80_000, 0x7c_000), (0x80_000, 0x80_000)]
        {
            assert_eq!(place(from, recorded), recorded, "{from:#x} {recorded:#x}");
        }
        // In the zone, on its edges, and half where it is.
        for recorded in [0xd000, 0x11_000, 0x1f_000, 0x7d_000, 0x83_000] {
            assert_eq!(place(0x80_000, recorded), STAGING, "{recorded:#x}");
        }
        assert_eq!(waiting_place(Build::Other, [0x80_000, 0x4000], 0x20_000, ZONE, STAGING), STAGING);
    }

    #[test]
    fn outside_of_two_ranges_is_all_but_those() {
        for (one, other) in
            [([2, 4], [6, 7]), ([6, 7], [2, 4]), ([2, 8], [3, 5]), ([3, 5], [2, 8]), ([0, 4], [4, 9]), ([2, 4], [2, 9])]
        {
            let is_in = |range: [u64; 2], at| range[0] <= at && at < range[1];
            let ranges = outside(one, other, 10);
            for at in 0..10 {
                let found = ranges.iter().filter(|range| is_in(**range, at)).count();
                assert_eq!(found, usize::from(!is_in(one, at) && !is_in(other, at)), "{at} of {one:?} {other:?}: {ranges:?}");
            }
        }
    }
}
