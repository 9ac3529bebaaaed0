//! Decides how each descriptor comes back: facts and policy in, records and obstacles out. No system call.

mod files;
mod links;
mod sockets;

use core::fmt;

use crac_core::{Action, ObstacleKind, Policy};
use crac_sys::{
    Errno,
    proc::{AnonInode, FdLink, LockKind},
};

use super::{
    DescriptorTable, Memory,
    facts::{Bytes, Fact, Registration, State, Target, TimerFact},
};
use crate::{
    arena::{Arena, ArenaVec},
    findings::ObstacleSink,
    layout::descriptors::{
        DescriptorRecord, Detail, Duplicate, Epoll, EpollTarget, Eventfd, Inherited, Memfd, Signalfd, Span, Timerfd, kind,
    },
};

/// The records of `facts`, which are ordered by number. What cannot come back goes to `obstacles`.
pub(super) fn plan<'a>(
    facts: &[Fact<'_>],
    pid: i32,
    policy: &Policy,
    is_copied: bool,
    arena: &'a Arena,
    obstacles: &mut ObstacleSink<'a>,
) -> Result<DescriptorTable<'a>, Errno> {
    let mut planner = Planner {
        facts,
        pid,
        links: links::Links::of(arena, facts)?,
        policy,
        obstacles,
        records: ArenaVec::new(arena),
        blob: ArenaVec::new(arena),
        dead: ArenaVec::new(arena),
        memories: ArenaVec::new(arena),
        arena,
        is_copied,
    };
    for fact in facts {
        planner.decide(fact)?;
    }
    Ok(DescriptorTable { records: planner.records, blob: planner.blob, memories: planner.memories })
}

struct Planner<'a, 'f, 's> {
    facts: &'f [Fact<'f>],
    /// This process's number: what lies below it in `/proc` will have another name.
    pid: i32,
    links: links::Links<'a>,
    policy: &'s Policy,
    obstacles: &'s mut ObstacleSink<'a>,
    records: ArenaVec<'a, DescriptorRecord>,
    blob: ArenaVec<'a, u8>,
    /// One dead socket for all with the same type and flags, and its number.
    dead: ArenaVec<'a, (i32, u32, i32)>,
    /// Memory behind memfds, each once.
    memories: ArenaVec<'a, Memory<'a>>,
    arena: &'a Arena,
    /// Whether the process goes on while a copy of it is saved.
    is_copied: bool,
}

impl<'f> Planner<'_, 'f, '_> {
    fn decide(&mut self, fact: &'f Fact<'f>) -> Result<(), Errno> {
        let original = self.fact(fact.original).unwrap_or(fact);
        if is_standard_stream(fact.number) && self.is_inherited(original) {
            return self.record(fact, kind::INHERITED, &Inherited { stream: fact.number });
        }
        if fact.original != fact.number {
            return self.record(fact, kind::DUPLICATE, &Duplicate { of: fact.original });
        }
        for lock in fact.info.locks() {
            let how = match lock.kind {
                LockKind::Flock => "flock(2)",
                LockKind::Posix => "fcntl(2)",
                LockKind::OpenFile => "F_OFD_SETLK",
                LockKind::Lease => "F_SETLEASE",
                LockKind::Other => "an unknown call",
            };
            self.refuse(ObstacleKind::FileLock, fact, format_args!("{}, locked by {how}", Bytes(fact.link)));
        }
        // A lease announces itself by signal, too.
        if fact.has_status(libc::O_ASYNC) && fact.info.locks().next().is_none() {
            self.refuse(
                ObstacleKind::DescriptorOther,
                fact,
                format_args!("{}, announces itself by signal (O_ASYNC)", Bytes(fact.link)),
            );
        }
        match (fact.link(), fact.state) {
            (FdLink::Path(_), State::Named { reachable, .. }) => self.named(fact, reachable),
            (FdLink::Pipe { .. }, State::Pipe(pipe)) => self.pipe(fact, &pipe),
            (FdLink::Socket { .. }, State::Socket(socket)) => self.socket(fact, &socket),
            (FdLink::Anon(AnonInode::Epoll), State::Epoll(registrations)) => self.epoll(fact, registrations),
            (FdLink::Anon(AnonInode::Timerfd), State::Timer(timer)) => self.timerfd(fact, timer),
            (FdLink::Anon(AnonInode::Eventfd), state) => self.eventfd(fact, matches!(state, State::Semaphore)),
            (FdLink::Anon(AnonInode::Signalfd), _) => match fact.info.signalfd_mask {
                Some(mask) => self.record(fact, kind::SIGNALFD, &Signalfd { mask }),
                None => {
                    self.refuse_ok(ObstacleKind::Signalfd, fact, format_args!("a signalfd whose mask the kernel does not tell"))
                }
            },
            (FdLink::Anon(AnonInode::Pidfd), _) if fact.info.pidfd_process == Some(self.pid) => {
                self.push(fact, kind::PIDFD, Span::default())
            }
            (FdLink::Anon(anon), _) => {
                let kind = match anon {
                    AnonInode::IoUring => ObstacleKind::IoUring,
                    AnonInode::Pidfd => ObstacleKind::Pidfd,
                    AnonInode::Inotify | AnonInode::Fanotify => ObstacleKind::Inotify,
                    _ => ObstacleKind::DescriptorOther,
                };
                self.refuse_ok(kind, fact, format_args!("{}", Bytes(fact.link)))
            }
            (FdLink::Memfd { name }, _) => self.memfd(fact, name),
            _ => self.refuse_ok(ObstacleKind::DescriptorOther, fact, format_args!("{}", Bytes(fact.link))),
        }
    }

