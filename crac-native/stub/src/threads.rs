//! Step "threads": every captured thread goes on where it was parked.

use core::{
    arch::{asm, naked_asm},
    ptr,
    sync::atomic::{AtomicPtr, Ordering},
};

use crate::{
    Restore,
    layout::{Step, ThreadRecord},
    report::{fail, fail_on},
    sys,
    syscall,
};

const ARCH_SET_GS: usize = 0x1001;
const ARCH_SET_FS: usize = 0x1002;
const PR_SET_NAME: usize = 15;
/// VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, SETTLS, PARENT_SETTID, CHILD_CLEARTID: what the C library uses for a thread.
const CLONE_FLAGS: usize = 0x3d_0f00;
/// Room between a parked thread's stack pointer and the frames of its restart.
const STACK_GAP: u64 = 512;

/// Where started threads find what every step may look at: on the stub's own stack, which stays as it is until the stub goes.
static RESTORE: AtomicPtr<Restore> = AtomicPtr::new(ptr::null_mut());

/// Starts all threads and becomes the main one. Does not return.
pub fn start(restore: &Restore) -> ! {
    let threads = restore.table::<ThreadRecord>(restore.header.threads);
    let Some((main, others)) = threads.split_first() else {
        crate::report::exit(crate::layout::EXIT_BUG, &[b"the image has no thread"]);
    };
    RESTORE.store(ptr::from_ref(restore).cast_mut(), Ordering::Release);
    let limit = crate::settings::make_room_for_threads(restore);
    for thread in others {
        let stack = (thread.resume_sp - STACK_GAP) & !15;
        let flags = if thread.fs_base == 0 { CLONE_FLAGS & !0x8_0000 } else { CLONE_FLAGS };
        // SAFETY: below its saved stack pointer a parked thread's stack is unused, and the restarted thread keeps clear of it
        // by STACK_GAP; the record is in the metadata, which stays mapped until every thread has left the stub.
        let start = || unsafe { clone_thread(flags, stack, thread.tid_address, thread.fs_base, thread) };
        let fails = crate::trial::is_on() && crate::trial::fails(sys::SYS_CLONE, [0; 6]);
        let tid = if fails { -i64::from(crate::trial::FAILURE.0) } else { start() };
        if tid < 0 {
            fail_on(Step::Threads, b"starting the thread that was", thread.tid as u64, sys::Errno(-tid as i32));
        }
    }
    crate::settings::threads_are_started(limit);
    crate::settings::last(restore);
    restore.done(Step::Threads);
    if let Err(errno) = syscall!(sys::SYS_ARCH_PRCTL, ARCH_SET_FS, main.fs_base) {
        fail(Step::Threads, b"setting the thread pointer", errno);
    }
    if main.tid_address != 0 {
        let tid = syscall!(sys::SYS_SET_TID_ADDRESS, main.tid_address).unwrap_or(0);
        // SAFETY: the recorded address is the C library's own place for this thread's id, mapped again by now.
        unsafe { (main.tid_address as *mut i32).write(tid as i32) };
    }
    resume(main)
}

/// Finishes the calling thread's state and jumps to where it was parked.
extern "C" fn resume(thread: &ThreadRecord) -> ! {
    if let Err(errno) = syscall!(sys::SYS_PRCTL, PR_SET_NAME, thread.name.as_ptr(), 0, 0, 0) {
        fail(Step::Threads, b"naming a thread", errno);
    }
    if thread.gs_base != 0
        && let Err(errno) = syscall!(sys::SYS_ARCH_PRCTL, ARCH_SET_GS, thread.gs_base)
    {
        fail(Step::Threads, b"setting GS", errno);
    }
    if thread.robust_head != 0
        && let Err(errno) = syscall!(sys::SYS_SET_ROBUST_LIST, thread.robust_head, thread.robust_bytes)
    {
        fail(Step::Threads, b"setting the robust list", errno);
    }
    if thread.rseq_address != 0 {
        // SAFETY: `rseq_cs`, the third word of the recorded area: no sequence is running.
        unsafe { ((thread.rseq_address + 8) as *mut u64).write(0) };
        if let Err(errno) =
            syscall!(sys::SYS_RSEQ, thread.rseq_address, thread.rseq_bytes, 0, thread.rseq_signature)
        {
            fail(Step::Threads, b"registering restartable sequences", errno);
        }
    }
    // SAFETY: set by `start` before the first thread was made, and valid until every thread has left the stub.
    crate::settings::of_thread(unsafe { &*RESTORE.load(Ordering::Acquire) }, thread.tid);
    // SAFETY: stack pointer and address were recorded together by the engine's `park`, which expects 1 in eax.
    unsafe {
        asm!(
            "mov rsp, {sp}",
            "mov eax, 1",
            "jmp {ip}",
            sp = in(reg) thread.resume_sp,
            ip = in(reg) thread.resume_ip,
            options(noreturn),
        );
    }
}

/// `clone(2)`: flags, stack, address for the thread id (at start, for the parent, and at exit), thread pointer; the new thread
/// calls [`resume`] with `thread`.
///
/// # Safety
///
/// As of clone(2): the stack is unused, the addresses are mapped, and `thread` outlives the new thread's stay in the stub.
#[unsafe(naked)]
unsafe extern "C" fn clone_thread(flags: usize, stack: u64, tid: u64, tls: u64, thread: &ThreadRecord) -> i64 {
    naked_asm!(
        // Arguments come in rdi, rsi, rdx, rcx, r8; the kernel wants tid again in r10 and the thread pointer in r8.
        "mov r9, r8",
        "mov r8, rcx",
        "mov r10, rdx",
        "mov eax, 56",
        "syscall",
        "test rax, rax",
        "jz 2f",
        "ret",
        "2:",
        "xor ebp, ebp",
        "mov rdi, r9",
        "call {resume}",
        "ud2",
        resume = sym resume,
    )
}
