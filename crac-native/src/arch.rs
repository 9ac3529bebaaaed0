//! The few instructions that Rust has no words for (`x86_64`).
#![expect(unsafe_code, reason = "saves and reloads the stack pointer")]

use std::arch::{asm, naked_asm};

/// Where a parked thread goes on: written by [`park`], used by the restorer stub.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Resume {
    pub(crate) sp: u64,
    pub(crate) ip: u64,
}

/// Saves where the thread is in `resume`, then calls `then(argument)`.
///
/// Returns 0 when `then` has returned, and 1 when the thread came back from an image, in a later life, while `then` never
/// returned there. In that life the stack below the saved pointer is undefined, so nothing that `then` made may be looked at.
///
/// Callee-saved registers and the floating-point control words are kept on the stack; all else is the caller's to expect
/// nothing of, as after any call.
///
/// # Safety
///
/// `then` does not unwind, and `resume` is valid for a write.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn park(resume: *mut Resume, then: unsafe extern "C" fn(*mut u8), argument: *mut u8) -> u64 {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "sub rsp, 8",
        "stmxcsr [rsp]",
        "fnstcw [rsp + 4]",
        "mov [rdi], rsp",
        "lea rax, [rip + 2f]",
        "mov [rdi + 8], rax",
        "mov rax, rsi",
        "mov rdi, rdx",
        "call rax",
        "xor eax, eax",
        // The restorer jumps here with the saved stack pointer and 1 in eax.
        "2:",
        "ldmxcsr [rsp]",
        "fldcw [rsp + 4]",
        "add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
    )
}

/// Loads `stack` into the stack pointer and jumps to `entry`, as the kernel enters a program.
///
/// # Safety
///
/// `entry` is a program's first instruction, which never returns, and `stack` what it is to find.
pub(crate) unsafe fn enter(stack: *const usize, entry: u64) -> ! {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("mov rsp, {stack}", "xor ebp, ebp", "jmp {entry}", stack = in(reg) stack, entry = in(reg) entry, options(noreturn))
    }
}

/// The code a signal handler returns to: `rt_sigreturn(2)`.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn signal_return() {
    naked_asm!("mov eax, 15", "syscall", "ud2")
}

/// Where this thread's restartable-sequence area lies and how long it is, if the C library has registered one.
///
/// glibc says so in `__rseq_offset` and `__rseq_size` (glibc 2.35); the references are weak, so that a program linked to
/// another C library still links, and finds none.
pub(crate) fn rseq_area(fs_base: u64) -> Option<(u64, u32)> {
    let (offset, size): (*const i64, *const u32);
    // SAFETY: loads two addresses from the global offset table; a weak symbol without a definition has the address zero.
    unsafe {
        asm!(
            ".weak __rseq_offset",
            ".weak __rseq_size",
            "mov {offset}, qword ptr [rip + __rseq_offset@GOTPCREL]",
            "mov {size}, qword ptr [rip + __rseq_size@GOTPCREL]",
            offset = out(reg) offset,
            size = out(reg) size,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    if offset.is_null() || size.is_null() {
        return None;
    }
    // SAFETY: glibc's constant, an `unsigned int`, set before `main`.
    let size = unsafe { size.read() };
    // SAFETY: glibc's constant, a `ptrdiff_t`, set before `main`.
    let offset = unsafe { offset.read() };
    // The size is that of the part in use; what is registered is at least the 32 bytes of the first version, in steps of 32.
    (size != 0).then(|| (fs_base.wrapping_add_signed(offset), size.next_multiple_of(32)))
}

/// glibc's signature in front of abort handlers on this architecture.
pub(crate) const RSEQ_SIGNATURE: u32 = 0x5305_3053;
