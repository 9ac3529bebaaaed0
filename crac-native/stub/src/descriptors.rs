//! Step "descriptors": every recorded descriptor is back at its number.
//!
//! 1. Listening sockets handed over by a supervisor step aside; everything else but the standard streams is closed.
//! 2. Standard streams and their duplicates: those of this new process.
//! 3. Everything that is made: files, devices, pipes, sockets, events.
//! 4. Duplicates.
//! 5. Registrations of epoll instances: every file they name exists now.
//!
//! A made descriptor gets the lowest free number and is moved to its own; see [`place`] and [`place_pair`].

#[path = "descriptors/events.rs"]
mod events;
#[path = "descriptors/files.rs"]
mod files;
#[path = "descriptors/sockets.rs"]
mod sockets;

pub use sockets::{INHERITED_END, variable};

use crate::{
    layout::{
        DescriptorStep, EXIT_BUG, EXIT_FAILED, EXIT_START_COLD, Failure, Listeners,
        descriptors::{DescriptorRecord, Detail, Duplicate, Inherited, find, kind, sound},
    },
    report,
    sys::{self, Errno, Result},
    syscall,
};

/// Ends the process if a descriptor could not come back, with all reasons, as long as nothing has been touched.
pub fn check(records: &[DescriptorRecord], blob: &[u8], environment: *const *const u8) {
    if !sound(records, blob) {
        report::exit(EXIT_BUG, &[b"the table of descriptors contradicts itself"]);
    }
    let inherited = sockets::Inherited::look(environment);
    let (mut files, mut addresses) = (Ok(()), Ok(()));
    for record in records {
        match record.kind {
            kind::FILE | kind::DIRECTORY | kind::DEVICE => files = files.and(files::check(record, blob)),
            kind::SOCKET => addresses = addresses.and(sockets::check(record, blob, &inherited)),
            _ => {}
        }
    }
    if files.is_err() {
        // Another host, or files changed: the image does not fit.
        report::end(EXIT_START_COLD);
    }
    if addresses.is_err() {
        // A cold start would not get the address either.
        report::end(EXIT_FAILED);
    }
}

/// Restores the descriptors of `step`; see `layout.rs` for the state of the process at this point.
pub fn restore(step: &DescriptorStep) -> core::result::Result<Listeners, Failure> {
    let inherited = sockets::Inherited::step_aside(step);
    close_the_rest(step, &inherited).map_err(|errno| failure(-1, errno))?;
    each(step, |record| standard_stream(step, record))?;
    each(step, |record| stream_duplicate(step, record))?;
    for number in 0..=2 {
        if find(step.records, number).is_none_or(|record| record.kind != kind::INHERITED) && !is_stream_duplicate(step, number) {
            // It may not be open.
            let _ = syscall!(sys::SYS_CLOSE, number);
        }
    }
    each(step, |record| make(step, record, &inherited))?;
    each(step, |record| match record.kind {
        kind::DUPLICATE if !is_stream_duplicate(step, record.number) => {
            duplicate(detail::<Duplicate>(step, record)?.of, record)
        }
        _ => Ok(()),
    })?;
    each(step, |record| match record.kind {
        kind::EPOLL => events::register(step, record),
        _ => Ok(()),
    })?;
    Ok(inherited.leave_listeners())
}

/// Raises this process's limit of open descriptors, as far as it may, so that `number` can be used.
pub fn make_room(number: u64) {
    const RLIMIT_NOFILE: usize = 7;
    let mut limit = [0_u64; 2];
    if syscall!(sys::SYS_PRLIMIT64, 0, RLIMIT_NOFILE, 0, limit.as_mut_ptr()).is_err() {
        return;
    }
    let [soft, hard] = limit;
    if soft <= number {
        let raised = [hard, hard];
        // If it cannot be raised, the first descriptor above the limit fails with its own message.
        let _ = syscall!(sys::SYS_PRLIMIT64, 0, RLIMIT_NOFILE, raised.as_ptr(), 0);
    }
}

fn make(step: &DescriptorStep, record: &DescriptorRecord, inherited: &sockets::Inherited) -> Result<()> {
    match record.kind {
        kind::INHERITED | kind::DUPLICATE | kind::PARTNER => Ok(()),
        kind::FILE | kind::DIRECTORY | kind::DEVICE => files::open(step, record),
        kind::PIPE => files::pipe(step, record),
        kind::SOCKET_PAIR => sockets::pair(step, record),
        kind::SOCKET => sockets::socket(step, record, inherited),
        kind::EVENTFD => events::eventfd(step, record),
        kind::TIMERFD => events::timerfd(step, record),
        kind::SIGNALFD => events::signalfd(step, record),
        kind::MEMFD => files::memfd(step, record),
        kind::PIDFD => {
            let pid = syscall!(sys::SYS_GETPID)?;
            let made = syscall!(sys::SYS_PIDFD_OPEN, pid, record.status_flags & O_NONBLOCK)? as i32;
            place(made, record)
        }
        kind::EPOLL => {
            let epoll = syscall!(sys::SYS_EPOLL_CREATE1, close_on_exec(record))? as i32;
            place(epoll, record)
        }
        _ => Err(BROKEN),
    }
}

