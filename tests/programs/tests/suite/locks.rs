//! Mutexes of the C library, held while the process is saved: those that know their owner know it by its thread id.
#![allow(unsafe_code, reason = "the C library's mutexes")]

use std::{cell::UnsafeCell, mem::MaybeUninit, sync::mpsc, thread};

use crate::lives::{Lives, Program};

pub(crate) const PROGRAMS: &[(&str, Program)] = &[
    ("mutex-held-normal", |lives| held(lives, Kind { of: libc::PTHREAD_MUTEX_NORMAL, ..Kind::PLAIN })),
    ("mutex-held-recursive", |lives| held(lives, Kind { of: libc::PTHREAD_MUTEX_RECURSIVE, ..Kind::PLAIN })),
    ("mutex-held-checking", |lives| held(lives, Kind { of: libc::PTHREAD_MUTEX_ERRORCHECK, ..Kind::PLAIN })),
    ("mutex-held-inheriting", |lives| held(lives, Kind { inheriting: true, ..Kind::PLAIN })),
    ("mutex-held-robust", |lives| held(lives, Kind { robust: true, ..Kind::PLAIN })),
    ("mutex-held-elsewhere", held_elsewhere),
    ("mutex-contended", |lives| contended(lives, Kind { of: libc::PTHREAD_MUTEX_RECURSIVE, ..Kind::PLAIN })),
    ("mutex-contended-inheriting", |lives| contended(lives, Kind { inheriting: true, ..Kind::PLAIN })),
    ("mutex-contended-robust", |lives| contended(lives, Kind { robust: true, ..Kind::PLAIN })),
    ("mutex-robust-owner-dies", owner_dies),
];

#[derive(Clone, Copy)]
struct Kind {
    of: i32,
    inheriting: bool,
    robust: bool,
}

impl Kind {
    const PLAIN: Self = Self { of: libc::PTHREAD_MUTEX_NORMAL, inheriting: false, robust: false };
}

/// A mutex that stays where it is.
struct Lock(UnsafeCell<libc::pthread_mutex_t>);

// SAFETY: a mutex.
unsafe impl Sync for Lock {}

impl Lock {
    fn new(kind: Kind) -> &'static Self {
        let mut attributes = MaybeUninit::<libc::pthread_mutexattr_t>::uninit();
        let attributes = attributes.as_mut_ptr();
        // SAFETY: fills the attributes.
        assert_eq!(unsafe { libc::pthread_mutexattr_init(attributes) }, 0);
        // SAFETY: attributes that were filled, here and below.
        assert_eq!(unsafe { libc::pthread_mutexattr_settype(attributes, kind.of) }, 0);
        if kind.inheriting {
            // SAFETY: as above.
            assert_eq!(unsafe { libc::pthread_mutexattr_setprotocol(attributes, libc::PTHREAD_PRIO_INHERIT) }, 0);
        }
        if kind.robust {
            // SAFETY: as above.
            assert_eq!(unsafe { libc::pthread_mutexattr_setrobust(attributes, libc::PTHREAD_MUTEX_ROBUST) }, 0);
        }
        let lock: &'static Self = Box::leak(Box::new(Self(UnsafeCell::new(libc::PTHREAD_MUTEX_INITIALIZER))));
        // SAFETY: nobody else has it yet.
        assert_eq!(unsafe { libc::pthread_mutex_init(lock.0.get(), attributes) }, 0);
        lock
    }

    fn lock(&self) -> i32 {
        // SAFETY: initialised, and never moved or destroyed; here and below.
        unsafe { libc::pthread_mutex_lock(self.0.get()) }
    }

    fn try_lock(&self) -> i32 {
        // SAFETY: as above.
        unsafe { libc::pthread_mutex_trylock(self.0.get()) }
    }

    fn unlock(&self) -> i32 {
        // SAFETY: as above.
        unsafe { libc::pthread_mutex_unlock(self.0.get()) }
    }

    fn make_consistent(&self) -> i32 {
        // SAFETY: as above.
        unsafe { libc::pthread_mutex_consistent(self.0.get()) }
    }

    /// Somebody sleeps for it: the kernel's bit, or the C library's mark.
    fn has_waiters(&self) -> bool {
        // SAFETY: the first word of the mutex is its lock.
        let word = unsafe { self.0.get().cast::<u32>().read_volatile() };
        word == 2 || word & 0x8000_0000 != 0
    }

    fn is_taken_for_others(&self) -> bool {
        thread::scope(|scope| {
            scope
                .spawn(|| match self.try_lock() {
                    0 => {
                        assert_eq!(self.unlock(), 0);
                        false
                    }
                    error => error == libc::EBUSY,
                })
                .join()
                .unwrap()
        })
    }
}

