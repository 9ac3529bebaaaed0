//! What the process is, read once while it stands still.

use std::{
    ffi::CStr,
    fmt::Write,
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use crac_core::ObstacleKind;
use crac_sys::{
    Errno, fs,
    proc::{ProcessStat, ProcessStatus, SmapsEntries, SmapsEntry},
    process, signal,
};

use crate::{
    arena::{Arena, ArenaVec},
    findings::ObstacleSink,
    freeze::ThreadState,
    layout::{ActionRecord, PrivilegeRecord, ProcessRecord, SettingRecord, cpu, kernel, setting},
    text::FixedText,
};

/// What failed, and how.
pub(crate) type Problem = (&'static str, Errno);

/// Reads a whole file of `/proc` into the arena.
pub(crate) fn read_all<'a>(arena: &'a Arena, path: &CStr) -> Result<&'a [u8], Errno> {
    let file = fs::open(path, libc::O_RDONLY, 0)?;
    read_fd(arena, file.as_fd())
}

fn read_fd<'a>(arena: &'a Arena, file: BorrowedFd<'_>) -> Result<&'a [u8], Errno> {
    let buffer = arena.zeroed::<u8>(64 * 1024)?;
    let mut text = ArenaVec::new(arena);
    loop {
        match fs::read(file, buffer)? {
            0 => return Ok(text.into_slice()),
            filled => text.extend_from_slice(&buffer[..filled])?,
        }
    }
}

/// Every mapping, by address.
pub(crate) fn mappings(arena: &Arena) -> Result<&[SmapsEntry<'_>], Problem> {
    let text = read_all(arena, c"/proc/self/smaps").map_err(|errno| ("reading /proc/self/smaps", errno))?;
    let mut entries = ArenaVec::new(arena);
    for entry in SmapsEntries::of(text) {
        let entry = entry.map_err(|_| ("understanding /proc/self/smaps", Errno::new(libc::EPROTO)))?;
        entries.push(entry).map_err(|errno| ("noting mappings", errno))?;
    }
    Ok(entries.into_slice())
}

/// What [`process`] finds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProcessFacts {
    pub(crate) record: ProcessRecord,
    pub(crate) privileges: PrivilegeRecord,
    /// Bytes of memory that is locked.
    pub(crate) locked_bytes: u64,
}

