//! Threads: how many, and what they are at.
#![allow(unsafe_code, reason = "calls of the C library, and registers")]

use std::{
    cell::Cell,
    io::{Read as _, Write as _},
    os::fd::AsRawFd as _,
    ptr,
    sync::{
        Arc, Barrier, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    kernel::{call, field},
    lives::{Life, Lives, Program, not_here},
};

pub(crate) const PROGRAMS: &[(&str, Program)] = &[
    ("one-thread", |lives| lives.each(|_| assert_eq!(field("/proc/self/status", "Threads"), "1"))),
    ("ten-threads", |lives| in_step(lives, 10)),
    ("two-hundred-threads", |lives| in_step(lives, 200)),
    ("eight-hundred-threads", |lives| in_step(lives, 800)),
    ("changing-threads", changing),
    ("thread-names", names),
    ("wait-futex", |lives| waiting(lives, wait_futex)),
    ("wait-futex-timeout", |lives| waiting(lives, wait_futex_timeout)),
    ("wait-condition", |lives| waiting(lives, wait_condition)),
    ("wait-channel", |lives| waiting(lives, wait_channel)),
    ("wait-read", |lives| waiting(lives, wait_read)),
    ("wait-poll", |lives| waiting(lives, wait_poll)),
    ("wait-epoll", |lives| waiting(lives, wait_epoll)),
    ("wait-sleep", |lives| waiting(lives, wait_sleep)),
    ("wait-signal", |lives| waiting(lives, wait_signal)),
    ("all-signals-blocked", all_signals_blocked),
    ("floating-point", floating_point),
    ("vector-registers", vector_registers),
    ("restartable-sequences", restartable_sequences),
    ("thread-locals", thread_locals),
    ("thread-exit", thread_exit),
    ("main-thread-ended", main_thread_ended),
];

/// Lets `count` threads run one round each, in every life.
fn in_step(lives: Lives, count: usize) {
    thread_local!(static OWN: Cell<usize> = const { Cell::new(0) });
    let gates = Arc::new((Barrier::new(count + 1), Barrier::new(count + 1)));
    for number in 0..count {
        let gates = gates.clone();
        let body = move || {
            OWN.set(number);
            let mut rounds = 0;
            loop {
                gates.0.wait();
                rounds += 1;
                assert_eq!(OWN.get(), number);
                assert!(rounds < 10);
                gates.1.wait();
            }
        };
        thread::Builder::new().stack_size(64 * 1024).spawn(body).unwrap();
    }
    lives.each(|_| {
        gates.0.wait();
        gates.1.wait();
        assert_eq!(field("/proc/self/status", "Threads"), (count + 1).to_string());
    })
}

/// Threads begin and end all the time.
fn changing(lives: Lives) {
    let ended = Arc::new(AtomicU64::new(0));
    for _ in 0..3 {
        let ended = ended.clone();
        thread::spawn(move || {
            loop {
                let inner = thread::spawn(|| vec![1_u64; 1000].iter().sum::<u64>());
                assert_eq!(inner.join().unwrap(), 1000);
                ended.fetch_add(1, SeqCst);
            }
        });
    }
    lives.each(|_| {
        let before = ended.load(SeqCst);
        while ended.load(SeqCst) < before + 20 {
            thread::yield_now();
        }
    })
}

fn names(lives: Lives) {
    let gates = Arc::new((Barrier::new(2), Barrier::new(2)));
    let inner = gates.clone();
    let body = move || {
        loop {
            inner.0.wait();
            assert_eq!(std::fs::read_to_string("/proc/thread-self/comm").unwrap(), "a fifteen-chars\n");
            inner.1.wait();
        }
    };
    thread::Builder::new().name("a fifteen-chars".into()).spawn(body).unwrap();
    rustix::thread::set_name(c"renamed").unwrap();
    lives.each(|_| {
        gates.0.wait();
        gates.1.wait();
        assert_eq!(std::fs::read_to_string("/proc/self/comm").unwrap(), "renamed\n");
    })
}

/// How a thread waits: returns a function that waits once, and one that lets it go on.
type Wait = fn() -> Waiting;
type Waiting = (Box<dyn FnMut() + Send>, Box<dyn FnMut()>);

/// A thread is inside the wait when it is captured, goes on waiting in the next life, and is woken there.
fn waiting(lives: Lives, wait: Wait) {
    let (mut wait, mut wake) = wait();
    let rounds = Arc::new(AtomicU64::new(0));
    let counted = rounds.clone();
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        tell.send(rustix::thread::gettid()).unwrap();
        loop {
            wait();
            counted.fetch_add(1, SeqCst);
        }
    });
    told.recv().unwrap();
    lives.each(|_| {
        let before = rounds.load(SeqCst);
        wake();
        while rounds.load(SeqCst) == before {
            thread::yield_now();
        }
        // Inside the wait again: the kernel says that the thread sleeps.
        let asleep = || {
            std::fs::read_dir("/proc/self/task").unwrap().all(|task| {
                let task = task.unwrap();
                task.file_name().to_str() == Some(&std::process::id().to_string())
                    || field(task.path().join("status").to_str().unwrap(), "State").starts_with('S')
            })
        };
        while !asleep() {
            thread::yield_now();
        }
    })
}

