//! Reads what the kernel tells about every descriptor.

use core::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use crac_sys::{
    Errno, descriptor,
    descriptor::NumberRequest,
    fs,
    proc::{AnonInode, FdInfo, FdLink, decimal_name},
    process,
};

use super::{
    Survey, duplicates, epoll,
    facts::{Fact, FileFact, PipeFact, State, TimerFact},
    keep, sockets,
};
use crate::arena::{Arena, ArenaVec};

/// Everything about every descriptor but those of the round and those opened for the look itself, by number.
pub(super) fn observe<'a>(survey: &Survey<'a, '_>) -> Result<&'a [Fact<'a>], Errno> {
    let arena = survey.arena;
    let links = fs::open(c"/proc/self/fd", libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
    let infos = fs::open(c"/proc/self/fdinfo", libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
    let helpers = [links.as_raw_fd(), infos.as_raw_fd()];
    let mut reader = Reader { arena, buffer: arena.zeroed(BUFFER_BYTES)? };

    let mut facts = ArenaVec::new(arena);
    for number in numbers(arena, links.as_fd())? {
        if helpers.contains(number) || survey.own.contains(number) {
            continue;
        }
        let name = Name::of(*number);
        facts.push(Fact {
            number: *number,
            descriptor_flags: fs::fcntl(*number, libc::F_GETFD, 0)? as u32,
            status_flags: fs::fcntl(*number, libc::F_GETFL, 0)? as u32,
            link: reader.link(links.as_raw_fd(), name.as_c_str())?,
            file: file_fact(&descriptor::stat(*number)?),
            info: reader.info(infos.as_fd(), name.as_c_str())?,
            original: *number,
            state: State::Plain,
        })?;
    }
    let facts = facts.into_slice();
    duplicates::group(survey, facts)?;

    let mut sockets = sockets::Sockets::new(arena);
    for fact in facts.iter_mut().filter(|fact| fact.original == fact.number) {
        fact.state = match fact.link() {
            FdLink::Socket { .. } => State::Socket(sockets.observe(fact)?),
            FdLink::Pipe { .. } => State::Pipe(pipe(arena, fact)?),
            FdLink::Anon(AnonInode::Timerfd) => State::Timer(timer(fact.number)?),
            FdLink::Anon(AnonInode::Eventfd) if is_semaphore(fact)? => State::Semaphore,
            FdLink::Memfd { .. } if fs::filesystem(fact.number)? == libc::TMPFS_MAGIC => {
                State::Memory { seals: fs::fcntl(fact.number, libc::F_GET_SEALS, 0)? as u32 }
            }
            FdLink::Path(_) => {
                State::Named { reachable: reachable(arena, fact)?, born: descriptor::born(fact.number).unwrap_or_default() }
            }
            _ => State::Plain,
        };
    }

    // Closed numbers are borrowed to find out what was registered under them, so none of our own may sit on one.
    drop((links, infos, sockets));
    for at in 0..facts.len() {
        let Some(fact) = facts.get(at).copied().filter(|fact| fact.original == fact.number) else { continue };
        if fact.link() == FdLink::Anon(AnonInode::Epoll) {
            let state = State::Epoll(epoll::registrations(survey, facts, &fact)?);
            if let Some(fact) = facts.get_mut(at) {
                fact.state = state;
            }
        }
    }
    Ok(facts)
}

/// The open descriptors, ascending.
fn numbers<'a>(arena: &'a Arena, links: BorrowedFd<'_>) -> Result<&'a [i32], Errno> {
    let buffer = arena.zeroed::<u8>(BUFFER_BYTES)?;
    let mut numbers = ArenaVec::new(arena);
    loop {
        let filled = fs::read_dir(links, buffer)?;
        if filled == 0 {
            break;
        }
        for name in fs::DirEntries::new(buffer.get(..filled).unwrap_or_default()) {
            if let Some(number) = decimal_name(name.to_bytes()) {
                numbers.push(number)?;
            }
        }
    }
    let numbers = numbers.into_slice();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Reads small files of `/proc` whole.
struct Reader<'a> {
    arena: &'a Arena,
    buffer: &'a mut [u8],
}

impl<'a> Reader<'a> {
    /// The target of a link, or an empty text if it is too long to be one.
    fn link(&mut self, links: RawFd, name: &CStr) -> Result<&'a [u8], Errno> {
        let link = fs::read_link_at(links, name, self.buffer)?;
        keep(self.arena, if link.len() < libc::PATH_MAX as usize { link } else { b"" })
    }

    fn info(&mut self, infos: BorrowedFd<'_>, name: &CStr) -> Result<FdInfo<'a>, Errno> {
        let file = fs::open_at(infos.as_raw_fd(), name, libc::O_RDONLY, 0)?;
        let text = self.whole(&file)?;
        FdInfo::parse(text).map_err(|_| Errno::new(libc::EPROTO))
    }

    fn whole(&mut self, file: &OwnedFd) -> Result<&'a [u8], Errno> {
        let mut filled = 0;
        loop {
            // Half a text may look like a whole one, so the end has to be seen, not guessed.
            if filled == self.buffer.len() {
                let larger = self.arena.zeroed::<u8>(self.buffer.len() * 2)?;
                for (to, from) in larger.iter_mut().zip(self.buffer.iter()) {
                    *to = *from;
                }
                self.buffer = larger;
            }
            match fs::read(file.as_fd(), self.buffer.get_mut(filled..).unwrap_or_default())? {
                0 => return keep(self.arena, self.buffer.get(..filled).unwrap_or_default()),
                read => filled += read,
            }
        }
    }
}

pub(super) fn file_fact(stat: &libc::stat) -> FileFact {
    FileFact {
        device: stat.st_dev,
        inode: stat.st_ino,
        mode: stat.st_mode,
        device_number: stat.st_rdev,
        size: stat.st_size as u64,
        modified_s: stat.st_mtime,
        modified_ns: stat.st_mtime_nsec,
        uid: stat.st_uid,
        gid: stat.st_gid,
    }
}

/// Whether the path in the link leads to this file: not if it was deleted or replaced, or lies outside this root.
fn reachable(arena: &Arena, fact: &Fact<'_>) -> Result<bool, Errno> {
    let mut path = ArenaVec::new(arena);
    path.extend_from_slice(fact.link)?;
    path.push(0)?;
    let Ok(path) = CStr::from_bytes_with_nul(&path) else { return Ok(false) };
    let found = fs::stat_path(path).map(|stat| file_fact(&stat));
    Ok(found.is_ok_and(|found| (found.device, found.inode) == (fact.file.device, fact.file.inode)))
}

/// Copies what waits in a pipe without taking it out.
fn pipe<'a>(arena: &'a Arena, fact: &Fact<'_>) -> Result<PipeFact<'a>, Errno> {
    let capacity = fs::fcntl(fact.number, libc::F_GETPIPE_SZ, 0)?;
    let gone = libc::POLLHUP | libc::POLLERR;
    let severed = descriptor::ready(fact.number, libc::POLLIN | libc::POLLOUT)? & gone != 0;
    let waiting = descriptor::ioctl_number(fact.number, NumberRequest::Readable)?.max(0) as usize;
    if waiting == 0 {
        return Ok(PipeFact { capacity: capacity as u32, unread: Some(b""), severed });
    }
    if fact.access() != libc::O_RDONLY {
        // Its reading end, if it is ours, tells.
        return Ok(PipeFact { capacity: capacity as u32, unread: None, severed });
    }
    let (reader, writer) = descriptor::pipe()?;
    let enlarged = fs::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, capacity);
    let copied = enlarged.and_then(|_| descriptor::tee(fact.number, writer.as_raw_fd(), waiting));
    drop(writer);
    if copied != Ok(waiting) {
        return Ok(PipeFact { capacity: capacity as u32, unread: None, severed });
    }
    let content = arena.zeroed::<u8>(waiting)?;
    let mut filled = 0;
    while filled < waiting {
        match fs::read(reader.as_fd(), content.get_mut(filled..).unwrap_or_default())? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(PipeFact { capacity: capacity as u32, unread: (filled == waiting).then_some(content), severed })
}

/// Whether an eventfd is a semaphore, found out by use where the kernel (before Linux 6.5) does not tell.
fn is_semaphore(fact: &Fact<'_>) -> Result<bool, Errno> {
    match (fact.info.eventfd_semaphore, fact.info.eventfd_count) {
        (Some(semaphore), _) => Ok(semaphore),
        (None, Some(count)) => descriptor::probe_eventfd_semaphore(fact.number, count),
        (None, None) => Ok(false),
    }
}

fn timer(number: i32) -> Result<TimerFact, Errno> {
    let timer = descriptor::timer(number)?;
    let realtime = process::clock(libc::CLOCK_REALTIME)?;
    Ok(TimerFact {
        remaining: (timer.it_value.tv_sec, timer.it_value.tv_nsec),
        interval: (timer.it_interval.tv_sec, timer.it_interval.tv_nsec),
        realtime: (realtime.as_secs() as i64, i64::from(realtime.subsec_nanos())),
    })
}

/// A descriptor number as a file name.
struct Name([u8; 12]);

impl Name {
    fn of(number: i32) -> Self {
        let mut name = [0; 12];
        let (mut rest, mut digits) = (number.unsigned_abs(), 0);
        loop {
            name.copy_within(0..digits, 1);
            if let Some(first) = name.first_mut() {
                *first = b'0' + (rest % 10) as u8;
            }
            digits += 1;
            rest /= 10;
            if rest == 0 {
                return Self(name);
            }
        }
    }

    fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or(c"")
    }
}

const BUFFER_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_names() {
        for (number, name) in [(0, c"0"), (7, c"7"), (10, c"10"), (i32::MAX, c"2147483647")] {
            assert_eq!(Name::of(number).as_c_str(), name);
        }
    }
}