/// Settings and privileges of the process, and everything about it as a whole that cannot be saved.
pub(crate) fn process(arena: &Arena, filters_at_start: u32, obstacles: &mut ObstacleSink<'_>) -> Result<ProcessFacts, Problem> {
    let system = |what| move |errno| (what, errno);
    let malformed = |what| move |_| (what, Errno::new(libc::EPROTO));
    let stat = read_all(arena, c"/proc/self/stat").map_err(system("reading /proc/self/stat"))?;
    let stat = ProcessStat::parse(stat).map_err(malformed("understanding /proc/self/stat"))?;
    let status = read_all(arena, c"/proc/self/status").map_err(system("reading /proc/self/status"))?;
    let status = ProcessStatus::parse(status).map_err(malformed("understanding /proc/self/status"))?;

    if status.tracer != 0 {
        obstacles.push(ObstacleKind::Tracer, format_args!("process {} traces this one", status.tracer));
    }
    for signal in status.pending_shared.iter().filter(|signal| is_missed(*signal)) {
        obstacles.push(ObstacleKind::SignalPending, format_args!("signal {signal} is pending for the process"));
    }
    if !status.cpu_features.is_empty() {
        obstacles.push(ObstacleKind::Cpu, format_args!("a shadow stack is in use"));
    }
    let filters = status.seccomp_filters.unwrap_or(u32::from(status.seccomp != 0));
    if status.seccomp == 1 {
        obstacles.push(ObstacleKind::Seccomp, format_args!("strict mode"));
    } else if filters > filters_at_start {
        obstacles.push(
            ObstacleKind::Seccomp,
            format_args!("{} filter(s) installed since the engine was made", filters - filters_at_start),
        );
    }
    lacks(kernel_version(), process::can_set_memory_map(), obstacles);
    timers(arena, obstacles);
    children(arena, obstacles);
    // The data of AMX tiles (state 18) has to be asked for; the rest is there for everybody.
    if process::extended_state_permission().is_ok_and(|mask| mask & 1 << 18 != 0) {
        obstacles.push(ObstacleKind::Cpu, format_args!("the use of AMX tiles was asked for"));
    }
    let [user, group] =
        [process::user_ids().map_err(system("reading user ids"))?, process::group_ids().map_err(system("reading group ids"))?];
    let [inheritable, permitted, effective, bounding, ambient] = status.capabilities;
    let get = |operation| get_setting(operation);
    let privileges = PrivilegeRecord {
        uid: user,
        gid: group,
        permitted,
        effective,
        inheritable,
        bounding,
        ambient,
        no_new_privs: u32::from(status.no_new_privileges),
        seccomp: status.seccomp,
        seccomp_filters: filters,
        dumpable: 0,
        landlock_layers: 0,
        reserved: 0,
    };
    let brk = process::brk();
    let record = ProcessRecord {
        mm: [
            stat.code.0,
            stat.code.1,
            stat.data.0,
            stat.data.1,
            stat.brk_start,
            brk as u64,
            stat.stack_start,
            stat.arguments.0,
            stat.arguments.1,
            stat.environment.0,
            stat.environment.1,
        ],
        umask: status.umask.ok_or(("reading the umask", Errno::new(libc::EPROTO)))?,
        thp_disable: get(libc::PR_GET_THP_DISABLE),
        membarrier: process::membarrier_registrations(),
        child_subreaper: process::get_int(libc::PR_GET_CHILD_SUBREAPER),
        parent_death_signal: process::get_int(libc::PR_GET_PDEATHSIG),
        personality: process::personality(),
        ..ProcessRecord::default()
    };
    Ok(ProcessFacts { record, privileges, locked_bytes: status.locked_bytes })
}

/// A setting that `prctl(2)` returns as its result.
fn get_setting(operation: i32) -> u32 {
    process::get_result(operation).map_or(0, |value| u32::try_from(value).unwrap_or(u32::MAX))
}

/// Whether the main thread has ended. The kernel then tells little about the process, in `/proc/self` at least.
pub(crate) fn main_thread_has_ended() -> bool {
    let mut text = [0; 1024];
    let read = fs::open(c"/proc/self/stat", libc::O_RDONLY, 0).and_then(|file| fs::read(file.as_fd(), &mut text));
    let stat = ProcessStat::parse(text.get(..read.unwrap_or_default()).unwrap_or_default());
    stat.is_ok_and(|stat| stat.state == b'Z')
}

/// Interval timers that are armed, with what is left of them.
pub(crate) fn interval_timers(settings: &mut ArenaVec<'_, SettingRecord>) -> Result<(), Errno> {
    for which in [libc::ITIMER_REAL, libc::ITIMER_VIRTUAL, libc::ITIMER_PROF] {
        let timer = process::interval_timer(which)?;
        let nanoseconds = |time: libc::timeval| time.tv_sec as u64 * 1_000_000_000 + time.tv_usec as u64 * 1000;
        if nanoseconds(timer.it_value) != 0 {
            let values = [which as u64, nanoseconds(timer.it_interval), nanoseconds(timer.it_value), 0];
            settings.push(SettingRecord::new(0, setting::INTERVAL_TIMER, values))?;
        }
    }
    Ok(())
}

/// What no restore on this kernel could do.
fn lacks(version: u32, can_set_memory_map: bool, obstacles: &mut ObstacleSink<'_>) {
    if version < kernel::OLDEST {
        let [here, oldest] = [version, kernel::OLDEST].map(|version| [version >> 16, version & 0xffff]);
        obstacles.push(
            ObstacleKind::Kernel,
            format_args!("Linux {}.{}; the engine needs {}.{}", here[0], here[1], oldest[0], oldest[1]),
        );
    }
    if !can_set_memory_map {
        obstacles.push(ObstacleKind::Kernel, format_args!("it was built without CONFIG_CHECKPOINT_RESTORE"));
    }
}

