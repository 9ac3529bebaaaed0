//! What the process is and may do.
#![allow(unsafe_code, reason = "handlers of signals, and filters")]

use std::{
    fs,
    os::fd::AsRawFd as _,
    ptr,
    sync::{
        Arc, Barrier,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread,
};

use rustix::process::Resource;

use crate::{
    kernel::{Map, PAGE, PRIVATE, RW, call, field, is_root, made},
    lives::{Life, Lives, Program, not_here},
};

pub(crate) const PROGRAMS: &[(&str, Program)] = &[
    ("signal-actions", signal_actions),
    ("signal-masks", signal_masks),
    ("signal-stacks", signal_stacks),
    ("signal-pending", |lives| pending(lives, false)),
    ("signal-pending-thread", |lives| pending(lives, true)),
    ("interval-timer", interval_timer),
    ("interval-timer-processor", interval_timer_processor),
    ("posix-timer", posix_timer),
    ("resource-limits", resource_limits),
    ("resource-limit-hard", resource_limit_hard),
    ("working-directory", working_directory),
    ("working-directory-deleted", working_directory_deleted),
    ("umask", umask),
    ("nice", nice),
    ("nice-of-a-thread", nice_of_a_thread),
    ("scheduling-class", scheduling_class),
    ("scheduling-deadline", scheduling_deadline),
    ("affinity", affinity),
    ("affinity-of-a-thread", affinity_of_a_thread),
    ("io-priority", io_priority),
    ("timer-slack", timer_slack),
    ("memory-policy", memory_policy),
    ("oom-score", oom_score),
    ("core-dump-filter", core_dump_filter),
    ("no-new-privileges", no_new_privileges),
    ("capabilities", capabilities),
    ("credentials", credentials),
    ("groups", groups),
    ("secure-bits", secure_bits),
    ("seccomp", seccomp),
    ("landlock", landlock),
    ("namespace", namespace),
    ("root-directory", root_directory),
    ("write-or-execute", write_or_execute),
    ("dumpable", dumpable),
    ("personality", personality),
    ("child-running", child_running),
    ("child-ended", child_ended),
    ("child-subreaper", child_subreaper),
    ("traced", traced),
];

extern "C" fn count(_: i32) {
    CAUGHT.fetch_add(1, SeqCst);
}

static CAUGHT: AtomicU64 = AtomicU64::new(0);

fn on(signal: i32, handler: usize) {
    // SAFETY: the handler only counts, or the signal is ignored.
    unsafe { libc::signal(signal, handler) };
}

fn raise(signal: i32) {
    call(
        libc::SYS_tgkill,
        [std::process::id() as usize, rustix::thread::gettid().as_raw_nonzero().get() as usize, signal as usize],
    )
    .unwrap();
}

fn block(signal: i32) {
    let set: u64 = 1 << (signal - 1);
    call(libc::SYS_rt_sigprocmask, [libc::SIG_BLOCK as usize, ptr::from_ref(&set).expose_provenance(), 0, 8]).unwrap();
}

fn signal_actions(lives: Lives) {
    on(libc::SIGUSR1, count as *const () as usize);
    on(libc::SIGRTMIN() + 3, count as *const () as usize);
    on(libc::SIGHUP, libc::SIG_IGN);
    lives.each(|_| {
        let before = CAUGHT.load(SeqCst);
        [libc::SIGUSR1, libc::SIGRTMIN() + 3, libc::SIGHUP].into_iter().for_each(raise);
        assert_eq!(CAUGHT.load(SeqCst), before + 2);
        let ignored = u64::from_str_radix(&field("/proc/self/status", "SigIgn"), 16).unwrap();
        assert_eq!(ignored & 0x1001, 0x1001, "SIGHUP, and SIGPIPE by the standard library");
    })
}

/// Runs `body` on a second thread in every life, and `own` on this one.
fn on_two_threads(lives: Lives, set_up: fn(), body: fn(Life), own: fn(Life)) {
    let gates = Arc::new((Barrier::new(2), Barrier::new(2)));
    let life = Arc::new(std::sync::Mutex::new(Life::First));
    let (inner, told) = (gates.clone(), life.clone());
    thread::spawn(move || {
        set_up();
        loop {
            inner.0.wait();
            body(*told.lock().unwrap());
            inner.1.wait();
        }
    });
    lives.each(|now| {
        *life.lock().unwrap() = now;
        gates.0.wait();
        gates.1.wait();
        own(now);
    })
}

fn signal_masks(lives: Lives) {
    block(libc::SIGUSR2);
    let mask = || field("/proc/thread-self/status", "SigBlk");
    fn own_mask() -> String {
        field("/proc/thread-self/status", "SigBlk")
    }
    assert_eq!(mask(), "0000000000000800");
    on_two_threads(
        lives,
        || block(libc::SIGTERM),
        |_| assert_eq!(own_mask(), "0000000000004800"),
        |_| assert_eq!(own_mask(), "0000000000000800"),
    )
}

fn signal_stacks(lives: Lives) {
    fn look() -> (usize, usize) {
        let mut stack = [0_usize; 3];
        call(libc::SYS_sigaltstack, [0, stack.as_mut_ptr().expose_provenance()]).unwrap();
        (stack[0], stack[2])
    }
    static STACKS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
    fn same(at: usize) {
        let (start, len) = look();
        assert!(start != 0 && len >= 4096);
        let before = STACKS[at].swap(start as u64, SeqCst);
        assert!(before == 0 || before == start as u64);
    }
    on_two_threads(lives, || {}, |_| same(0), |_| same(1))
}

fn pending(lives: Lives, of_thread: bool) {
    block(libc::SIGUSR1);
    if of_thread {
        raise(libc::SIGUSR1);
    } else {
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::USR1).unwrap();
    }
    let label = if of_thread { "SigPnd" } else { "ShdPnd" };
    lives.each(|_| assert_eq!(field("/proc/thread-self/status", label), "0000000000000200"))
}

