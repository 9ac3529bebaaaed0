//! Descriptors of every kind, by number: those of others are looked at, not taken.
#![expect(unsafe_code, reason = "system calls and descriptors received from the kernel")]

use std::{
    mem::MaybeUninit,
    os::fd::{FromRawFd, OwnedFd, RawFd},
    ptr,
};

use crate::{errno::Result, fs::fcntl, raw::syscall};

/// What `fstat(2)` says about the descriptor `fd`.
pub fn stat(fd: RawFd) -> Result<libc::stat> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: fstat fills the whole structure, which is the kernel's own layout on this architecture.
    unsafe { syscall(libc::SYS_fstat, [fd as usize, stat.as_mut_ptr() as usize, 0, 0, 0, 0]) }?;
    // SAFETY: the call succeeded, so the structure is filled.
    Ok(unsafe { stat.assume_init() })
}

/// Closes the descriptor `fd`, whoever has it (`close(2)`); nothing if there is none.
///
/// # Safety
///
/// Whoever has it never uses the number again, closes it neither, and forgets it.
pub unsafe fn close(fd: RawFd) {
    // SAFETY: the caller's promise. An error tells of writing, or of a number that is free; in both cases it is free now.
    let _ = unsafe { syscall(libc::SYS_close, [fd as usize, 0, 0, 0, 0, 0]) };
}

/// When the inode behind `fd` was made, seconds and nanoseconds (`statx(2)`); nothing where the file system does not tell.
pub fn born(fd: RawFd) -> Option<(i64, u32)> {
    let mut stat = MaybeUninit::<libc::statx>::zeroed();
    let flags = libc::AT_EMPTY_PATH as usize;
    let args = [fd as usize, c"".as_ptr() as usize, flags, libc::STATX_BTIME as usize, stat.as_mut_ptr() as usize, 0];
    // SAFETY: statx reads a constant empty path and fills the structure.
    unsafe { syscall(libc::SYS_statx, args) }.ok()?;
    // SAFETY: all-zero is a valid value, and the call has filled it.
    let stat = unsafe { stat.assume_init() };
    (stat.stx_mask & libc::STATX_BTIME != 0).then_some((stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec))
}

/// Whether two descriptors are duplicates of one open file description, by `F_DUPFD_QUERY` (`fcntl(2)`, Linux 6.10).
///
/// # Errors
///
/// `EINVAL` on an older kernel.
pub fn is_duplicate_by_query(a: RawFd, b: RawFd) -> Result<bool> {
    const F_DUPFD_QUERY: i32 = 1024 + 3;
    fcntl(a, F_DUPFD_QUERY, b as usize).map(|answer| answer == 1)
}

/// Whether two descriptors are duplicates of one open file description, by `kcmp(2)`.
///
/// # Errors
///
/// `EPERM` under Docker's default seccomp profile, `ENOSYS` where the kernel has no such call.
pub fn is_duplicate_by_kcmp(a: RawFd, b: RawFd) -> Result<bool> {
    const KCMP_FILE: usize = 0;
    let pid = crate::process::pid() as usize;
    // SAFETY: kcmp touches no memory of the caller.
    unsafe { syscall(libc::SYS_kcmp, [pid, pid, KCMP_FILE, a as usize, b as usize, 0]) }.map(|order| order == 0)
}

/// Calls `then` while `number` stands for the file behind `other`. Afterwards it is what it was, with `FD_CLOEXEC`.
///
/// Nobody else uses `number` meanwhile, and the process holds no lock of a range (`F_SETLK`) on the file behind it: the kernel
/// would release it.
///
/// # Errors
///
/// `EMFILE` if there is no number for the file to stay under; nothing has changed then.
pub fn with_another<T>(number: RawFd, other: RawFd, then: impl FnOnce() -> T) -> Result<T> {
    let replace = |from: RawFd| {
        let args = [from as usize, number as usize, libc::O_CLOEXEC as usize, 0, 0, 0];
        // SAFETY: the caller says that nobody uses the number meanwhile.
        unsafe { syscall(libc::SYS_dup3, args) }
    };
    let kept = fcntl(number, libc::F_DUPFD_CLOEXEC, 0)?;
    // SAFETY: just made, and nobody else's.
    let kept = unsafe { OwnedFd::from_raw_fd(kept as RawFd) };
    replace(other)?;
    let answer = then();
    replace(std::os::fd::AsRawFd::as_raw_fd(&kept))?;
    Ok(answer)
}

