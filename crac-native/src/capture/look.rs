//! What is found while everything stands still, put into the header and the tables of the image.

use crac_core::{Action, Mode, ObstacleKind};
use crac_sys::{fs, mem::PAGE_SIZE, proc::SmapsEntry, process};

use super::{Stop, Work};
use crate::{
    arch::{self, Resume},
    arena::{Arena, ArenaVec},
    beside,
    clock::{Clock, Downtime, offset::Readings, shim, vdso},
    descriptors::{self, Survey},
    facts,
    fault::{Fault, Point},
    findings::ObstacleSink,
    freeze::{self, Frozen, ThreadState},
    layout::{
        ActionRecord, BLOCK, HANDOVER_BYTES_MAX, Header, MAGIC, OWNERS_MAX, PAGE, PrivilegeRecord, ProcessRecord, STAGING_BYTES,
        Section, SettingRecord, ThreadRecord, Trial, VERSION, ZONE_HINT, block_count, clock, cpu, downtime, xxh64::xxh64,
    },
    madvise,
    pages::Pages,
    plan::{self, Class},
    settings,
    stub::{ELF_HEADER_BYTES, Stub},
    tables::{Memory, Sources},
};

/// The first address that a mapping cannot have.
const ADDRESSES_END: u64 = 0x7fff_ffff_f000;

/// What was found besides memory.
pub(super) struct Seen<'a> {
    pub(super) threads: ArenaVec<'a, ThreadRecord>,
    pub(super) actions: &'a [ActionRecord],
    pub(super) auxv: &'a [u8],
    pub(super) descriptors: descriptors::DescriptorTable<'a>,
    pub(super) settings: ArenaVec<'a, SettingRecord>,
    process: ProcessRecord,
    privileges: PrivilegeRecord,
    working_directory: &'a [u8],
    realtime_ns: u64,
    /// What the service sees on its other clocks.
    clocks: Readings,
    /// Whether only the process itself can tell everything about its memory: a copy of it has nothing locked.
    pub(super) only_here: bool,
}

