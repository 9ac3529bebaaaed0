//! eventfd, timerfd, signalfd, epoll registrations.

use super::{BROKEN, F_DUPFD_CLOEXEC, close_on_exec, detail, place};
use crate::{
    layout::{
        DescriptorStep,
        descriptors::{DescriptorRecord, Epoll, EpollTarget, Eventfd, Signalfd, Timerfd, find, kind, sequence},
    },
    sys::{self, Errno, Result},
    syscall,
};

pub fn eventfd(step: &DescriptorStep, record: &DescriptorRecord) -> Result<()> {
    let eventfd: Eventfd = detail(step, record)?;
    let flags = eventfd.flags as usize | nonblocking(record) | close_on_exec(record);
    // The call takes 32 bits; the rest is added.
    let at_once = eventfd.count.min(u64::from(u32::MAX));
    let made = syscall!(sys::SYS_EVENTFD2, at_once, flags)? as i32;
    let rest = eventfd.count.wrapping_sub(at_once);
    if rest != 0 {
        syscall!(sys::SYS_WRITE, made, &raw const rest, 8)?;
    }
    place(made, record)
}

pub fn timerfd(step: &DescriptorStep, record: &DescriptorRecord) -> Result<()> {
    let timer: Timerfd = detail(step, record)?;
    let made = syscall!(sys::SYS_TIMERFD_CREATE, timer.clock, nonblocking(record) | close_on_exec(record))? as i32;
    // struct itimerspec: interval, then value.
    let mut times = [timer.interval_s, timer.interval_ns, timer.value_s, timer.value_ns];
    syscall!(sys::SYS_TIMERFD_SETTIME, made, timer.settime_flags, times.as_ptr(), 0)?;
    if timer.ticks != 0 && syscall!(sys::SYS_IOCTL, made, TFD_IOC_SET_TICKS, &raw const timer.ticks).is_err() {
        // A kernel without CONFIG_CHECKPOINT_RESTORE: it is due at once, and only how often is lost.
        let [_, _, seconds, nanoseconds] = &mut times;
        (*seconds, *nanoseconds) = (0, 1);
        syscall!(sys::SYS_TIMERFD_SETTIME, made, 0, times.as_ptr(), 0)?;
    }
    place(made, record)
}

pub fn signalfd(step: &DescriptorStep, record: &DescriptorRecord) -> Result<()> {
    let signalfd: Signalfd = detail(step, record)?;
    let flags = nonblocking(record) | close_on_exec(record);
    let made = syscall!(sys::SYS_SIGNALFD4, -1_isize, &raw const signalfd.mask, 8, flags)? as i32;
    place(made, record)
}

/// Registers everything an epoll instance watched.
pub fn register(step: &DescriptorStep, record: &DescriptorRecord) -> Result<()> {
    let epoll: Epoll = detail(step, record)?;
    for target in sequence::<EpollTarget>(epoll.targets, step.blob) {
        if target.source == target.number {
            add(step, record, &target)?;
            continue;
        }
        // Registered under a number that is closed, or stands for another file by now: it is lent to the right file meanwhile.
        let number = target.number;
        let tenant = match syscall!(sys::SYS_FCNTL, number, F_DUPFD_CLOEXEC, 0) {
            Ok(tenant) => Some(tenant as i32),
            Err(Errno(EBADF)) => None,
            Err(errno) => return Err(errno),
        };
        syscall!(sys::SYS_DUP3, target.source, number, sys::O_CLOEXEC)?;
        let added = add(step, record, &target);
        match tenant {
            Some(tenant) => {
                let flags = find(step.records, number).map_or(0, close_on_exec);
                syscall!(sys::SYS_DUP3, tenant, number, flags)?;
                syscall!(sys::SYS_CLOSE, tenant)?;
            }
            None => syscall!(sys::SYS_CLOSE, number).map(drop)?,
        }
        added?;
    }
    Ok(())
}

fn add(step: &DescriptorStep, record: &DescriptorRecord, target: &EpollTarget) -> Result<()> {
    // struct epoll_event is packed on this architecture.
    let mut event = [0_u8; 12];
    let (events, data) = event.split_first_chunk_mut::<4>().ok_or(BROKEN)?;
    *events = target.events.to_le_bytes();
    *data.first_chunk_mut::<8>().ok_or(BROKEN)? = target.data.to_le_bytes();
    match syscall!(sys::SYS_EPOLL_CTL, record.number, EPOLL_CTL_ADD, target.number, event.as_ptr()) {
        // This process's standard input may be a file, which cannot be watched and never has to be waited for.
        Err(Errno(EPERM)) if is_inherited(step, target.source) => Ok(()),
        done => done.map(drop),
    }
}

fn is_inherited(step: &DescriptorStep, number: i32) -> bool {
    super::is_stream_duplicate(step, number) || find(step.records, number).is_some_and(|record| record.kind == kind::INHERITED)
}

fn nonblocking(record: &DescriptorRecord) -> usize {
    (record.status_flags & super::O_NONBLOCK) as usize
}

const EPERM: i32 = 1;
const EBADF: i32 = 9;
const EPOLL_CTL_ADD: usize = 1;
/// `_IOW('T', 0, u64)`.
const TFD_IOC_SET_TICKS: usize = 0x4008_5400;