fn set_timer(which: i32, seconds: i64, interval: i64) {
    let time = |tv_sec| libc::timeval { tv_sec, tv_usec: 0 };
    let timer = libc::itimerval { it_interval: time(interval), it_value: time(seconds) };
    call(libc::SYS_setitimer, [which as usize, ptr::from_ref(&timer).expose_provenance(), 0]).unwrap();
}

fn timer(which: i32) -> (i64, i64) {
    let mut timer = [0_i64; 4];
    call(libc::SYS_getitimer, [which as usize, timer.as_mut_ptr().expose_provenance()]).unwrap();
    (timer[2], timer[0])
}

fn interval_timer(lives: Lives) {
    set_timer(libc::ITIMER_REAL, 3600, 7200);
    lives.each(|_| {
        let (left, interval) = timer(libc::ITIMER_REAL);
        assert!((3500..=3600).contains(&left) && interval == 7200, "{left} {interval}");
    })
}

fn interval_timer_processor(lives: Lives) {
    set_timer(libc::ITIMER_VIRTUAL, 3600, 0);
    set_timer(libc::ITIMER_PROF, 1800, 1);
    lives.each(|_| {
        assert!((3500..=3600).contains(&timer(libc::ITIMER_VIRTUAL).0) && timer(libc::ITIMER_REAL) == (0, 0));
        let (left, interval) = timer(libc::ITIMER_PROF);
        assert!((1700..=1800).contains(&left) && interval == 1);
    })
}

fn posix_timer(lives: Lives) {
    let (mut id, mut event) = (0_i32, [0_u64; 8]);
    // SIGEV_NONE
    event[1] = 1 << 32;
    let args =
        [libc::CLOCK_MONOTONIC as usize, event.as_mut_ptr().expose_provenance(), ptr::from_mut(&mut id).expose_provenance()];
    call(libc::SYS_timer_create, args).unwrap();
    lives.each(|_| {
        let mut left = [0_u64; 4];
        assert_eq!(call(libc::SYS_timer_gettime, [id as usize, left.as_mut_ptr().expose_provenance()]), Ok(0));
    })
}