/// Reads one 32-bit number by `ioctl(2)`: `FIONREAD`, `SIOCOUTQ`.
///
/// The request has to be one that writes an `int` and nothing else.
///
/// # Errors
///
/// `ENOTTY` if the descriptor knows no such request.
pub fn ioctl_number(fd: RawFd, request: NumberRequest) -> Result<i32> {
    let mut value = 0_i32;
    // SAFETY: each `NumberRequest` stores one `int` at the address given.
    unsafe { syscall(libc::SYS_ioctl, [fd as usize, request as usize, ptr::from_mut(&mut value) as usize, 0, 0, 0]) }?;
    Ok(value)
}

/// The requests of [`ioctl_number`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum NumberRequest {
    /// `FIONREAD`: bytes that can be read.
    Readable = 0x541b,
}

/// What is ready right now (`poll(2)` with a timeout of zero): the `POLL*` bits of `events` and the ones always reported.
pub fn ready(fd: RawFd, events: i16) -> Result<i16> {
    let mut entry = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: one exclusively borrowed entry, as announced.
    unsafe { syscall(libc::SYS_poll, [ptr::from_mut(&mut entry) as usize, 1, 0, 0, 0, 0]) }?;
    Ok(entry.revents)
}

/// Time until the next expiration of a timerfd, and its interval (`timerfd_gettime(2)`).
pub fn timer(fd: RawFd) -> Result<libc::itimerspec> {
    let mut timer = MaybeUninit::<libc::itimerspec>::zeroed();
    // SAFETY: timerfd_gettime fills the structure.
    unsafe { syscall(libc::SYS_timerfd_gettime, [fd as usize, timer.as_mut_ptr() as usize, 0, 0, 0, 0]) }?;
    // SAFETY: all-zero is a valid value, and the call has filled it.
    Ok(unsafe { timer.assume_init() })
}

/// Whether the eventfd `fd`, whose counter is `count`, is a semaphore (`EFD_SEMAPHORE`).
///
/// Found out by use: two are added, and what reading takes tells. The counter is then as it was. Who polls the descriptor may
/// be woken for nothing.
///
/// # Errors
///
/// Those of `read(2)` and `write(2)`; `EOVERFLOW` if the counter is too high to try.
pub fn probe_eventfd_semaphore(fd: RawFd, count: u64) -> Result<bool> {
    let overflow = crate::Errno::new(libc::EOVERFLOW);
    let raised = count.checked_add(2).filter(|raised| *raised < u64::MAX).ok_or(overflow)?;
    eventfd_add(fd, 2)?;
    let taken = eventfd_take(fd)?;
    if taken == raised {
        if count > 0 {
            eventfd_add(fd, count)?;
        }
        return Ok(false);
    }
    // A semaphore gives one at a time, and one of our two is left.
    eventfd_take(fd).map(|_| true)
}

fn eventfd_add(fd: RawFd, value: u64) -> Result<()> {
    // SAFETY: write reads the eight bytes of a live number.
    unsafe { syscall(libc::SYS_write, [fd as usize, ptr::from_ref(&value) as usize, 8, 0, 0, 0]) }.map(drop)
}

fn eventfd_take(fd: RawFd) -> Result<u64> {
    let mut value = 0_u64;
    // SAFETY: read fills the eight bytes of a live number.
    unsafe { syscall(libc::SYS_read, [fd as usize, ptr::from_mut(&mut value) as usize, 8, 0, 0, 0]) }?;
    Ok(value)
}

/// Registers `target` with `epoll` for no events (`EPOLL_CTL_ADD`).
///
/// # Errors
///
/// `EEXIST` if this very file is registered under this very number: the way to find out whether it is.
pub fn epoll_add_idle(epoll: RawFd, target: RawFd) -> Result<()> {
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    let args = [epoll as usize, libc::EPOLL_CTL_ADD as usize, target as usize, ptr::from_mut(&mut event) as usize, 0, 0];
    // SAFETY: epoll_ctl reads one live `epoll_event`.
    unsafe { syscall(libc::SYS_epoll_ctl, args) }.map(drop)
}