impl<'a> Work<'a, '_> {
    /// Everything but memory, which takes no time that grows with the size of the process.
    pub(super) fn look_at_process(&mut self, frozen: &Frozen<'a>) -> Result<Seen<'a>, Stop> {
        let arena = self.arena;
        let no_memory = |errno| ("noting tables", errno);
        Fault::check(self.options.fault, Point::Look).map_err(|errno| ("looking at the open descriptors", errno))?;
        let survey = Survey {
            arena,
            own: self.own,
            policy: self.request.policy,
            is_copied: self.request.mode == Mode::Continue,
            kcmp: self.options.kcmp,
            duplicate_query: self.options.duplicate_query,
        };
        let obstacles = &mut self.obstacles;
        let descriptors = descriptors::survey(&survey, obstacles).map_err(|errno| ("looking at the open descriptors", errno))?;
        let facts = facts::process(arena, self.options.filters_at_start, obstacles)?;
        let (mut process, mut privileges) = (facts.record, facts.privileges);
        let own = [(process::tid(), &self.own_state, None)];
        let others = frozen.threads().iter().map(|thread| (thread.tid, &thread.state, thread.wait));
        let threads = own.into_iter().chain(others);
        privileges.dumpable = self.dumpable;
        privileges.landlock_layers = self.options.layers_at_start;
        facts::threads(arena, threads.clone(), (privileges.seccomp_filters, privileges.landlock_layers), obstacles);
        let mut settings = ArenaVec::new(arena);
        facts::interval_timers(&mut settings).map_err(|errno| ("reading interval timers", errno))?;
        settings::changed(threads.map(|(tid, state, _)| (tid, state.name, state.timer_slack_ns)), &mut settings, obstacles)
            .map_err(|errno| ("reading how threads are scheduled", errno))?;
        let is_kept = |subject: &str| self.request.policy.decide(ObstacleKind::AllocatorRaw, subject) == Action::Keep;
        if !self.is_interposed && !is_kept("") {
            obstacles.push(ObstacleKind::AllocatorRaw, format_args!("the symbol `madvise` is not crac's in this program"));
        }
        for place in self.raw_advice.iter().filter(|place| !is_kept(&place.name)) {
            obstacles.push(ObstacleKind::AllocatorRaw, format_args!("{place}"));
        }
        if let Some(missing) = self.clock.missing {
            obstacles.push(ObstacleKind::Clock, format_args!("clock = proxy: {missing}"));
        }
        process.descriptor_max = descriptors.records.iter().map(|record| record.number).max().unwrap_or(-1);
        let mut room = [0; libc::PATH_MAX as usize];
        let directory = fs::read_link_at(libc::AT_FDCWD, c"/proc/self/cwd", &mut room)
            .map_err(|errno| ("reading the working directory", errno))?;
        if directory.ends_with(b" (deleted)") {
            obstacles.push(ObstacleKind::FileDeleted, format_args!("the working directory"));
        }
        let mut working_directory = ArenaVec::new(arena);
        working_directory.extend_from_slice(directory).map_err(no_memory)?;

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
        if self.request.mode == Mode::Become {
            let [_, most] = process::limit(libc::RLIMIT_NPROC).unwrap_or([0, u64::MAX]);
            if privileges.is_too_little(most, threads.len() as u64) {
                let what = format_args!("its {} threads could not be started again: RLIMIT_NPROC is {most}", threads.len());
                obstacles.push(ObstacleKind::Privilege, what);
            }
        }
        Ok(Seen {
            threads,
            actions: facts::actions(arena, (freeze::FREEZE_SIGNAL, frozen.previous)).map_err(no_memory)?,
            auxv: facts::read_all(arena, c"/proc/self/auxv").map_err(|errno| ("reading /proc/self/auxv", errno))?,
            descriptors,
            settings,
            process,
            privileges,
            working_directory: working_directory.into_slice(),
            realtime_ns: facts::clock_ns(libc::CLOCK_REALTIME),
            clocks: shim::seen(),
            only_here: facts.locked_bytes > 0,
        })
    }

    /// Whether freed memory could come back with old bytes, and the policy wants an image all the same - there is none otherwise -:
    /// one that is read when it is restored, whose memory is anonymous as before.
    fn is_eager(&self) -> bool {
        !self.is_interposed || !self.raw_advice.is_empty()
    }

    /// Memory: every mapping, every page. In continue mode a copy of the process does this, and `maps` is the original's own
    /// text of that name.
    pub(super) fn look_at_memory(&mut self, seen: &Seen<'a>, maps: Option<&[u8]>) -> Result<(Header, Memory<'a>), Stop> {
        let arena = self.arena;
        let obstacles = &mut self.obstacles;
        let kernel = facts::kernel_version();
        Fault::check(self.options.fault, Point::Memory).map_err(|errno| ("reading the process's mappings", errno))?;
        let entries = facts::mappings(arena)?;
        if let Some(maps) = maps {
            beside::refuse_what_is_missing(maps, entries, obstacles);
        }
        let mut pages = Pages::open(arena, self.options.pagemap_scan).map_err(|errno| ("opening /proc/self/pagemap", errno))?;
        let image = madvise::backing_file().map_err(|errno| ("looking for the image this life came from", errno))?;
        if self.request.mode == Mode::Continue {
            let is_scratch = |start, end| arena.ranges().any(|part| part.start as u64 <= start && end <= part.end as u64);
            let is_refused = |entry| matches!(plan::classify(entry, image, false), Class::Refused(_));
            let shared = entries.iter().filter(|entry| entry.mapping.shared && entry.mapping.write && !is_refused(entry));
            let shared = shared.map(|entry| &entry.mapping).filter(|mapping| !is_scratch(mapping.start, mapping.end));
            beside::refuse_what_changes(shared, obstacles);
        }
        let stand_in = self.clock.needs_stand_in().then_some(self.vdso);
        let mut stack_pointers = ArenaVec::new(arena);
        let noted = seen.threads.iter().try_for_each(|thread| stack_pointers.push(thread.resume_sp));
        noted.map_err(|errno| ("noting tables", errno))?;
        stack_pointers.sort_unstable();
        let sources = Sources {
            arena,
            entries,
            image,
            data_only: self.data_only,
            stack_flag: kernel >= 6 << 16 | 7,
            stand_in,
            policy: self.request.policy,
            stack_pointers: stack_pointers.into_slice(),
            memories: &seen.descriptors.memories,
        };
        let mut memory = Memory::plan(&sources, &mut pages, obstacles)?;
        if memory.vdso.start == 0 {
            obstacles.push(ObstacleKind::Kernel, format_args!("there is no vdso to move"));
        }
        let mut process = seen.process;
        process.lock_future = lock_future(arena, entries);
        process.working_directory = memory.add_text(seen.working_directory).map_err(|errno| ("noting tables", errno))?;
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
            captured_realtime_ns: seen.realtime_ns,
            captured_monotonic_ns: seen.clocks.monotonic_ns,
            captured_boottime_ns: seen.clocks.boottime_ns,
            captured_raw_ns: seen.clocks.raw_ns,
            clock: match self.clock.kind {
                Clock::Proxy => clock::PROXY,
                Clock::Timens => clock::TIME_NAMESPACE,
                Clock::Auto | Clock::None => clock::HOST,
            },
            downtime: match self.options.downtime {
                Downtime::Frozen => downtime::FROZEN,
                Downtime::Elapsed => downtime::ELAPSED,
            },
            eager: u32::from(self.is_eager()),
            reserved: 0,
            trial: Trial::default(),
            page_size: PAGE_SIZE as u32,
            kernel,
            cpu: cpu::current(),
            boot_id: facts::boot_id(),
            vdso: memory.vdso,
            privileges: seen.privileges,
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
            settings: Section::default(),
            objects: Section::default(),
            object_runs: Section::default(),
            owners: Section::default(),
            sums: Section::default(),
        };
        header.vdso.code_sum = xxh64(self.vdso);
        Fault::check(self.options.fault, Point::Plan).map_err(|errno| ("making the plan", errno))?;
        place(self.manifest.len(), self.stub, &mut header, &mut memory, seen, entries, &mut self.obstacles);
        Ok((header, memory))
    }
}