fn limit(resource: Resource) -> (Option<u64>, Option<u64>) {
    let limit = rustix::process::getrlimit(resource);
    (limit.current, limit.maximum)
}

/// What the service set itself; the rest is for whoever restores, as at a cold start.
fn resource_limits(lives: Lives) {
    let (_, maximum) = limit(Resource::Nofile);
    let lower = |resource, current| {
        let maximum = limit(resource).1;
        rustix::process::setrlimit(resource, rustix::process::Rlimit { current: Some(current), maximum }).unwrap();
    };
    lower(Resource::Nofile, 777);
    lower(Resource::Stack, 6 << 20);
    lower(Resource::Core, 0);
    lives.each(|_| {
        assert_eq!(limit(Resource::Nofile), (Some(777), maximum));
        assert_eq!(limit(Resource::Stack).0, Some(6 << 20));
        assert_eq!(limit(Resource::Core).0, Some(0));
    })
}

fn resource_limit_hard(lives: Lives) {
    let low = rustix::process::Rlimit { current: Some(100), maximum: Some(200) };
    rustix::process::setrlimit(Resource::Nofile, low).unwrap();
    let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(Resource::Core, none).unwrap();
    lives.each(|_| {
        assert_eq!(limit(Resource::Nofile), (Some(100), Some(200)));
        assert_eq!(limit(Resource::Core), (Some(0), Some(0)));
    })
}

fn working_directory(lives: Lives) {
    fs::create_dir("inner").unwrap();
    std::env::set_current_dir("inner").unwrap();
    let before = std::env::current_dir().unwrap();
    lives.each(|_| assert_eq!(std::env::current_dir().unwrap(), before))
}

fn working_directory_deleted(lives: Lives) {
    fs::create_dir("gone").unwrap();
    std::env::set_current_dir("gone").unwrap();
    fs::remove_dir("../gone").unwrap();
    lives.each(|_| assert!(std::env::current_dir().is_err()))
}

fn umask(lives: Lives) {
    rustix::process::umask(0o037.into());
    lives.each(|_| assert_eq!(field("/proc/self/status", "Umask"), "0037"))
}

fn niceness() -> i32 {
    // The bare call answers 20 minus the value.
    20 - call(libc::SYS_getpriority, [libc::PRIO_PROCESS as usize, 0]).unwrap() as i32
}

fn renice(to: usize) {
    call(libc::SYS_setpriority, [libc::PRIO_PROCESS as usize, 0, to]).unwrap();
}

fn nice(lives: Lives) {
    renice(7);
    lives.each(|_| assert_eq!((niceness(), thread::spawn(niceness).join().unwrap()), (7, 7)))
}

fn nice_of_a_thread(lives: Lives) {
    static BEFORE: AtomicU64 = AtomicU64::new(0);
    BEFORE.store(niceness() as u64, SeqCst);
    on_two_threads(lives, || renice(9), |_| assert_eq!(niceness(), 9), |_| assert_eq!(niceness() as u64, BEFORE.load(SeqCst)))
}

fn set_class(class: usize, priority: i32) -> Result<usize, crac_sys::Errno> {
    call(libc::SYS_sched_setscheduler, [0, class, ptr::from_ref(&priority).expose_provenance()])
}

fn class() -> usize {
    call(libc::SYS_sched_getscheduler, [0]).unwrap()
}

fn scheduling_class(lives: Lives) {
    on_two_threads(
        lives,
        || {
            set_class(libc::SCHED_BATCH as usize, 0).unwrap();
        },
        |_| assert_eq!(class(), libc::SCHED_BATCH as usize),
        |_| assert_eq!(class(), libc::SCHED_OTHER as usize),
    )
}

fn scheduling_deadline(lives: Lives) {
    // struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period.
    let attributes: [u64; 6] = [48 | 6 << 32, 0, 0, 1_000_000, 10_000_000, 10_000_000];
    if let Err(errno) = call(libc::SYS_sched_setattr, [0, attributes.as_ptr().expose_provenance(), 0]) {
        not_here(&format!("deadlines are not for this user: {errno}"));
    }
    lives.each(|_| assert_eq!(class(), 6))
}