    /// Whether a standard stream is what the process was started with, not something it opened there itself.
    fn is_inherited(&self, fact: &Fact<'_>) -> bool {
        match (fact.link(), &fact.state) {
            (FdLink::Anon(_) | FdLink::Memfd { .. }, _) => false,
            (_, State::Pipe(_)) => !matches!(self.links.pipe(fact), links::Pipe::Whole { .. }),
            (_, State::Socket(socket)) => {
                let is_internet_datagram = socket.domain != libc::AF_UNIX && socket.socket_type == libc::SOCK_DGRAM;
                !socket.listening && !is_internet_datagram && self.links.peer(fact, socket).is_none()
            }
            _ => true,
        }
    }

    fn eventfd(&mut self, fact: &Fact<'_>, probed_semaphore: bool) -> Result<(), Errno> {
        let Some(count) = fact.info.eventfd_count else {
            return self.refuse_ok(
                ObstacleKind::DescriptorOther,
                fact,
                format_args!("an eventfd whose counter the kernel does not tell"),
            );
        };
        let semaphore = fact.info.eventfd_semaphore.unwrap_or(probed_semaphore);
        let flags = if semaphore { libc::EFD_SEMAPHORE as u32 } else { 0 };
        self.record(fact, kind::EVENTFD, &Eventfd { count, flags })
    }

    /// Content and seals belong to the memory behind it, which other descriptors and mappings may share.
    fn memfd(&mut self, fact: &Fact<'f>, name: &'f [u8]) -> Result<(), Errno> {
        let State::Memory { seals } = fact.state else {
            return self.refuse_ok(ObstacleKind::Memfd, fact, format_args!("memfd {}, in huge pages", Bytes(name)));
        };
        if self.is_copied {
            let what = format_args!("memfd {}, and the mode is continue", Bytes(name));
            return self.refuse_ok(ObstacleKind::Memfd, fact, what);
        }
        let file = fact.file;
        if !self.memories.iter().any(|memory| memory.inode == file.inode) {
            let name = super::keep(self.arena, name)?;
            let memory = Memory { number: fact.number, inode: file.inode, size: file.size, mode: file.mode, seals, name };
            self.memories.push(memory)?;
        }
        self.record(fact, kind::MEMFD, &Memfd { inode: file.inode, position: fact.info.position })
    }

