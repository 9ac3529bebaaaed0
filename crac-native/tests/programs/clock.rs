//! Clocks that go on: readers, and everything that waits until a moment.
#![allow(unsafe_code, reason = "the test uses the C library directly")]

use std::{
    mem::MaybeUninit,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr,
    sync::{
        Arc, Barrier, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use super::{capture_once, lives};

/// As long as a service may hang before a test gives up; it runs on the kernel's own clock.
const HANG: Duration = Duration::from_secs(20);
/// More than a life takes to come back, also on an emulated processor, and less than the clocks of two hosts differ.
const APART: Duration = Duration::from_secs(600);
/// A wait that is woken more often than this spins.
const WAKES_MAX: u32 = 50;

/// Waits so long by the service's clock, from its call on, and says how often it woke.
type Wait = fn(Duration) -> u32;

const WAITS: &[(&str, Wait)] = &[
    ("park_timeout", park),
    ("Condvar::wait_timeout", condition),
    ("recv_timeout", receive),
    ("thread::sleep", sleep),
    ("clock_nanosleep, monotonic", |time| sleep_until(libc::CLOCK_MONOTONIC, time)),
    ("clock_nanosleep, boot time", |time| sleep_until(libc::CLOCK_BOOTTIME, time)),
    ("futex", futex),
    ("pthread_cond_timedwait", c_condition),
    ("pthread_mutex_clocklock", c_mutex),
    ("pthread_rwlock_clockwrlock", c_lock),
    ("sem_clockwait", c_semaphore),
    ("timerfd, monotonic", |time| timer(libc::CLOCK_MONOTONIC, true, time)),
    ("timerfd, boot time", |time| timer(libc::CLOCK_BOOTTIME, true, time)),
    ("timerfd, relative", |time| timer(libc::CLOCK_MONOTONIC, false, time)),
    ("poll", poll),
    ("tokio, with a driver for sockets", |time| tokio_sleep(true, time)),
    ("tokio, without", |time| tokio_sleep(false, time)),
];

/// Every wait, in one life: with clocks shifted from the start.
pub(crate) fn matrix() {
    const TIME: Duration = Duration::from_millis(60);
    let (tell, told) = mpsc::channel();
    for (name, wait) in WAITS {
        let tell = tell.clone();
        thread::spawn(move || {
            let (before, seen) = (kernel(libc::CLOCK_MONOTONIC), Instant::now());
            let wakes = wait(TIME);
            let (took, seen) = (kernel(libc::CLOCK_MONOTONIC) - before, seen.elapsed());
            tell.send((*name, took, seen, wakes)).unwrap();
        });
    }
    for _ in WAITS {
        let (name, took, seen, wakes) = in_time(&told);
        assert!(took + Duration::from_millis(1) >= TIME, "{name} ended early, after {took:?}");
        assert!(seen + Duration::from_millis(1) >= TIME, "{name} took {seen:?} by the service's clock");
        assert!(wakes <= WAKES_MAX, "{name} woke {wakes} times");
    }
    println!("waited");
}

/// Every wait begins in one life and ends in the next.
pub(crate) fn across() {
    const TIME: Duration = Duration::from_millis(1500);
    let begun = Arc::new(Barrier::new(WAITS.len() + 1));
    let (tell, told) = mpsc::channel();
    for (name, wait) in WAITS {
        let (begun, tell) = (begun.clone(), tell.clone());
        thread::spawn(move || {
            begun.wait();
            let began = Instant::now();
            let wakes = wait(TIME);
            tell.send((*name, began, began.elapsed(), wakes, kernel(libc::CLOCK_MONOTONIC))).unwrap();
        });
    }
    begun.wait();
    // Long enough for all to be in their waits; one that is not begins in the other life, which works as well.
    thread::sleep(Duration::from_millis(100));
    let life = capture_once();
    let (back, resumed) = (Instant::now(), kernel(libc::CLOCK_MONOTONIC));
    for _ in WAITS {
        let (name, began, seen, wakes, ended) = in_time(&told);
        let (left, took) = (TIME.saturating_sub(back.saturating_duration_since(began)), ended.saturating_sub(resumed));
        assert!(seen + Duration::from_millis(1) >= TIME, "{name} ended early, after {seen:?} by the service's clock");
        // The clocks may go on from the last tick of the kernel before the restore.
        assert!(
            took + TICK_MAX + Duration::from_millis(1) >= left,
            "{name} ended early, after {took:?} of {left:?} in this life"
        );
        assert!(wakes <= WAKES_MAX, "{name} woke {wakes} times");
    }
    println!("life {}", life.generation);
    println!("waited");
}

/// The longest tick of a kernel (`CONFIG_HZ=100`).
const TICK_MAX: Duration = Duration::from_millis(10);

/// What every reader says goes on from life to life, never backwards, and is the same for all.
pub(crate) fn readers() {
    let stop = Arc::new(AtomicBool::new(false));
    let reads = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let (stop, reads) = (stop.clone(), reads.clone());
            thread::spawn(move || {
                let mut last = [Duration::ZERO; 4];
                while !stop.load(Ordering::SeqCst) {
                    for (last, clock) in last.iter_mut().zip([
                        libc::CLOCK_MONOTONIC,
                        libc::CLOCK_MONOTONIC_RAW,
                        libc::CLOCK_MONOTONIC_COARSE,
                        libc::CLOCK_BOOTTIME,
                    ]) {
                        let now = library(clock).unwrap();
                        assert!(now >= *last, "clock {clock} went from {last:?} to {now:?}");
                        *last = now;
                    }
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let (mut wall, mut last) = (SystemTime::now(), Instant::now());
    let mut cache = [0_u64; 2];
    lives(|_| {
        let (before, now, now_wall) = (SystemTime::now(), Instant::now(), SystemTime::now());
        // The wall clock was read before and is read behind the other one, so that no wait between the two counts.
        let (passed, passed_wall) = (now.duration_since(last), now_wall.duration_since(wall).unwrap());
        // Most of the time between two lives did not happen, and hosts are days apart.
        assert!(passed < APART && passed <= passed_wall + Duration::from_millis(50), "{passed:?} of {passed_wall:?}");
        (wall, last) = (before, now);
        compare_readers(&mut cache);
        // Each reader reads on.
        let before = reads.load(Ordering::Relaxed);
        while reads.load(Ordering::Relaxed) < before + 10 {
            assert!(threads.iter().all(|thread| !thread.is_finished()), "a reader has panicked");
            thread::yield_now();
        }
    });
    stop.store(true, Ordering::SeqCst);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    println!("joined");
}

fn compare_readers(cache: &mut [u64; 2]) {
    for clock in [libc::CLOCK_MONOTONIC, libc::CLOCK_BOOTTIME, libc::CLOCK_MONOTONIC_RAW] {
        let id = rustix_clock(clock);
        let reads = [library(clock).unwrap(), by_number(clock), rustix_time(id), library(clock).unwrap()];
        assert!(reads.is_sorted(), "clock {clock}: {reads:?}");
    }
    let [coarse, fine] = [libc::CLOCK_MONOTONIC_COARSE, libc::CLOCK_MONOTONIC].map(|clock| library(clock).unwrap());
    assert!(coarse <= fine && fine - coarse < HANG, "{coarse:?} {fine:?}");
    // The wall clock is the host's, and so is everything that is no clock.
    let begun = kernel(libc::CLOCK_REALTIME);
    // SAFETY: with a null pointer the time is only returned.
    let seconds = unsafe { libc::time(ptr::null_mut()) };
    let reads = [begun, library(libc::CLOCK_REALTIME).unwrap(), kernel(libc::CLOCK_REALTIME)];
    assert!(reads.is_sorted(), "{reads:?}");
    assert!((reads[0].as_secs()..=reads[2].as_secs() + 1).contains(&(seconds as u64 + 1)), "{seconds} {reads:?}");
    let mut time = libc::timeval { tv_sec: 0, tv_usec: 0 };
    // SAFETY: a place for the time.
    assert_eq!(unsafe { libc::gettimeofday(&mut time, ptr::null_mut()) }, 0);
    assert!(time.tv_sec as u64 >= reads[0].as_secs() && (0..1_000_000).contains(&time.tv_usec));
    let mut resolution = libc::timespec { tv_sec: 9, tv_nsec: 9 };
    // SAFETY: a place for the resolution.
    assert_eq!(unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC, &mut resolution) }, 0);
    assert_eq!((resolution.tv_sec, resolution.tv_nsec), (0, 1));
    // SAFETY: only asks.
    assert!(unsafe { libc::sched_getcpu() } >= 0);
    assert_eq!(library(77), None);
    // The clock of the processor time starts anew with a process; it is not shifted.
    cache[0] = library(libc::CLOCK_PROCESS_CPUTIME_ID).unwrap().as_nanos() as u64;
    assert!(cache[0] < 3_600_000_000_000, "{cache:?}");
}

/// Says how far the clocks have moved in another life.
pub(crate) fn gap() {
    // The wall clock around the other one.
    let (wall, before) = (SystemTime::now(), Instant::now());
    let life = capture_once();
    let gaps = [before.elapsed(), wall.elapsed().unwrap(), life.asleep_monotonic, life.asleep_wall];
    println!("life {}", life.generation);
    println!("gaps {}", gaps.map(|gap| gap.as_millis().to_string()).join(" "));
}

/// A thread that waits by a bare system call, in the way that `what` says.
pub(crate) fn bare(what: &str) {
    let what = what.to_owned();
    thread::Builder::new()
        .name("bare".into())
        .spawn(move || {
            let until = library(libc::CLOCK_MONOTONIC).unwrap() + Duration::from_secs(3600);
            let time = timespec(until);
            let word = 0_u32;
            let (word, time) = (ptr::from_ref(&word) as usize, ptr::from_ref(&time) as usize);
            let operation = (libc::FUTEX_WAIT_BITSET | libc::FUTEX_PRIVATE_FLAG) as usize;
            let (number, args) = match what.as_str() {
                "futex" => (libc::SYS_futex, [word, operation, 0, time, 0, u32::MAX as usize]),
                _ => (libc::SYS_clock_nanosleep, [libc::CLOCK_MONOTONIC as usize, 1, time, 0, 0, 0]),
            };
            loop {
                // SAFETY: the word and the time outlive the call, which only reads them.
                let _ = unsafe { crac_sys::syscall(number, args) };
            }
        })
        .unwrap();
    // Until the kernel says that it waits.
    let waits = || {
        std::fs::read_dir("/proc/self/task").unwrap().any(|task| {
            let path = task.unwrap().path();
            let read = |name: &str| std::fs::read_to_string(path.join(name)).unwrap_or_default();
            read("comm").trim() == "bare" && !read("syscall").starts_with("running")
        })
    };
    while !waits() {
        thread::yield_now();
    }
    lives(|_| {});
}

fn in_time<T>(told: &mpsc::Receiver<T>) -> T {
    let end = kernel(libc::CLOCK_MONOTONIC) + HANG;
    loop {
        match told.try_recv() {
            Ok(told) => return told,
            Err(mpsc::TryRecvError::Disconnected) => panic!("a waiting thread has panicked"),
            Err(mpsc::TryRecvError::Empty) => assert!(kernel(libc::CLOCK_MONOTONIC) < end, "a wait hangs"),
        }
        // SAFETY: waits for nothing, by a relative time.
        unsafe { libc::poll(ptr::null_mut(), 0, 5) };
    }
}

fn kernel(clock: libc::clockid_t) -> Duration {
    crac_sys::process::clock(clock).unwrap()
}

fn library(clock: libc::clockid_t) -> Option<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a place for the time.
    let read = unsafe { libc::clock_gettime(clock, &mut time) };
    assert!((0..1_000_000_000).contains(&time.tv_nsec), "{}", time.tv_nsec);
    (read == 0).then(|| Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

fn by_number(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a place for the time.
    assert_eq!(unsafe { libc::syscall(libc::SYS_clock_gettime, clock, &raw mut time) }, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn rustix_clock(clock: libc::clockid_t) -> rustix::time::ClockId {
    match clock {
        libc::CLOCK_BOOTTIME => rustix::time::ClockId::Boottime,
        libc::CLOCK_MONOTONIC_RAW => rustix::time::ClockId::MonotonicRaw,
        _ => rustix::time::ClockId::Monotonic,
    }
}

fn rustix_time(clock: rustix::time::ClockId) -> Duration {
    let time = rustix::time::clock_gettime(clock);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn timespec(time: Duration) -> libc::timespec {
    libc::timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() }
}

fn deadline(clock: libc::clockid_t, time: Duration) -> libc::timespec {
    timespec(library(clock).unwrap() + time)
}

/// Repeats `wait` until it says that the moment has come.
fn until(mut wait: impl FnMut() -> bool) -> u32 {
    let mut wakes = 1;
    while !wait() {
        wakes += 1;
        assert!(wakes < 1_000_000, "spins");
    }
    wakes
}

fn park(time: Duration) -> u32 {
    let end = Instant::now() + time;
    until(|| {
        thread::park_timeout(end.saturating_duration_since(Instant::now()));
        Instant::now() >= end
    })
}

fn condition(time: Duration) -> u32 {
    let (mutex, condition) = (Mutex::new(()), Condvar::new());
    let (end, mut wakes) = (Instant::now() + time, 0);
    let mut guard = mutex.lock().unwrap();
    while Instant::now() < end && wakes <= WAKES_MAX {
        guard = condition.wait_timeout(guard, end.saturating_duration_since(Instant::now())).unwrap().0;
        wakes += 1;
    }
    wakes
}

fn receive(time: Duration) -> u32 {
    let (_kept, receiver) = mpsc::channel::<()>();
    assert_eq!(receiver.recv_timeout(time), Err(mpsc::RecvTimeoutError::Timeout));
    1
}

fn sleep(time: Duration) -> u32 {
    thread::sleep(time);
    1
}

fn sleep_until(clock: libc::clockid_t, time: Duration) -> u32 {
    let end = deadline(clock, time);
    // SAFETY: the time outlives the call; nothing is left over of an absolute wait.
    until(|| match unsafe { libc::clock_nanosleep(clock, libc::TIMER_ABSTIME, &end, ptr::null_mut()) } {
        0 => true,
        error => error != libc::EINTR,
    })
}

fn futex(time: Duration) -> u32 {
    let (word, end) = (0_u32, deadline(libc::CLOCK_MONOTONIC, time));
    let operation = libc::FUTEX_WAIT_BITSET | libc::FUTEX_PRIVATE_FLAG;
    until(|| {
        // SAFETY: the word and the time outlive the call, which only reads them.
        let waited = unsafe { libc::syscall(libc::SYS_futex, &raw const word, operation, 0, &raw const end, 0_usize, u32::MAX) };
        waited == -1 && std::io::Error::last_os_error().raw_os_error() == Some(libc::ETIMEDOUT)
    })
}

fn c_condition(time: Duration) -> u32 {
    let end = deadline(libc::CLOCK_MONOTONIC, time);
    let mut attributes = MaybeUninit::uninit();
    let (mut condition, mut mutex) = (MaybeUninit::uninit(), libc::PTHREAD_MUTEX_INITIALIZER);
    // SAFETY: objects of this frame, initialised in order and used by this thread alone.
    unsafe {
        libc::pthread_condattr_init(attributes.as_mut_ptr());
        libc::pthread_condattr_setclock(attributes.as_mut_ptr(), libc::CLOCK_MONOTONIC);
        libc::pthread_cond_init(condition.as_mut_ptr(), attributes.as_ptr());
        libc::pthread_mutex_lock(&mut mutex);
    }
    // SAFETY: initialised above, and the mutex is locked.
    until(|| unsafe { libc::pthread_cond_timedwait(condition.as_mut_ptr(), &mut mutex, &end) } == libc::ETIMEDOUT)
}

unsafe extern "C" {
    // The `libc` crate does not know these. In a static program they cannot be looked up by name.
    fn pthread_mutex_clocklock(mutex: *mut libc::pthread_mutex_t, clock: libc::clockid_t, until: *const libc::timespec) -> i32;
    fn pthread_rwlock_clockwrlock(lock: *mut libc::pthread_rwlock_t, clock: libc::clockid_t, until: *const libc::timespec)
    -> i32;
    fn sem_clockwait(semaphore: *mut libc::sem_t, clock: libc::clockid_t, until: *const libc::timespec) -> i32;
}

fn c_mutex(time: Duration) -> u32 {
    let end = deadline(libc::CLOCK_MONOTONIC, time);
    let mut mutex = libc::PTHREAD_MUTEX_INITIALIZER;
    // SAFETY: nobody else knows it.
    unsafe { libc::pthread_mutex_lock(&mut mutex) };
    // SAFETY: a mutex of the default kind waits for its own owner as for any other.
    until(|| unsafe { pthread_mutex_clocklock(&mut mutex, libc::CLOCK_MONOTONIC, &end) } == libc::ETIMEDOUT)
}

fn c_lock(time: Duration) -> u32 {
    let end = deadline(libc::CLOCK_MONOTONIC, time);
    let rwlock = Box::leak(Box::new(libc::PTHREAD_RWLOCK_INITIALIZER));
    let at = ptr::from_mut(rwlock) as usize;
    // Its writer must be somebody else.
    thread::spawn(move || {
        // SAFETY: it is never freed.
        unsafe { libc::pthread_rwlock_wrlock(at as *mut _) };
    })
    .join()
    .unwrap();
    // SAFETY: it is never freed.
    until(|| unsafe { pthread_rwlock_clockwrlock(at as *mut _, libc::CLOCK_MONOTONIC, &end) } == libc::ETIMEDOUT)
}

fn c_semaphore(time: Duration) -> u32 {
    let end = deadline(libc::CLOCK_MONOTONIC, time);
    let mut semaphore = MaybeUninit::uninit();
    // SAFETY: an object of this frame.
    assert_eq!(unsafe { libc::sem_init(semaphore.as_mut_ptr(), 0, 0) }, 0);
    until(|| {
        // SAFETY: initialised above.
        let waited = unsafe { sem_clockwait(semaphore.as_mut_ptr(), libc::CLOCK_MONOTONIC, &end) };
        waited == -1 && std::io::Error::last_os_error().raw_os_error() == Some(libc::ETIMEDOUT)
    })
}

fn timer(clock: libc::clockid_t, absolute: bool, time: Duration) -> u32 {
    // SAFETY: makes a descriptor.
    let timer = unsafe { libc::timerfd_create(clock, libc::TFD_CLOEXEC) };
    // SAFETY: just made.
    let timer = unsafe { OwnedFd::from_raw_fd(timer) };
    let (flags, value) = if absolute { (libc::TFD_TIMER_ABSTIME, deadline(clock, time)) } else { (0, timespec(time)) };
    let value = libc::itimerspec { it_interval: timespec(Duration::ZERO), it_value: value };
    // SAFETY: the time outlives the call.
    assert_eq!(unsafe { libc::timerfd_settime(timer.as_raw_fd(), flags, &value, ptr::null_mut()) }, 0);
    let mut ticks = 0_u64;
    // SAFETY: eight bytes, which is what a timer gives.
    let wakes = until(|| unsafe { libc::read(timer.as_raw_fd(), (&raw mut ticks).cast(), 8) } == 8);
    assert_eq!(ticks, 1);
    wakes
}

fn poll(time: Duration) -> u32 {
    let end = Instant::now() + time;
    until(|| {
        let rest = end.saturating_duration_since(Instant::now()).as_millis() as i32;
        // SAFETY: no descriptors.
        unsafe { libc::poll(ptr::null_mut(), 0, rest + 1) };
        Instant::now() >= end
    })
}

fn tokio_sleep(sockets: bool, time: Duration) -> u32 {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).enable_time();
    if sockets {
        builder.enable_io();
    }
    let runtime = builder.build().unwrap();
    runtime.block_on(async move {
        let mut interval = tokio::time::interval(time / 10);
        let end = tokio::time::Instant::now() + time;
        let ticks = tokio::time::timeout(time * 10, async {
            let mut ticks = 0;
            while tokio::time::Instant::now() < end {
                interval.tick().await;
                ticks += 1;
            }
            ticks
        });
        ticks.await.unwrap()
    })
}
