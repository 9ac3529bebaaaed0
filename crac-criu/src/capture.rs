//! One capture, from the coordinator's thread.
//!
//! The call goes on in two lives. In the one that was captured the handover's file is empty; in a restored one `crac restore`
//! has put what it has to say in its place. That alone decides which life this is.
#![expect(unsafe_code, reason = "closes descriptors of the life before, which nobody in this one has")]

use std::{
    ffi::CString,
    fs::File,
    io,
    os::unix::{ffi::OsStrExt, fs::FileExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use crac_core::{
    CaptureProgress, CaptureReport, CaptureRequest, CaptureWatch, Captured, EngineError, InstanceId, Mode, Restoration, Stage,
    Underway,
};
use crac_sys::{
    descriptor, process,
    warden::{Ended, Orders, Publish, Tether},
};
use prost::Message;

use crate::{
    CriuEngine,
    handover::Handover,
    holdings::Holdings,
    image::{Draft, Executable, Manifest},
    program::{Criu, CriuError},
    restore::missing_privileges,
    rpc::{CgroupMode, Kind, NetworkLock, Options, Request, Response},
    stand,
    wiped::Wiped,
    worker,
};

pub(crate) const LOG: &str = "dump.log";
pub(crate) const DUMP: &str = "finish the dump";
/// How long stopping all threads may take, in seconds; CRIU gives up then.
const FREEZE_MAX_S: u32 = 10;
/// What the processor of the restore must have: registers and instructions.
pub(crate) const CPU_CHECKS: u32 = 1 | 4;
/// The guard's own work behind CRIU's: making gigabytes durable.
pub(crate) const PUBLISH_MAX: Duration = Duration::from_secs(5 * 60);

/// What a service without privileges is told.
const ASK_OUTSIDE: &str =
    "start the service as root or with these capabilities, or have root save it from outside: `crac checkpoint --outside`";

/// The clocks at the capture, kept in the memory that is captured.
pub(crate) struct Clocks {
    wall: Duration,
    monotonic: Duration,
}

impl Clocks {
    pub(crate) fn now() -> Self {
        Self { wall: process::clock(REALTIME).unwrap_or_default(), monotonic: process::clock(MONOTONIC).unwrap_or_default() }
    }
}

pub(crate) fn capture(engine: &CriuEngine, request: &CaptureRequest<'_>) -> Result<Captured, EngineError> {
    let begun = Instant::now();
    let holdings = Holdings::look(request.policy, &request.own_descriptors).map_err(|error| EngineError::Failed {
        what: format!("cannot capture: reading /proc/self/fd: {error}"),
        hint: "hint: mount /proc".into(),
    })?;
    if !holdings.obstacles.is_empty() {
        return Err(EngineError::Refused(holdings.obstacles));
    }
    if process::session() == 0 {
        return Err(EngineError::Failed {
            what: "cannot capture: the leader of this process's session is outside its process id namespace, and CRIU saves no \
                   such session"
                .into(),
            hint: "hint: start the service in a session of its own, with `setsid --wait`".into(),
        });
    }
    if let Some(outside) = &request.outside {
        return stand::stand(engine, request, holdings, outside, begun);
    }
    let criu = Criu::find(engine.program.as_deref()).map_err(failed)?;
    if request.mode == Mode::Rehearse {
        criu.version().map_err(failed)?;
        if let Some(what) = missing_privileges() {
            return Err(EngineError::Failed { what, hint: format!("hint: {ASK_OUTSIDE}") });
        }
        return Ok(Captured::Original(report(0, vec![stage("look", begun.elapsed())])));
    }
    // Reading the program takes its time, which is not CRIU's.
    Executable::own().map_err(|error| EngineError::Failed {
        what: format!("cannot capture: reading the program's file: {error}"),
        hint: "hint: mount /proc".into(),
    })?;
    let unwritable = |source| EngineError::Write {
        path: request.image.clone(),
        source,
        hint: "hint: images need a directory that exists and may be written to".into(),
    };
    let draft = Draft::new(&request.image, request.metadata.image_id).map_err(unwritable)?;
    let handover = match draft.make_handover() {
        Ok(handover) => handover,
        Err(error) => {
            draft.discard();
            return Err(unwritable(error));
        }
    };
    let end = End {
        criu,
        image: request.image.clone(),
        watch: request.watch.clone(),
        draft: Some(draft),
        deadline: engine.deadline,
        begun,
        ordered: begun,
        answer: None,
        tether: None,
        is_exit: request.mode == Mode::Exit,
    };
    dump(request, holdings, &handover, end)
}

/// Has CRIU dump this process. Goes on in two lives.
fn dump(request: &CaptureRequest<'_>, holdings: Holdings, handover: &File, mut end: End) -> Result<Captured, EngineError> {
    let is_exit = end.is_exit;
    let Some(draft) = &end.draft else { unreachable!("it was made with one") };
    let publish = Publish { from: c_path(&draft.aside)?, to: c_path(&request.image)?, parent: c_path(&draft.parent)? };
    let pid = process::pid();
    let orders = Orders { deadline: end.deadline, publish: Some(publish), told: None, resume: is_exit.then_some(pid) };
    let (mut conversation, mut tether) = worker::start_guarded(&end.criu, orders).map_err(failed)?;
    let version = end.criu.greet_within(&mut conversation, end.deadline).map_err(|error| match error {
        // The guard may have been first to lose patience.
        CriuError::Nonsense { .. } if tether.ended() == Ended::Late => failed(end.late("say its version")),
        error => failed(error),
    })?;
    describe(request, &holdings, draft, version)?;
    let order = order(request, holdings, draft, is_exit)?;
    let wiped = look_for_wiped()?;
    let clocks = Clocks::now();
    end.ordered = Instant::now();
    // A CRIU that has ended cannot be told; the tether says how it ended.
    let _ = conversation.tell(&order);

    // The guard kills CRIU at the deadline, and tells so.
    let deadline = end.begun + end.deadline + PUBLISH_MAX;
    let heard = worker::readable(&[conversation.descriptor(), tether.descriptor()], deadline);
    if let Some(handover) = handed_over(handover) {
        // First of all: another thread may draw from it.
        wiped.wipe();
        end.leave_alone();
        return Ok(Captured::Restored(come_back(request, handover, &clocks)));
    }
    match heard {
        Ok(true) => {}
        Ok(false) => return Err(failed(end.late(DUMP))),
        Err(errno) => return Err(failed(worker::io_error("wait for CRIU")(errno))),
    }
    // A closed connection says nothing: how CRIU ended comes by the tether.
    if worker::readable(&[conversation.descriptor()], Instant::now()).unwrap_or(false) {
        end.answer = conversation.hear(&end.criu).unwrap_or_default();
    }
    let has_dumped = end.answer.as_ref().is_some_and(|answer| answer.success);
    end.tether = Some(tether);
    if has_dumped && !is_exit {
        return Ok(Captured::Underway(Box::new(end)));
    }
    // In exit mode the process stands still until the image is durable.
    let report = end.wait(end.deadline + PUBLISH_MAX).unwrap_or_else(|| Err(failed(end.late(DUMP))))?;
    if is_exit {
        process::exit_group(0);
    }
    Ok(Captured::Original(report))
}

/// Memory that is wiped in a restored life.
pub(crate) fn look_for_wiped() -> Result<Wiped, EngineError> {
    Wiped::look().map_err(|error| EngineError::Failed {
        what: format!("cannot capture: reading /proc/self/smaps: {error}"),
        hint: "hint: mount /proc".into(),
    })
}

fn describe(request: &CaptureRequest<'_>, holdings: &Holdings, draft: &Draft, version: String) -> Result<(), EngineError> {
    let written = Manifest::of_this(request.metadata.clone(), version).and_then(|mut manifest| {
        manifest.streams = holdings.streams.clone();
        manifest.severed = holdings.severed.clone();
        manifest.tcp_close = holdings.tcp_close;
        manifest.handover = draft.handover_key();
        draft.write_manifest(&manifest)
    });
    written.map_err(|source| EngineError::Write {
        path: request.image.clone(),
        source,
        hint: "hint: choose another directory or free some space".into(),
    })
}

/// The order to CRIU.
fn order(request: &CaptureRequest<'_>, holdings: Holdings, draft: &Draft, is_exit: bool) -> Result<Request, EngineError> {
    let order = dump_order(process::pid(), draft, holdings.external, holdings.tcp_close, is_exit);
    order.ok_or_else(|| EngineError::Write {
        path: request.image.clone(),
        source: io::ErrorKind::InvalidFilename.into(),
        hint: format!("hint: {NOT_TEXT}"),
    })
}

pub(crate) const NOT_TEXT: &str = "CRIU takes paths of UTF-8 text alone; choose another name";

/// The order to dump the process `pid` into `draft`; nothing if its path is no text.
pub(crate) fn dump_order(pid: i32, draft: &Draft, external: Vec<String>, tcp_close: bool, is_exit: bool) -> Option<Request> {
    let images_dir = draft.aside.to_str().map(str::to_owned)?;
    let mut order = Request::new(Kind::Dump);
    order.options = Some(Options {
        // By name: a descriptor of the directory would be captured, too, and looked for at the restore.
        images_dir: Some(images_dir),
        log_file: Some(LOG.to_owned()),
        log_level: Some(2),
        pid: Some(pid),
        leave_running: (!is_exit).then_some(true),
        leave_stopped: is_exit.then_some(true),
        external,
        tcp_close: tcp_close.then_some(true),
        cpu_cap: Some(CPU_CHECKS),
        timeout: Some(FREEZE_MAX_S),
        ..common_options()
    });
    Some(order)
}

/// The first steps of a restored life.
pub(crate) fn come_back(request: &CaptureRequest<'_>, handover: Handover, clocks: &Clocks) -> Restoration {
    for number in &request.own_descriptors {
        // SAFETY: in this life it is a dead socket. The round it belonged to is over, and its owner forgets the number: that is
        // what the contract says about descriptors of the round itself.
        unsafe { descriptor::close(*number) };
    }
    if handover.command != 0 {
        // If that command has ended, nobody is left to be told, now or later. Another answer is that of a filter, and is ignored.
        let bound = process::end_with_parent(handover.command as i32);
        if bound.is_err_and(|errno| errno.number() == rustix::io::Errno::SRCH.raw_os_error()) {
            process::exit_group(1);
        }
    }
    let mut instance = [0; 16];
    // The kernel's generator does not fail once it is seeded.
    let _ = process::random(&mut instance);
    let metadata = &request.metadata;
    let mut life = Restoration::new(metadata.image_id, InstanceId(instance), metadata.generation + 1);
    life.asleep_wall = process::clock(REALTIME).unwrap_or_default().saturating_sub(clocks.wall);
    life.asleep_monotonic = process::clock(MONOTONIC).unwrap_or_default().saturating_sub(clocks.monotonic);
    life.args = handover.args;
    life.env = handover.env;
    life
}

/// What is left to do in the life that was captured.
struct End {
    criu: Criu,
    image: PathBuf,
    watch: Arc<dyn CaptureWatch>,
    draft: Option<Draft>,
    deadline: Duration,
    begun: Instant,
    /// When CRIU was told to begin.
    ordered: Instant,
    /// What CRIU said, if it said anything.
    answer: Option<Response>,
    tether: Option<Tether>,
    is_exit: bool,
}

impl End {
    /// This is another life: what has the draft's name may be another capture's.
    fn leave_alone(&mut self) {
        self.draft = None;
    }

    fn finish(&self, ended: Ended) -> Result<CaptureReport, EngineError> {
        match (ended, &self.answer) {
            (Ended::Well, Some(Response { success: true, .. })) => Ok(self.durable()),
            (Ended::Late, _) => Err(failed(self.late(DUMP))),
            (Ended::Unpublished(errno), _) => Err(EngineError::Write {
                path: self.image.clone(),
                source: errno.into(),
                hint: "hint: choose another directory or free some space".into(),
            }),
            (ended, answer) => Err(failed(self.refused(ended, answer.as_ref()))),
        }
    }

    fn durable(&self) -> CaptureReport {
        let stats = Stats::read(&self.image);
        let bytes = disk_bytes(&self.image);
        // In exit mode the process stood still until now.
        let frozen = if self.is_exit { self.ordered.elapsed() } else { Duration::from_micros(stats.frozen_us.into()) };
        self.watch.reached(CaptureProgress::Durable { bytes, elapsed: self.begun.elapsed(), frozen });
        report(bytes, stats.stages())
    }

    fn late(&self, what: &'static str) -> CriuError {
        CriuError::Late { path: self.criu.path().to_owned(), what, limit: self.deadline }
    }

    fn refused(&self, ended: Ended, answer: Option<&Response>) -> CriuError {
        let log = self.draft.as_ref().map(|draft| draft.log(LOG)).unwrap_or_default();
        match (answer, ended) {
            (None, Ended::Badly(status)) if log.is_empty() => {
                self.criu.nonsense(format!("ended with wait status {status:#x} without a word"))
            }
            _ => {
                let failure = Criu::failure("dump the process", &log, answer.and_then(|answer| answer.message.as_deref()));
                match (failure, missing_privileges()) {
                    (CriuError::Failed { what, lines, .. }, Some(_)) => CriuError::Failed { what, lines, hint: ASK_OUTSIDE },
                    (failure, _) => failure,
                }
            }
        }
    }
}

impl Underway for End {
    fn wait(&mut self, limit: Duration) -> Option<Result<CaptureReport, EngineError>> {
        let tether = self.tether.as_mut()?;
        let has_ended = match worker::readable(&[tether.descriptor()], Instant::now() + limit) {
            Ok(has_ended) => has_ended,
            Err(errno) => return Some(Err(failed(worker::io_error("wait for CRIU")(errno)))),
        };
        let ended = has_ended.then(|| tether.ended())?;
        self.tether = None;
        Some(self.finish(ended))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        // First the tether: CRIU is not to write to what is removed.
        self.tether = None;
        if let Some(draft) = self.draft.take() {
            draft.discard();
        }
    }
}

/// What dump and restore have in common.
pub(crate) fn common_options() -> Options {
    Options {
        images_dir_fd: -1,
        ext_unix_sk: Some(true),
        shell_job: Some(true),
        file_locks: Some(true),
        manage_cgroups_mode: Some(CgroupMode::Ignore as i32),
        tcp_skip_in_flight: Some(true),
        network_lock: Some(NetworkLock::Skip as i32),
        unprivileged: (!rustix::process::geteuid().is_root()).then_some(true),
        ..Options::default()
    }
}

/// What the file holds, if this is a restored life.
pub(crate) fn handed_over(file: &File) -> Option<Handover> {
    let bytes = file.metadata().ok()?.len();
    let mut contents = vec![0; usize::try_from(bytes).ok().filter(|bytes| *bytes > 0)?];
    file.read_exact_at(&mut contents, 0).ok()?;
    Handover::decode(&contents)
}

/// `stats-dump`, in microseconds.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Stats {
    #[prost(uint32, required, tag = "1")]
    freezing_us: u32,
    #[prost(uint32, required, tag = "2")]
    pub(crate) frozen_us: u32,
    #[prost(uint32, required, tag = "3")]
    memory_read_us: u32,
    #[prost(uint32, required, tag = "4")]
    memory_written_us: u32,
}

/// The message around it.
#[derive(Clone, PartialEq, Message)]
struct StatsEntry {
    #[prost(message, optional, tag = "1")]
    dump: Option<Stats>,
}

impl Stats {
    /// Of the image at `image`; zeros if there are none.
    pub(crate) fn read(image: &Path) -> Self {
        let bytes = std::fs::read(image.join("stats-dump")).unwrap_or_default();
        // Two magic numbers and a length come first.
        let entry = bytes.get(12..).and_then(|bytes| StatsEntry::decode(bytes).ok());
        entry.and_then(|entry| entry.dump).unwrap_or_default()
    }

    fn stages(&self) -> Vec<Stage> {
        let us = |name, us: u32| stage(name, Duration::from_micros(us.into()));
        vec![
            us("freeze", self.freezing_us),
            us("frozen", self.frozen_us),
            us("read memory", self.memory_read_us),
            us("write memory", self.memory_written_us),
        ]
    }
}

pub(crate) fn stage(name: &str, took: Duration) -> Stage {
    Stage { name: name.to_owned(), took }
}

pub(crate) fn report(bytes: u64, stages: Vec<Stage>) -> CaptureReport {
    let mut report = CaptureReport::default();
    report.bytes = bytes;
    report.stages = stages;
    report
}

pub(crate) fn disk_bytes(image: &Path) -> u64 {
    let files = crate::image::files(image).unwrap_or_default();
    files.iter().map(|(_, found)| std::os::unix::fs::MetadataExt::blocks(found) * 512).sum()
}

fn c_path(path: &Path) -> Result<CString, EngineError> {
    CString::new(path.as_os_str().as_bytes()).map_err(|error| EngineError::Write {
        path: path.to_owned(),
        source: io::Error::from(error),
        hint: "hint: choose another name".into(),
    })
}

/// In the words of the contract: what, and a hint.
fn failed(error: CriuError) -> EngineError {
    let text = error.to_string();
    let (what, hint) = text.rsplit_once("; hint: ").unwrap_or((&text, "see what the system said"));
    EngineError::Failed { what: what.to_owned(), hint: format!("hint: {hint}") }
}

const REALTIME: i32 = 0;
const MONOTONIC: i32 = 1;