fn set_affinity(mask: u64) {
    call(libc::SYS_sched_setaffinity, [0, 8, ptr::from_ref(&mask).expose_provenance()]).unwrap();
}

fn mask() -> u64 {
    let mut mask = [0_u64; 128];
    call(libc::SYS_sched_getaffinity, [0, size_of_val(&mask), mask.as_mut_ptr().expose_provenance()]).unwrap();
    mask[0]
}

fn two_processors() -> u64 {
    let all = mask();
    if all.count_ones() < 2 {
        not_here("there is one processor only");
    }
    all
}

fn affinity(lives: Lives) {
    let all = two_processors();
    set_affinity(1 << all.trailing_zeros());
    lives.each(|_| assert_eq!((mask().count_ones(), thread::spawn(mask).join().unwrap().count_ones()), (1, 1)))
}

fn affinity_of_a_thread(lives: Lives) {
    two_processors();
    on_two_threads(
        lives,
        || set_affinity(1 << (63 - mask().leading_zeros())),
        |_| assert_eq!(mask().count_ones(), 1),
        |_| assert!(mask().count_ones() > 1),
    )
}

fn io_priority(lives: Lives) {
    const IDLE: usize = 3 << 13;
    fn own() -> usize {
        call(libc::SYS_ioprio_get, [1, 0]).unwrap() >> 13
    }
    on_two_threads(
        lives,
        || {
            call(libc::SYS_ioprio_set, [1, 0, IDLE]).unwrap();
        },
        |_| assert_eq!(own(), 3),
        |_| assert_ne!(own(), 3),
    )
}

fn get(operation: i32, first: usize) -> usize {
    call(libc::SYS_prctl, [operation as usize, first, 0, 0, 0]).unwrap()
}

fn timer_slack(lives: Lives) {
    fn slack() -> usize {
        get(libc::PR_GET_TIMERSLACK, 0)
    }
    fn set(value: usize) {
        get(libc::PR_SET_TIMERSLACK, value);
    }
    set(70_000);
    on_two_threads(lives, || set(90_000), |_| assert_eq!(slack(), 90_000), |_| assert_eq!(slack(), 70_000))
}

fn memory_policy(lives: Lives) {
    const MPOL_PREFERRED: usize = 1;
    let node: u64 = 1;
    if let Err(errno) = call(libc::SYS_set_mempolicy, [MPOL_PREFERRED, ptr::from_ref(&node).expose_provenance(), 64]) {
        not_here(&format!("no memory policies: {errno}"));
    }
    lives.each(|_| {
        let mut mode = 0_i32;
        call(libc::SYS_get_mempolicy, [ptr::from_mut(&mut mode).expose_provenance(), 0, 0, 0, 0]).unwrap();
        assert_eq!(mode, MPOL_PREFERRED as i32);
    })
}

fn oom_score(lives: Lives) {
    fs::write("/proc/self/oom_score_adj", "321").unwrap();
    lives.each(|_| assert_eq!(fs::read_to_string("/proc/self/oom_score_adj").unwrap(), "321\n"))
}

fn core_dump_filter(lives: Lives) {
    fs::write("/proc/self/coredump_filter", "0x11").unwrap();
    lives.each(|_| assert_eq!(fs::read_to_string("/proc/self/coredump_filter").unwrap(), "00000011\n"))
}

fn no_new_privileges(lives: Lives) {
    get(libc::PR_SET_NO_NEW_PRIVS, 1);
    lives.each(|_| assert_eq!(field("/proc/self/status", "NoNewPrivs"), "1"))
}

fn capabilities(lives: Lives) {
    if !is_root() {
        not_here("an ordinary user has none to give up");
    }
    const CAP_SYS_MODULE: usize = 16;
    get(libc::PR_CAPBSET_DROP, CAP_SYS_MODULE);
    let header = [0x2008_0522_u32, 0];
    let mut sets = [0_u32; 6];
    let header = header.as_ptr().expose_provenance();
    call(libc::SYS_capget, [header, sets.as_mut_ptr().expose_provenance()]).unwrap();
    sets.iter_mut().take(3).for_each(|set| *set &= !(1 << CAP_SYS_MODULE));
    call(libc::SYS_capset, [header, sets.as_ptr().expose_provenance()]).unwrap();
    let all = || ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(|set| field("/proc/self/status", set));
    let before = all();
    lives.each(|_| assert_eq!(all(), before))
}