/// A standard stream stays as it is; one that is closed is replaced by the null device.
fn standard_stream(step: &DescriptorStep, record: &DescriptorRecord) -> Result<()> {
    if record.kind != kind::INHERITED {
        return Ok(());
    }
    let stream = detail::<Inherited>(step, record)?.stream;
    if let Err(errno) = syscall!(sys::SYS_FCNTL, stream, F_GETFD, 0) {
        if errno != EBADF {
            return Err(errno);
        }
        // Records are in order, so every lower number that is needed is open: this one is the lowest free one, or is made so.
        let null = syscall!(sys::SYS_OPENAT, sys::AT_FDCWD, c"/dev/null".as_ptr(), O_RDWR, 0)? as i32;
        if null != stream {
            syscall!(sys::SYS_DUP3, null, stream, 0)?;
            syscall!(sys::SYS_CLOSE, null)?;
        }
    }
    if record.number != stream {
        return duplicate(stream, record);
    }
    syscall!(sys::SYS_FCNTL, stream, F_SETFD, record.descriptor_flags & FD_CLOEXEC).map(drop)
}

fn stream_duplicate(step: &DescriptorStep, record: &DescriptorRecord) -> Result<()> {
    if !is_stream_duplicate(step, record.number) {
        return Ok(());
    }
    duplicate(detail::<Duplicate>(step, record)?.of, record)
}

/// Whether `number` is a duplicate of a standard stream, which has to be made before that number is anybody else's.
fn is_stream_duplicate(step: &DescriptorStep, number: i32) -> bool {
    let Some(record) = find(step.records, number).filter(|record| record.kind == kind::DUPLICATE) else { return false };
    let Some(duplicate) = record.detail::<Duplicate>(step.blob) else { return false };
    find(step.records, duplicate.of).is_some_and(|of| of.kind == kind::INHERITED)
}

fn duplicate(of: i32, record: &DescriptorRecord) -> Result<()> {
    syscall!(sys::SYS_DUP3, of, record.number, close_on_exec(record)).map(drop)
}

/// Closes what this process was started with, but the standard streams, the image and what a supervisor handed over.
fn close_the_rest(step: &DescriptorStep, inherited: &sockets::Inherited) -> Result<()> {
    let (mut from, last) = (3, u32::MAX);
    // The numbers to keep ascend: the image comes first, inherited sockets were moved behind it.
    let objects = (0..step.objects.len()).map(|at| step.object_fd.wrapping_add(at as i32));
    for keep in core::iter::once(step.image_fd).chain(objects).chain(inherited.numbers()) {
        let keep = keep as u32;
        if keep > from {
            syscall!(sys::SYS_CLOSE_RANGE, from, keep.wrapping_sub(1), 0)?;
        }
        from = keep.wrapping_add(1);
    }
    syscall!(sys::SYS_CLOSE_RANGE, from, last, 0).map(drop)
}

/// Moves the freshly made descriptor `made` to the record's number. `made` has the record's close-on-exec flag.
fn place(made: i32, record: &DescriptorRecord) -> Result<()> {
    if made == record.number {
        return Ok(());
    }
    syscall!(sys::SYS_DUP3, made, record.number, close_on_exec(record))?;
    syscall!(sys::SYS_CLOSE, made).map(drop)
}

/// As [`place`], for two that are made at once: moving one must not close the other. Without a second record that one closes.
fn place_pair(first: i32, mut second: i32, record: &DescriptorRecord, partner: Option<&DescriptorRecord>) -> Result<()> {
    if second == record.number {
        let moved = syscall!(sys::SYS_FCNTL, second, F_DUPFD_CLOEXEC, 0)? as i32;
        syscall!(sys::SYS_CLOSE, second)?;
        second = moved;
    }
    place(first, record)?;
    set_close_on_exec(record)?;
    let Some(partner) = partner else { return syscall!(sys::SYS_CLOSE, second).map(drop) };
    place(second, partner)?;
    set_close_on_exec(partner)
}

fn set_close_on_exec(record: &DescriptorRecord) -> Result<()> {
    syscall!(sys::SYS_FCNTL, record.number, F_SETFD, record.descriptor_flags & FD_CLOEXEC).map(drop)
}

/// Sets the status flags that can be set later (`F_SETFL`).
fn set_status(record: &DescriptorRecord) -> Result<()> {
    let flags = record.status_flags & (O_APPEND | O_NONBLOCK | O_DIRECT);
    if flags == 0 { Ok(()) } else { syscall!(sys::SYS_FCNTL, record.number, F_SETFL, flags).map(drop) }
}

fn each(
    step: &DescriptorStep,
    mut action: impl FnMut(&DescriptorRecord) -> Result<()>,
) -> core::result::Result<(), Failure> {
    for record in step.records {
        if let Err(errno) = action(record) {
            return Err(failure(record.number, errno));
        }
    }
    Ok(())
}

fn failure(descriptor: i32, errno: Errno) -> Failure {
    Failure { descriptor, errno: errno.0 }
}

fn detail<D: Detail>(step: &DescriptorStep, record: &DescriptorRecord) -> Result<D> {
    record.detail(step.blob).ok_or(BROKEN)
}

/// `O_CLOEXEC` if the record has it; `SOCK_CLOEXEC`, `EFD_CLOEXEC` and so on are the same bit.
fn close_on_exec(record: &DescriptorRecord) -> usize {
    if record.descriptor_flags & FD_CLOEXEC != 0 { sys::O_CLOEXEC } else { 0 }
}

/// The image contradicts itself (`EPROTO`); the check before the point of no return has missed it.
const BROKEN: Errno = Errno(71);
const EBADF: Errno = Errno(9);
/// `ESTALE`: a file is no longer what it was.
const CHANGED: Errno = Errno(116);

const FD_CLOEXEC: u32 = 1;
const F_GETFD: usize = 1;
const F_SETFD: usize = 2;
const F_SETFL: usize = 4;
const F_DUPFD_CLOEXEC: usize = 1030;
const O_RDWR: usize = 2;
const O_ACCMODE: u32 = 3;
const O_WRONLY: u32 = 1;
const O_APPEND: u32 = 0o2000;
const O_NONBLOCK: u32 = 0o4000;
const O_DIRECT: u32 = 0o40000;
