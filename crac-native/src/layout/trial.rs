//! Restores that fail on demand.

/// A failure of the restore on demand: tests write it into an image that they have made. See the stub's `trial.rs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Trial {
    /// One of the constants below.
    pub kind: u32,
    /// Which of the stub's system calls, from 1: those behind the check of the header are counted.
    pub call: u32,
}
const _: () = assert!(size_of::<Trial>() == 8 && align_of::<Trial>() == 4);

pub const NONE: u32 = 0;
/// That call fails with `EIO`.
pub const ONCE: u32 = 1;
/// That call and all that follow.
pub const FOR_GOOD: u32 = 2;
/// Nothing fails: the process stops itself there, as by `SIGSTOP`.
pub const STOP: u32 = 3;
/// None of them fails, but the first step of the restored life.
pub const RESUME: u32 = 4;