/// A service that has given up its first user for another one is restored as that one.
fn credentials(lives: Lives) {
    if !is_root() {
        not_here("an ordinary user cannot become somebody else");
    }
    fs::set_permissions("..", std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    call(libc::SYS_setresgid, [65534; 3]).unwrap();
    call(libc::SYS_setresuid, [65534; 3]).unwrap();
    lives.each(|_| {
        assert_eq!(field("/proc/thread-self/status", "Uid"), "65534\t65534\t65534\t65534");
        assert_eq!(field("/proc/thread-self/status", "CapPrm"), "0000000000000000");
    })
}

/// Groups that whoever restores does not have are never lost or gained in silence.
fn groups(lives: Lives) {
    if !is_root() {
        not_here("an ordinary user cannot change them");
    }
    call(libc::SYS_setgroups, [2, [7_u32, 8].as_ptr().expose_provenance()]).unwrap();
    lives.each(|_| assert_eq!(field("/proc/self/status", "Groups"), "7 8"))
}

fn secure_bits(lives: Lives) {
    const NO_SETUID_FIXUP: usize = 4;
    if call(libc::SYS_prctl, [libc::PR_SET_SECUREBITS as usize, NO_SETUID_FIXUP, 0, 0, 0]).is_err() {
        not_here("an ordinary user cannot change them");
    }
    lives.each(|_| assert_eq!(get(libc::PR_GET_SECUREBITS, 0), NO_SETUID_FIXUP))
}

fn seccomp(lives: Lives) {
    let allow = libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW };
    let program = libc::sock_fprog { len: 1, filter: ptr::from_ref(&allow).cast_mut() };
    get(libc::PR_SET_NO_NEW_PRIVS, 1);
    let args = [libc::PR_SET_SECCOMP as usize, libc::SECCOMP_MODE_FILTER as usize, ptr::from_ref(&program).expose_provenance()];
    call(libc::SYS_prctl, args).unwrap();
    lives.each(|_| assert_eq!(field("/proc/self/status", "Seccomp"), "2"))
}

fn landlock(lives: Lives) {
    // Handles writing of files, and allows it nowhere but below this directory's parent.
    let handled: [u64; 1] = [1 << 12];
    let rules = match made(libc::SYS_landlock_create_ruleset, [handled.as_ptr().expose_provenance(), 8, 0]) {
        Ok(rules) => rules,
        Err(errno) => not_here(&format!("no Landlock: {errno}")),
    };
    get(libc::PR_SET_NO_NEW_PRIVS, 1);
    call(libc::SYS_landlock_restrict_self, [rules.as_raw_fd() as usize, 0]).unwrap();
    drop(rules);
    lives.each(|life| {
        fs::write("file", "text").unwrap();
        let linked = std::os::unix::fs::symlink("file", format!("link-{life:?}"));
        assert!(linked.is_err(), "no symbolic links under this rule");
    })
}

fn namespace(lives: Lives) {
    const CLONE_NEWUTS: usize = 0x0400_0000;
    if let Err(errno) = call(libc::SYS_unshare, [CLONE_NEWUTS]) {
        not_here(&format!("no namespace for this user: {errno}"));
    }
    lives.each(|_| {})
}

fn root_directory(lives: Lives) {
    const CLONE_NEWNS: usize = 0x2_0000;
    const MS_BIND: usize = 0x1000;
    fs::create_dir("../proc").unwrap();
    let paths = [c"/proc".as_ptr().expose_provenance(), c"../proc".as_ptr().expose_provenance()];
    if let Err(errno) = call(libc::SYS_unshare, [CLONE_NEWNS]) {
        not_here(&format!("not for this user: {errno}"));
    }
    call(libc::SYS_mount, [0, c"/".as_ptr().expose_provenance(), 0, 0x4_4000, 0]).unwrap();
    call(libc::SYS_mount, [paths[0], paths[1], 0, MS_BIND | 0x4000, 0]).unwrap();
    std::os::unix::fs::chroot("..").unwrap();
    std::env::set_current_dir("/work").unwrap();
    lives.in_directory("/").each(|_| {})
}

