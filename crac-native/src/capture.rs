//! One capture from beginning to end.
//!
//! ```text
//! prepare  allocate, open the file          the process runs
//! freeze   every other thread is parked     ┐
//! look     memory, descriptors, settings    │ arena and system calls only
//! write    nothing decided any more         │
//! publish  fsync, link, rename              ┘                              continue mode: `beside.rs`
//! exit, become, or thaw                                                    restored life: `resumed.rs`
//! ```
#![expect(unsafe_code, reason = "parks the calling thread")]

mod clocks;
mod look;
mod practice;
mod write;

use std::{
    ffi::CString,
    ops::Range,
    os::fd::RawFd,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crac_core::{CaptureProgress, CaptureReport, CaptureRequest, Captured, EngineError, Mode, Obstacle, ObstacleKind, Stage};
use crac_sys::{Errno, process, signal};

use crate::{
    arch::{self, Resume},
    arena::Arena,
    beside::{Beside, Copy, Progress, Reporter},
    clock::layer,
    confined,
    engine::Options,
    exec,
    facts::{self, Problem},
    fault::{Fault, Point},
    findings::ObstacleSink,
    form::ImageForm,
    freeze::{self, FreezeError, Frozen, ThreadState, Watch},
    layout::Header,
    madvise, manifest,
    raw_advice::{self, Known, Place},
    resumed,
    stub::Stub,
    tables::Memory,
    writer::{self, ImageFile},
};
use clocks::ClockPlan;
use look::Seen;

/// Where the restored life finds the stub and what it leaves: the address of the image's header. Set before the memory is
/// saved, so that it is part of the image.
pub(crate) static HEADER_AT: AtomicU64 = AtomicU64::new(0);

const STAGES_MAX: usize = 12;

/// Captures the process as `request` says. `busy` is dropped at the end of the capture.
pub(crate) fn capture<B: Send + 'static>(
    options: &Options,
    request: &CaptureRequest<'_>,
    busy: B,
) -> Result<Captured, EngineError> {
    let failed = |what: &'static str| move |errno: Errno| failure((what, errno));
    let began = facts::now();
    // Nobody may have told the engine so far.
    confined::spread();
    resumed::settle();
    practice::make_threads(options.filters_at_start);
    let mut stub = Stub::load().ok_or_else(|| EngineError::Failed {
        what: "the restorer stub built into this program is not of the expected form".into(),
        hint: "hint: this is a bug in crac-native's build script".into(),
    })?;
    if facts::main_thread_has_ended() {
        let obstacle = Obstacle::new(ObstacleKind::ThreadUnstoppable, "the main thread has ended before the others");
        return Err(EngineError::Refused(vec![obstacle]));
    }
    let clock = ClockPlan::make(options);
    let data_only = writer::is_data_only(&request.image, if request.data_only { ImageForm::DataOnly } else { options.form });
    if data_only
        && request.mode == Mode::Become
        && madvise::runs_from_image().map_err(failed("looking at this program's file"))?
    {
        return Err(EngineError::Failed {
            what: "cannot become a data-only image: this life was restored by executing an image, which restores no other".into(),
            hint: "hint: checkpoint to exit, and let `crac restore` or `crac run` restore the image".into(),
        });
    }
    let (manifest, program) = manifest::prepare(request, clock.kind, options.downtime, data_only)?;
    let image = match request.mode {
        Mode::Rehearse => None,
        _ => Some(ImageFile::create(&request.image, options.nameless, data_only, options.fault)?),
    };
    let image_path = CString::new(std::os::unix::ffi::OsStrExt::as_bytes(request.image.as_os_str())).unwrap_or_default();
    let mut own: Vec<RawFd> = request.own_descriptors.clone();
    own.extend(image.iter().flat_map(ImageFile::descriptors));
    let (vdso, loader) = (exec::vdso().unwrap_or_default(), exec::loader().unwrap_or_default());
    let arena = Arena::new().map_err(failed("reserving memory for the capture"))?;
    freeze::touch();
    madvise::touch();
    HEADER_AT.store(1, Ordering::SeqCst);

    // A process that has changed its user may not look at itself in `/proc` any more.
    let dumpable = process::get_result(libc::PR_GET_DUMPABLE).map_err(failed("reading whether the process can be dumped"))?;
    process::set_dumpable(1).map_err(failed("looking at the process itself"))?;
    let raw_advice = find_raw_advice(&arena, program, &loader);

    let mut work = Work {
        options,
        request,
        arena: &arena,
        stub: &mut stub,
        manifest: &manifest,
        program,
        image,
        data_only,
        image_path: &image_path,
        own: &own,
        vdso,
        loader,
        clock,
        is_interposed: options.interposed && madvise::is_interposed(),
        raw_advice: &raw_advice,
        obstacles: ObstacleSink::new(&arena),
        dumpable: dumpable as u32,
        resume: Resume::default(),
        own_state: ThreadState::default(),
        began,
        stages: [("", Duration::ZERO); STAGES_MAX],
        stage_count: 0,
        outcome: Ok(Saved::Here { bytes: 0 }),
    };
    // Of this thread the kernel is told again what `rt_sigreturn` tells it of the others.
    let stack = signal::alternate_stack().map_err(failed("reading the alternate signal stack"))?;
    let mask = signal::set_mask(u64::MAX).map_err(failed("blocking signals"))?;
    let work_at = &raw mut work;
    // SAFETY: the resume point is a field of `work`, which outlives the call.
    let resume_at = unsafe { &raw mut (*work_at).resume };
    // SAFETY: `run` does not unwind; it gets the pointer it expects.
    let came_back = unsafe { arch::park(resume_at, run, work_at.cast()) };
    if came_back == 1 {
        // Another process: the arena is not mapped here, and the descriptors are not this file's.
        std::mem::forget(work);
        std::mem::forget(arena);
        let (restoration, stub_at) = resumed::take_over(request, mask, &stack);
        resumed::keep_for_later(stub_at, [stub.bytes, manifest], own);
        return Ok(Captured::Restored(restoration));
    }
    HEADER_AT.store(0, Ordering::SeqCst);
    // Anything but 1 is 0 for whoever may set it, and both are always valid.
    let _ = process::set_dumpable(usize::from(dumpable == 1));
    // The mask was valid when it was read.
    let _ = signal::set_mask(mask);
    let stages = work.stages();
    match work.outcome {
        Ok(Saved::Here { bytes }) => {
            let mut report = CaptureReport::default();
            (report.bytes, report.stages) = (bytes, stages);
            Ok(Captured::Original(report))
        }
        Ok(Saved::Beside { copy, image, frozen }) => Ok(Captured::Underway(Box::new(Beside {
            _arena: arena,
            copy,
            image,
            path: request.image.clone(),
            watch: request.watch.clone(),
            stages,
            began,
            frozen,
            seen: Progress::default(),
            stall: options.copy_stall,
            reaped: false,
            _busy: busy,
        }))),
        Err(Stop::Refused) => Err(EngineError::Refused(work.obstacles.into_obstacles())),
        Err(stop) => Err(stopped(stop, &request.image)),
    }
}

