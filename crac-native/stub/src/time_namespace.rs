//! The end of step "check": a time namespace in which the clocks go on (`time_namespaces(7)`).
//!
//! Nothing of the captured process is there yet, so a kernel or sandbox that refuses leads to a cold start.

use crate::{
    Restore,
    layout::{EXIT_START_COLD, Handover, downtime},
    report::{self, Decimal},
    sys::{self, Errno},
    syscall,
};

const CLONE_NEWTIME: usize = 0x80;
const CLONE_NEWUSER: usize = 0x1000_0000;
const O_WRONLY: usize = 1;
const SECOND_NS: i128 = 1_000_000_000;

/// Enters a time namespace whose clocks read what the service saw last, and corrects the times in `handover` for it.
pub fn enter(restore: &Restore, handover: &mut Handover) {
    let header = restore.header;
    if syscall!(sys::SYS_UNSHARE, CLONE_NEWTIME).is_err() {
        own_user_namespace(restore);
    }
    let passed_ns = match header.downtime {
        downtime::ELAPSED => handover.realtime_ns.saturating_sub(header.captured_realtime_ns),
        _ => 0,
    };
    // Offsets are those to the host's clocks, and the clocks read here may be shifted already.
    let [outer_monotonic, outer_boottime] = outer_offsets();
    let mut text = Line::new();
    let before = sys::clock_ns(sys::CLOCK_MONOTONIC);
    // From the last tick on, so that the coarse clock, which shows it, does not fall behind what it showed.
    let since_tick = before.saturating_sub(sys::clock_ns(sys::CLOCK_MONOTONIC_COARSE));
    for (name, clock, stood, outer) in [
        (&b"monotonic "[..], sys::CLOCK_MONOTONIC, header.captured_monotonic_ns, outer_monotonic),
        (b"boottime ", sys::CLOCK_BOOTTIME, header.captured_boottime_ns, outer_boottime),
    ] {
        let host = i128::from(sys::clock_ns(clock)) - i128::from(since_tick) - outer;
        let offset = i128::from(stood) + i128::from(passed_ns) - host;
        let (seconds, nanoseconds) = (offset.div_euclid(SECOND_NS), offset.rem_euclid(SECOND_NS));
        text.push(name);
        if seconds < 0 {
            text.push(b"-");
        }
        text.push(Decimal::new(seconds.unsigned_abs() as u64).bytes());
        text.push(b" ");
        text.push(Decimal::new(nanoseconds as u64).bytes());
        text.push(b"\n");
    }
    write_file(c"/proc/self/timens_offsets", text.bytes(), b"setting the offsets of the time namespace");
    let namespace = c"/proc/self/ns/time_for_children";
    match syscall!(sys::SYS_OPENAT, sys::AT_FDCWD, namespace.as_ptr(), sys::O_RDONLY | sys::O_CLOEXEC, 0) {
        Ok(fd) => {
            if let Err(errno) = syscall!(sys::SYS_SETNS, fd, CLONE_NEWTIME) {
                refuse(b"entering the time namespace", errno);
            }
            crate::check::close(fd as i32);
        }
        Err(errno) => refuse(b"opening the time namespace", errno),
    }
    // Durations of this restore go on as if nothing had jumped.
    let jump = sys::clock_ns(sys::CLOCK_MONOTONIC).wrapping_sub(before);
    handover.monotonic_ns = handover.monotonic_ns.wrapping_add(jump);
}

/// Where this user may not make a time namespace, it may in a user namespace of its own, in which it is who it was.
fn own_user_namespace(restore: &Restore) {
    if let Err(errno) = syscall!(sys::SYS_UNSHARE, CLONE_NEWUSER | CLONE_NEWTIME) {
        refuse(b"making a time namespace (clock = timens)", errno);
    }
    let [_, user, _] = restore.header.privileges.uid;
    let [_, group, _] = restore.header.privileges.gid;
    write_file(c"/proc/self/setgroups", b"deny", b"preparing a user namespace");
    for (path, id) in [(c"/proc/self/uid_map", user), (c"/proc/self/gid_map", group)] {
        let id = Decimal::new(u64::from(id));
        let mut text = Line::new();
        text.push(id.bytes());
        text.push(b" ");
        text.push(id.bytes());
        text.push(b" 1");
        write_file(path, text.bytes(), b"mapping this user into its user namespace");
    }
}

/// Offsets of the enclosing time namespace in nanoseconds, monotonic and boot time: `monotonic  SECONDS  NANOSECONDS`, a line each.
fn outer_offsets() -> [i128; 2] {
    let mut text = [0_u8; 256];
    let path = c"/proc/self/timens_offsets";
    let Ok(fd) = syscall!(sys::SYS_OPENAT, sys::AT_FDCWD, path.as_ptr(), sys::O_RDONLY | sys::O_CLOEXEC, 0) else {
        return [0; 2];
    };
    let read = syscall!(sys::SYS_READ, fd, text.as_mut_ptr(), text.len()).unwrap_or(0);
    crate::check::close(fd as i32);
    let mut offsets = [0; 2];
    for line in text.get(..read).unwrap_or_default().split(|byte| *byte == b'\n') {
        let mut words = line.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
        let slot = match words.next() {
            Some(b"monotonic") => offsets.first_mut(),
            Some(b"boottime") => offsets.last_mut(),
            _ => None,
        };
        let (seconds, nanoseconds) = (number(words.next()), number(words.next()));
        if let Some(slot) = slot {
            *slot = seconds.wrapping_mul(SECOND_NS).wrapping_add(nanoseconds);
        }
    }
    offsets
}

fn number(word: Option<&[u8]>) -> i128 {
    let word = word.unwrap_or_default();
    let digits = word.iter().filter(|byte| byte.is_ascii_digit());
    let number = digits.fold(0_i128, |number, digit| number.wrapping_mul(10).wrapping_add(i128::from(digit - b'0')));
    if word.starts_with(b"-") { number.wrapping_neg() } else { number }
}

fn write_file(path: &core::ffi::CStr, text: &[u8], what: &[u8]) {
    let written = syscall!(sys::SYS_OPENAT, sys::AT_FDCWD, path.as_ptr(), O_WRONLY | sys::O_CLOEXEC, 0).and_then(|fd| {
        let written = syscall!(sys::SYS_WRITE, fd, text.as_ptr(), text.len());
        crate::check::close(fd as i32);
        written
    });
    if let Err(errno) = written {
        refuse(what, errno);
    }
}

fn refuse(what: &[u8], errno: Errno) -> ! {
    let hint = b"; hint: checkpoint with clock = proxy or none, or allow it here";
    report::exit(EXIT_START_COLD, &[what, b": errno ", Decimal::new(errno.0 as u64).bytes(), hint])
}

/// A few words for a file of `/proc`.
struct Line {
    bytes: [u8; 160],
    len: usize,
}

impl Line {
    fn new() -> Self {
        Self { bytes: [0; 160], len: 0 }
    }

    fn push(&mut self, text: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(self.len).zip(text) {
            *to = *from;
            self.len += 1;
        }
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}