fn futex(word: &AtomicU32, operation: i32, value: u32, timeout: usize) -> Result<usize, crac_sys::Errno> {
    call(libc::SYS_futex, [ptr::from_ref(word).expose_provenance(), operation as usize, value as usize, timeout])
}

fn futex_wait(timeout: Option<libc::timespec>) -> Waiting {
    static WORD: AtomicU32 = AtomicU32::new(0);
    let mut seen = 0;
    let wait = move || {
        while WORD.load(SeqCst) == seen {
            let address = timeout.as_ref().map_or(0, |time| ptr::from_ref(time).expose_provenance());
            match futex(&WORD, libc::FUTEX_WAIT, seen, address).map_err(|errno| errno.number()) {
                Ok(_) | Err(libc::EAGAIN | libc::EINTR) => {}
                other => panic!("{other:?}"),
            }
        }
        seen += 1;
    };
    let wake = || {
        WORD.fetch_add(1, SeqCst);
        futex(&WORD, libc::FUTEX_WAKE, 1, 0).unwrap();
    };
    (Box::new(wait), Box::new(wake))
}

fn wait_futex() -> Waiting {
    futex_wait(None)
}

fn wait_futex_timeout() -> Waiting {
    futex_wait(Some(libc::timespec { tv_sec: 3600, tv_nsec: 0 }))
}

fn wait_condition() -> Waiting {
    let shared = Arc::new((Mutex::new(0), Condvar::new()));
    let other = shared.clone();
    let mut seen = 0;
    let wait = move || {
        let mut now = other.0.lock().unwrap();
        while *now == seen {
            now = other.1.wait_timeout(now, Duration::from_secs(3600)).unwrap().0;
        }
        seen = *now;
    };
    let wake = move || {
        *shared.0.lock().unwrap() += 1;
        shared.1.notify_all();
    };
    (Box::new(wait), Box::new(wake))
}

fn wait_channel() -> Waiting {
    let (sender, receiver) = mpsc::channel();
    (Box::new(move || receiver.recv().unwrap()), Box::new(move || sender.send(()).unwrap()))
}

fn wait_read() -> Waiting {
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    (Box::new(move || reader.read_exact(&mut [0]).unwrap()), Box::new(move || writer.write_all(&[1]).unwrap()))
}