/// `PR_SET_MDWE`: memory is writable or executable, never one after the other.
fn write_or_execute(lives: Lives) {
    const PR_SET_MDWE: usize = 65;
    if let Err(errno) = call(libc::SYS_prctl, [PR_SET_MDWE, 1, 0, 0, 0]) {
        not_here(&format!("it needs Linux 6.3: {errno}"));
    }
    lives.each(|_| {
        let map = Map::new(PAGE, RW, PRIVATE);
        let protection = (libc::PROT_READ | libc::PROT_EXEC) as usize;
        assert!(call(libc::SYS_mprotect, [map.address(), PAGE, protection]).is_err(), "still forbidden");
        call(libc::SYS_munmap, [map.address(), PAGE]).unwrap();
    })
}

fn dumpable(lives: Lives) {
    get(libc::PR_SET_DUMPABLE, 0);
    lives.each(|_| assert_eq!(get(libc::PR_GET_DUMPABLE, 0), 0))
}

fn personality(lives: Lives) {
    const ADDR_NO_RANDOMIZE: usize = 0x4_0000;
    call(libc::SYS_personality, [ADDR_NO_RANDOMIZE]).unwrap();
    lives.each(|_| assert_eq!(call(libc::SYS_personality, [u32::MAX as usize]), Ok(ADDR_NO_RANDOMIZE)))
}

struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        self.0.wait().unwrap();
    }
}

fn child_running(lives: Lives) {
    let mut child = Some(Killed(std::process::Command::new("sleep").arg("600").spawn().unwrap()));
    lives.each(|life| {
        if life == Life::Refused {
            child = None;
        }
    })
}

/// A child that has ended and that nobody has waited for.
#[expect(clippy::zombie_processes, reason = "that is what is tested")]
fn child_ended(lives: Lives) {
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let state = format!("/proc/{}/status", child.id());
    while !field(&state, "State").starts_with('Z') {
        thread::yield_now();
    }
    lives.each(|life| {
        if life != Life::First {
            assert!(child.wait().unwrap().success());
        }
    })
}

fn child_subreaper(lives: Lives) {
    get(libc::PR_SET_CHILD_SUBREAPER, 1);
    lives.each(|_| {
        let mut value = 0_u32;
        let at = ptr::from_mut(&mut value).expose_provenance();
        call(libc::SYS_prctl, [libc::PR_GET_CHILD_SUBREAPER as usize, at, 0, 0, 0]).unwrap();
        assert_eq!(value, 1);
    })
}

/// The parent traces this process, as a debugger does.
fn traced(lives: Lives) {
    const PTRACE_TRACEME: usize = 0;
    let child = call(libc::SYS_fork, []).unwrap();
    if child != 0 {
        // The tracer: lets its child go on at each stop, and ends as it ends.
        loop {
            let mut status = 0_i32;
            match call(libc::SYS_wait4, [child, ptr::from_mut(&mut status).expose_provenance(), 0, 0]) {
                Err(errno) if errno.number() == libc::EINTR => {}
                waited if waited.is_err() || libc::WIFEXITED(status) || libc::WIFSIGNALED(status) => {
                    std::process::exit(libc::WEXITSTATUS(status))
                }
                _ => {
                    let signal = libc::WSTOPSIG(status) as usize;
                    call(libc::SYS_ptrace, [libc::PTRACE_CONT as usize, child, 0, signal]).unwrap();
                }
            }
        }
    }
    call(libc::SYS_ptrace, [PTRACE_TRACEME, 0, 0, 0]).unwrap();
    lives.each(|_| assert_ne!(field("/proc/self/status", "TracerPid"), "0"))
}
