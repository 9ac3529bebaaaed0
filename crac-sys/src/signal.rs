//! Signals at the kernel's level: all 64, the C library's own included.
#![expect(unsafe_code, reason = "system calls that install handlers")]

use std::{mem::MaybeUninit, ptr};

use crate::{errno::Result, raw::syscall};

/// A set of signals as the kernel sees it: bit `n - 1` is signal `n`.
pub type SignalSet = u64;

/// A signal's disposition in the kernel's layout (`struct kernel_sigaction`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Action {
    /// Address of the handler, or `SIG_DFL` (0) or `SIG_IGN` (1).
    pub handler: usize,
    /// `SA_*` bits.
    pub flags: u64,
    /// Address of the code that issues `rt_sigreturn`.
    pub restorer: usize,
    /// Signals blocked while the handler runs.
    pub mask: SignalSet,
}

/// Reads the disposition of `signal` (`rt_sigaction(2)`).
pub fn action(signal: i32) -> Result<Action> {
    let mut old = Action::default();
    let args = [signal as usize, 0, ptr::from_mut(&mut old) as usize, size_of::<SignalSet>(), 0, 0];
    // SAFETY: with a null new action the call only fills `old`, whose layout is the kernel's.
    unsafe { syscall(libc::SYS_rt_sigaction, args) }?;
    Ok(old)
}

/// Sets the disposition of `signal` and returns the old one (`rt_sigaction(2)`).
///
/// # Safety
///
/// The handler is a signal handler with a valid restorer, async-signal-safe, and stays mapped while installed.
pub unsafe fn set_action(signal: i32, new: &Action) -> Result<Action> {
    let mut old = Action::default();
    let args = [signal as usize, ptr::from_ref(new) as usize, ptr::from_mut(&mut old) as usize, size_of::<SignalSet>(), 0, 0];
    // SAFETY: both structures have the kernel's layout and outlive the call; the handler is the caller's promise.
    unsafe { syscall(libc::SYS_rt_sigaction, args) }?;
    Ok(old)
}

/// Sets this thread's blocked signals and returns the old ones (`rt_sigprocmask(2)`).
pub fn set_mask(new: SignalSet) -> Result<SignalSet> {
    let mut old: SignalSet = 0;
    let args = [
        libc::SIG_SETMASK as usize,
        ptr::from_ref(&new) as usize,
        ptr::from_mut(&mut old) as usize,
        size_of::<SignalSet>(),
        0,
        0,
    ];
    // SAFETY: both sets are eight bytes, as announced, and outlive the call.
    unsafe { syscall(libc::SYS_rt_sigprocmask, args) }?;
    Ok(old)
}

/// Queues `signal` with `value` to the thread `tid` of this process (`rt_tgsigqueueinfo(2)`), as `SI_QUEUE`.
pub fn queue(pid: i32, tid: i32, signal: i32, value: usize) -> Result<()> {
    /// The `_rt` branch of the kernel's `siginfo_t`.
    #[repr(C)]
    struct Info {
        signal: i32,
        errno: i32,
        code: i32,
        padding: i32,
        pid: i32,
        uid: u32,
        value: usize,
        rest: [u64; 12],
    }
    const _: () = assert!(size_of::<Info>() == 128);
    let info = Info { signal, errno: 0, code: libc::SI_QUEUE, padding: 0, pid, uid: 0, value, rest: [0; 12] };
    let args = [pid as usize, tid as usize, signal as usize, ptr::from_ref(&info) as usize, 0, 0];
    // SAFETY: the call reads the 128 bytes of `info`.
    unsafe { syscall(libc::SYS_rt_tgsigqueueinfo, args) }.map(drop)
}

/// This thread's alternate signal stack (`sigaltstack(2)`).
pub fn alternate_stack() -> Result<libc::stack_t> {
    let mut stack = MaybeUninit::<libc::stack_t>::zeroed();
    // SAFETY: with a null new stack the call only fills the structure.
    unsafe { syscall(libc::SYS_sigaltstack, [0, stack.as_mut_ptr() as usize, 0, 0, 0, 0]) }?;
    // SAFETY: all-zero is a valid value, and the call has filled it.
    Ok(unsafe { stack.assume_init() })
}

/// Registers this thread's alternate signal stack (`sigaltstack(2)`).
///
/// # Safety
///
/// The range is unused memory that stays mapped while registered.
pub unsafe fn set_alternate_stack(stack: &libc::stack_t) -> Result<()> {
    let mut new = *stack;
    // SS_ONSTACK is what the kernel tells, not what it is told.
    new.ss_flags &= !libc::SS_ONSTACK;
    // SAFETY: the structure is only read; the range is the caller's promise.
    unsafe { syscall(libc::SYS_sigaltstack, [ptr::from_ref(&new) as usize, 0, 0, 0, 0, 0]) }.map(drop)
}