/// Code of this program that may give memory back past `madvise`. What cannot be read may.
fn find_raw_advice(arena: &Arena, program: &[u8], loader: &Range<usize>) -> Vec<Place> {
    let mut exempt = layer::c_library();
    exempt.push(loader.clone());
    let known = Known { segments: &layer::segments(), program, exempt: &exempt };
    // In the arena, which is in no image, and not in the service's heap.
    let piece = arena.zeroed(raw_advice::PIECE).map_err(std::io::Error::from);
    let found = piece.and_then(|piece| raw_advice::look(&known, piece));
    found.unwrap_or_else(|error| vec![Place { name: format!("code that cannot be read ({error})"), address: None }])
}

/// Everything the frozen part works with.
struct Work<'a, 'r> {
    options: &'a Options,
    request: &'a CaptureRequest<'r>,
    arena: &'a Arena,
    stub: &'a mut Stub,
    manifest: &'a [u8],
    /// Path of the program of the first life.
    program: &'a [u8],
    image: Option<ImageFile>,
    data_only: bool,
    image_path: &'a CString,
    own: &'a [RawFd],
    vdso: &'static [u8],
    /// Addresses of the dynamic loader's code.
    loader: Range<usize>,
    clock: ClockPlan,
    /// Whether `madvise` is ours in this program; the answer takes the loader's lock.
    is_interposed: bool,
    /// Code that calls it past that.
    raw_advice: &'a [Place],
    obstacles: ObstacleSink<'a>,
    /// `PR_GET_DUMPABLE` before the capture.
    dumpable: u32,
    resume: Resume,
    own_state: ThreadState,
    began: Duration,
    stages: [(&'static str, Duration); STAGES_MAX],
    stage_count: usize,
    outcome: Result<Saved, Stop>,
}

/// A capture without a fault, in the original.
#[derive(Debug)]
enum Saved {
    /// Nothing, for a rehearsal: bytes of the image.
    Here { bytes: u64 },
    /// By a copy that goes on.
    Beside { copy: Copy, image: ImageFile, frozen: Duration },
}

/// Why a capture stops.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stop {
    /// The obstacles say why.
    Refused,
    /// Reading the process failed.
    System(Problem),
    /// The image could not be written.
    Write(Problem),
    /// The image was written and could not be executed.
    Exec(Errno),
}

impl From<Problem> for Stop {
    fn from(problem: Problem) -> Self {
        Stop::System(problem)
    }
}

/// Called by `park`, with signals blocked.
unsafe extern "C" fn run(work: *mut u8) {
    // SAFETY: `capture` passes its own `Work` and does not look at it before this returns.
    let work = unsafe { &mut *work.cast::<Work<'_, '_>>() };
    work.outcome = work.frozen();
}

impl<'a> Work<'a, '_> {
    /// Freezes, saves, and ends as the mode says. Whatever returns from here has thawed the process.
    fn frozen(&mut self) -> Result<Saved, Stop> {
        let fault = self.options.fault;
        self.own_state = ThreadState::read();
        let deadline = self.options.freeze_deadline;
        let vdso = self.vdso.as_ptr_range();
        let avoided = [vdso.start.addr()..vdso.end.addr(), self.loader.clone()];
        let layer = self.clock.layer;
        let covers = |ip| layer.is_some_and(|layer| layer.covers(ip));
        let watch = if layer.is_some() { Watch::AbsoluteWaits(&covers) } else { Watch::Nothing };
        let frozen = match Frozen::all(self.arena, avoided, watch, deadline, &mut self.obstacles) {
            Ok(frozen) => frozen,
            Err(FreezeError::Unstoppable) => return Err(Stop::Refused),
            Err(FreezeError::System(what, errno)) => return Err(Stop::System((what, errno))),
        };
        let froze = frozen.since;
        self.stage("freeze", self.began);
        Fault::check(fault, Point::Freeze).map_err(|errno| ("stopping the threads", errno))?;
        // Whoever is told wakes up, and a process that is to go on would stand still for that as well.
        if self.request.mode != Mode::Continue {
            self.tell_frozen(frozen.threads().len());
        }

        let start = facts::now();
        let seen = self.look_at_process(&frozen)?;
        // A copy of the process looks at memory in its own time, if there is nothing to refuse already and it sees everything.
        let in_copy = self.request.mode == Mode::Continue && self.obstacles.is_empty() && !seen.only_here;
        let memory = if in_copy { None } else { Some(self.look_at_memory(&seen, None)?) };
        self.stage("look", start);
        if !self.obstacles.is_empty() {
            return Err(Stop::Refused);
        }
        if let Some((_, memory)) = &memory {
            self.request.watch.reached(CaptureProgress::Planned { bytes: memory.data_bytes() });
        }
        let (mut image, (mut header, mut memory)) = match (self.image.take(), memory) {
            (Some(image), memory) if self.request.mode == Mode::Continue => {
                return self.save_beside(frozen, image, memory, &seen);
            }
            (Some(image), Some(memory)) => (image, memory),
            (_, memory) => {
                let bytes = memory.map_or(0, |(header, memory)| memory.data_bytes() + header.data_offset);
                return Ok(Saved::Here { bytes });
            }
        };
        let start = facts::now();
        let watch = &self.request.watch;
        let mut progress = |bytes| watch.reached(CaptureProgress::Written { bytes });
        let written = self.write(&mut image, &mut header, &mut memory, &seen, &mut progress);
        self.stage("write", start);
        let start = facts::now();
        let published = written.and_then(|()| image.publish().map_err(|errno| ("making the image durable", errno)));
        self.stage("publish", start);
        if let Err(problem) = published {
            image.retract();
            return Err(Stop::Write(problem));
        }
        self.durable(image.bytes_on_disk(), froze, facts::now());
        match self.request.mode {
            Mode::Become => {
                let errno = self.become_image(&mut image);
                image.retract();
                Err(Stop::Exec(errno))
            }
            // The only other mode that writes: nothing runs any more in this process.
            _ => process::exit_group(0),
        }
    }

