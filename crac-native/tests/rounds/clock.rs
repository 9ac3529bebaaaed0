//! One image under clocks that differ: by a downtime, by days, forwards and backwards.

use std::{ffi::CString, io, os::unix::process::CommandExt, path::Path, process::Command, time::Duration};

use super::{finish, image, lines_of, program};

const DAY: i64 = 86_400;

/// Every wait in a process whose clocks were shifted: as exact as in one whose clocks are not.
pub(super) fn matrix(_: &Path) {
    for by in [0, 10 * DAY, -10 * DAY, 5, -5] {
        let lines = lines_of(&finish(program("clock-matrix").env("CRAC_TEST_SHIFT", by.to_string())));
        assert_eq!(lines, ["waited"], "{by}");
    }
}

/// The same on hosts whose clocks stand so far apart that ten days back are still after their start.
pub(super) fn matrix_backwards(_: &Path) {
    let Some(host) = Host::with_uptime(11 * DAY) else { return };
    for by in [-10 * DAY, -5] {
        let lines = lines_of(&finish(host.start(program("clock-matrix").env("CRAC_TEST_SHIFT", by.to_string()))));
        assert_eq!(lines, ["waited"], "{by}");
    }
}

/// Waits that begin in one life end in the next, no sooner and no later.
pub(super) fn across(dir: &Path) {
    let to = format!("--image={}", image(dir, 0).display());
    // A life that sees shifted clocks keeps them: its image meets kernels whose clocks are days behind, or ahead.
    for by in [0, 10 * DAY, -3600, 5] {
        let mut first = program("clock-across");
        assert_eq!(lines_of(&finish(first.env("CRAC_TEST_SHIFT", by.to_string()).arg(&to))), ["life 0"], "{by}");
        assert_eq!(lines_of(&finish(&mut Command::new(image(dir, 0)))), ["life 1", "waited"], "{by}");
    }
}

/// One image on hosts with other uptimes, and its image on yet another.
pub(super) fn hosts(dir: &Path) {
    let (Some(old), Some(older)) = (Host::with_uptime(10 * DAY), Host::with_uptime(20 * DAY)) else { return };
    let here = Host { offset_s: 0 };
    let to = |generation| format!("--image={}", image(dir, generation).display());
    for hosts in [[&old, &here, &older, &here], [&here, &older, &old, &older]] {
        let [first, second, third, last] = hosts;
        assert_eq!(lines_of(&finish(first.start(program("clock-readers").arg(to(0))))), ["life 0"]);
        assert_eq!(lines_of(&finish(second.start(Command::new(image(dir, 0)).args(["--", &to(1)])))), ["life 1"]);
        assert_eq!(lines_of(&finish(third.start(Command::new(image(dir, 1)).args(["--", &to(2)])))), ["life 2"]);
        assert_eq!(lines_of(&finish(last.start(&mut Command::new(image(dir, 2))))), ["life 3", "done", "joined"]);
        // The first image is as good as it was, for any host.
        for host in hosts {
            assert_eq!(lines_of(&finish(host.start(&mut Command::new(image(dir, 0))))), ["life 1", "done", "joined"]);
        }
    }
    for [first, second] in [[&old, &here], [&here, &old]] {
        assert_eq!(lines_of(&finish(first.start(program("clock-across").arg(to(0))))), ["life 0"]);
        assert_eq!(lines_of(&finish(second.start(&mut Command::new(image(dir, 0))))), ["life 1", "waited"]);
    }
}

/// Readers in tight loops, stopped and restored over and over, with and without a shift.
pub(super) fn generations(dir: &Path) {
    let to = |generation| format!("--image={}", image(dir, generation).display());
    for by in [0, 10 * DAY] {
        let mut first = program("clock-readers");
        assert_eq!(lines_of(&finish(first.env("CRAC_TEST_SHIFT", by.to_string()).arg(to(0)))), ["life 0"]);
        for generation in 1..8 {
            let mut next = Command::new(image(dir, generation - 1));
            assert_eq!(lines_of(&finish(next.args(["--", &to(generation)]))), [format!("life {generation}")]);
        }
        assert_eq!(lines_of(&finish(&mut Command::new(image(dir, 7)))), ["life 8", "done", "joined"]);
    }
}

