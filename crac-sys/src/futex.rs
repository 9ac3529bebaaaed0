//! Waiting on a word of memory (`futex(2)`), private to the process or shared with another.
#![expect(unsafe_code, reason = "system calls")]

use std::{ptr, sync::atomic::AtomicU32, time::Duration};

use crate::{errno::Result, raw::syscall};

/// Sleeps while `word` holds `expected`, at most `timeout`. Returns early for any reason; the caller looks at the word again.
pub fn wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
    wait_by(libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG, word, expected, timeout);
}

/// As [`wait`], on a word in shared memory, for [`wake_all_shared`] of another process.
pub fn wait_shared(word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
    wait_by(libc::FUTEX_WAIT, word, expected, timeout);
}

fn wait_by(operation: i32, word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
    let timeout = timeout.map(|timeout| libc::timespec {
        tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    });
    let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
    let args = [word.as_ptr() as usize, operation as usize, expected as usize, timeout as usize, 0, 0];
    // SAFETY: the word and the timeout outlive the call, which only reads them.
    let slept = unsafe { syscall(libc::SYS_futex, args) };
    // EAGAIN, EINTR and ETIMEDOUT all mean "look again".
    let _ = slept;
}

/// Wakes every thread that sleeps on `word`; returns how many.
pub fn wake_all(word: &AtomicU32) -> Result<usize> {
    wake_all_by(libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, word)
}

/// Wakes every thread of any process that sleeps on `word` by [`wait_shared`]; returns how many.
pub fn wake_all_shared(word: &AtomicU32) -> Result<usize> {
    wake_all_by(libc::FUTEX_WAKE, word)
}

fn wake_all_by(operation: i32, word: &AtomicU32) -> Result<usize> {
    // SAFETY: FUTEX_WAKE uses the address as a key and touches no memory.
    unsafe { syscall(libc::SYS_futex, [word.as_ptr() as usize, operation as usize, i32::MAX as usize, 0, 0, 0]) }
}
