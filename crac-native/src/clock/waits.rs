//! Which system calls wait until a moment of a clock that may be shifted.

use std::{ffi::CStr, fmt::Write, os::fd::AsFd};

use crac_sys::fs;

use crate::text::FixedText;

/// A system call that a thread is in, as `/proc/PID/task/TID/syscall` tells it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) number: u64,
    pub(crate) arguments: [u64; 6],
    pub(crate) sp: u64,
    /// Behind the instruction.
    pub(crate) ip: u64,
}

impl Call {
    /// The call that the thread `tid` of this process is in: nothing if it runs, is gone, or the kernel does not tell.
    pub(crate) fn of(tid: i32) -> Option<Self> {
        let mut path = FixedText::<64>::new();
        write!(path, "/proc/self/task/{tid}/syscall\0").ok()?;
        let file = fs::open(CStr::from_bytes_until_nul(path.as_bytes()).ok()?, libc::O_RDONLY, 0).ok()?;
        let mut text = [0; 256];
        let filled = fs::read(file.as_fd(), &mut text).ok()?;
        Self::parse(text.get(..filled)?)
    }

    /// Reads `202 0x.. 0x.. 0x.. 0x.. 0x.. 0x.. 0xSP 0xIP`; a thread that runs has the word `running`.
    fn parse(text: &[u8]) -> Option<Self> {
        let mut words = str::from_utf8(text).ok()?.split_ascii_whitespace();
        let mut call = Self { number: words.next()?.parse().ok()?, ..Self::default() };
        let mut hexadecimal = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
        for argument in &mut call.arguments {
            *argument = hexadecimal()?;
        }
        (call.sp, call.ip) = (hexadecimal()?, hexadecimal()?);
        Some(call)
    }

    /// What a person calls it, if it waits until a moment of a clock that may be shifted.
    pub(crate) fn absolute_wait(&self) -> Option<&'static str> {
        const FUTEX_LOCK_PI2: u64 = 13;
        const FUTEX_WAIT_REQUEUE_PI: u64 = 11;
        const FUTEX_WAIT_BITSET: u64 = 9;
        const SYS_FUTEX_WAITV: u64 = 449;
        const SYS_FUTEX_WAIT: u64 = 455;
        let [a, b, _, d, e, f] = self.arguments;
        let shifted = |clock: u64| {
            let clocks = [libc::CLOCK_MONOTONIC, libc::CLOCK_BOOTTIME, libc::CLOCK_BOOTTIME_ALARM];
            clocks.into_iter().any(|shifted| shifted as u64 == clock & 0xffff_ffff)
        };
        match self.number {
            number if number == libc::SYS_futex as u64 => {
                let absolute = [FUTEX_WAIT_BITSET, FUTEX_LOCK_PI2, FUTEX_WAIT_REQUEUE_PI].contains(&(b & 0x7f));
                (absolute && b & libc::FUTEX_CLOCK_REALTIME as u64 == 0 && d != 0).then_some("futex")
            }
            number if number == libc::SYS_clock_nanosleep as u64 => {
                (b & libc::TIMER_ABSTIME as u64 != 0 && shifted(a)).then_some("clock_nanosleep")
            }
            SYS_FUTEX_WAITV => (d != 0 && shifted(e)).then_some("futex_waitv"),
            SYS_FUTEX_WAIT => (e != 0 && shifted(f)).then_some("futex_wait"),
            _ => None,
        }
    }
}

/// The clock of a timer that is about to be set by the system call `number`: `CLOCK_MONOTONIC`, `CLOCK_BOOTTIME` (for its alarm
/// sibling too), or -1 for any other. `id` is the first argument of the call. Called by the shim, on any thread.
pub(crate) extern "C" fn clock_of_timer(number: u32, id: u32) -> i32 {
    let clock = match libc::c_long::from(number) {
        libc::SYS_timerfd_settime => clock_of_descriptor(id),
        _ => clock_of_posix_timer(id),
    };
    match clock {
        Some(libc::CLOCK_BOOTTIME_ALARM) => libc::CLOCK_BOOTTIME,
        Some(clock @ (libc::CLOCK_MONOTONIC | libc::CLOCK_BOOTTIME)) => clock,
        _ => -1,
    }
}

fn clock_of_descriptor(fd: u32) -> Option<i32> {
    let mut path = FixedText::<64>::new();
    write!(path, "/proc/thread-self/fdinfo/{fd}\0").ok()?;
    let file = fs::open(CStr::from_bytes_until_nul(path.as_bytes()).ok()?, libc::O_RDONLY | libc::O_CLOEXEC, 0).ok()?;
    let mut text = [0; 1024];
    let filled = fs::read(file.as_fd(), &mut text).ok()?;
    crac_sys::proc::lines(text.get(..filled)?).find_map(|line| number_behind(line, b"clockid:"))
}

