//! `crac checkpoint`: asks a service to save itself, and waits until it is gone, has become its image, or has an image beside it.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crac_core::{
    Denial, Mode, Report, RoundEnding, RoundProgress, Status,
    control::{ControlReply, ControlRequest},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};
use serde::Serialize;

use crate::{
    conversation::{Conversation, TalkError},
    duration,
    exit::Exit,
    failure::Failure,
    output, outside,
    progress::Progress,
    sealed::{self, Envelope},
    services::{self, Endpoint, Target, unanswered},
};

/// How often a service that becomes its image is asked whether it is back.
const BACK_YET: Duration = Duration::from_millis(5);

/// Save a service into an image; it exits with status 0 once the image is safe on disk, unless it is to go on.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The service, by process id or name.
    #[arg(value_name = "PID|NAME")]
    target: Target,

    /// Where the image goes. Default: NAME.crac in the working directory.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,

    /// The service executes the image at once, under the same process id, instead of exiting.
    #[arg(long = "become")]
    becomes: bool,

    /// The service goes on: it stands still for a moment, and a copy of it writes the image.
    #[arg(long = "continue", conflicts_with = "becomes")]
    continues: bool,

    /// This command has CRIU save the service, from outside: for a service without privileges, by root. The service uses the
    /// engine `criu`.
    #[arg(long, conflicts_with_all = ["becomes", "encrypt_to"])]
    outside: bool,

    /// The image holds data alone: programs and libraries are mapped from their files when it is restored, which only `crac restore`
    /// and `crac run` can do. For hosts where an image may not be executed; on a file system mounted noexec it is the default.
    #[arg(long, conflicts_with = "outside")]
    data_only: bool,

    /// Encrypt the image to this age recipient (`age1...`), several if given again. It is in memory until it is encrypted; default
    /// name: NAME.crac.age.
    #[arg(long, value_name = "RECIPIENT", conflicts_with = "becomes")]
    encrypt_to: Vec<String>,

    /// How long all of it may take. The service has deadlines of its own, and what it has begun goes on.
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration::parse)]
    timeout: Duration,

    /// Print the outcome as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> Result<Exit, Failure> {
    let deadline = Instant::now() + args.timeout;
    let (endpoint, before) = services::find(&args.target)?;
    let suffix = if args.encrypt_to.is_empty() { "crac" } else { "crac.age" };
    let image = args.image.unwrap_or_else(|| PathBuf::from(format!("{}.{suffix}", before.name)));
    let image = std::path::absolute(&image).map_err(|error| {
        Failure::new(Exit::Failed, format!("cannot tell where {} is: {error}", image.display())).hint("give an absolute path")
    })?;
    let mode = match (args.becomes, args.continues) {
        (true, _) => Mode::Become,
        (_, true) => Mode::Continue,
        _ => Mode::Exit,
    };
    let process = open_process(endpoint.pid)?;

    let plain = match args.encrypt_to.as_slice() {
        [] => None,
        recipients => Some((Envelope::new(&image, recipients)?, in_memory()?)),
    };
    let written = plain.as_ref().map_or_else(|| image.clone(), |(_, plain)| sealed::path_of(plain));
    let account = if args.outside {
        outside::checkpoint(&endpoint, mode, &image, deadline)?
    } else {
        let request = ControlRequest::Checkpoint { mode, image: Some(written), data_only: args.data_only };
        follow(&endpoint, &request, deadline)?
    };
    let mut outcome = conclude(&endpoint, &before, mode, image, account);
    if let (Some((envelope, plain)), Ending::Taken) = (plain, &outcome.ending) {
        let sealed = envelope.seal(&plain).map_err(|error| {
            let what = format!("cannot write the encrypted image {}: {error}", outcome.image.display());
            Failure::new(Exit::Failed, what)
                .hint("the plain one was in memory alone and is lost; start the service cold if it has ended")
        })?;
        outcome.bytes = Some(sealed);
    }
    let outcome = match outcome.ending {
        Ending::Taken if mode == Mode::Exit => wait_for_end(&process, &endpoint, deadline).map(|()| outcome)?,
        Ending::Taken if mode == Mode::Become => wait_for_return(&process, &endpoint, &before, deadline, outcome)?,
        _ => outcome,
    };
    if args.json {
        output::json(&outcome);
    } else {
        outcome.print();
    }
    Ok(outcome.ending.exit())
}

/// A file in memory for the image that is to be encrypted.
fn in_memory() -> Result<std::fs::File, Failure> {
    sealed::in_memory().map_err(|error| Failure::new(Exit::Failed, format!("cannot hold an image in memory: {error}")))
}

/// What a service said from the request to the end of the conversation.
#[derive(Debug, Default)]
pub(crate) struct Account {
    /// From the request to the capture: drain, resources, hold, audit.
    down: Option<Duration>,
    /// When the door was shut, and for how long, if it opened again.
    shut: Option<Duration>,
    closed: Option<Duration>,
    durable: Option<Durable>,
    last: Option<Last>,
}

