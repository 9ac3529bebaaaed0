//! What must be refused, one thing at a time.
#![allow(unsafe_code, reason = "the test uses the C library directly")]

use std::{fs::File, mem, os::fd::AsRawFd, ptr, sync::mpsc};

use super::lives;

/// In the first restored life the main thread enters another namespace, while it or another thread makes the captures, or that other
/// thread itself does (`who`: `main`, `other`, `itself`).
pub(crate) fn enters(who: &str) {
    let enter = |generation| {
        // SAFETY: no memory is involved.
        let entered = if generation == 1 { unsafe { libc::unshare(libc::CLONE_NEWUTS) } } else { 0 };
        assert_eq!(entered, 0, "{}", std::io::Error::last_os_error());
    };
    if who == "main" {
        return lives(enter);
    }
    if who == "itself" {
        return std::thread::spawn(move || lives(enter)).join().unwrap();
    }
    let (ask, asked) = mpsc::channel();
    let (answer, answered) = mpsc::channel();
    let captures = std::thread::spawn(move || {
        lives(|generation| {
            ask.send(generation).unwrap();
            answered.recv().unwrap();
        });
    });
    for generation in asked {
        enter(generation);
        answer.send(()).unwrap();
    }
    captures.join().unwrap();
}

pub(crate) fn refused(what: &str) {
    let _kept: Box<dyn std::any::Any> = match what {
        "shared-memory" => Box::new(map(libc::MAP_SHARED | libc::MAP_ANONYMOUS, libc::PROT_READ | libc::PROT_WRITE, -1)),
        "shared-file" => {
            std::fs::write("mapped", [0; 4096]).unwrap();
            let file = File::options().read(true).write(true).open("mapped").unwrap();
            Box::new(map(libc::MAP_SHARED, libc::PROT_READ | libc::PROT_WRITE, file.as_raw_fd()))
        }
        "dont-fork" => {
            let at = map(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, libc::PROT_READ | libc::PROT_WRITE, -1);
            // SAFETY: the test's own mapping.
            assert_eq!(unsafe { libc::madvise(at as *mut _, 4096, libc::MADV_DONTFORK) }, 0);
            Box::new(at)
        }
        "posix-timer" => {
            let mut id = ptr::null_mut();
            // SAFETY: all-zero is a valid event.
            let mut event: libc::sigevent = unsafe { mem::zeroed() };
            event.sigev_notify = libc::SIGEV_NONE;
            // SAFETY: a valid event and a place for the id.
            assert_eq!(unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut id) }, 0);
            Box::new(())
        }
        "pending-signal" => {
            // SAFETY: all-zero is a valid set.
            let mut set: libc::sigset_t = unsafe { mem::zeroed() };
            // SAFETY: a valid set.
            unsafe { libc::sigaddset(&mut set, libc::SIGUSR1) };
            // SAFETY: a valid set.
            assert_eq!(unsafe { libc::sigprocmask(libc::SIG_BLOCK, &set, ptr::null_mut()) }, 0);
            // SAFETY: blocked, so it stays pending.
            assert_eq!(unsafe { libc::kill(libc::getpid(), libc::SIGUSR1) }, 0);
            Box::new(())
        }
        "child" => {
            let child = std::process::Command::new("sleep").arg("600").stdin(std::process::Stdio::null()).spawn().unwrap();
            Box::new(Killed(child))
        }
        "deaf-thread" => {
            let (tell, told) = std::sync::mpsc::channel();
            std::thread::Builder::new()
                .name("deaf".into())
                .spawn(move || {
                    let all = u64::MAX;
                    // SAFETY: the bare call, which can block the C library's own signals too.
                    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &all, 0, 8) };
                    tell.send(()).unwrap();
                    loop {
                        std::thread::park();
                    }
                })
                .unwrap();
            told.recv().unwrap();
            Box::new(())
        }
        "seccomp" => {
            // The engine is made in `lives`; it must have been made before the filter to see it as our own.
            super::ENGINE_FIRST.set(true);
            Box::new(())
        }
        _ => panic!("nothing is called {what}"),
    };
    lives(|_| {});
}

struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Allows everything, but it is a filter.
pub(crate) fn install_filter() {
    let allow = libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW };
    let program = libc::sock_fprog { len: 1, filter: ptr::from_ref(&allow).cast_mut() };
    // SAFETY: integer arguments.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    // SAFETY: a program of one instruction, which outlives the call.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) }, 0);
}

fn map(flags: i32, protection: i32, fd: i32) -> usize {
    // SAFETY: the kernel chooses the place.
    let at = unsafe { libc::mmap(ptr::null_mut(), 4096, protection, flags, fd, 0) };
    assert_ne!(at, libc::MAP_FAILED);
    at as usize
}
