//! What the process has set about itself since it was started: limits, scheduling, groups, and so on.
//!
//! What a process was *started* with - by a supervisor, a container, a shell - is the business of whoever starts it: a restored
//! life gets it from whoever restores, as a cold start would. What the service has *changed* since is part of its state, and is
//! brought back. To tell one from the other, everything is read before `main`, and again at the beginning of each restored life -
//! but for the namespaces, which take two fifths of the time of all of it: the first answer does not wait for them ([`settle`]).
#![allow(unsafe_code, reason = "a function that runs before main")]

use std::{
    fmt::{self, Write},
    os::fd::AsFd,
    sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed},
};

use crac_core::ObstacleKind;
use crac_sys::{
    Errno, fs,
    process::{self, Processors},
};

use crate::{
    arena::ArenaVec,
    findings::ObstacleSink,
    layout::{GROUPS_MAX, SettingRecord, setting},
    text::FixedText,
};

/// How many resources have limits.
pub(crate) const LIMITS: usize = 16;

/// Namespaces of the process, and what they are called.
const NAMESPACES: [(&str, &str); 8] = [
    ("cgroup", "control group"),
    ("ipc", "System V IPC"),
    ("mnt", "mount"),
    ("net", "network"),
    ("pid", "process"),
    ("time", "time"),
    ("user", "user"),
    ("uts", "host name"),
];

/// Everything but the namespaces in one row of numbers, see [`at`].
type Row = [u64; at::NAMESPACES];

/// Where in a [`Row`] what stands.
mod at {
    pub(super) const LIMITS: usize = 0;
    pub(super) const AFFINITY: usize = LIMITS + 2 * super::LIMITS;
    pub(super) const SCHEDULE: usize = AFFINITY + 16;
    pub(super) const IO_PRIORITY: usize = SCHEDULE + 4;
    pub(super) const TIMER_SLACK: usize = IO_PRIORITY + 1;
    pub(super) const OOM_SCORE: usize = TIMER_SLACK + 1;
    pub(super) const CORE_FILTER: usize = OOM_SCORE + 1;
    pub(super) const WRITE_OR_EXECUTE: usize = CORE_FILTER + 1;
    pub(super) const GROUPS: usize = WRITE_OR_EXECUTE + 1;
    pub(super) const SECURE_BITS: usize = GROUPS + 1;
    pub(super) const ROOT: usize = SECURE_BITS + 1;
    pub(super) const NO_NEW_PRIVILEGES: usize = ROOT + 2;
    pub(super) const NAMESPACES: usize = NO_NEW_PRIVILEGES + 1;
    pub(super) const WORDS: usize = NAMESPACES + super::NAMESPACES.len();
}

/// What this life was started with.
static STARTED_WITH: [AtomicU64; at::WORDS] = [const { AtomicU64::new(0) }; at::WORDS];
/// While the namespaces in it are still those of the life before: the thread that has begun this one; else zero.
static BEGUN_BY: AtomicI32 = AtomicI32::new(0);

/// Runs before `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = {
    extern "C" fn at_start() {
        remember(0, &now());
        remember(at::NAMESPACES, &namespaces("self"));
    }
    at_start
};

fn remember(first: usize, values: &[u64]) {
    for (word, value) in STARTED_WITH.iter().skip(first).zip(values) {
        word.store(*value, Relaxed);
    }
}

/// In a restored life: what it was started with is what whoever restored it has, but for the settings that were brought back.
/// `processors` are those that the process may use, if it is bound to fewer for the time being.
pub(crate) fn begin_life(settings: &[SettingRecord], main: i32, processors: Option<Processors>) {
    let brought_back = |kind: u32, first: Option<u64>| {
        let mut own = settings.iter().filter(|record| [0, main].contains(&record.tid) && record.kind == kind);
        own.any(|record| first.is_none_or(|first| record.values[0] == first))
    };
    let mut now = now();
    if let (Some(processors), Some(place)) = (processors, now.get_mut(at::AFFINITY..at::SCHEDULE)) {
        place.copy_from_slice(&processors);
    }
    let is_wanted = |word: usize| match word {
        at::LIMITS..at::AFFINITY => !brought_back(setting::LIMIT, Some((word as u64 - at::LIMITS as u64) / 2)),
        at::AFFINITY..at::SCHEDULE => !brought_back(setting::AFFINITY, None),
        at::SCHEDULE..at::IO_PRIORITY => !brought_back(setting::SCHEDULE, None),
        at::IO_PRIORITY => !brought_back(setting::IO_PRIORITY, None),
        at::TIMER_SLACK => !brought_back(setting::TIMER_SLACK, None),
        at::OOM_SCORE => !brought_back(setting::OOM_SCORE, None),
        at::CORE_FILTER => !brought_back(setting::CORE_FILTER, None),
        at::WRITE_OR_EXECUTE => !brought_back(setting::WRITE_OR_EXECUTE, None),
        at::GROUPS => !brought_back(setting::GROUPS, None),
        _ => true,
    };
    for (word, value) in now.iter().enumerate().filter(|(word, _)| is_wanted(*word)) {
        remember(word, &[*value]);
    }
    BEGUN_BY.store(process::tid(), Relaxed);
    if process::tid() == process::pid() {
        settle();
    }
}

