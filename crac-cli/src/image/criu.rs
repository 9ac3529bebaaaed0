//! Images of the CRIU engine, as the verbs see them: directories.

use std::{
    ffi::OsString,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::Arc,
    time::Duration,
};

use crac_criu::{
    Criu, CriuError,
    image::{Image, ImageError, Manifest},
    restore::{Living, Mismatch, Restore, Verdict},
};
use rustix::{process::getpgrp, stdio::stdin, termios::tcgetpgrp};
use serde::Serialize;
use signal_hook::{
    consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH},
    iterator::Signals,
    low_level::emulate_default_handler,
};

use super::{Reason, utc};
use crate::{env, exit::Exit, output};

pub(crate) use crac_criu::image::is_image;

/// How long CRIU may take for a restore.
const RESTORE_MAX: Duration = Duration::from_secs(5 * 60);
/// What is passed on to the restored service.
const PASSED_ON: [i32; 8] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH, SIGCONT];

impl From<Mismatch> for Reason {
    fn from(mismatch: Mismatch) -> Self {
        let exit = match mismatch.verdict {
            Verdict::StartCold => Exit::StartCold,
            Verdict::Untrusted => Exit::Untrusted,
            _ => Exit::Bug,
        };
        Self { exit, what: mismatch.what }
    }
}

impl From<ImageError> for Reason {
    fn from(error: ImageError) -> Self {
        let exit = match &error {
            ImageError::Version(_) => Exit::StartCold,
            ImageError::Read { .. } => Exit::Failed,
            _ => Exit::Untrusted,
        };
        Self { exit, what: error.to_string() }
    }
}

impl From<CriuError> for Reason {
    fn from(error: CriuError) -> Self {
        let exit = match &error {
            CriuError::Missing(_) | CriuError::TooOld { .. } | CriuError::Start { .. } | CriuError::Nonsense { .. } => {
                Exit::StartCold
            }
            _ => Exit::RestoreFailed,
        };
        Self { exit, what: error.to_string() }
    }
}

/// The CRIU that the environment names, else the one on the search path.
pub(crate) fn program() -> Result<Criu, CriuError> {
    Criu::find(std::env::var_os(env::CRIU_PATH).filter(|path| !path.is_empty()).as_deref().map(Path::new))
}

pub(super) fn open(path: &Path, program: Option<&Path>) -> Result<Restore, Vec<Reason>> {
    Restore::open(path, program).map_err(|mismatches| mismatches.into_iter().map(Reason::from).collect())
}

/// Brings the service back and stays until it ends, with its signals and its exit status. Returns only what stood in the way.
pub(super) fn become_it(image: Restore, arguments: Vec<OsString>, environment: Vec<(OsString, OsString)>) -> Reason {
    // First, so that none is missed; those that come before the service is back wait.
    let signals = match Signals::new(PASSED_ON) {
        Ok(signals) => signals,
        Err(error) => return Reason { exit: Exit::Failed, what: format!("signals cannot be passed on: {error}") },
    };
    let living = match program().and_then(|criu| image.bring_back(&criu, arguments, environment, RESTORE_MAX)) {
        Ok(living) => Arc::new(living),
        Err(error) => return error.into(),
    };
    pass_on(signals, living.clone());
    match living.wait() {
        Ok(status) => end_like(status),
        Err(error) => Reason { exit: Exit::Failed, what: format!("the restored service cannot be waited for: {error}") },
    }
}

fn pass_on(mut signals: Signals, living: Arc<Living>) {
    std::thread::spawn(move || {
        for signal in signals.forever() {
            // Those of the terminal reach the whole process group, the service as well.
            let is_from_terminal = [SIGINT, SIGQUIT, SIGWINCH].contains(&signal) && tcgetpgrp(stdin()) == Ok(getpgrp());
            if !is_from_terminal {
                living.signal(signal);
            }
        }
    });
}

/// Ends this process as the service has ended.
fn end_like(status: ExitStatus) -> ! {
    if let Some(signal) = status.signal() {
        // Returns for signals that end nothing, which cannot have ended the service.
        let _ = emulate_default_handler(signal);
    }
    std::process::exit(status.code().unwrap_or(Exit::Failed as i32))
}

/// What an image says about itself.
#[derive(Debug, Serialize)]
pub(crate) struct Inspection {
    file: PathBuf,
    image_id: String,
    /// Of the life that was captured; a restored one has one more.
    generation: u64,
    manifest: Manifest,
    disk_bytes: u64,
    data_bytes: u64,
    /// Whether it could be restored here and now.
    fits: bool,
    /// Why not.
    reasons: Vec<Reason>,
}

pub(super) fn inspect(path: &Path) -> Result<Inspection, Reason> {
    let image = Image::read(path)?;
    let mut reasons: Vec<Reason> = open(path, None).err().unwrap_or_default();
    reasons.extend(program().and_then(|criu| criu.version()).err().map(Reason::from));
    Ok(Inspection {
        file: path.to_owned(),
        image_id: image.manifest.service.image_id.to_string(),
        generation: image.manifest.service.generation,
        disk_bytes: image.disk_bytes,
        data_bytes: image.data_bytes,
        manifest: image.manifest,
        fits: reasons.is_empty(),
        reasons,
    })
}

impl Inspection {
    pub(super) fn print(&self) {
        let manifest = &self.manifest;
        let field = |name: &str, value: &dyn std::fmt::Display| output::line(format_args!("{name:<14}{value}"));
        field("image", &self.file.display());
        field("engine", &format_args!("CRIU {}", manifest.criu));
        field("service", &manifest.service.name);
        field("image id", &self.image_id);
        field("generation", &self.generation);
        if let Some(parent) = manifest.service.parent {
            field("parent", &parent);
        }
        field("program", &format_args!("{} (build {})", manifest.executable.path.display(), manifest.executable.build_id));
        field("arguments", &manifest.arguments.join(" "));
        field("captured", &format_args!("{}, on {}, process {}", utc(manifest.captured_s), manifest.host, manifest.pid));
        field("kernel", &manifest.kernel);
        let sizes = [self.disk_bytes, self.data_bytes].map(output::mib);
        field("size", &format_args!("{} on disk, {} of memory", sizes[0], sizes[1]));
        field("threads", &manifest.threads.len());
        field("fits here", &if self.fits { "yes" } else { "no" });
        self.reasons.iter().for_each(|reason| output::line(format_args!("  {}", reason.what)));
    }

    pub(super) fn verified(&self) -> String {
        format!("{}: the manifest is whole; CRIU's own files carry no checksums", self.file.display())
    }
}