/// Removes the registration of `target` (`EPOLL_CTL_DEL`).
pub fn epoll_remove(epoll: RawFd, target: RawFd) -> Result<()> {
    let args = [epoll as usize, libc::EPOLL_CTL_DEL as usize, target as usize, 0, 0, 0];
    // SAFETY: EPOLL_CTL_DEL reads no event.
    unsafe { syscall(libc::SYS_epoll_ctl, args) }.map(drop)
}

/// A fresh pipe, reading end first (`pipe2(2)` with `O_CLOEXEC`).
pub fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0_i32; 2];
    // SAFETY: pipe2 stores two numbers.
    unsafe { syscall(libc::SYS_pipe2, [ends.as_mut_ptr() as usize, libc::O_CLOEXEC as usize, 0, 0, 0, 0]) }?;
    // SAFETY: the kernel has just handed this descriptor out and nobody else knows it.
    let reader = unsafe { OwnedFd::from_raw_fd(ends[0]) };
    // SAFETY: as above.
    let writer = unsafe { OwnedFd::from_raw_fd(ends[1]) };
    Ok((reader, writer))
}

/// Copies up to `len` bytes from one pipe into another without taking them out (`tee(2)`), and without waiting.
pub fn tee(from: RawFd, to: RawFd, len: usize) -> Result<usize> {
    const SPLICE_F_NONBLOCK: usize = 2;
    // SAFETY: tee touches no memory of the caller.
    unsafe { syscall(libc::SYS_tee, [from as usize, to as usize, len, SPLICE_F_NONBLOCK, 0, 0]) }
}

/// Makes `to`, which must be free, a duplicate of `from` (`dup3(2)` with `O_CLOEXEC`).
///
/// # Errors
///
/// `EEXIST` if `to` is in use.
pub fn duplicate_to_free(from: RawFd, to: RawFd) -> Result<OwnedFd> {
    if fcntl(to, libc::F_GETFD, 0).is_ok() {
        return Err(crate::Errno::new(libc::EEXIST));
    }
    // SAFETY: dup3 touches no memory, and `to` was free, so nobody's descriptor is replaced.
    unsafe { syscall(libc::SYS_dup3, [from as usize, to as usize, libc::O_CLOEXEC as usize, 0, 0, 0]) }?;
    // SAFETY: the number was free before and now belongs to the caller.
    Ok(unsafe { OwnedFd::from_raw_fd(to) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    fn eventfd(count: u64, flags: i32) -> OwnedFd {
        // SAFETY: eventfd2 touches no memory.
        let fd = unsafe { syscall(libc::SYS_eventfd2, [count as usize, flags as usize, 0, 0, 0, 0]) }.unwrap();
        // SAFETY: it has just been made.
        unsafe { OwnedFd::from_raw_fd(fd as RawFd) }
    }

    #[test]
    fn semaphores_are_told_from_counters_and_both_keep_their_count() {
        for count in [0, 1, 2, 5] {
            for (flags, semaphore) in [(0, false), (libc::EFD_SEMAPHORE, true)] {
                let event = eventfd(count, flags | libc::EFD_NONBLOCK);
                assert_eq!(probe_eventfd_semaphore(event.as_raw_fd(), count), Ok(semaphore));
                let text = std::fs::read(format!("/proc/self/fdinfo/{}", event.as_raw_fd())).unwrap();
                assert_eq!(crate::proc::FdInfo::parse(&text).unwrap().eventfd_count, Some(count));
            }
        }
        let full = eventfd(0, libc::EFD_NONBLOCK);
        assert!(probe_eventfd_semaphore(full.as_raw_fd(), u64::MAX - 1).is_err());
    }

    #[test]
    fn only_duplicates_are_duplicates() {
        let (a, b) = (eventfd(0, 0), eventfd(0, 0));
        let same = a.try_clone().unwrap();
        let (a, b, same) = (a.as_raw_fd(), b.as_raw_fd(), same.as_raw_fd());
        for ask in [is_duplicate_by_query, is_duplicate_by_kcmp] {
            // An older kernel, or a seccomp filter.
            let Ok(answer) = ask(a, same) else { continue };
            assert!(answer && ask(a, b) == Ok(false));
        }
    }

    #[test]
    fn an_inode_knows_when_it_was_made() {
        let file = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
        // tmpfs and overlays of older kernels do not tell.
        if let Some((seconds, nanoseconds)) = born(file.as_raw_fd()) {
            assert!(seconds > 0 && nanoseconds < 1_000_000_000);
        }
        assert_eq!(born(-1), None);
    }
}
