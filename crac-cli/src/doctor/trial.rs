//! The proof: a process is saved by an engine and goes on: it executes its image, or CRIU restores it.

use std::{
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crac_core::{CaptureRequest, Captured, Engine, EngineError, Host, ImageId, ImageMetadata, Mode, NoHost, Policy};
use crac_criu::CriuEngine;
use crac_native::NativeEngine;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open, setsid},
};

use crate::{env, exit::Exit, failure::Failure, output};

/// How long the process on trial may take.
const TRIAL_MAX: Duration = Duration::from_secs(20);
/// What it says when it is back.
const BACK: &str = "back";

/// Save this process into an image and become it: the process on trial of `crac doctor`.
#[derive(Debug, clap::Args)]
pub(crate) struct TrialArgs {
    /// Where the image goes; absolute.
    image: PathBuf,

    /// Which CRIU saves it, rather than the native engine; another process restores it then.
    #[arg(long)]
    criu: Option<PathBuf>,
}

/// The process on trial.
pub(crate) fn run(args: TrialArgs) -> Result<Exit, Failure> {
    let metadata = ImageMetadata::new("crac-doctor-trial", ImageId(NoHost.fresh_id()), 0, None);
    let policy = Policy::new();
    let request = |mode| CaptureRequest::new(args.image, mode, metadata, &policy);
    let captured = match args.criu {
        None => NativeEngine::new().capture(request(Mode::Become)),
        Some(criu) => {
            // CRIU saves no process whose session is led from outside its process id namespace, which says nothing about CRIU.
            // It fails for a leader, whose session is its own already.
            let _ = setsid();
            CriuEngine::new().with_program(criu).with_deadline(TRIAL_MAX).capture(request(Mode::Exit))
        }
    };
    match captured {
        Ok(Captured::Restored(life)) if life.generation == 1 => {
            output::line(BACK);
            Ok(Exit::Done)
        }
        Ok(other) => Err(Failure::new(Exit::Bug, format!("the engine came back as {other:?}"))),
        Err(EngineError::Refused(obstacles)) => {
            let all = obstacles.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            Err(Failure::new(Exit::Refused, all))
        }
        Err(error) => Err(Failure::new(Exit::Failed, error.to_string())),
    }
}

/// Starts a process that goes on trial with its image in `dir`, and tells how it went.
pub(crate) fn hold(dir: &Path) -> Result<String, String> {
    let image = image_in(dir)?;
    let begun = Instant::now();
    let said = command().and_then(|mut command| watch(command.arg("doctor-trial").arg(&image)));
    let took = begun.elapsed();
    // Where there is none, none was written.
    let _ = std::fs::remove_file(&image);
    let is_back = said?.starts_with(BACK.as_bytes());
    let took_ms = took.as_secs_f64() * 1e3;
    is_back
        .then(|| format!("a process was saved and restored itself in {took_ms:.1} ms, start included"))
        .ok_or_else(|| "the process ended without a word".to_owned())
}

/// The same with the CRIU at `criu`, in two steps.
#[cfg_attr(not(all(target_os = "linux", target_arch = "x86_64")), expect(dead_code, reason = "there is no engine to try"))]
pub(super) fn hold_criu(dir: &Path, criu: &Path) -> Result<String, String> {
    let image = image_in(dir)?;
    let [mut save, mut restore] = [command()?, command()?];
    let begun = Instant::now();
    let saved = watch(save.arg("doctor-trial").arg(&image).arg("--criu").arg(criu));
    let saved_ms = begun.elapsed().as_secs_f64() * 1e3;
    let begun = Instant::now();
    let said = saved.and_then(|_| watch(restore.arg("restore").arg(&image).env(env::CRIU_PATH, criu)));
    let restored_ms = begun.elapsed().as_secs_f64() * 1e3;
    // Where there is none, none was written.
    let _ = std::fs::remove_dir_all(&image);
    let is_back = said?.starts_with(BACK.as_bytes());
    is_back
        .then(|| format!("a process was saved in {saved_ms:.1} ms and restored in {restored_ms:.1} ms"))
        .ok_or_else(|| "the restored process ended without a word".to_owned())
}

fn image_in(dir: &Path) -> Result<PathBuf, String> {
    let name = format!(".crac-doctor-{}.crac", std::process::id());
    Ok(std::path::absolute(dir).map_err(|error| error.to_string())?.join(name))
}

fn command() -> Result<Command, String> {
    std::env::current_exe().map(Command::new).map_err(|error| format!("this program cannot be found: {error}"))
}

/// What the command says until it ends well.
fn watch(command: &mut Command) -> Result<Vec<u8>, String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("no process can be started: {error}"))?;
    let in_time = ends_in_time(&child);
    if !in_time {
        // It may have ended just now.
        let _ = child.kill();
    }
    let output = child.wait_with_output().map_err(|error| format!("the process cannot be waited for: {error}"))?;
    let mut said = String::new();
    // Bytes that are no text are no answer either.
    let _ = output.stderr.as_slice().read_to_string(&mut said);
    if !in_time {
        return Err(format!("the process was not back after {} s; {}", TRIAL_MAX.as_secs(), said.trim()));
    }
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = said.trim().strip_prefix("crac: ").unwrap_or(said.trim()).to_owned();
    Err(format!("{said} ({})", output.status))
}

/// Whether `child` ends within [`TRIAL_MAX`]. It says little, so that its pipes do not fill up.
fn ends_in_time(child: &std::process::Child) -> bool {
    let Ok(process) = pidfd_open(Pid::from_child(child), PidfdFlags::empty()) else { return false };
    let deadline = Instant::now() + TRIAL_MAX;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Timespec::try_from(left).ok().as_ref()) {
            Ok(ready) => return ready > 0,
            Err(rustix::io::Errno::INTR) if !left.is_zero() => {}
            Err(_) => return false,
        }
    }
}