    fn timerfd(&mut self, fact: &Fact<'_>, timer: TimerFact) -> Result<(), Errno> {
        let Some(info) = fact.info.timerfd else {
            return self.refuse_ok(ObstacleKind::Timerfd, fact, format_args!("a timerfd whose clock the kernel does not tell"));
        };
        if !matches!(info.clock, libc::CLOCK_REALTIME | libc::CLOCK_MONOTONIC | libc::CLOCK_BOOTTIME) {
            return self.refuse_ok(
                ObstacleKind::Timerfd,
                fact,
                format_args!("a timerfd of clock {}, which may wake the machine", info.clock),
            );
        }
        // What the kernel tells about the descriptor, the ticks among it, was read before the time that remains. One that has fired
        // between the two has less to go than it had, or begins anew, and its tick is not among them. That of one which had nothing to
        // go any more is: a periodic one is set going again by being asked.
        let fired = info.remaining != (0, 0)
            && match timer.interval {
                (0, 0) => timer.remaining == (0, 0) && info.ticks == 0,
                _ => timer.remaining > info.remaining,
            };
        let absolute = info.settime_flags & libc::TFD_TIMER_ABSTIME as u32 != 0;
        // A moment on the wall stays that moment; every other timer has as long to go as it had.
        let (settime_flags, value) = if info.clock == libc::CLOCK_REALTIME && absolute && timer.remaining != (0, 0) {
            (info.settime_flags, sum(timer.realtime, timer.remaining))
        } else if timer.remaining == (0, 0) && timer.interval != (0, 0) {
            // About to fire at this very moment; zero would stop it.
            (0, (0, 1))
        } else {
            (0, timer.remaining)
        };
        self.record(
            fact,
            kind::TIMERFD,
            &Timerfd {
                clock: info.clock,
                settime_flags,
                value_s: value.0,
                value_ns: value.1,
                interval_s: timer.interval.0,
                interval_ns: timer.interval.1,
                ticks: info.ticks + u64::from(fired),
            },
        )
    }

    fn epoll(&mut self, fact: &Fact<'_>, registrations: &[Registration]) -> Result<(), Errno> {
        let start = self.blob.len();
        for registration in registrations {
            let Registration { number, events, data, target } = *registration;
            match target {
                Target::Descriptor(source) => _ = self.detail(&EpollTarget { number, source, events, data })?,
                // Nobody in the restored life could hear of it.
                Target::Own => {}
                Target::Unknown => self.refuse(
                    ObstacleKind::EpollTarget,
                    fact,
                    format_args!("epoll, watches fd {number} for somebody else than who has that number now"),
                ),
            }
        }
        let targets = span(start, self.blob.len())?;
        self.record(fact, kind::EPOLL, &Epoll { targets })
    }

    fn fact(&self, number: i32) -> Option<&'f Fact<'f>> {
        self.facts.get(self.facts.binary_search_by_key(&number, |fact| fact.number).ok()?)
    }

    fn refuse(&mut self, kind: ObstacleKind, fact: &Fact<'_>, what: fmt::Arguments<'_>) {
        self.obstacles.push(kind, format_args!("fd {}, {what}", fact.number));
    }

    fn refuse_ok(&mut self, kind: ObstacleKind, fact: &Fact<'_>, what: fmt::Arguments<'_>) -> Result<(), Errno> {
        self.refuse(kind, fact, what);
        Ok(())
    }

    fn allows(&self, kind: ObstacleKind, name: &[u8], action: Action) -> bool {
        core::str::from_utf8(name).is_ok_and(|name| self.policy.decide(kind, name) == action)
    }

    fn record(&mut self, fact: &Fact<'_>, kind: u32, detail: &impl Detail) -> Result<(), Errno> {
        let detail = self.detail(detail)?;
        self.push(fact, kind, detail)
    }

    fn push(&mut self, fact: &Fact<'_>, kind: u32, detail: Span) -> Result<(), Errno> {
        self.records.push(DescriptorRecord {
            number: fact.number,
            kind,
            descriptor_flags: fact.descriptor_flags,
            status_flags: fact.status_flags,
            detail,
        })
    }

    fn detail(&mut self, detail: &impl Detail) -> Result<Span, Errno> {
        let start = self.blob.len();
        let mut put = Ok(());
        let blob = &mut self.blob;
        detail.encode(&mut |piece| put = put.and_then(|()| blob.extend_from_slice(piece)));
        put?;
        span(start, self.blob.len())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<Span, Errno> {
        let start = self.blob.len();
        self.blob.extend_from_slice(bytes)?;
        span(start, self.blob.len())
    }
}

fn is_standard_stream(number: i32) -> bool {
    (0..=2).contains(&number)
}

/// # Errors
///
/// `EFBIG` for more than 4 GiB of queued bytes and names.
fn span(start: usize, end: usize) -> Result<Span, Errno> {
    let fits = |value: usize| u32::try_from(value).map_err(|_| Errno::new(libc::EFBIG));
    Ok(Span { offset: fits(start)?, len: fits(end - start)? })
}

/// Two times, seconds and nanoseconds below one second.
fn sum(a: (i64, i64), b: (i64, i64)) -> (i64, i64) {
    const SECOND: i64 = 1_000_000_000;
    let nanoseconds = a.1 + b.1;
    (a.0.saturating_add(b.0).saturating_add(nanoseconds / SECOND), nanoseconds % SECOND)
}

#[cfg(test)]
mod tests;