/// What the downtime is to the clock is a setting.
pub(super) fn downtime(dir: &Path) {
    let to = format!("--image={}", image(dir, 0).display());
    for (clock, downtime, passes) in [
        ("auto", "frozen", false),
        ("proxy", "elapsed", true),
        ("none", "frozen", true),
        ("timens", "frozen", false),
        ("timens", "elapsed", true),
    ] {
        if clock == "timens" && !can_unshare() {
            println!("skipped: no time namespaces here");
            continue;
        }
        let mut first = program("clock-gap");
        first.env("CRAC_TEST_CLOCK", clock).env("CRAC_TEST_DOWNTIME", downtime).env_remove("CRAC_TEST_SHIFT").arg(&to);
        assert_eq!(lines_of(&finish(&mut first)), ["life 0"]);
        // The time that passes is what is looked at here.
        std::thread::sleep(Duration::from_millis(1200));
        let lines = lines_of(&finish(&mut Command::new(image(dir, 0))));
        assert_eq!(lines[0], "life 1");
        let gaps: Vec<u64> = lines[1].split(' ').skip(1).map(|gap| gap.parse().expect("a number")).collect();
        let [monotonic, wall, asleep_monotonic, asleep_wall] = gaps[..] else { panic!("{lines:?}") };
        assert!(wall >= 1200 && asleep_wall >= 1200, "{lines:?}");
        for (wall, monotonic) in [(wall, monotonic), (asleep_wall, asleep_monotonic)] {
            // How long the way down and up takes is in both clocks. One that has stood still may go on from a tick before, and both
            // are cut to milliseconds.
            let holds = if passes { monotonic >= 1200 } else { wall.saturating_sub(monotonic) + 11 >= 1200 };
            assert!(holds, "{clock} {downtime}: {lines:?}");
        }
    }
}

/// A time namespace does the same for the whole process, bare system calls included, where it may be made.
pub(super) fn namespaces(dir: &Path) {
    let to = |generation| format!("--image={}", image(dir, generation).display());
    if !can_unshare() {
        println!("skipped: no time namespaces here");
        return;
    }
    let host = Host::with_uptime(10 * DAY);
    let here = Host { offset_s: 0 };
    let hosts: &[[&Host; 2]] = match &host {
        Some(host) => &[[host, &here], [&here, host]],
        None => &[[&here, &here]],
    };
    for [first, second] in hosts {
        let mut command = program("clock-readers");
        assert_eq!(lines_of(&finish(first.start(command.env("CRAC_TEST_CLOCK", "timens").arg(to(0))))), ["life 0"]);
        assert_eq!(lines_of(&finish(second.start(Command::new(image(dir, 0)).args(["--", &to(1)])))), ["life 1"]);
        assert_eq!(lines_of(&finish(second.start(&mut Command::new(image(dir, 1))))), ["life 2", "done", "joined"]);
    }
}

/// A thread that waits until a moment by a system call of its own is named, unless nothing will shift.
pub(super) fn bare_waits(dir: &Path) {
    let to = format!("--image={}", image(dir, 0).display());
    for call in ["futex", "clock_nanosleep"] {
        let bare = |clock: &str| {
            let mut command = program(&format!("clock-bare:{call}"));
            lines_of(&finish(command.env("CRAC_TEST_CLOCK", clock).env_remove("CRAC_TEST_SHIFT").arg(&to)))
        };
        for clock in ["auto", "proxy"] {
            let lines = bare(clock);
            let obstacles: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix("obstacle clock-wait: ")).collect();
            assert!(matches!(&obstacles[..], [one] if one.contains("(bare)") && one.contains(call)), "{lines:?}");
            assert_eq!(lines.last().map(String::as_str), Some("done"), "{lines:?}");
            assert!(!image(dir, 0).exists());
        }
        for clock in ["none", "timens"] {
            assert_eq!(bare(clock), ["life 0"], "{clock}");
            std::fs::remove_file(image(dir, 0)).expect("the image exists");
        }
    }
}