/// Notes the namespaces that a restored life was started in, if that has not been done. What a thread enters is its own, and the main
/// thread's are what the process is said to be in. So those of the thread that has begun this life are read, if it is another one: it is
/// still in those that the process was started in, whatever the main thread has entered meanwhile - unless a hook that runs on it has
/// entered another one, too. Then the next capture refuses, as the two differ. (Where more than one thread runs the kernel lets none
/// enter another user or time namespace, and a process namespace is for good.)
pub(crate) fn settle() {
    match BEGUN_BY.swap(0, Relaxed) {
        0 => {}
        tid if tid == process::tid() => remember(at::NAMESPACES, &namespaces("thread-self")),
        tid => remember(at::NAMESPACES, &namespaces(format_args!("self/task/{tid}"))),
    }
}

/// Whether this life was started with `no_new_privs`.
pub(crate) fn started_without_new_privileges() -> bool {
    STARTED_WITH.get(at::NO_NEW_PRIVILEGES).is_some_and(|word| word.load(Relaxed) != 0)
}

/// Everything but the namespaces, as it is now. What the kernel does not tell is zero, then and later.
fn now() -> Row {
    let mut row = [0; at::NAMESPACES];
    let mut put = |at: usize, values: &[u64]| {
        if let Some(place) = row.get_mut(at..at + values.len()) {
            place.copy_from_slice(values);
        }
    };
    let main = process::pid();
    for resource in 0..LIMITS {
        put(at::LIMITS + 2 * resource, &process::limit(resource as u32).unwrap_or_default());
    }
    put(at::AFFINITY, &process::affinity(main).unwrap_or_default());
    put(at::SCHEDULE, &words(&process::schedule(main).unwrap_or_default()));
    put(at::IO_PRIORITY, &[process::io_priority(main).unwrap_or_default().into()]);
    put(at::TIMER_SLACK, &[process::get_result(libc::PR_GET_TIMERSLACK).unwrap_or_default() as u64]);
    put(at::OOM_SCORE, &[small_file(c"/proc/self/oom_score_adj", 10)]);
    put(at::CORE_FILTER, &[small_file(c"/proc/self/coredump_filter", 16)]);
    put(at::WRITE_OR_EXECUTE, &[write_or_execute()]);
    put(at::GROUPS, &[groups_sum()]);
    put(at::SECURE_BITS, &[process::get_result(libc::PR_GET_SECUREBITS).unwrap_or_default() as u64]);
    let gave_up = process::get_result(libc::PR_GET_NO_NEW_PRIVS).unwrap_or_default() as u64;
    put(at::NO_NEW_PRIVILEGES, &[gave_up]);
    let root = fs::stat_path(c"/").map_or([0; 2], |stat| [stat.st_dev, stat.st_ino]);
    put(at::ROOT, &root);
    row
}

