//! How many Landlock domains a thread is in. The kernel tells nobody, but it allows only so many.
//!
//! A short-lived child that shares the memory enters one domain after the other, which restricts the child alone, until the
//! kernel refuses: what is missing to the kernel's maximum was there before.
#![allow(unsafe_code, reason = "starts a child on the caller's stack")]

use std::{
    arch::naked_asm,
    ptr,
    sync::atomic::{AtomicU32, Ordering::SeqCst},
};

use crac_sys::{process, syscall};

/// `LANDLOCK_MAX_NUM_LAYERS`.
const LAYERS_MAX: u32 = 16;
const CREATE_RULESET: libc::c_long = 444;
const RESTRICT_SELF: libc::c_long = 446;
const UNKNOWN: u32 = u32::MAX;

/// In how many domains the calling thread is; 0 where the kernel has no Landlock or does not allow a child.
pub(crate) fn layers() -> u32 {
    if !is_supported() {
        return 0;
    }
    let entered = AtomicU32::new(UNKNOWN);
    // SAFETY: `enter_all` uses system calls and the counter, which outlives it: this thread goes on when the child has ended.
    let child = unsafe { with_child(enter_all, ptr::from_ref(&entered).cast()) };
    if child > 0 {
        // It has ended already, so the first answer is the last.
        while process::reap(child as i32) == Ok(false) {}
    }
    match entered.load(SeqCst) {
        UNKNOWN => 0,
        entered => LAYERS_MAX.saturating_sub(entered),
    }
}

fn is_supported() -> bool {
    const VERSION: usize = 1;
    // SAFETY: only asks.
    unsafe { syscall(CREATE_RULESET, [0, 0, VERSION, 0, 0, 0]) }.is_ok()
}

/// Runs in the child: enters domains until there is no more room, and ends.
unsafe extern "C" fn enter_all(entered: *const u8) -> ! {
    // SAFETY: `layers` passes its counter.
    let entered = unsafe { &*entered.cast::<AtomicU32>() };
    // LANDLOCK_ACCESS_FS_EXECUTE
    let handled = 1_u64;
    // SAFETY: an integer argument; it is about this child only.
    let allowed = unsafe { process::prctl(libc::PR_SET_NO_NEW_PRIVS, [1, 0, 0, 0]) };
    // SAFETY: the call reads the eight bytes of `handled`.
    let rules = unsafe { syscall(CREATE_RULESET, [ptr::from_ref(&handled).expose_provenance(), 8, 0, 0, 0, 0]) };
    if let (Ok(_), Ok(rules)) = (allowed, rules) {
        let mut count = 0;
        loop {
            // SAFETY: restricts this child, which executes nothing.
            match unsafe { syscall(RESTRICT_SELF, [rules, 0, 0, 0, 0, 0]) } {
                Ok(_) => count += 1,
                Err(errno) if errno.number() == libc::E2BIG => break entered.store(count, SeqCst),
                Err(_) => break,
            }
        }
    }
    loop {
        // SAFETY: ends the child.
        let impossible = unsafe { syscall(libc::SYS_exit, [0; 6]) };
        let _ = impossible;
    }
}

/// `clone(2)` with `CLONE_VM | CLONE_VFORK`: calls `then(argument)` in a child that uses this thread's stack below the current
/// frame; returns the child's id once that has ended, or a negative error number.
///
/// # Safety
///
/// `then` makes system calls only and changes no memory but what `argument` leads to.
#[unsafe(naked)]
unsafe extern "C" fn with_child(then: unsafe extern "C" fn(*const u8) -> !, argument: *const u8) -> i64 {
    naked_asm!(
        "sub rsp, 8",
        "mov [rsp], rsi",
        "mov r9, rdi",
        "mov eax, 56",
        "mov edi, 0x4100",
        "xor esi, esi",
        "xor edx, edx",
        "xor r10d, r10d",
        "xor r8d, r8d",
        "syscall",
        "test rax, rax",
        "jnz 2f",
        "mov rdi, [rsp]",
        "call r9",
        "ud2",
        "2:",
        "add rsp, 8",
        "ret",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each thread has its own domains, and looking changes nothing.
    #[test]
    fn domains_are_counted() {
        let before = layers();
        assert_eq!(layers(), before);
        if !is_supported() {
            println!("SKIP: domains_are_counted: this kernel has no Landlock");
            return;
        }
        std::thread::spawn(move || {
            let handled = 1_u64 << 12;
            // SAFETY: an integer argument.
            unsafe { process::prctl(libc::PR_SET_NO_NEW_PRIVS, [1, 0, 0, 0]) }.unwrap();
            // SAFETY: reads eight bytes.
            let rules = unsafe { syscall(CREATE_RULESET, [ptr::from_ref(&handled).expose_provenance(), 8, 0, 0, 0, 0]) };
            // SAFETY: restricts this thread.
            unsafe { syscall(RESTRICT_SELF, [rules.unwrap(), 0, 0, 0, 0, 0]) }.unwrap();
            assert_eq!(layers(), before + 1);
        })
        .join()
        .unwrap();
        assert_eq!(layers(), before);
    }
}
