//! What the captured process had set about itself and its threads: checked early, set again as late as possible.

use crate::{
    Restore,
    layout::{GROUPS_MAX, MappingRecord, SettingRecord, Step, ThreadRecord, advice, setting},
    report::{Decimal, fail, fail_on},
    sys,
    syscall,
};

const RLIMIT_NPROC: u64 = 6;
const RLIMIT_MEMLOCK: u64 = 8;
const CAP_SETGID: u64 = 6;
const CAP_IPC_LOCK: u64 = 14;
const CAP_SYS_RESOURCE: u64 = 24;
const PR_SET_TIMERSLACK: usize = 29;
const PR_SET_MDWE: usize = 65;
const PR_GET_MDWE: usize = 66;
const IOPRIO_WHO_PROCESS: usize = 1;
const SCHED_OTHER: usize = 0;
const MASK_WORDS: usize = 16;

/// The settings of one thread; of the process for 0.
fn of(restore: &Restore, tid: i32) -> impl Iterator<Item = &'static SettingRecord> {
    restore.table::<SettingRecord>(restore.header.settings).iter().filter(move |record| record.tid == tid)
}

/// Refuses what could not be set here.
pub fn check(restore: &Restore, refuse: &mut dyn FnMut(&[&[u8]])) {
    for record in of(restore, 0).filter(|record| record.kind == setting::LIMIT) {
        let [resource, soft, ..] = record.values;
        let hard = fitting(restore, record)[1];
        if soft > hard {
            let [resource, soft, hard] = [resource, soft, hard].map(Decimal::new);
            let (resource, soft, hard) = (resource.bytes(), soft.bytes(), hard.bytes());
            refuse(&[b"the service had set resource limit ", resource, b" to ", soft, b", here it may be at most ", hard]);
        }
    }
    let (threads, [_, most]) = (threads(restore), limit(RLIMIT_NPROC));
    if restore.header.privileges.is_too_little(most, threads) {
        let [threads, most] = [threads, most].map(Decimal::new);
        let (threads, most) = (threads.bytes(), most.bytes());
        refuse(&[b"the service has ", threads, b" threads, and the limit of processes (RLIMIT_NPROC) is ", most]);
    }
    if locked_bytes(restore) > limit(RLIMIT_MEMLOCK)[1] && !may(restore, CAP_IPC_LOCK) {
        refuse(&[b"the service had locked more memory than may be locked here"]);
    }
    let mut own = [0; MASK_WORDS];
    let asked = syscall!(sys::SYS_SCHED_GETAFFINITY, 0, size_of_val(&own), own.as_mut_ptr());
    for thread in restore.table::<ThreadRecord>(restore.header.threads) {
        if let Some(mask) = affinity(restore, thread.tid)
            && syscall!(sys::SYS_SCHED_SETAFFINITY, 0, size_of_val(&mask), mask.as_ptr()).is_err()
        {
            let tid = Decimal::new(thread.tid as u64);
            refuse(&[b"the processors that thread ", tid.bytes(), b" was bound to are not here"]);
        }
    }
    if asked.is_ok() {
        // What it was a moment ago; only another change from outside could forbid it.
        let _ = syscall!(sys::SYS_SCHED_SETAFFINITY, 0, size_of_val(&own), own.as_ptr());
    }
    if let Some((groups, count)) = groups(restore) {
        let mut here = [0_u32; GROUPS_MAX];
        let same = syscall!(sys::SYS_GETGROUPS, here.len(), here.as_mut_ptr()) == Ok(count) && here == groups;
        if !same && crate::process::effective_capabilities() >> CAP_SETGID & 1 == 0 {
            refuse(&[b"the service had other supplementary groups, which this user may not change"]);
        }
    }
}

/// Binds the process to the processor it is on, until the engine lets it go; gives back what it may use otherwise, or nothing if
/// it stays as it is. Best done first: whatever has run elsewhere has left something there.
///
/// Threads that only wake each other are fastest on one processor: on several, each wake-up, and each page that is copied while
/// another thread runs, interrupts another processor. Many threads have more to do than that, eager restores read in parallel,
/// threads that are scheduled in real time may leave nothing to the others, and a service that has bound threads has its reasons.
pub fn confine(restore: &Restore) -> [u64; MASK_WORDS] {
    const THREADS_MAX: u64 = 64;
    let (mut own, mut processor) = ([0_u64; MASK_WORDS], 0_u32);
    let asked = syscall!(sys::SYS_SCHED_GETAFFINITY, 0, size_of_val(&own), own.as_mut_ptr());
    let mut records = restore.table::<SettingRecord>(restore.header.settings).iter();
    let schedules = records.any(|record| [setting::SCHEDULE, setting::AFFINITY].contains(&record.kind));
    let is_ordinary = !schedules && syscall!(sys::SYS_SCHED_GETSCHEDULER, 0) == Ok(SCHED_OTHER);
    let has_one = own.iter().map(|word| word.count_ones()).sum::<u32>() < 2;
    let located = syscall!(sys::SYS_GETCPU, &raw mut processor, 0, 0);
    if restore.is_eager() || threads(restore) > THREADS_MAX || !is_ordinary || asked.is_err() || located.is_err() || has_one {
        return [0; MASK_WORDS];
    }
    let mut one = [0_u64; MASK_WORDS];
    if let Some(word) = one.get_mut(processor as usize / 64) {
        *word = 1 << (processor % 64);
    }
    match syscall!(sys::SYS_SCHED_SETAFFINITY, 0, size_of_val(&one), one.as_ptr()) {
        Ok(_) => own,
        Err(_) => [0; MASK_WORDS],
    }
}

