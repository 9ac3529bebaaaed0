//! Which kernels a process is captured on, and which an image is restored on: pure.

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
