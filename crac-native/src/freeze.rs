//! Stops every other thread of the process at a known place, without allocating, without a lock and without privileges.
//!
//! ```text
//! capturing thread                          every other thread
//! ────────────────                          ──────────────────
//! list /proc/self/task ──── signal ───────► handler: is it ours? inside code to avoid? (again)
//!   until all are parked                      notes its own kernel state in its slot
//! facts, plan, image                          park: waits on RELEASE
//! release ─────────── wake ───────────────► handler returns; rt_sigreturn restores all registers
//!
//! restored life:  stub jumps behind `park` ─► ARRIVED + 1, waits on RELEASE, returns the same way
//! ```
//!
//! The signal is the C library's own for cancelling threads: its functions never let a program block it, so threads that block
//! everything (as allocators' and clients' helper threads do) are reached as well. Our handler is installed only while
//! freezing; a signal that is not ours goes to the handler that was there.
#![expect(unsafe_code, reason = "installs a signal handler, and shares slots with it")]

mod handler;
mod state;

use std::{
    cell::{Cell, UnsafeCell},
    ptr,
    sync::atomic::{
        AtomicI32, AtomicU32, AtomicU64, AtomicUsize,
        Ordering::{Acquire, Relaxed, SeqCst},
    },
    time::Duration,
};

use crac_core::ObstacleKind;
use crac_sys::{
    Errno, fs, futex, process,
    signal::{self, Action},
};

use crate::{
    arch::{self, Resume},
    arena::{Arena, ArenaVec, Zeroable},
    clock::waits::Call,
    findings::ObstacleSink,
};
pub(crate) use state::ThreadState;

/// glibc's `SIGCANCEL`.
pub(crate) const FREEZE_SIGNAL: i32 = 32;
/// How many threads a process may have; a slot that is not used takes no memory.
const THREADS_MAX: usize = 1 << 16;
const SLOT_BITS: u32 = THREADS_MAX.trailing_zeros();

/// The random upper bits of a freeze's signals; zero while none is under way.
static COOKIE: AtomicU64 = AtomicU64::new(0);
static SLOTS: AtomicUsize = AtomicUsize::new(0);
/// How many threads are in the handler.
static INSIDE: AtomicU32 = AtomicU32::new(0);
/// Counts freezes and thaws. A parked thread waits until it has moved on from the value of its freeze, so that a thread that is
/// slow to leave is not caught by the next freeze inside the handler, where the signal is blocked.
static RELEASE: AtomicU32 = AtomicU32::new(0);
/// Bumped with every thread that parks, for the capturing thread to wait on.
static PARKED: AtomicU32 = AtomicU32::new(0);
/// How many threads came back in this life.
static ARRIVED: AtomicU32 = AtomicU32::new(0);
/// How many threads the image holds besides the capturing one.
static EXPECTED: AtomicU32 = AtomicU32::new(0);
/// Starts and ends of the code in which no thread is stopped.
static AVOIDED: [[AtomicUsize; 2]; 2] = [const { [AtomicUsize::new(0), AtomicUsize::new(0)] }; 2];
/// The disposition our handler replaced, for signals that are not ours.
static PREVIOUS: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];
static PROCESS: AtomicI32 = AtomicI32::new(0);

/// Where a thread and the capturing one meet.
#[derive(Debug)]
struct Slot {
    tid: i32,
    /// The value of [`RELEASE`] to wait on.
    freeze: u32,
    /// Whose turn it is: the thread's own until it is [`IS_PARKED`], the capturing thread's from then on.
    state: AtomicU32,
    resume: UnsafeCell<Resume>,
    noted: UnsafeCell<ThreadState>,
    /// Where the system call ends that the thread was in when it was looked at, and its stack pointer then: see [`Watch`].
    observed: [AtomicU64; 2],
    /// Whether a thread interrupted in another call is to be looked at again.
    watched: AtomicU32,
    /// The thread's answer: it was stopped in that call.
    in_call: AtomicU32,
    /// The capturing thread's own: what the call is, if it is one to know of.
    wait: Cell<Option<&'static str>>,
}

impl Slot {
    /// Looks at what the thread is doing, before it is signalled.
    fn look(&self, watch: Watch<'_>) {
        let Watch::AbsoluteWaits(is_covered) = watch else {
            self.watched.store(0, Relaxed);
            return;
        };
        let call = Call::of(self.tid).unwrap_or_default();
        self.wait.set(call.absolute_wait().filter(|_| !is_covered(call.ip)));
        self.observed[0].store(call.ip, Relaxed);
        self.observed[1].store(call.sp, Relaxed);
        self.watched.store(self.watched.load(Relaxed).saturating_sub(1), Relaxed);
    }
}

