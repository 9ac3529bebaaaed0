//! The `syscall` instruction.
//!
//! Nothing here touches `errno`, a lock, thread-local storage or the heap, so it may run in a signal handler and while every
//! other thread of the process is stopped at an arbitrary instruction.
#![expect(unsafe_code, reason = "a system call is inline assembly")]

use core::arch::asm;

use crate::errno::{Errno, Result};

/// Issues the system call `number` with up to six arguments (`syscall(2)`).
///
/// # Safety
///
/// The caller answers for everything the kernel does with these arguments: pointers are valid for what the call reads and
/// writes, and mappings or descriptors that others rely on are not taken from them.
#[inline]
pub unsafe fn syscall(number: libc::c_long, args: [usize; 6]) -> Result<usize> {
    let returned: usize;
    // SAFETY: the x86_64 Linux calling convention: the number in rax, arguments in rdi, rsi, rdx, r10, r8, r9; rcx and r11 are
    // overwritten, the red zone is not. What the call does to memory is the caller's promise.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as usize => returned,
            in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], in("r8") args[4], in("r9") args[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    Errno::check(returned)
}