fn timers(arena: &Arena, obstacles: &mut ObstacleSink<'_>) {
    // Missing where the kernel has no POSIX timers or no CHECKPOINT_RESTORE; without the latter the freeze fails earlier.
    let Ok(text) = read_all(arena, c"/proc/self/timers") else { return };
    for line in crac_sys::proc::lines(text) {
        if let Some(id) = line.strip_prefix(b"ID: ") {
            let id = str::from_utf8(id).unwrap_or("?");
            obstacles.push(ObstacleKind::Timer, format_args!("POSIX timer {id}"));
        }
    }
}

fn children(arena: &Arena, obstacles: &mut ObstacleSink<'_>) {
    if !process::has_children() {
        return;
    }
    let before = obstacles.len();
    let tasks = fs::open(c"/proc/self/task", libc::O_RDONLY | libc::O_DIRECTORY, 0);
    if let (Ok(tasks), Ok(buffer)) = (tasks, arena.zeroed::<u8>(32 * 1024)) {
        while let Ok(filled @ 1..) = fs::read_dir(tasks.as_fd(), buffer) {
            for name in fs::DirEntries::new(&buffer[..filled]) {
                let Some(tid) = crac_sys::proc::decimal_name(name.to_bytes()) else { continue };
                let mut path = FixedText::<64>::new();
                let _ = write!(path, "/proc/self/task/{tid}/children\0");
                let path = CStr::from_bytes_until_nul(path.as_bytes()).unwrap_or_default();
                let Ok(text) = read_all(arena, path) else { continue };
                for child in text.split(|byte| *byte == b' ').filter_map(crac_sys::proc::decimal_name) {
                    obstacles.push(ObstacleKind::Child, format_args!("process {child}"));
                }
            }
        }
    }
    if obstacles.len() == before {
        obstacles.push(ObstacleKind::Child, format_args!("a child process whose number this kernel does not tell"));
    }
}

/// What cannot be saved about single threads.
pub(crate) fn threads<'t>(
    arena: &Arena,
    threads: impl Iterator<Item = (i32, &'t ThreadState, Option<&'static str>)>,
    (filters, layers): (u32, u32),
    obstacles: &mut ObstacleSink<'_>,
) {
    for (tid, state, wait) in threads {
        let name = name_of(&state.name);
        let owner = format_args!("{name}");
        if state.errno != 0 {
            let errno = Errno::new(state.errno);
            let subject = format_args!("thread {tid} ({name}) could not read its own state: {errno}");
            obstacles.push_owned(ObstacleKind::Kernel, subject, owner);
        }
        if state.waits_for_owner != 0 {
            let subject = format_args!("thread {tid} ({name}) takes or waits for a robust or priority-inheritance mutex");
            obstacles.push_owned(ObstacleKind::ThreadLock, subject, owner);
        }
        if let Some(call) = wait {
            let subject = format_args!("thread {tid} ({name}) waits by a system call of its own, {call}, until a moment");
            obstacles.push_owned(ObstacleKind::ClockWait, subject, owner);
        }
        if state.layers > layers {
            let subject = format_args!("thread {tid} ({name}) is in {} domain(s) it was not in at first", state.layers - layers);
            obstacles.push_owned(ObstacleKind::Landlock, subject, owner);
        }
        if state.memory_policy != 0 {
            let subject = format_args!("thread {tid} ({name}) has memory policy {}", state.memory_policy);
            obstacles.push_owned(ObstacleKind::Scheduling, subject, owner);
        }
        let mut path = FixedText::<64>::new();
        let _ = write!(path, "/proc/self/task/{tid}/status\0");
        let path = CStr::from_bytes_until_nul(path.as_bytes()).unwrap_or_default();
        let Ok(text) = read_all(arena, path) else { continue };
        let Ok(status) = ProcessStatus::parse(text) else { continue };
        for signal in status.pending.iter().filter(|signal| is_missed(*signal)) {
            let subject = format_args!("signal {signal} is pending for thread {tid} ({name})");
            obstacles.push_owned(ObstacleKind::SignalPending, subject, owner);
        }
        if status.seccomp_filters.is_some_and(|own| own > filters) {
            let subject = format_args!("thread {tid} ({name}) has filters of its own");
            obstacles.push_owned(ObstacleKind::Seccomp, subject, owner);
        }
    }
}