fn wait_poll() -> Waiting {
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    let wait = move || {
        let mut polled = libc::pollfd { fd: reader.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        loop {
            match call(libc::SYS_poll, [ptr::from_mut(&mut polled).expose_provenance(), 1, 3_600_000]) {
                Ok(1) => break,
                Err(errno) if errno.number() == libc::EINTR => {}
                other => panic!("{other:?}"),
            }
        }
        reader.read_exact(&mut [0]).unwrap();
    };
    (Box::new(wait), Box::new(move || writer.write_all(&[1]).unwrap()))
}

fn wait_epoll() -> Waiting {
    use rustix::event::epoll;
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    let instance = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    epoll::add(&instance, &reader, epoll::EventData::new_u64(5), epoll::EventFlags::IN).unwrap();
    let wait = move || {
        let mut events = Vec::with_capacity(4);
        loop {
            match epoll::wait(&instance, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(events[0].data.u64(), 5);
        reader.read_exact(&mut [0]).unwrap();
    };
    (Box::new(wait), Box::new(move || writer.write_all(&[1]).unwrap()))
}

/// Sleeps as long as it was told to, however often it is saved meanwhile.
fn wait_sleep() -> Waiting {
    const NAP: Duration = Duration::from_millis(40);
    let wait = || {
        let start = Instant::now();
        thread::sleep(NAP);
        assert!(start.elapsed() >= NAP);
    };
    (Box::new(wait), Box::new(|| {}))
}

fn wait_signal() -> Waiting {
    let set: u64 = 1 << (libc::SIGUSR1 - 1);
    let at = move || ptr::from_ref(&set).expose_provenance();
    call(libc::SYS_rt_sigprocmask, [libc::SIG_BLOCK as usize, at(), 0, 8]).unwrap();
    let wait = move || {
        loop {
            match call(libc::SYS_rt_sigtimedwait, [ptr::from_ref(&set).expose_provenance(), 0, 0, 8]) {
                Ok(signal) => break assert_eq!(signal as i32, libc::SIGUSR1),
                Err(errno) => assert_eq!(errno.number(), libc::EINTR),
            }
        }
    };
    let wake = || rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::USR1).unwrap();
    (Box::new(wait), Box::new(wake))
}

/// As helper threads of allocators and clients do: stopped all the same, and deaf again afterwards.
fn all_signals_blocked(lives: Lives) {
    let gates = Arc::new((Barrier::new(2), Barrier::new(2)));
    let inner = gates.clone();
    thread::spawn(move || {
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: fills the set.
        unsafe { libc::sigfillset(set.as_mut_ptr()) };
        // SAFETY: a set that was filled.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), ptr::null_mut()) };
        let mask = || field("/proc/thread-self/status", "SigBlk");
        let before = mask();
        loop {
            inner.0.wait();
            assert_eq!(mask(), before);
            inner.1.wait();
        }
    });
    lives.each(|_| {
        gates.0.wait();
        gates.1.wait();
    })
}

/// A thread computes without a pause, and gets the same numbers as it would have without an interruption.
fn floating_point(lives: Lives) {
    let rounds = Arc::new(AtomicU64::new(0));
    let counted = rounds.clone();
    thread::spawn(move || {
        let series = || (1..20_000).fold(0.1_f64, |sum, term| (sum + 1.0 / f64::from(term)).sin().mul_add(1.5, sum * 0.25));
        let expected = series();
        loop {
            assert_eq!(series().to_bits(), expected.to_bits());
            counted.fetch_add(1, SeqCst);
        }
    });
    lives.each(|_| {
        let before = rounds.load(SeqCst);
        while rounds.load(SeqCst) < before + 3 {
            thread::yield_now();
        }
    })
}

/// A thread spins with known values in all vector registers until it is told to look at them.
fn vector_registers(lives: Lives) {
    if !std::is_x86_feature_detected!("avx") {
        not_here("this processor has no AVX");
    }
    static TURN: AtomicU32 = AtomicU32::new(0);
    let right = Arc::new(AtomicBool::new(true));
    let rounds = Arc::new(AtomicU64::new(0));
    let (seen, counted) = (right.clone(), rounds.clone());
    thread::spawn(move || {
        loop {
            let now = TURN.load(SeqCst);
            let mut given = [[0_u64; 4]; 2];
            for (at, lane) in given.iter_mut().flatten().enumerate() {
                *lane = 0x1234_5678_9abc_def0 ^ (at as u64) << 7;
            }
            let mut found = [[0_u64; 4]; 2];
            // SAFETY: two registers are loaded, the word is watched until it changes, and the registers are stored.
            unsafe {
                std::arch::asm!(
                    "vmovdqu ymm14, [{given}]",
                    "vmovdqu ymm15, [{given} + 32]",
                    "2:",
                    "pause",
                    "cmp dword ptr [{turn}], {now:e}",
                    "je 2b",
                    "vmovdqu [{found}], ymm14",
                    "vmovdqu [{found} + 32], ymm15",
                    given = in(reg) given.as_ptr(),
                    found = in(reg) found.as_mut_ptr(),
                    turn = in(reg) TURN.as_ptr(),
                    now = in(reg) now,
                    out("ymm14") _,
                    out("ymm15") _,
                );
            }
            if found != given {
                seen.store(false, SeqCst);
            }
            counted.fetch_add(1, SeqCst);
        }
    });
    lives.each(|_| {
        let before = rounds.load(SeqCst);
        while rounds.load(SeqCst) == before {
            TURN.fetch_add(1, SeqCst);
            thread::yield_now();
        }
        assert!(right.load(SeqCst), "the registers hold what they held");
    })
}

fn restartable_sequences(lives: Lives) {
    lives.each(|_| {
        thread::scope(|scope| {
            let look = || {
                for _ in 0..2000 {
                    let mut cpu = 0_u32;
                    // SAFETY: only asks; the C library reads the area that the kernel keeps up to date.
                    let fast = unsafe { libc::sched_getcpu() };
                    call(libc::SYS_getcpu, [ptr::from_mut(&mut cpu).expose_provenance(), 0, 0]).unwrap();
                    assert!((0..4096).contains(&fast) && cpu < 4096);
                }
            };
            scope.spawn(look);
            look();
        });
        // Registered: a second registration is refused.
        let area = [0_u8; 64];
        let again = call(libc::SYS_rseq, [area.as_ptr().expose_provenance().next_multiple_of(32), 32, 0, 0x5305_3053]);
        assert!(again.is_err(), "{again:?}");
    })
}

fn thread_locals(lives: Lives) {
    static DROPPED: AtomicU64 = AtomicU64::new(0);
    struct Counted(#[expect(dead_code, reason = "something on the heap")] Vec<u64>);
    impl Drop for Counted {
        fn drop(&mut self) {
            DROPPED.fetch_add(1, SeqCst);
        }
    }
    thread_local!(static OWN: Counted = Counted(vec![1; 10]));
    let (mut ends, mut threads) = (Vec::new(), Vec::new());
    for _ in 0..16 {
        let (end, told) = mpsc::channel::<()>();
        threads.push(thread::spawn(move || {
            OWN.with(|_| ());
            let _ = told.recv();
        }));
        ends.push(end);
    }
    let mut expected = 0;
    lives.each(|_| {
        ends.pop();
        threads.pop().unwrap().join().unwrap();
        expected += 1;
        assert_eq!(DROPPED.load(SeqCst), expected, "destructors run when a thread of an earlier life ends");
    })
}

/// Threads of an earlier life end and are joined, new ones begin.
fn thread_exit(lives: Lives) {
    let mut before: Vec<_> = (0..16)
        .map(|number| {
            let (end, told) = mpsc::channel::<()>();
            let thread = thread::spawn(move || {
                let _ = told.recv();
                number
            });
            (end, thread)
        })
        .collect();
    lives.each(|life| {
        let (end, thread) = before.pop().unwrap();
        drop(end);
        assert_eq!(thread.join().unwrap(), before.len());
        assert_eq!(thread::spawn(move || life).join().unwrap(), life);
    })
}

/// The main thread has called `pthread_exit`: what is left of it cannot be stopped.
fn main_thread_ended(lives: Lives) {
    thread::spawn(move || {
        let main = format!("/proc/self/task/{}/status", std::process::id());
        while !field(&main, "State").starts_with('Z') {
            thread::yield_now();
        }
        lives.each(|life| assert_ne!(life, Life::Restored))
    });
    call(libc::SYS_exit, [0]).unwrap();
}