/// Whether everything that is mapped is locked: then the arena is, which was mapped last.
fn lock_future(arena: &Arena, entries: &[SmapsEntry<'_>]) -> u32 {
    let is_scratch = |entry: &&SmapsEntry<'_>| arena.ranges().any(|part| part.contains(&(entry.mapping.start as usize)));
    let flags = entries.iter().find(is_scratch).map(|entry| entry.flags);
    let bit = |flag: &[u8; 2], bit: i32| flags.filter(|flags| flags.contains(flag)).map_or(0, |_| bit as u32);
    match bit(b"lo", libc::MCL_FUTURE) {
        0 => 0,
        future => future | bit(b"lf", libc::MCL_ONFAULT),
    }
}

/// Gives every part its place, in the file and in the restored process.
fn place(
    manifest_bytes: usize,
    stub: &Stub,
    header: &mut Header,
    memory: &mut Memory<'_>,
    tables: &Seen<'_>,
    entries: &[SmapsEntry<'_>],
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
    header.settings = section(size_of_val(&tables.settings[..]));
    header.objects = section(size_of_val(&memory.objects.records[..]));
    header.object_runs = section(size_of_val(&memory.objects.runs[..]));
    header.owners = section(8 * OWNERS_MAX);
    // Where data lie depends on how long the tables are: room for as many holes as data at the most, see `place_data`.
    let blocks_max = (2 * memory.data_bytes()).div_ceil(BLOCK) + 1;
    header.sums = section(size_of::<u64>() * blocks_max as usize);
    header.metadata_bytes = offset.next_multiple_of(PAGE);
    header.metadata_offset = ELF_HEADER_BYTES + stub.bytes.len() as u64;
    header.data_offset = header.metadata_offset + header.metadata_bytes;
    match memory.place_data(header.data_offset) {
        Ok(end) => header.file_bytes = end,
        Err(errno) => obstacles.push(ObstacleKind::Image, format_args!("the image would be too large for a file: {errno}")),
    }
    let blocks = block_count(header.data_offset, header.file_bytes);
    debug_assert!(blocks <= blocks_max, "there is a place for every sum");
    header.sums.bytes = size_of::<u64>() as u64 * blocks.min(blocks_max);
    let stub_bytes = stub.memory_bytes;
    let zone_bytes = stub_bytes + header.metadata_bytes + STAGING_BYTES + HANDOVER_BYTES_MAX;
    let taken = entries.iter().map(|entry| (entry.mapping.start, entry.mapping.end));
    let vdso_bytes = header.vdso.bytes.iter().sum::<u64>();
    // Behind the zone there is room for the vdso, where a copy takes its place.
    match plan::hole(taken, ZONE_HINT, zone_bytes + PAGE + vdso_bytes, ADDRESSES_END) {
        Some(zone) => {
            header.zone_start = zone;
            header.zone_end = zone + zone_bytes;
            header.metadata_at = zone + stub_bytes;
            header.staging_at = header.metadata_at + header.metadata_bytes;
            header.handover_at = header.staging_at + STAGING_BYTES;
            if let Some((_, copy)) = &mut memory.stand_in {
                header.vdso.start = header.zone_end + PAGE;
                let [.., code_bytes] = header.vdso.bytes;
                let real = header.vdso.start + vdso_bytes - code_bytes;
                match vdso::stand_in(copy, real, shim::read_address() as u64, shim::table_address() as u64) {
                    // In this life nobody calls it; in the next it is part of the memory.
                    Ok(proxy) => shim::set_real(&proxy),
                    Err(what) => obstacles.push(ObstacleKind::Clock, format_args!("{what}")),
                }
            }
        }
        None => obstacles.push(ObstacleKind::Kernel, format_args!("no {zone_bytes} bytes of address space are free")),
    }
    if vdso_bytes > STAGING_BYTES {
        obstacles.push(ObstacleKind::Kernel, format_args!("the vdso is larger than {STAGING_BYTES} bytes"));
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