/// Whether anybody would miss a pending signal. The kernel keeps one that is ignored if it comes while it is blocked, as all
/// are during a capture.
fn is_missed(number: u32) -> bool {
    signal::action(number as i32).map_or(true, |action| matters(number as i32, action.handler))
}

fn matters(number: i32, handler: usize) -> bool {
    let ignored_by_default = [libc::SIGCHLD, libc::SIGCONT, libc::SIGURG, libc::SIGWINCH].contains(&number);
    match handler {
        libc::SIG_IGN => false,
        libc::SIG_DFL => !ignored_by_default,
        _ => true,
    }
}

/// A thread's name without its padding.
pub(crate) fn name_of(name: &[u8; 16]) -> &str {
    let name = CStr::from_bytes_until_nul(name).unwrap_or_default();
    name.to_str().unwrap_or("?")
}

/// Every disposition that is not the default. That of the freeze signal is `freeze`.
pub(crate) fn actions(arena: &Arena, freeze: (i32, signal::Action)) -> Result<&[ActionRecord], Errno> {
    let mut actions = ArenaVec::new(arena);
    for number in (1..=64).filter(|number| ![libc::SIGKILL, libc::SIGSTOP].contains(number)) {
        let action = if number == freeze.0 { freeze.1 } else { signal::action(number)? };
        if action.handler != 0 {
            actions.push(ActionRecord {
                handler: action.handler as u64,
                flags: action.flags,
                restorer: action.restorer as u64,
                mask: action.mask,
                signal: number as u32,
                reserved: 0,
            })?;
        }
    }
    Ok(actions.into_slice())
}

/// Version of the running kernel, as [`kernel::version`] has it; 0 if it does not say.
pub(crate) fn kernel_version() -> u32 {
    process::uname().map_or(0, |names| kernel::version(names.release.iter().map(|byte| *byte as u8)))
}

/// What the kernel was called when it was started, if it says so.
pub(crate) fn boot_id() -> cpu::BootId {
    let mut id = [0; size_of::<cpu::BootId>()];
    if let Ok(file) = fs::open(cpu::BOOT_ID, libc::O_RDONLY | libc::O_CLOEXEC, 0) {
        // All at once, or nothing.
        let _ = fs::read(file.as_fd(), &mut id[..cpu::BOOT_ID_BYTES]);
    }
    id
}

/// Nanoseconds of a clock.
pub(crate) fn clock_ns(clock: libc::clockid_t) -> u64 {
    process::clock(clock).map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

/// Monotonic time, for durations.
pub(crate) fn now() -> Duration {
    process::clock(libc::CLOCK_MONOTONIC).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_cannot_restore_is_named() {
        let arena = Arena::new().unwrap();
        let subjects = |version, can_set_memory_map| {
            let mut sink = ObstacleSink::new(&arena);
            lacks(version, can_set_memory_map, &mut sink);
            sink.into_obstacles().into_iter().map(|obstacle| obstacle.to_string()).collect::<Vec<_>>().join("; ")
        };
        assert_eq!(subjects(kernel::OLDEST, true), "");
        assert_eq!(subjects(kernel_version(), process::can_set_memory_map()), "");
        let both = subjects(5 << 16 | 4, false);
        assert!(both.contains("Linux 5.4; the engine needs 6.1") && both.contains("CONFIG_CHECKPOINT_RESTORE"), "{both}");
    }

    #[test]
    fn nobody_misses_a_signal_that_is_ignored() {
        let handler = 0x1000;
        for (number, handler, expected) in [
            (libc::SIGWINCH, libc::SIG_DFL, false),
            (libc::SIGWINCH, handler, true),
            (libc::SIGTERM, libc::SIG_DFL, true),
            (libc::SIGHUP, libc::SIG_IGN, false),
        ] {
            assert_eq!(matters(number, handler), expected, "{number} {handler:#x}");
        }
    }
}