    /// Has a copy of the process write the image, while this one goes on.
    fn save_beside(
        &mut self,
        frozen: Frozen<'a>,
        mut image: ImageFile,
        planned: Option<(Header, Memory<'a>)>,
        seen: &Seen<'a>,
    ) -> Result<Saved, Stop> {
        let (arena, fault) = (self.arena, self.options.fault);
        let (since, parked) = (frozen.since, frozen.threads().len());
        let start = facts::now();
        let maps = match planned {
            Some(_) => None,
            None => Some(facts::read_all(arena, c"/proc/self/maps").map_err(|errno| ("reading /proc/self/maps", errno))?),
        };
        let mut planned = planned;
        let mut save = |image: &mut ImageFile, reporter: &Reporter<'_>| {
            Fault::check(fault, Point::Copy).map_err(|errno| ("preparing the copy of the process", errno))?;
            let (mut header, mut memory) = match planned.take() {
                Some(planned) => planned,
                None => self.look_at_memory(seen, maps)?,
            };
            if !self.obstacles.is_empty() {
                reporter.refused(&self.obstacles);
                return Err(Stop::Refused);
            }
            reporter.planned(memory.data_bytes());
            let written = self.write(image, &mut header, &mut memory, seen, &mut |bytes| reporter.written(bytes));
            written.map_err(Stop::Write)
        };
        Fault::check(fault, Point::Fork).map_err(|errno| ("copying the process", errno))?;
        let copy = Copy::start(arena, &mut image, &mut save)?;
        drop(frozen);
        let thawed = facts::now();
        self.tell_frozen(parked);
        self.stage("copy", start);
        Ok(Saved::Beside { copy, image, frozen: thawed.saturating_sub(since) })
    }

