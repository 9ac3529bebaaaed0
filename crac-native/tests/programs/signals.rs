//! Signals, masks, alternate stacks, FPU state, restartable sequences, the vdso.
#![allow(unsafe_code, reason = "the test uses the C library directly")]

use std::{
    mem, ptr,
    sync::{
        Arc, Barrier,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use super::lives;

static CAUGHT: AtomicU64 = AtomicU64::new(0);

extern "C" fn on_usr1(_: i32) {
    CAUGHT.fetch_add(1, Ordering::SeqCst);
}

fn blocked() -> Vec<i32> {
    // SAFETY: all-zero is a valid set, filled by the call.
    let mut set: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: only asks.
    assert_eq!(unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), &mut set) }, 0);
    // SAFETY: a valid set.
    (1..=64).filter(|signal| unsafe { libc::sigismember(&set, *signal) } == 1).collect()
}

fn block(signal: i32) {
    // SAFETY: all-zero is a valid set.
    let mut set: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: a valid set.
    unsafe { libc::sigaddset(&mut set, signal) };
    // SAFETY: as above.
    assert_eq!(unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut()) }, 0);
}

fn alternate_stack() -> (usize, usize) {
    // SAFETY: all-zero is a valid value, filled by the call.
    let mut stack: libc::stack_t = unsafe { mem::zeroed() };
    // SAFETY: only asks.
    assert_eq!(unsafe { libc::sigaltstack(ptr::null(), &mut stack) }, 0);
    (stack.ss_sp as usize, stack.ss_size)
}

pub(crate) fn signals() {
    // SAFETY: the handler only counts.
    unsafe { libc::signal(libc::SIGUSR1, on_usr1 as *const () as usize) };
    // SAFETY: ignoring is always valid.
    unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
    block(libc::SIGUSR2);
    let (main_blocked, main_stack) = (blocked(), alternate_stack());
    assert_eq!(main_blocked, [libc::SIGUSR2]);

    let turn = Arc::new((Barrier::new(2), Barrier::new(2)));
    let thread = {
        let turn = turn.clone();
        std::thread::spawn(move || {
            block(libc::SIGTERM);
            let (mine, stack) = (blocked(), alternate_stack());
            let mut x = 0.5_f64;
            // SAFETY: sets and reads this thread's own control word.
            let rounding = || unsafe {
                let mut word = 0_u32;
                std::arch::asm!("stmxcsr [{}]", in(reg) &mut word);
                word & 0x6000
            };
            let word = 0x7f80_u32;
            // SAFETY: rounding toward zero, all exceptions masked; this thread's own.
            unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &word) };
            loop {
                turn.0.wait();
                assert_eq!(blocked(), mine);
                assert_eq!(alternate_stack(), stack);
                assert_eq!(rounding(), 0x6000, "rounding mode of the thread");
                x = (x * 3.0).sin();
                assert!(x.is_finite());
                turn.1.wait();
            }
        })
    };
    let began = Instant::now();
    let mut last = began;
    lives(|generation| {
        if generation == u64::MAX {
            return;
        }
        turn.0.wait();
        turn.1.wait();
        assert_eq!(blocked(), main_blocked);
        assert_eq!(alternate_stack(), main_stack);
        let before = CAUGHT.load(Ordering::SeqCst);
        // SAFETY: the handler is installed.
        unsafe { libc::raise(libc::SIGUSR1) };
        assert_eq!(CAUGHT.load(Ordering::SeqCst), before + 1, "the handler is installed");
        // SAFETY: ignored.
        unsafe { libc::raise(libc::SIGHUP) };
        // The vdso's clock and restartable sequences work.
        let now = Instant::now();
        assert!(now >= last);
        last = now;
        for _ in 0..1000 {
            // SAFETY: only asks.
            let fast = unsafe { libc::sched_getcpu() };
            assert!(fast >= 0);
        }
        // The C library's idea of this thread is the kernel's.
        // SAFETY: only asks.
        let (process, thread) = unsafe { (libc::getpid(), libc::syscall(libc::SYS_gettid)) };
        assert_eq!(i64::from(process), thread, "the main thread");
        // SAFETY: signal 0 only asks; pthread_kill uses the thread id that the C library has noted.
        assert_eq!(unsafe { libc::pthread_kill(libc::pthread_self(), 0) }, 0);
    });
    drop(thread);
}
