//! Failures on demand, for tests: the `n`th system call of the stub fails, once or for good, or the process stops there.
//!
//! What is to fail is a field of the header that the engine writes as zero; tests change it in a copy of an image and make the
//! checksums right again. Whoever can do that to an image can put any program into it, so the field gives nobody anything.

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::{
    layout::{Trial, trial},
    sys::{self, Errno},
};

/// `EIO`: nothing in the stub is made for it.
pub const FAILURE: Errno = Errno(5);
const SIGSTOP: usize = 19;
const STANDARD_ERROR: usize = 2;
/// Those that the kernel never refuses, with the arguments they have here. Nobody asks how they ended.
const NEVER_REFUSED: [usize; 7] = [
    sys::SYS_EXIT_GROUP,
    sys::SYS_CLOCK_GETTIME,
    sys::SYS_GETPID,
    sys::SYS_GETEUID,
    sys::SYS_UMASK,
    sys::SYS_SET_TID_ADDRESS,
    sys::SYS_RT_SIGPROCMASK,
];

static KIND: AtomicU32 = AtomicU32::new(trial::NONE);
static LEFT: AtomicU32 = AtomicU32::new(0);

/// Begins to count.
pub fn begin(trial: Trial) {
    LEFT.store(trial.call, Relaxed);
    KIND.store(trial.kind, Relaxed);
}

#[inline(always)]
pub fn is_on() -> bool {
    KIND.load(Relaxed) != trial::NONE
}

/// Whether the call that is about to be made has to fail.
#[cold]
#[inline(never)]
pub fn fails(number: usize, args: [usize; 6]) -> bool {
    let [first, ..] = args;
    if NEVER_REFUSED.contains(&number) || number == sys::SYS_WRITE && first == STANDARD_ERROR {
        return false;
    }
    let kind = KIND.load(Relaxed);
    // Threads that have been started count as well.
    let left = LEFT.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).unwrap_or(0);
    let fails = match (kind, left) {
        (trial::ONCE, 1) | (trial::FOR_GOOD, 0 | 1) => true,
        (trial::STOP, 1) => {
            let pid = sys::bare(sys::SYS_GETPID, [0; 6]).unwrap_or(0);
            // If it were refused the test would see a restore that goes on.
            let _ = sys::bare(sys::SYS_KILL, [pid, SIGSTOP, 0, 0, 0, 0]);
            false
        }
        _ => false,
    };
    if fails && number == sys::SYS_CLOSE {
        // close(2) gives the descriptor up whatever it answers.
        let _ = sys::bare(number, args);
    }
    fails
}