    /// Tells how many threads stand or stood still: the `parked` ones and this one.
    fn tell_frozen(&self, parked: usize) {
        self.request.watch.reached(CaptureProgress::Frozen { threads: parked + 1 });
    }

    /// Tells that the image is complete.
    fn durable(&self, bytes: u64, froze: Duration, thawed: Duration) {
        let elapsed = facts::now().saturating_sub(self.began);
        let frozen = thawed.saturating_sub(froze);
        self.request.watch.reached(CaptureProgress::Durable { bytes, elapsed, frozen });
    }

    fn stage(&mut self, name: &'static str, start: Duration) {
        if let Some(stage) = self.stages.get_mut(self.stage_count) {
            *stage = (name, facts::now().saturating_sub(start));
            self.stage_count += 1;
        }
    }

    fn stages(&self) -> Vec<Stage> {
        let stages = self.stages.iter().take(self.stage_count);
        stages.map(|(name, took)| Stage { name: (*name).to_owned(), took: *took }).collect()
    }
}

/// The error that says why a capture stopped, once everybody runs again.
pub(crate) fn stopped(stop: Stop, path: &Path) -> EngineError {
    match stop {
        Stop::Refused => EngineError::Refused(Vec::new()),
        Stop::System(problem) => failure(problem),
        Stop::Write((what, errno)) => EngineError::Write {
            path: path.to_owned(),
            source: errno.into(),
            hint: match errno.number() {
                libc::ENOSPC | libc::EDQUOT => "hint: free some space there, or choose another directory".into(),
                _ => format!("it failed when {what}; hint: try another filesystem"),
            },
        },
        Stop::Exec(errno) => EngineError::Failed {
            what: format!("cannot execute the image {}: {errno}; it was removed", path.display()),
            hint: "hint: is the file system mounted noexec, or does a security policy (fapolicyd) forbid it? An image that holds data alone is not executed: `--data-only`, `image_form = \"data-only\"`".into(),
        },
    }
}

fn failure((what, errno): Problem) -> EngineError {
    EngineError::Failed {
        what: format!("cannot capture: {what}: {errno}"),
        hint: "hint: run `crac doctor` to see what this kernel and sandbox allow".into(),
    }
}