/// How an account ended, if the conversation did not merely end.
#[derive(Debug)]
pub(crate) enum Last {
    Report(Box<Report>),
    Denied(Denial, String),
    Error(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Durable {
    bytes: u64,
    elapsed_us: u64,
    frozen_us: u64,
}

impl Account {
    /// Takes in one reply, `after` so long; whether it is the last one.
    pub(crate) fn take(&mut self, reply: ControlReply, after: Duration) -> bool {
        match reply {
            ControlReply::Progress(RoundProgress::Capture) => self.down = Some(after),
            ControlReply::Progress(RoundProgress::Shut) => self.shut = Some(after),
            ControlReply::Progress(RoundProgress::Open) => self.closed = self.shut.map(|shut| after.saturating_sub(shut)),
            ControlReply::Durable { bytes, elapsed_us, frozen_us } => {
                self.durable = Some(Durable { bytes, elapsed_us, frozen_us });
            }
            ControlReply::Report(report) => self.last = Some(Last::Report(report)),
            ControlReply::Denied { reason, what } => self.last = Some(Last::Denied(reason, what)),
            ControlReply::Error { what } => self.last = Some(Last::Error(what)),
            _ => {}
        }
        self.last.is_some()
    }

    /// Notes what this command has done itself.
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    pub(crate) fn durable(&mut self, bytes: u64, elapsed: Duration, frozen: Duration) {
        let micros = |time: Duration| time.as_micros() as u64;
        self.durable = Some(Durable { bytes, elapsed_us: micros(elapsed), frozen_us: micros(frozen) });
    }

    /// The report, if it ended with one.
    pub(crate) fn into_last(self) -> Option<Last> {
        self.last
    }
}

/// Sends `request` and follows what is said about it.
pub(crate) fn follow(endpoint: &Endpoint, request: &ControlRequest, deadline: Instant) -> Result<Account, Failure> {
    let talk = Conversation::open(&endpoint.socket, request, deadline).map_err(|error| unanswered(endpoint, &error))?;
    follow_on(endpoint, talk, |_, _, _| {})
}

/// Follows what is said in `talk`, whose request has been sent. `act` may do something about a reply, and talk, before the next is
/// heard.
pub(crate) fn follow_on(
    endpoint: &Endpoint,
    mut talk: Conversation,
    mut act: impl FnMut(&ControlReply, &mut Conversation, &mut Account),
) -> Result<Account, Failure> {
    let begun = Instant::now();
    let progress = Progress::new();
    let mut account = Account::default();
    loop {
        match talk.next() {
            Ok(Some(reply)) => {
                progress.show(&reply);
                act(&reply, &mut talk, &mut account);
                if account.take(reply, begun.elapsed()) {
                    return Ok(account);
                }
            }
            Ok(None) => return Ok(account),
            // The image is safe, whatever else there is to hear.
            Err(TalkError::TimedOut) if account.durable.is_none() => {
                let what = format!("process {} has not finished the checkpoint in time", endpoint.pid);
                return Err(
                    Failure::new(Exit::TimedOut, what).hint("it goes on with it; see `crac ps`, or give a longer --timeout")
                );
            }
            Err(error) if account.durable.is_none() => return Err(unanswered(endpoint, &error)),
            Err(_) => return Ok(account),
        }
    }
}

/// The outcome as it is printed.
#[derive(Debug, Serialize)]
struct Outcome {
    #[serde(flatten)]
    ending: Ending,
    name: String,
    pid: u32,
    mode: Mode,
    image: PathBuf,
    /// Bytes on disk.
    bytes: Option<u64>,
    /// From the request to the capture.
    down_us: Option<u64>,
    /// From the capture to the durable image.
    elapsed_us: Option<u64>,
    /// While every thread stood still.
    frozen_us: Option<u64>,
    /// While the door of a service that goes on was shut.
    closed_us: Option<u64>,
    /// Of the life that goes on.
    generation: Option<u64>,
}

#[derive(Debug, Serialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
enum Ending {
    /// The image is durable.
    Taken,
    /// There is no image, or the process could not become it; the service serves as before.
    Refused { report: Box<Report> },
    /// The request was not admitted.
    Denied { reason: Denial, what: String },
    /// There is no image, for another reason.
    Failed { what: String },
}

impl Ending {
    fn exit(&self) -> Exit {
        match self {
            Ending::Taken => Exit::Done,
            Ending::Refused { .. } | Ending::Denied { .. } => Exit::Refused,
            Ending::Failed { .. } => Exit::Failed,
        }
    }
}

impl Outcome {
    fn print(&self) {
        let ms = |us: Option<u64>| us.map_or_else(|| "-".to_owned(), output::ms);
        match &self.ending {
            Ending::Taken => {
                let then = match (self.mode, self.generation) {
                    (_, Some(generation)) => format!("became the image, generation {generation}"),
                    (Mode::Continue, None) => "goes on".to_owned(),
                    (_, None) => "has ended".to_owned(),
                };
                output::line(format_args!("{}", self.image.display()));
                output::line(format_args!("  {} (process {}) {then}", self.name, self.pid));
                output::line(format_args!("  {:<28} {:>12}", "on disk", output::mib(self.bytes.unwrap_or(0))));
                output::line(format_args!("  {:<28} {:>12}", "let go and stopped", ms(self.down_us)));
                output::line(format_args!("  {:<28} {:>12}", "captured, until durable", ms(self.elapsed_us)));
                output::line(format_args!("  {:<28} {:>12}", "of it with all threads frozen", ms(self.frozen_us)));
                if self.closed_us.is_some() {
                    output::line(format_args!("  {:<28} {:>12}", "door shut, all in all", ms(self.closed_us)));
                }
            }
            Ending::Refused { report } => output::line(report),
            Ending::Denied { what, .. } => output::say(format_args!("{} has not begun a checkpoint: {what}", self.name)),
            Ending::Failed { what } => output::say(what),
        }
    }
}

/// What the account of the conversation means.
fn conclude(endpoint: &Endpoint, before: &Status, mode: Mode, image: PathBuf, account: Account) -> Outcome {
    let ending = match (account.durable, account.last) {
        // The image is durable and the service has come back from its pause.
        (Some(_), Some(Last::Report(report))) if mode == Mode::Continue && report.ending == RoundEnding::Continued => {
            Ending::Taken
        }
        (_, Some(Last::Report(report))) if matches!(report.ending, RoundEnding::Continued | RoundEnding::Restored) => {
            let what =
                format!("the engine `{}` of {} takes no image; start the service with another one", report.engine, before.name);
            Ending::Failed { what }
        }
        (_, Some(Last::Report(report))) => Ending::Refused { report },
        (_, Some(Last::Denied(reason, what))) => Ending::Denied { reason, what },
        (_, Some(Last::Error(what))) => Ending::Failed { what: format!("{} could not serve the request: {what}", before.name) },
        (Some(_), None) => Ending::Taken,
        (None, None) => {
            let what = "ended the conversation before the image was durable: there is no image; see what it said last";
            Ending::Failed { what: format!("{} (process {}) {what}", before.name, endpoint.pid) }
        }
    };
    let durable = account.durable;
    Outcome {
        ending,
        name: before.name.clone(),
        pid: endpoint.pid,
        mode,
        image,
        bytes: durable.map(|durable| durable.bytes),
        down_us: account.down.map(|down| down.as_micros() as u64),
        elapsed_us: durable.map(|durable| durable.elapsed_us),
        frozen_us: durable.map(|durable| durable.frozen_us),
        closed_us: account.closed.map(|closed| closed.as_micros() as u64),
        generation: None,
    }
}

fn open_process(pid: u32) -> Result<OwnedFd, Failure> {
    let id = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let id = id.ok_or_else(|| Failure::new(Exit::NoService, format!("there is no process {pid}")))?;
    pidfd_open(id, PidfdFlags::empty()).map_err(|errno| {
        Failure::new(Exit::NoService, format!("cannot watch process {pid}: {errno}"))
            .hint("run crac in the process id namespace of the service (in its container)")
    })
}

/// Whether the process has ended, waiting for at most `limit`.
fn has_ended(process: &OwnedFd, limit: Duration) -> Result<bool, Failure> {
    let limit = Timespec::try_from(limit).ok();
    match poll(&mut [PollFd::new(process, PollFlags::IN)], limit.as_ref()) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(errno) => Err(Failure::new(Exit::Failed, format!("cannot wait for the process: {errno}"))),
    }
}

fn wait_for_end(process: &OwnedFd, endpoint: &Endpoint, deadline: Instant) -> Result<(), Failure> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if has_ended(process, left)? {
            return Ok(());
        }
        if left.is_zero() {
            let what = format!("the image is durable, but process {} has not ended in time", endpoint.pid);
            return Err(Failure::new(Exit::TimedOut, what).hint("it runs nothing any more and can be killed"));
        }
    }
}

/// Waits until the process, which executes its image, answers as the next generation.
fn wait_for_return(
    process: &OwnedFd,
    endpoint: &Endpoint,
    before: &Status,
    deadline: Instant,
    outcome: Outcome,
) -> Result<Outcome, Failure> {
    let image = |image: &Path| format!("the image {} is durable, but process {}", image.display(), endpoint.pid);
    loop {
        let now = Instant::now();
        if let Ok(status) = Conversation::status(&endpoint.socket, deadline.min(now + Duration::from_secs(1)))
            && status.generation > before.generation
        {
            return Ok(Outcome { generation: Some(status.generation), ..outcome });
        }
        if has_ended(process, BACK_YET.min(deadline.saturating_duration_since(now)))? {
            let what = format!("{}, which was to become it, has ended", image(&outcome.image));
            return Err(Failure::new(Exit::RestoreFailed, what).hint("its standard error and exit status say why"));
        }
        if now >= deadline {
            let what = format!("{} does not answer as generation {} in time", image(&outcome.image), before.generation + 1);
            return Err(Failure::new(Exit::TimedOut, what).hint("its log says what it waits for"));
        }
    }
}