fn held(lives: Lives, kind: Kind) {
    let lock = Lock::new(kind);
    assert_eq!(lock.lock(), 0);
    lives.each(|_| {
        assert!(lock.is_taken_for_others());
        match kind.of {
            libc::PTHREAD_MUTEX_RECURSIVE => {
                assert_eq!((lock.lock(), lock.unlock()), (0, 0), "taken once more by its owner");
            }
            libc::PTHREAD_MUTEX_ERRORCHECK => assert_eq!(lock.lock(), libc::EDEADLK, "its owner is known"),
            _ => {}
        }
        assert_eq!(lock.unlock(), 0, "its owner may release it");
        assert!(!lock.is_taken_for_others());
        assert_eq!(lock.lock(), 0);
    })
}

/// Held by another thread than the one that captures.
fn held_elsewhere(lives: Lives) {
    let locks = [
        Lock::new(Kind { of: libc::PTHREAD_MUTEX_RECURSIVE, ..Kind::PLAIN }),
        Lock::new(Kind { of: libc::PTHREAD_MUTEX_ERRORCHECK, ..Kind::PLAIN }),
        Lock::new(Kind { inheriting: true, ..Kind::PLAIN }),
        Lock::new(Kind { robust: true, ..Kind::PLAIN }),
        Lock::new(Kind { robust: true, inheriting: true, of: libc::PTHREAD_MUTEX_RECURSIVE }),
    ];
    let (ask, asked) = mpsc::channel::<()>();
    let (answer, answered) = mpsc::channel();
    thread::spawn(move || {
        locks.iter().for_each(|lock| assert_eq!(lock.lock(), 0));
        for () in asked {
            // The order of release is not that of taking.
            let released: Vec<i32> = locks.iter().map(|lock| lock.unlock()).collect();
            let taken: Vec<i32> = locks.iter().rev().map(|lock| lock.lock()).collect();
            answer.send((released, taken)).unwrap();
        }
    });
    lives.each(|_| {
        ask.send(()).unwrap();
        assert_eq!(answered.recv().unwrap(), (vec![0; 5], vec![0; 5]));
        assert!(locks.iter().all(|lock| lock.is_taken_for_others()));
    })
}

/// A thread waits for a lock that knows its owner.
fn contended(lives: Lives, kind: Kind) {
    let lock = Lock::new(kind);
    assert_eq!(lock.lock(), 0);
    let (got, gets) = mpsc::channel();
    let turn = std::sync::Arc::new(std::sync::Barrier::new(2));
    let waiter = turn.clone();
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        tell.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
        loop {
            assert_eq!(lock.lock(), 0);
            got.send(()).unwrap();
            assert_eq!(lock.unlock(), 0);
            waiter.wait();
        }
    });
    told.recv().unwrap();
    lives.each(|life| {
        if life == crate::lives::Life::Refused {
            return;
        }
        assert_eq!(lock.unlock(), 0);
        gets.recv().unwrap();
        assert_eq!(lock.lock(), 0);
        turn.wait();
        // The waiter waits again: it sleeps, and not for its turn.
        let asleep = || {
            let mut others = std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
            others.all(|task| {
                let is_own = task.ends_with(std::process::id().to_string());
                is_own || crate::kernel::field(task.join("status").to_str().unwrap(), "State").starts_with('S')
            })
        };
        while !asleep() || !lock.has_waiters() {
            thread::yield_now();
        }
    })
}

/// The kernel tells the next owner of a robust mutex when its owner ends, in later lives too.
fn owner_dies(lives: Lives) {
    let lock = Lock::new(Kind { robust: true, ..Kind::PLAIN });
    let holder = || {
        let (end, told) = mpsc::channel::<()>();
        let (tell, taken) = mpsc::channel();
        let thread = thread::spawn(move || {
            assert_eq!(lock.lock(), 0);
            tell.send(()).unwrap();
            let _ = told.recv();
        });
        taken.recv().unwrap();
        (end, thread)
    };
    let mut holding = Some(holder());
    lives.each(|_| {
        let (end, thread) = holding.take().unwrap();
        drop(end);
        thread.join().unwrap();
        assert_eq!(lock.lock(), libc::EOWNERDEAD);
        assert_eq!((lock.make_consistent(), lock.unlock()), (0, 0));
        holding = Some(holder());
    })
}