/// The settings that are brought back: what differs from what this life was started with. What cannot be brought back goes to
/// `obstacles`. `threads` are all threads, with their names and own timer slack.
pub(crate) fn changed(
    threads: impl Iterator<Item = (i32, [u8; 16], u64)>,
    settings: &mut ArenaVec<'_, SettingRecord>,
    obstacles: &mut ObstacleSink<'_>,
) -> Result<(), Errno> {
    let now = now();
    let before = |at: usize| STARTED_WITH.get(at).map_or(0, |word| word.load(Relaxed));
    let is_changed = |at: usize, values: &[u64]| values.iter().enumerate().any(|(offset, value)| before(at + offset) != *value);
    let word = |at: usize| now.get(at).copied().unwrap_or_default();
    for resource in 0..LIMITS {
        let place = at::LIMITS + 2 * resource;
        let limit = [word(place), word(place + 1)];
        if is_changed(place, &limit) {
            settings.push(SettingRecord::new(0, setting::LIMIT, [resource as u64, limit[0], limit[1], 0]))?;
        }
    }
    for (at, kind) in [
        (at::OOM_SCORE, setting::OOM_SCORE),
        (at::CORE_FILTER, setting::CORE_FILTER),
        (at::WRITE_OR_EXECUTE, setting::WRITE_OR_EXECUTE),
    ] {
        if is_changed(at, &[word(at)]) {
            settings.push(SettingRecord::new(0, kind, [word(at), 0, 0, 0]))?;
        }
    }
    if is_changed(at::GROUPS, &[word(at::GROUPS)]) {
        let mut groups = [0; GROUPS_MAX];
        match process::supplementary_groups(&mut groups) {
            Ok(count) => settings.push(SettingRecord::groups(0, count, &groups)).and_then(|()| {
                let mut rest = (6..count).step_by(6);
                rest.try_for_each(|first| settings.push(SettingRecord::groups(first, count, &groups)))
            })?,
            Err(_) => obstacles.push(ObstacleKind::Privilege, format_args!("more than {GROUPS_MAX} supplementary groups")),
        }
    }
    if is_changed(at::SECURE_BITS, &[word(at::SECURE_BITS)]) {
        obstacles.push(ObstacleKind::Privilege, format_args!("secure bits {:#x}", word(at::SECURE_BITS)));
    }
    if is_changed(at::ROOT, &[word(at::ROOT), word(at::ROOT + 1)]) {
        obstacles.push(ObstacleKind::Privilege, format_args!("another root directory was entered"));
    }
    // Those of other threads are not looked at.
    let found = [namespaces("self"), namespaces("thread-self")];
    for (number, (_, name)) in NAMESPACES.iter().enumerate() {
        let mut inodes = found.iter().filter_map(|namespaces| namespaces.get(number));
        if inodes.any(|inode| is_changed(at::NAMESPACES + number, &[*inode])) {
            obstacles.push(ObstacleKind::Privilege, format_args!("another {name} namespace was entered"));
        }
    }
    for (tid, name, slack_ns) in threads {
        let name = crate::facts::name_of(&name);
        let schedule = process::schedule(tid)?;
        if schedule.policy == libc::SCHED_DEADLINE as u32 {
            let subject = format_args!("thread {tid} ({name}) runs under deadlines");
            obstacles.push_owned(ObstacleKind::Scheduling, subject, format_args!("{name}"));
            continue;
        }
        let [policy, nice, priority, flags] = words(&schedule);
        if is_changed(at::SCHEDULE, &[policy, nice, priority, flags]) {
            settings.push(SettingRecord::new(tid, setting::SCHEDULE, [policy, nice, priority, flags]))?;
        }
        let mask = process::affinity(tid)?;
        if is_changed(at::AFFINITY, &mask) {
            for (number, part) in mask.chunks(3).enumerate().filter(|(_, part)| part.iter().any(|word| *word != 0)) {
                let word = |at: usize| part.get(at).copied().unwrap_or_default();
                let values = [3 * number as u64, word(0), word(1), word(2)];
                settings.push(SettingRecord::new(tid, setting::AFFINITY, values))?;
            }
        }
        let io_priority = u64::from(process::io_priority(tid).unwrap_or_default());
        if is_changed(at::IO_PRIORITY, &[io_priority]) {
            settings.push(SettingRecord::new(tid, setting::IO_PRIORITY, [io_priority, 0, 0, 0]))?;
        }
        if is_changed(at::TIMER_SLACK, &[slack_ns]) {
            settings.push(SettingRecord::new(tid, setting::TIMER_SLACK, [slack_ns, 0, 0, 0]))?;
        }
    }
    Ok(())
}

/// Policy, nice value, priority and flags.
fn words(schedule: &process::Schedule) -> [u64; 4] {
    [schedule.policy.into(), schedule.nice as u64, schedule.priority.into(), schedule.flags]
}

/// The number in a small file of `/proc`, which may be negative.
fn small_file(path: &std::ffi::CStr, radix: u32) -> u64 {
    let mut text = [0; 32];
    let read = fs::open(path, libc::O_RDONLY, 0).and_then(|file| fs::read(file.as_fd(), &mut text));
    let text = text.get(..read.unwrap_or_default()).unwrap_or_default();
    let number = str::from_utf8(text).ok().and_then(|text| i64::from_str_radix(text.trim(), radix).ok());
    number.unwrap_or_default() as u64
}

/// `PR_GET_MDWE` (Linux 6.3).
fn write_or_execute() -> u64 {
    const PR_GET_MDWE: i32 = 66;
    process::get_result(PR_GET_MDWE).unwrap_or_default() as u64
}

/// Tells one list of supplementary groups from another.
fn groups_sum() -> u64 {
    let mut groups = [0; GROUPS_MAX];
    let Ok(count) = process::supplementary_groups(&mut groups) else { return u64::MAX };
    let prime = |sum: u64, group: &u32| (sum ^ u64::from(*group)).wrapping_mul(0x100_0000_01b3);
    groups.iter().take(count).fold(0xcbf2_9ce4_8422_2325 ^ count as u64, prime)
}

/// The namespaces of a thread, which `of` is called in `/proc`: `self` is the main thread. Zeros of one that has gone.
fn namespaces(of: impl fmt::Display) -> [u64; NAMESPACES.len()] {
    NAMESPACES.map(|(name, _)| namespace(&of, name))
}

fn namespace(of: &impl fmt::Display, name: &str) -> u64 {
    let mut path = FixedText::<64>::new();
    // The names are short.
    let _ = write!(path, "/proc/{of}/ns/{name}\0");
    let path = std::ffi::CStr::from_bytes_until_nul(path.as_bytes()).unwrap_or_default();
    let mut link = [0; 64];
    // `net:[4026531840]`
    let link = fs::read_link_at(libc::AT_FDCWD, path, &mut link).unwrap_or_default();
    link.iter()
        .filter(|byte| byte.is_ascii_digit())
        .fold(0, |sum: u64, digit| sum.wrapping_mul(10).wrapping_add(u64::from(digit - b'0')))
}
