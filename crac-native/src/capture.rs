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
#![expect(unsafe_code, reason = "parks the calling thread, and hands plain records to the file as bytes")]

use std::{
    ffi::CString,
    os::fd::{AsFd, RawFd},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crac_core::{CaptureProgress, CaptureReport, CaptureRequest, Captured, EngineError, Mode, ObstacleKind, Stage};
use crac_sys::{Errno, fs, mem::PAGE_SIZE, process, signal};

use crate::{
    arch::{self, Resume},
    arena::{Arena, ArenaVec},
    beside::Copy,
    descriptors::{self, Survey},
    engine::Options,
    exec,
    facts::{self, Problem},
    fault::{Fault, Point},
    findings::ObstacleSink,
    freeze::{self, FreezeError, Frozen, ThreadState},
    layout::{
        Boot, HANDOVER_BYTES_MAX, Header, MAGIC, PAGE, STAGING_BYTES, Section, ThreadRecord, VERSION, ZONE_HINT, cpu,
        xxh64::{Xxh64, xxh64},
    },
    madvise, manifest,
    pages::Pages,
    plan,
    record::{Record, bytes_of},
    resumed,
    stub::{ELF_HEADER_BYTES, Stub},
    tables::{Memory, Sources},
    writer::{ImageFile, Reader},
};

/// Where the restored life finds the stub and what it leaves: the address of the image's header. Set before the memory is
/// saved, so that it is part of the image.
pub(crate) static HEADER_AT: AtomicU64 = AtomicU64::new(0);

/// The first address that a mapping cannot have.
const ADDRESSES_END: u64 = 0x7fff_ffff_f000;
const STAGES_MAX: usize = 12;

/// Captures the process as `request` says.
pub(crate) fn capture(options: &Options, request: &CaptureRequest<'_>) -> Result<Captured, EngineError> {
    let failed = |what: &'static str| move |errno: Errno| failure((what, errno));
    let began = facts::now();
    let mut stub = Stub::load().ok_or_else(|| EngineError::Failed {
        what: "the restorer stub built into this program is not of the expected form".into(),
        hint: "hint: this is a bug in crac-native's build script".into(),
    })?;
    let (manifest, program) = manifest::prepare(request)?;
    let image = match request.mode {
        Mode::Rehearse => None,
        _ => Some(ImageFile::create(&request.image, options.nameless, options.fault)?),
    };
    let image_path = CString::new(std::os::unix::ffi::OsStrExt::as_bytes(request.image.as_os_str())).unwrap_or_default();
    let mut own: Vec<RawFd> = request.own_descriptors.clone();
    own.extend(image.iter().flat_map(ImageFile::descriptors));
    let vdso = exec::vdso().unwrap_or_default();
    let arena = Arena::new().map_err(failed("reserving memory for the capture"))?;
    freeze::touch();
    madvise::touch();
    HEADER_AT.store(1, Ordering::SeqCst);

    let mut work = Work {
        options,
        request,
        arena: &arena,
        stub: &mut stub,
        manifest: &manifest,
        program,
        image,
        image_path: &image_path,
        own: &own,
        vdso,
        obstacles: ObstacleSink::new(&arena),
        resume: Resume::default(),
        own_state: ThreadState::default(),
        began,
        stages: [("", Duration::ZERO); STAGES_MAX],
        stage_count: 0,
        outcome: Ok(0),
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
        let restoration = resumed::take_over(request, mask, &stack);
        return Ok(Captured::Restored(restoration));
    }
    HEADER_AT.store(0, Ordering::SeqCst);
    // The mask was valid when it was read.
    let _ = signal::set_mask(mask);
    work.finish()
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
    image_path: &'a CString,
    own: &'a [RawFd],
    vdso: &'static [u8],
    obstacles: ObstacleSink<'a>,
    resume: Resume,
    own_state: ThreadState,
    began: Duration,
    stages: [(&'static str, Duration); STAGES_MAX],
    stage_count: usize,
    /// Bytes of the image, or why there is none.
    outcome: Result<u64, Stop>,
}

/// Why a capture stops.
#[derive(Debug, Clone, Copy)]
enum Stop {
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
    fn frozen(&mut self) -> Result<u64, Stop> {
        let mut fault = self.options.fault;
        self.own_state = ThreadState::read();
        let deadline = self.options.freeze_deadline;
        let frozen = match Frozen::all(self.arena, self.vdso.as_ptr_range(), deadline, &mut self.obstacles) {
            Ok(frozen) => frozen,
            Err(FreezeError::Unstoppable) => return Err(Stop::Refused),
            Err(FreezeError::System(what, errno)) => return Err(Stop::System((what, errno))),
        };
        let froze = frozen.since;
        self.stage("freeze", self.began);
        Fault::check(&mut fault, Point::Freeze).map_err(|errno| ("freezing (a fault was asked for)", errno))?;
        self.request.watch.reached(CaptureProgress::Frozen { threads: frozen.threads().len() + 1 });

        let start = facts::now();
        let (mut header, mut memory, tables) = self.look(&frozen)?;
        self.stage("look", start);
        Fault::check(&mut fault, Point::Plan).map_err(|errno| ("planning (a fault was asked for)", errno))?;
        if !self.obstacles.is_empty() {
            return Err(Stop::Refused);
        }
        self.request.watch.reached(CaptureProgress::Planned { bytes: memory.data_bytes() });
        let Some(mut image) = self.image.take() else {
            return Ok(memory.data_bytes() + header.data_offset);
        };
        if self.request.mode == Mode::Continue {
            return self.save_beside(frozen, &mut image, &mut header, &mut memory, &tables);
        }
        let start = facts::now();
        let watch = &self.request.watch;
        let mut progress = |bytes| watch.reached(CaptureProgress::Written { bytes });
        let written = self.write(&mut image, &mut header, &mut memory, &tables, &mut progress);
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
        image: &mut ImageFile,
        header: &mut Header,
        memory: &mut Memory<'a>,
        tables: &Tables<'a>,
    ) -> Result<u64, Stop> {
        let (arena, watch) = (self.arena, self.request.watch.clone());
        let froze = frozen.since;
        let start = facts::now();
        let mut save = |image: &mut ImageFile, progress: &mut dyn FnMut(u64)| self.write(image, header, memory, tables, progress);
        let copy = Copy::start(arena, image, &mut save)?;
        drop(frozen);
        let thawed = facts::now();
        self.stage("copy", start);
        let waited = copy.wait(&*watch);
        self.stage("write", thawed);
        match waited {
            Ok(bytes) => {
                self.durable(bytes, froze, thawed);
                Ok(bytes)
            }
            Err(problem) => {
                image.clean_up();
                Err(Stop::Write(problem))
            }
        }
    }

    /// Tells that the image is complete.
    fn durable(&self, bytes: u64, froze: Duration, thawed: Duration) {
        let elapsed = facts::now().saturating_sub(self.began);
        let frozen = thawed.saturating_sub(froze);
        self.request.watch.reached(CaptureProgress::Durable { bytes, elapsed, frozen });
    }

    /// Facts and plan.
    fn look(&mut self, frozen: &Frozen<'a>) -> Result<(Header, Memory<'a>, Tables<'a>), Stop> {
        let arena = self.arena;
        let no_memory = |errno| ("noting tables", errno);
        let survey = Survey {
            arena,
            own: self.own,
            policy: self.request.policy,
            kcmp: self.options.kcmp,
            duplicate_query: self.options.duplicate_query,
        };
        let obstacles = &mut self.obstacles;
        let descriptors = descriptors::survey(&survey, obstacles).map_err(|errno| ("looking at the open descriptors", errno))?;
        let (mut process, privileges) = facts::process(arena, self.options.filters_at_start, obstacles)?;
        facts::threads(arena, frozen.threads(), privileges.seccomp_filters, obstacles);
        if self.own_state.errno != 0 {
            let errno = Errno::new(self.own_state.errno);
            obstacles.push(ObstacleKind::Kernel, format_args!("a thread cannot read its own state: {errno}"));
        }
        if !madvise::is_interposed() {
            obstacles.push(ObstacleKind::AllocatorRaw, format_args!("the symbol `madvise` is not crac's in this program"));
        }
        let kernel = kernel_version();
        let entries = facts::mappings(arena)?;
        let mut pages = Pages::open(arena, self.options.pagemap_scan).map_err(|errno| ("opening /proc/self/pagemap", errno))?;
        if self.request.mode == Mode::Continue {
            for entry in entries.iter().filter(|entry| entry.flags.contains(b"dc") && !entry.flags.contains(b"pf")) {
                let (start, end) = (entry.mapping.start, entry.mapping.end);
                obstacles.push(
                    ObstacleKind::MemoryOther,
                    format_args!(
                        "mapping {start:#x}-{end:#x} is not copied to children (MADV_DONTFORK), and the mode is continue"
                    ),
                );
            }
        }
        let sources = Sources { arena, entries, image: madvise::backing_file(), stack_flag: kernel >= 6 << 16 | 7 };
        let mut memory = Memory::plan(&sources, &mut pages, obstacles)?;
        if memory.vdso.start == 0 {
            obstacles.push(ObstacleKind::Kernel, format_args!("there is no vdso to move"));
        }
        process.descriptor_max = descriptors.records.iter().map(|record| record.number).max().unwrap_or(-1);
        let mut directory = [0; libc::PATH_MAX as usize];
        let directory = fs::read_link_at(libc::AT_FDCWD, c"/proc/self/cwd", &mut directory)
            .map_err(|errno| ("reading the working directory", errno))?;
        if directory.ends_with(b" (deleted)") {
            obstacles.push(ObstacleKind::FileDeleted, format_args!("the working directory"));
        }
        process.working_directory = memory.add_text(directory).map_err(no_memory)?;

        let own = thread_record(process::tid(), self.resume, &self.own_state);
        let mut threads = ArenaVec::new(arena);
        threads.push(own).map_err(no_memory)?;
        for thread in frozen.threads() {
            threads.push(thread_record(thread.tid, thread.resume, &thread.state)).map_err(no_memory)?;
        }
        let main = process::pid();
        match threads.iter().position(|thread| thread.tid == main) {
            Some(at) => threads.swap(0, at),
            None => obstacles.push(ObstacleKind::ThreadUnstoppable, format_args!("the main thread has ended")),
        }
        let tables = Tables {
            threads,
            actions: facts::actions(arena, (freeze::FREEZE_SIGNAL, frozen.previous)).map_err(no_memory)?,
            auxv: facts::read_all(arena, c"/proc/self/auxv").map_err(|errno| ("reading /proc/self/auxv", errno))?,
            descriptors,
        };
        let mut header = Header {
            magic: MAGIC,
            version: VERSION,
            header_bytes: size_of::<Header>() as u32,
            header_sum: 0,
            tables_sum: 0,
            front_sum: 0,
            metadata_offset: 0,
            metadata_bytes: 0,
            data_offset: 0,
            file_bytes: 0,
            zone_start: 0,
            zone_end: 0,
            metadata_at: 0,
            staging_at: 0,
            handover_at: 0,
            image_id: self.request.metadata.image_id.0,
            parent: self.request.metadata.parent.map_or([0; 16], |parent| parent.0),
            generation: self.request.metadata.generation,
            captured_realtime_ns: facts::clock_ns(libc::CLOCK_REALTIME),
            captured_monotonic_ns: facts::clock_ns(libc::CLOCK_MONOTONIC),
            captured_boottime_ns: facts::clock_ns(libc::CLOCK_BOOTTIME),
            page_size: PAGE_SIZE as u32,
            kernel,
            cpu: cpu::current(),
            vdso: memory.vdso,
            privileges,
            process,
            manifest: Section::default(),
            mappings: Section::default(),
            runs: Section::default(),
            guards: Section::default(),
            files: Section::default(),
            threads: Section::default(),
            actions: Section::default(),
            auxv: Section::default(),
            text: Section::default(),
            descriptors: Section::default(),
            descriptor_blob: Section::default(),
        };
        header.vdso.code_sum = xxh64(self.vdso);
        place(self.manifest.len(), self.stub, &mut header, &mut memory, &tables, entries, &mut self.obstacles);
        Ok((header, memory, tables))
    }

    /// Writes the image as planned: page data first, because the tables hold its checksums.
    fn write(
        &mut self,
        image: &mut ImageFile,
        header: &mut Header,
        memory: &mut Memory<'_>,
        tables: &Tables<'_>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), Problem> {
        let writing = |errno| ("writing the image", errno);
        let reading = |errno| ("opening /proc/self/mem", errno);
        // From here on the address is part of the image.
        HEADER_AT.store(header.metadata_at, Ordering::SeqCst);
        image.set_len(header.file_bytes).map_err(writing)?;
        let own_memory = fs::open(c"/proc/self/mem", libc::O_RDONLY, 0).map_err(reading)?;
        let mut reader = Reader::new(self.arena, own_memory.as_fd()).map_err(|errno| ("reserving a buffer", errno))?;
        for (run, is_indirect) in memory.runs.iter_mut().zip(memory.indirect.iter()) {
            let is_indirect = *is_indirect != 0;
            let written = image.write_run(run, &mut reader, is_indirect, progress);
            written.map_err(|errno| ("writing the memory into the image", errno))?;
        }
        let sections: [(&[u8], Section); 11] = [
            (self.manifest, header.manifest),
            (bytes_of(&memory.mappings), header.mappings),
            (bytes_of(&memory.runs), header.runs),
            (bytes_of(&memory.guards), header.guards),
            (bytes_of(&memory.files), header.files),
            (bytes_of(&tables.threads), header.threads),
            (bytes_of(tables.actions), header.actions),
            (tables.auxv, header.auxv),
            (&memory.text, header.text),
            (bytes_of(&tables.descriptors.records), header.descriptors),
            (&tables.descriptors.blob, header.descriptor_blob),
        ];
        let metadata = self.arena.zeroed::<u8>(header.metadata_bytes as usize).map_err(|errno| ("noting tables", errno))?;
        for (bytes, section) in sections {
            if let Some(place) = metadata.get_mut(section.offset as usize..).and_then(|rest| rest.get_mut(..bytes.len())) {
                place.copy_from_slice(bytes);
            }
        }
        let boot = Boot {
            magic: MAGIC,
            metadata_at: header.metadata_at,
            metadata_offset: header.metadata_offset,
            metadata_bytes: header.metadata_bytes,
            file_bytes: header.file_bytes,
        };
        self.stub.relocate(header.zone_start, &boot);
        let elf_header = self.stub.elf_header(header.zone_start, &boot, self.program);
        let mut front = Xxh64::new();
        let rest = front.blocks(&elf_header);
        debug_assert!(rest.is_empty(), "pages are whole blocks");
        header.front_sum = front.finish(&self.stub.bytes);
        let header_bytes = size_of::<Header>();
        header.tables_sum = Xxh64::new().finish(metadata.get(header_bytes..).unwrap_or_default());
        header.header_sum = xxh64(header.bytes());
        if let Some(place) = metadata.get_mut(..header_bytes) {
            place.copy_from_slice(header.bytes());
        }
        image.write(metadata, header.metadata_offset).map_err(writing)?;
        image.write(&self.stub.bytes, ELF_HEADER_BYTES).map_err(writing)?;
        image.write(&elf_header, 0).map_err(writing)
    }

    /// Executes the image in this process, with the environment it was started with. Returns only if that fails.
    fn become_image(&self, image: &mut ImageFile) -> Errno {
        let file = match image.reopen_to_execute() {
            Ok(file) => file,
            Err(errno) => return errno,
        };
        let environment = match facts::read_all(self.arena, c"/proc/self/environ") {
            Ok(environment) => environment,
            Err(errno) => return errno,
        };
        let mut variables = ArenaVec::new(self.arena);
        for variable in environment.split_inclusive(|byte| *byte == 0).filter(|variable| variable.ends_with(b"\0")) {
            if let Err(errno) = variables.push(variable.as_ptr().addr()) {
                return errno;
            }
        }
        if let Err(errno) = variables.push(0) {
            return errno;
        }
        let arguments = [self.image_path.as_ptr().addr(), 0];
        // SAFETY: both vectors end with a null and hold addresses of NUL-terminated texts: the path, and lines of `environ`,
        // of which only those that end in NUL were taken.
        unsafe { process::exec_fd(file.as_fd(), arguments.as_ptr().addr(), variables.as_ptr().addr()) }
    }

    fn stage(&mut self, name: &'static str, start: Duration) {
        if let Some(stage) = self.stages.get_mut(self.stage_count) {
            *stage = (name, facts::now().saturating_sub(start));
            self.stage_count += 1;
        }
    }

    /// The result, once everybody runs again.
    fn finish(self) -> Result<Captured, EngineError> {
        let stages = self.stages.iter().take(self.stage_count);
        let stages = stages.map(|(name, took)| Stage { name: (*name).to_owned(), took: *took }).collect();
        let path = self.request.image.clone();
        match self.outcome {
            Ok(bytes) => {
                let mut report = CaptureReport::default();
                (report.bytes, report.stages) = (bytes, stages);
                Ok(Captured::Original(report))
            }
            Err(Stop::Refused) => Err(EngineError::Refused(self.obstacles.into_obstacles())),
            Err(Stop::System(problem)) => Err(failure(problem)),
            Err(Stop::Write((what, errno))) => Err(EngineError::Write {
                path,
                source: errno.into(),
                hint: match errno.number() {
                    libc::ENOSPC | libc::EDQUOT => "hint: free some space there, or choose another directory".into(),
                    _ => format!("it failed when {what}; hint: try another filesystem"),
                },
            }),
            Err(Stop::Exec(errno)) => Err(EngineError::Failed {
                what: format!("cannot execute the image {}: {errno}; it was removed", path.display()),
                hint: "hint: is the filesystem mounted noexec, or does a security policy forbid it?".into(),
            }),
        }
    }
}

/// The tables that do not describe memory.
struct Tables<'a> {
    threads: ArenaVec<'a, ThreadRecord>,
    actions: &'a [crate::layout::ActionRecord],
    auxv: &'a [u8],
    descriptors: descriptors::DescriptorTable<'a>,
}

/// Gives every part its place, in the file and in the restored process.
fn place(
    manifest_bytes: usize,
    stub: &Stub,
    header: &mut Header,
    memory: &mut Memory<'_>,
    tables: &Tables<'_>,
    entries: &[crac_sys::proc::SmapsEntry<'_>],
    obstacles: &mut ObstacleSink<'_>,
) {
    let mut offset = size_of::<Header>() as u64;
    let mut section = |bytes: usize| {
        let section = Section { offset, bytes: bytes as u64 };
        offset = (offset + bytes as u64).next_multiple_of(16);
        section
    };
    header.manifest = section(manifest_bytes);
    header.mappings = section(size_of_val(&memory.mappings[..]));
    header.runs = section(size_of_val(&memory.runs[..]));
    header.guards = section(size_of_val(&memory.guards[..]));
    header.files = section(size_of_val(&memory.files[..]));
    header.threads = section(size_of_val(&tables.threads[..]));
    header.actions = section(size_of_val(tables.actions));
    header.auxv = section(tables.auxv.len());
    header.text = section(memory.text.len());
    header.descriptors = section(size_of_val(&tables.descriptors.records[..]));
    header.descriptor_blob = section(tables.descriptors.blob.len());
    header.metadata_bytes = offset.next_multiple_of(PAGE);
    header.metadata_offset = ELF_HEADER_BYTES + stub.bytes.len() as u64;
    header.data_offset = header.metadata_offset + header.metadata_bytes;
    header.file_bytes = header.data_offset + memory.data_bytes();
    for run in memory.runs.iter_mut() {
        run.data_offset += header.data_offset;
    }
    let stub_bytes = stub.memory_bytes;
    let zone_bytes = stub_bytes + header.metadata_bytes + STAGING_BYTES + HANDOVER_BYTES_MAX;
    let taken = entries.iter().map(|entry| (entry.mapping.start, entry.mapping.end));
    match plan::hole(taken, ZONE_HINT, zone_bytes, ADDRESSES_END) {
        Some(zone) => {
            header.zone_start = zone;
            header.zone_end = zone + zone_bytes;
            header.metadata_at = zone + stub_bytes;
            header.staging_at = header.metadata_at + header.metadata_bytes;
            header.handover_at = header.staging_at + STAGING_BYTES;
        }
        None => obstacles.push(ObstacleKind::Kernel, format_args!("no {zone_bytes} bytes of address space are free")),
    }
    if header.vdso.bytes.iter().sum::<u64>() > STAGING_BYTES {
        obstacles.push(ObstacleKind::Kernel, format_args!("the vdso is larger than {STAGING_BYTES} bytes"));
    }
}

fn failure((what, errno): Problem) -> EngineError {
    EngineError::Failed {
        what: format!("cannot capture: {what}: {errno}"),
        hint: "hint: run `crac doctor` to see what this kernel and sandbox allow".into(),
    }
}

fn thread_record(tid: i32, resume: Resume, state: &ThreadState) -> ThreadRecord {
    ThreadRecord {
        resume_sp: resume.sp,
        resume_ip: resume.ip,
        fs_base: state.fs_base,
        gs_base: state.gs_base,
        tid_address: state.tid_address,
        robust_head: state.robust_head,
        robust_bytes: state.robust_bytes,
        rseq_address: state.rseq_address,
        rseq_bytes: state.rseq_bytes,
        rseq_signature: if state.rseq_address == 0 { 0 } else { arch::RSEQ_SIGNATURE },
        tid,
        reserved: 0,
        name: state.name,
    }
}

/// `major << 16 | minor` of the running kernel.
fn kernel_version() -> u32 {
    let Ok(names) = process::uname() else { return 0 };
    let mut numbers = [0_u32; 2];
    let mut at = 0;
    for byte in names.release.iter().map(|byte| *byte as u8) {
        match (byte, numbers.get_mut(at)) {
            (b'0'..=b'9', Some(number)) => *number = number.saturating_mul(10).saturating_add(u32::from(byte - b'0')),
            (b'.', Some(_)) => at += 1,
            _ => break,
        }
    }
    let [major, minor] = numbers;
    major << 16 | minor & 0xffff
}