/// Which system calls the capturing thread wants to know of.
#[derive(Clone, Copy)]
pub(crate) enum Watch<'w> {
    /// None.
    Nothing,
    /// Waits until a moment of a clock that may be shifted, but for those that end at an address which is covered.
    AbsoluteWaits(&'w dyn Fn(u64) -> bool),
}

/// How often a thread is looked at again that was interrupted in another system call than it was seen in.
const LOOKS_MAX: u32 = 16;

/// A stopped thread.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parked {
    pub(crate) tid: i32,
    pub(crate) resume: Resume,
    pub(crate) state: ThreadState,
    /// The absolute wait it was stopped in, if such were watched for.
    pub(crate) wait: Option<&'static str>,
}

const SIGNALLED: u32 = 0;
const IN_AVOIDED: u32 = 1;
const IS_PARKED: u32 = 2;
const GONE: u32 = 3;

/// Room for a slot, away from those of other threads.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct SlotRoom([u8; 192]);
const _: () = assert!(size_of::<Slot>() <= size_of::<SlotRoom>());

// SAFETY: bytes.
unsafe impl Zeroable for SlotRoom {}

/// All other threads, stopped. Dropping it releases them.
#[derive(Debug)]
pub(crate) struct Frozen<'a> {
    threads: ArenaVec<'a, Parked>,
    /// The disposition of the freeze signal outside of freezes.
    pub(crate) previous: Action,
    /// Monotonic time at which the first thread was asked to stop.
    pub(crate) since: Duration,
    /// A signal was sent that nobody has taken yet: the handler has to stay.
    stray: bool,
}

/// Why not all threads could be stopped.
#[derive(Debug)]
pub(crate) enum FreezeError {
    /// Threads that did not stop are in the sink.
    Unstoppable,
    /// A system call failed.
    System(&'static str, Errno),
}

impl<'a> Frozen<'a> {
    /// Stops every other thread, within `deadline`.
    ///
    /// The caller has blocked all signals. In the code at `avoided` no thread is stopped, but asked again until it is elsewhere:
    /// in the vdso it would go on in another life half through a computation with this life's clock data, and in the dynamic
    /// loader it holds locks that know their owner by its thread id. The same goes for the clock's shim (`clock::shim`).
    pub(crate) fn all(
        arena: &'a Arena,
        avoided: [std::ops::Range<usize>; 2],
        watch: Watch<'_>,
        deadline: Duration,
        obstacles: &mut ObstacleSink<'a>,
    ) -> Result<Self, FreezeError> {
        let system = |what| move |errno| FreezeError::System(what, errno);
        let room = arena.sparse::<SlotRoom>(THREADS_MAX).map_err(system("reserving thread slots"))?;
        let mut random = [0; 8];
        process::random(&mut random).map_err(system("drawing a cookie"))?;
        let cookie = (u64::from_ne_bytes(random) >> SLOT_BITS).max(1);
        PROCESS.store(process::pid(), Relaxed);
        for (place, range) in AVOIDED.iter().zip(avoided) {
            place[0].store(range.start, Relaxed);
            place[1].store(range.end, Relaxed);
        }
        SLOTS.store(room.expose_provenance(), Relaxed);
        ARRIVED.store(0, Relaxed);
        RELEASE.fetch_add(1, SeqCst);
        let ours = Action {
            handler: handler::on_signal as *const () as usize,
            // SA_RESTORER, SA_SIGINFO, SA_RESTART: interrupted calls go on where the kernel can do that.
            flags: 0x0400_0000 | libc::SA_SIGINFO as u64 | libc::SA_RESTART as u64,
            restorer: arch::signal_return as *const () as usize,
            mask: u64::MAX,
        };
        let previous = signal::action(FREEZE_SIGNAL).map_err(system("reading the freeze signal's disposition"))?;
        let already = previous.handler == ours.handler;
        let previous = if already { Action::default() } else { previous };
        PREVIOUS[0].store(previous.handler, Relaxed);
        PREVIOUS[1].store(previous.flags as usize, Relaxed);
        COOKIE.store(cookie, SeqCst);
        // SAFETY: the handler takes three arguments as SA_SIGINFO promises, uses only system calls and atomics, and is code of
        // this program; the restorer issues rt_sigreturn.
        unsafe { signal::set_action(FREEZE_SIGNAL, &ours) }.map_err(system("installing the freeze handler"))?;
        let mut frozen = Self { threads: ArenaVec::new(arena), previous, since: crate::facts::now(), stray: already };
        frozen.stop(arena, cookie, room, watch, deadline, obstacles)?;
        EXPECTED.store(frozen.threads.len() as u32, Relaxed);
        Ok(frozen)
    }