/// Where nothing may be made executable that was writable, which the clocks do not need.
pub(super) fn without_writable_code(dir: &Path) {
    if !may_refuse_new_code() {
        return;
    }
    let to = format!("--image={}", image(dir, 0).display());
    let mut command = program("clock-across");
    command.env("CRAC_TEST_CLOCK", "proxy").env("CRAC_TEST_SHIFT", "864000").arg(to);
    refuse_new_code(&mut command);
    assert_eq!(lines_of(&finish(&mut command)), ["life 0"]);
    let mut command = Command::new(image(dir, 0));
    refuse_new_code(&mut command);
    assert_eq!(lines_of(&finish(&mut command)), ["life 1", "waited"]);
}

/// Whether this kernel can refuse new code; says so if not.
pub(super) fn may_refuse_new_code() -> bool {
    const PR_GET_MDWE: i32 = 66;
    // SAFETY: only asks.
    let known = unsafe { libc::prctl(PR_GET_MDWE, 0, 0, 0, 0) } >= 0;
    if !known {
        println!("skipped: this kernel has no PR_SET_MDWE");
    }
    known
}

/// Has `command` run where memory that could be written may not be executed (`PR_SET_MDWE`).
pub(super) fn refuse_new_code(command: &mut Command) {
    const PR_SET_MDWE: i32 = 65;
    let refuse = || {
        // SAFETY: integer arguments.
        let set = unsafe { libc::prctl(PR_SET_MDWE, 1, 0, 0, 0) };
        if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: the closure makes one system call.
    unsafe { command.pre_exec(refuse) };
}

/// A host as a process sees it that runs in a time namespace.
struct Host {
    /// What its clocks are ahead.
    offset_s: i64,
}

impl Host {
    /// A host that was started so long ago; nothing where that cannot be had, which is then said.
    fn with_uptime(uptime_s: i64) -> Option<Self> {
        let now = crac_sys::process::clock(libc::CLOCK_BOOTTIME).expect("a clock").as_secs() as i64;
        let host = Self { offset_s: uptime_s - now };
        let possible = enter(host.offset_s, &mut Command::new("true")).status().is_ok_and(|status| status.success());
        if !possible {
            println!("skipped: no time namespaces for this user");
        }
        possible.then_some(host)
    }

    fn start<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        if self.offset_s == 0 { command } else { enter(self.offset_s, command) }
    }
}

/// Has `command` run in a time namespace whose monotonic clocks are `offset_s` ahead.
fn enter(offset_s: i64, command: &mut Command) -> &mut Command {
    let offsets = CString::new(format!("monotonic {offset_s} 0\nboottime {offset_s} 0\n")).expect("no NUL");
    let enter = move || {
        let check = |result: i32| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) };
        // SAFETY: integer arguments.
        check(unsafe { libc::unshare(libc::CLONE_NEWTIME) })?;
        // SAFETY: a constant path.
        let file = check(unsafe { libc::open(c"/proc/self/timens_offsets".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) })?;
        // SAFETY: as many bytes as the text has.
        let written = unsafe { libc::write(file, offsets.as_ptr().cast(), offsets.as_bytes().len()) };
        check(written as i32)?;
        // SAFETY: a constant path.
        let space = check(unsafe { libc::open(c"/proc/self/ns/time_for_children".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) })?;
        // SAFETY: an open descriptor.
        check(unsafe { libc::setns(space, libc::CLONE_NEWTIME) }).map(drop)
    };
    // SAFETY: the closure makes system calls only.
    unsafe { command.pre_exec(enter) };
    command
}

/// Whether this user may make time namespaces, as itself or in a user namespace.
fn can_unshare() -> bool {
    let mut command = Command::new("true");
    // SAFETY: integer arguments; the closure makes system calls only.
    let unshare = || unsafe {
        let alone = libc::unshare(libc::CLONE_NEWTIME) == 0;
        if alone || libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWTIME) == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    };
    // SAFETY: see above.
    unsafe { command.pre_exec(unshare) };
    command.status().is_ok_and(|status| status.success())
}