/// Limits as they can be here: never above the hard limit, unless that may be raised.
fn fitting(restore: &Restore, record: &SettingRecord) -> [u64; 2] {
    let [resource, soft, hard, _] = record.values;
    if may(restore, CAP_SYS_RESOURCE) {
        return [soft, hard];
    }
    let [_, here] = limit(resource);
    [soft, hard.min(here)]
}

/// Whether the restored process has a capability; others are given up before settings are made.
fn may(restore: &Restore, capability: u64) -> bool {
    restore.header.privileges.effective >> capability & 1 == 1
}

fn limit(resource: u64) -> [u64; 2] {
    let mut limit = [0_u64; 2];
    // Unknown to the kernel: no room.
    let _ = syscall!(sys::SYS_PRLIMIT64, 0, resource, 0, limit.as_mut_ptr());
    limit
}

fn set_limit(resource: u64, limit: [u64; 2]) {
    if let Err(errno) = syscall!(sys::SYS_PRLIMIT64, 0, resource, limit.as_ptr(), 0) {
        fail_on(Step::Threads, b"setting the resource limit", resource, errno);
    }
}

fn threads(restore: &Restore) -> u64 {
    restore.table::<ThreadRecord>(restore.header.threads).len() as u64
}

/// Raises the limit of processes for the time in which threads are started; what it was.
pub fn make_room_for_threads(restore: &Restore) -> Option<[u64; 2]> {
    let [soft, hard] = limit(RLIMIT_NPROC);
    if !restore.header.privileges.is_too_little(soft, threads(restore)) {
        return None;
    }
    set_limit(RLIMIT_NPROC, [hard, hard]);
    Some([soft, hard])
}

/// Sets it back.
pub fn threads_are_started(before: Option<[u64; 2]>) {
    if let Some(before) = before {
        set_limit(RLIMIT_NPROC, before);
    }
}

fn locked_bytes(restore: &Restore) -> u64 {
    let mappings = restore.table::<MappingRecord>(restore.header.mappings).iter();
    mappings.filter(|mapping| mapping.advice & advice::LOCKED != 0).map(|mapping| mapping.end - mapping.start).sum()
}

/// Locks what was locked.
pub fn lock(restore: &Restore) {
    if locked_bytes(restore) == 0 {
        return;
    }
    let [soft, hard] = limit(RLIMIT_MEMLOCK);
    set_limit(RLIMIT_MEMLOCK, [hard, hard]);
    for mapping in restore.table::<MappingRecord>(restore.header.mappings) {
        if mapping.advice & advice::LOCKED != 0 {
            let on_fault = usize::from(mapping.advice & advice::LOCKED_ON_FAULT != 0);
            // Memory without access is locked all the same, and that it cannot be touched is no failure.
            match syscall!(sys::SYS_MLOCK2, mapping.start, mapping.end - mapping.start, on_fault) {
                Ok(_) => {}
                Err(sys::Errno(12)) if mapping.protection == 0 => {}
                Err(errno) => fail_on(Step::Memory, b"locking the mapping at", mapping.start, errno),
            }
        }
    }
    set_limit(RLIMIT_MEMLOCK, [soft, hard]);
}

fn affinity(restore: &Restore, tid: i32) -> Option<[u64; MASK_WORDS]> {
    let mut mask = [0; MASK_WORDS];
    for record in of(restore, tid).filter(|record| record.kind == setting::AFFINITY) {
        let [first, words @ ..] = record.values;
        for (place, word) in mask.iter_mut().skip(first as usize).zip(words) {
            *place = word;
        }
    }
    (mask != [0; MASK_WORDS]).then_some(mask)
}

/// The supplementary groups, if the service has set them.
fn groups(restore: &Restore) -> Option<([u32; GROUPS_MAX], usize)> {
    let mut groups = [0; GROUPS_MAX];
    let mut found = None;
    for record in of(restore, 0).filter(|record| record.kind == setting::GROUPS) {
        let [first, pairs @ ..] = record.values;
        let six = pairs.into_iter().flat_map(|pair| [pair as u32, (pair >> 32) as u32]);
        for (place, group) in groups.iter_mut().skip(first as u32 as usize).zip(six) {
            *place = group;
        }
        found = Some((first >> 32) as usize);
    }
    found.filter(|count| *count <= GROUPS_MAX).map(|count| (groups, count))
}