/// From `/proc/self/timers`: `ID: 0`, some lines, `ClockID: 1`.
fn clock_of_posix_timer(id: u32) -> Option<i32> {
    let file = fs::open(c"/proc/self/timers", libc::O_RDONLY | libc::O_CLOEXEC, 0).ok()?;
    let mut text = [0; 1024];
    let (mut kept, mut current) = (0, None);
    loop {
        let filled = fs::read(file.as_fd(), text.get_mut(kept..)?).ok().filter(|filled| *filled > 0)?;
        let end = kept + filled;
        let whole = text.get(..end)?.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        for line in crac_sys::proc::lines(text.get(..whole)?) {
            current = number_behind(line, b"ID:").or(current);
            if let Some(clock) = number_behind(line, b"ClockID:").filter(|_| current == i32::try_from(id).ok()) {
                return Some(clock);
            }
        }
        text.copy_within(whole..end, 0);
        kept = end - whole;
    }
}

fn number_behind(line: &[u8], label: &[u8]) -> Option<i32> {
    str::from_utf8(line.strip_prefix(label)?).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(number: libc::c_long, arguments: [u64; 6]) -> Call {
        Call { number: number as u64, arguments, ..Call::default() }
    }

    #[test]
    fn what_the_kernel_tells_is_read() {
        let text = b"202 0x7f10 0x189 0x0 0x7ffd12 0x0 0xffffffff 0x7ffd00 0x7f8142\n";
        let parsed = Call::parse(text).unwrap();
        assert_eq!((parsed.number, parsed.sp, parsed.ip), (202, 0x7f_fd00, 0x7f_8142));
        assert_eq!(parsed.arguments, [0x7f10, 0x189, 0, 0x7f_fd12, 0, 0xffff_ffff]);
        assert_eq!(parsed.absolute_wait(), None, "a moment on the wall");
        assert_eq!(Call::parse(b"running\n"), None);
        assert_eq!(Call::parse(b"-1 0x7ffd00 0x7f8142\n"), None);
    }

    #[test]
    fn waits_until_a_moment_are_told_from_others() {
        for (number, arguments, expected) in [
            (libc::SYS_futex, [1, 0x89, 0, 1, 0, 0], Some("futex")),
            (libc::SYS_futex, [1, 0x09, 0, 0, 0, 0], None),
            (libc::SYS_futex, [1, 0x80, 0, 1, 0, 0], None),
            (libc::SYS_futex, [1, 0x8d, 0, 1, 0, 0], Some("futex")),
            (libc::SYS_clock_nanosleep, [1, 1, 1, 0, 0, 0], Some("clock_nanosleep")),
            (libc::SYS_clock_nanosleep, [7, 1, 1, 0, 0, 0], Some("clock_nanosleep")),
            (libc::SYS_clock_nanosleep, [0, 1, 1, 0, 0, 0], None),
            (libc::SYS_clock_nanosleep, [1, 0, 1, 0, 0, 0], None),
            (449, [1, 1, 0, 1, 1, 0], Some("futex_waitv")),
            (449, [1, 1, 0, 1, 0, 0], None),
            (455, [1, 1, 1, 0, 1, 1], Some("futex_wait")),
            (libc::SYS_epoll_wait, [9, 0x89, 0, 1, 0, 0], None),
        ] {
            assert_eq!(call(number, arguments).absolute_wait(), expected, "{number} {arguments:?}");
        }
    }

    #[test]
    fn a_timers_clock_is_found() {
        use std::os::fd::AsRawFd;

        let timer = |clock| rustix::time::timerfd_create(clock, rustix::time::TimerfdFlags::CLOEXEC).unwrap();
        for (clock, expected) in [
            (rustix::time::TimerfdClockId::Monotonic, libc::CLOCK_MONOTONIC),
            (rustix::time::TimerfdClockId::Boottime, libc::CLOCK_BOOTTIME),
            (rustix::time::TimerfdClockId::Realtime, -1),
        ] {
            let timer = timer(clock);
            let number = libc::SYS_timerfd_settime as u32;
            assert_eq!(clock_of_timer(number, timer.as_raw_fd() as u32), expected, "{clock:?}");
        }
        assert_eq!(clock_of_timer(libc::SYS_timer_settime as u32, 4_000_000), -1);
    }
}