    /// The parked threads.
    pub(crate) fn threads(&self) -> &[Parked] {
        &self.threads
    }

    /// Signals threads until a whole pass over the task list finds all of them parked.
    fn stop(
        &mut self,
        arena: &'a Arena,
        cookie: u64,
        room: *mut SlotRoom,
        watch: Watch<'_>,
        deadline: Duration,
        obstacles: &mut ObstacleSink<'a>,
    ) -> Result<(), FreezeError> {
        let system = |what| move |errno| FreezeError::System(what, errno);
        let (pid, me) = (process::pid(), process::tid());
        let now = || process::clock(libc::CLOCK_MONOTONIC).unwrap_or(Duration::MAX);
        let end = now().saturating_add(deadline);
        let tasks =
            fs::open(c"/proc/self/task", libc::O_RDONLY | libc::O_DIRECTORY, 0).map_err(system("opening the task list"))?;
        let tasks = std::os::fd::AsFd::as_fd(&tasks);
        let buffer = arena.zeroed::<u8>(32 * 1024).map_err(system("reserving a buffer"))?;
        let freeze = RELEASE.load(SeqCst);
        let mut used = 0_usize;
        // Threads met so far, parked or not.
        let mut met: ArenaVec<'a, &'a Slot> = ArenaVec::new(arena);
        loop {
            let seen = PARKED.load(SeqCst);
            let (mut all_parked, mut count) = (true, 0);
            fs::seek(tasks, 0, libc::SEEK_SET).map_err(system("rewinding the task list"))?;
            loop {
                let filled = fs::read_dir(tasks, buffer).map_err(system("reading the task list"))?;
                if filled == 0 {
                    break;
                }
                for name in fs::DirEntries::new(&buffer[..filled]) {
                    let Some(tid) = crac_sys::proc::decimal_name(name.to_bytes()).filter(|tid| *tid != me) else { continue };
                    count += 1;
                    let known = met.iter().find(|slot| slot.tid == tid && slot.state.load(Acquire) != GONE);
                    let (slot, again) = match known {
                        Some(slot) => match slot.state.load(Acquire) {
                            IS_PARKED => continue,
                            IN_AVOIDED => (*slot, true),
                            _ => {
                                all_parked = false;
                                continue;
                            }
                        },
                        None => {
                            if used == THREADS_MAX {
                                return Err(FreezeError::System("counting threads", Errno::new(libc::EAGAIN)));
                            }
                            let place = room.wrapping_add(used).cast::<Slot>();
                            let slot = Slot {
                                tid,
                                freeze,
                                state: AtomicU32::new(SIGNALLED),
                                resume: UnsafeCell::default(),
                                noted: UnsafeCell::default(),
                                observed: [AtomicU64::new(0), AtomicU64::new(0)],
                                watched: AtomicU32::new(LOOKS_MAX),
                                in_call: AtomicU32::new(0),
                                wait: Cell::new(None),
                            };
                            // SAFETY: the place lies in the mapping, is aligned, and was not handed out before.
                            unsafe { place.write(slot) };
                            // SAFETY: just written, and shared from now on; it stays mapped as long as the arena.
                            let slot: &'a Slot = unsafe { &*place };
                            used += 1;
                            met.push(slot).map_err(system("noting a thread"))?;
                            (slot, true)
                        }
                    };
                    all_parked = false;
                    if again {
                        slot.look(watch);
                        slot.state.store(SIGNALLED, SeqCst);
                        let at = (ptr::from_ref(slot).addr() - room.addr()) / size_of::<SlotRoom>();
                        let value = cookie << SLOT_BITS | at as u64;
                        match signal::queue(pid, tid, FREEZE_SIGNAL, value as usize) {
                            Ok(()) => {}
                            Err(errno) if errno.number() == libc::ESRCH => slot.state.store(GONE, SeqCst),
                            // The queue of signals is full: others of this user's, or ours. Try again in the next pass.
                            Err(errno) if errno.number() == libc::EAGAIN => slot.state.store(IN_AVOIDED, SeqCst),
                            Err(errno) => return Err(FreezeError::System("signalling a thread", errno)),
                        }
                    }
                }
            }
            let parked = met.iter().filter(|slot| slot.state.load(Acquire) == IS_PARKED).count();
            if all_parked && parked == count {
                break;
            }
            // A thread that ended before it took the signal leaves its slot behind; its number may come back as another thread.
            for slot in met.iter().filter(|slot| slot.state.load(Acquire) == SIGNALLED) {
                if !process::thread_exists(pid, slot.tid) {
                    slot.state.store(GONE, SeqCst);
                }
            }
            if now() >= end {
                for slot in met.iter().filter(|slot| slot.state.load(Acquire) != IS_PARKED && slot.state.load(Acquire) != GONE) {
                    name_unstoppable(slot.tid, obstacles);
                }
                self.stray = true;
                return Err(FreezeError::Unstoppable);
            }
            futex::wait(&PARKED, seen, Some(Duration::from_millis(1)));
        }
        for slot in met.iter().filter(|slot| slot.state.load(Acquire) == IS_PARKED) {
            // SAFETY: a parked thread has written its notes and does not touch them again.
            let resume = unsafe { slot.resume.get().read() };
            // SAFETY: as above.
            let state = unsafe { slot.noted.get().read() };
            let wait = slot.wait.get().filter(|_| slot.in_call.load(SeqCst) != 0);
            self.threads.push(Parked { tid: slot.tid, resume, state, wait }).map_err(system("noting a thread"))?;
        }
        // A tid that was reused while its first owner's signal was still queued has been met twice, parked once.
        self.stray |= met.iter().any(|slot| slot.state.load(Acquire) == SIGNALLED);
        Ok(())
    }
}

fn name_unstoppable(tid: i32, obstacles: &mut ObstacleSink<'_>) {
    use std::{fmt::Write, os::fd::AsFd};

    let mut path = crate::text::FixedText::<64>::new();
    let mut text = [0; 64];
    let _ = write!(path, "/proc/self/task/{tid}/comm\0");
    let read = std::ffi::CStr::from_bytes_until_nul(path.as_bytes())
        .ok()
        .and_then(|path| fs::open(path, libc::O_RDONLY, 0).ok())
        .and_then(|file| fs::read(file.as_fd(), &mut text).ok())
        .unwrap_or(0);
    let name = text.get(..read).unwrap_or_default().trim_ascii();
    let name = str::from_utf8(name).unwrap_or("?");
    obstacles.push_owned(
        ObstacleKind::ThreadUnstoppable,
        format_args!("thread {tid} ({name}) did not take the freeze signal in time"),
        format_args!("{name}"),
    );
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        // Signals still under way find no cookie and do nothing.
        COOKIE.store(0, SeqCst);
        release();
        // Nobody may be left between the check of the cookie and the use of a slot when the arena goes. A thread leaves
        // within microseconds unless it is not scheduled, and the last one says so.
        loop {
            let inside = INSIDE.load(SeqCst);
            if inside == 0 {
                break;
            }
            futex::wait(&INSIDE, inside, None);
        }
        SLOTS.store(0, Relaxed);
        if !self.stray {
            // SAFETY: the disposition that was there before, which was valid then.
            let restored = unsafe { signal::set_action(FREEZE_SIGNAL, &self.previous) };
            debug_assert!(restored.is_ok(), "a disposition that was read can be set");
        }
    }
}

/// Lets the parked threads of this life go on.
fn release() {
    RELEASE.fetch_add(1, SeqCst);
    // Cannot fail for a word of our own.
    let _ = futex::wake_all(&RELEASE);
}

/// In a restored life: waits until every thread has left the stub. All of them are then parked in code of this program.
pub(crate) fn wait_for_arrivals() -> u32 {
    let expected = EXPECTED.load(Relaxed);
    loop {
        let arrived = ARRIVED.load(SeqCst);
        if arrived >= expected {
            return arrived;
        }
        futex::wait(&ARRIVED, arrived, None);
    }
}

/// In a restored life: lets all threads go on. The slots and the arena were left behind in the other life.
pub(crate) fn release_restored() {
    COOKIE.store(0, SeqCst);
    SLOTS.store(0, Relaxed);
    release();
}

/// Writes to every page that the statics of this file lie on, so that they are part of every image.
pub(crate) fn touch() {
    ARRIVED.store(0, SeqCst);
    EXPECTED.store(0, SeqCst);
    PREVIOUS[0].store(0, SeqCst);
    SLOTS.store(0, SeqCst);
}