/// While the process still has all its privileges: groups, and files of `/proc`.
pub fn of_process(restore: &Restore) {
    if let Some((groups, count)) = groups(restore) {
        let mut here = [0_u32; GROUPS_MAX];
        let same = syscall!(sys::SYS_GETGROUPS, here.len(), here.as_mut_ptr()) == Ok(count) && here == groups;
        if !same && let Err(errno) = syscall!(sys::SYS_SETGROUPS, count, groups.as_ptr()) {
            fail(Step::Process, b"setting the supplementary groups", errno);
        }
    }
    for record in of(restore, 0) {
        let [value, ..] = record.values;
        let path = match record.kind {
            setting::OOM_SCORE => c"/proc/self/oom_score_adj",
            setting::CORE_FILTER => c"/proc/self/coredump_filter",
            _ => continue,
        };
        let (sign, digits) = if (value as i64) < 0 { (&b"-"[..], (value as i64).unsigned_abs()) } else { (&b""[..], value) };
        let digits = Decimal::new(digits);
        let mut text = [0_u8; 24];
        let mut len = 0;
        for (place, byte) in text.iter_mut().zip(sign.iter().chain(digits.bytes())) {
            *place = *byte;
            len += 1;
        }
        let written = syscall!(sys::SYS_OPENAT, sys::AT_FDCWD, path.as_ptr(), O_WRONLY | sys::O_CLOEXEC, 0).and_then(|fd| {
            let written = syscall!(sys::SYS_WRITE, fd, text.as_ptr(), len);
            crate::check::close(fd as i32);
            written
        });
        if let Err(errno) = written {
            fail_on(Step::Process, b"writing a setting of kind", u64::from(record.kind), errno);
        }
    }
}

/// Settings of the calling thread, which was `tid`.
pub fn of_thread(restore: &Restore, tid: i32) {
    /// `struct sched_attr`, first version.
    #[repr(C)]
    struct Attributes {
        bytes: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        times_ns: [u64; 3],
    }
    for record in of(restore, tid) {
        let [first, second, third, fourth] = record.values;
        let done = match record.kind {
            setting::SCHEDULE => {
                let attributes = Attributes {
                    bytes: size_of::<Attributes>() as u32,
                    policy: first as u32,
                    flags: fourth,
                    nice: second as i32,
                    priority: third as u32,
                    times_ns: [0; 3],
                };
                syscall!(sys::SYS_SCHED_SETATTR, 0, &raw const attributes, 0)
            }
            setting::IO_PRIORITY => syscall!(sys::SYS_IOPRIO_SET, IOPRIO_WHO_PROCESS, 0, first),
            setting::TIMER_SLACK => syscall!(sys::SYS_PRCTL, PR_SET_TIMERSLACK, first, 0, 0, 0),
            _ => Ok(0),
        };
        if let Err(errno) = done {
            fail_on(Step::Threads, b"scheduling the thread that was", tid as u64, errno);
        }
    }
    if let Some(mask) = affinity(restore, tid)
        && let Err(errno) = syscall!(sys::SYS_SCHED_SETAFFINITY, 0, size_of_val(&mask), mask.as_ptr())
    {
        fail_on(Step::Threads, b"binding to processors the thread that was", tid as u64, errno);
    }
}

/// What would stand in the way of the restore itself: limits, timers, locks of later mappings, no memory made executable.
pub fn last(restore: &Restore) {
    let future = restore.header.process.lock_future;
    if future != 0 && let Err(errno) = syscall!(sys::SYS_MLOCKALL, future) {
        fail(Step::Threads, b"locking what is mapped later", errno);
    }
    for record in of(restore, 0) {
        let [first, second, third, _] = record.values;
        let done = match record.kind {
            setting::LIMIT => {
                set_limit(first, fitting(restore, record));
                Ok(0)
            }
            // Where it is set already, by whoever restores, it can be neither set again otherwise nor taken back.
            setting::WRITE_OR_EXECUTE if first != 0 && syscall!(sys::SYS_PRCTL, PR_GET_MDWE, 0, 0, 0, 0) == Ok(0) => {
                syscall!(sys::SYS_PRCTL, PR_SET_MDWE, first, 0, 0, 0)
            }
            setting::INTERVAL_TIMER => {
                let timer = [second, third].map(|time_ns| [time_ns / 1_000_000_000, time_ns % 1_000_000_000 / 1000]);
                syscall!(sys::SYS_SETITIMER, first, timer.as_ptr(), 0)
            }
            _ => Ok(0),
        };
        if let Err(errno) = done {
            fail_on(Step::Threads, b"a setting of kind", u64::from(record.kind), errno);
        }
    }
}

/// Timers of the process that was replaced go on in the new program.
pub fn stop_timers() {
    let none = [[0_u64; 2]; 2];
    for which in 0..3 {
        // The timers exist in every kernel.
        let _ = syscall!(sys::SYS_SETITIMER, which, none.as_ptr(), 0);
    }
}

const O_WRONLY: usize = 1;
