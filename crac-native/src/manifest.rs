//! What an image says about itself to people and tools, as JSON.

use std::{
    ffi::OsString,
    io::Read,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    sync::OnceLock,
    time::{SystemTime, UNIX_EPOCH},
};

use crac_core::{CaptureRequest, EngineError, ImageMetadata};
use serde::{Deserialize, Serialize};

use crate::{
    clock::{Clock, Downtime},
    layout::xxh64::Xxh64,
};

/// The manifest of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Manifest {
    /// Name, identity and generation.
    pub service: ImageMetadata,
    /// The program that was started cold, in the first life.
    pub executable: Executable,
    /// Seconds since 1970 at the capture.
    pub captured_s: u64,
    /// Host name at the capture.
    pub host: String,
    /// Kernel release and version at the capture.
    pub kernel: String,
    /// Process id at the capture.
    pub pid: u32,
    /// Arguments of the first life, program name first.
    pub arguments: Vec<String>,
    /// Version of crac-native that wrote the image.
    pub crac: String,
    /// How the monotonic clocks go on: a [`Clock`](crate::Clock) other than `auto`.
    pub clock: String,
    /// What the time until the restore is to them: a [`Downtime`](crate::Downtime).
    pub downtime: String,
    /// Whether the image holds data alone: programs and libraries are those of their files, and it is not executed itself.
    #[serde(default)]
    pub data_only: bool,
}

/// A program file, as it was when it started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Executable {
    /// Where it lay.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// Checksum (XXH64) of the file, 16 hexadecimal digits: tells one build from another.
    pub build_id: String,
}

impl Executable {
    /// Looks at the program at `path`. Reads the whole file.
    ///
    /// # Errors
    ///
    /// What reading the file says.
    pub fn of(path: &Path) -> std::io::Result<Self> {
        let mut file = std::fs::File::open(path)?;
        let mut sum = Xxh64::new();
        let mut buffer = vec![0; 256 * 1024];
        let (mut bytes, mut filled) = (0, 0);
        loop {
            match file.read(&mut buffer[filled..])? {
                0 => break,
                read => {
                    (bytes, filled) = (bytes + read as u64, filled + read);
                    if filled == buffer.len() {
                        let rest = sum.blocks(&buffer);
                        debug_assert!(rest.is_empty(), "the buffer is whole blocks");
                        filled = 0;
                    }
                }
            }
        }
        let build_id = format!("{:016x}", sum.finish(&buffer[..filled]));
        Ok(Self { path: path.to_owned(), bytes, build_id })
    }

    /// The program of this process's first life. In later lives the kernel knows only the image, so it is looked at in the
    /// first one, and remembered.
    fn own() -> std::io::Result<&'static Self> {
        static OWN: OnceLock<Executable> = OnceLock::new();
        if let Some(own) = OWN.get() {
            return Ok(own);
        }
        // The link leads to the running file even when its name now belongs to another build.
        let mut own = Self::of(Path::new("/proc/self/exe"))?;
        own.path = std::fs::read_link("/proc/self/exe")?;
        Ok(OWN.get_or_init(|| own))
    }
}

/// The manifest's bytes and the program's path, made before anything is stopped.
pub(crate) fn prepare(
    request: &CaptureRequest<'_>,
    clock: Clock,
    downtime: Downtime,
    data_only: bool,
) -> Result<(Vec<u8>, &'static [u8]), EngineError> {
    let failed = |what: &'static str| {
        move |error: std::io::Error| EngineError::Failed {
            what: format!("cannot capture: {what}: {error}"),
            hint: "hint: mount /proc".into(),
        }
    };
    let line = |path: &str| std::fs::read_to_string(path).map(|text| text.trim_end().to_owned());
    let arguments = std::fs::read("/proc/self/cmdline").map_err(failed("reading /proc/self/cmdline"))?;
    let executable = Executable::own().map_err(failed("reading the program file"))?;
    let manifest = Manifest {
        service: request.metadata.clone(),
        executable: executable.clone(),
        captured_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        host: line("/proc/sys/kernel/hostname").map_err(failed("reading the host name"))?,
        kernel: line("/proc/version").map_err(failed("reading the kernel version"))?,
        pid: std::process::id(),
        arguments: arguments
            .split(|byte| *byte == 0)
            .filter(|argument| !argument.is_empty())
            .map(|argument| OsString::from_vec(argument.to_vec()).to_string_lossy().into_owned())
            .collect(),
        crac: env!("CARGO_PKG_VERSION").to_owned(),
        clock: clock.to_string(),
        downtime: downtime.to_string(),
        data_only,
    };
    let manifest = serde_json::to_vec(&manifest).map_err(|error| EngineError::Failed {
        what: format!("cannot describe the image: {error}"),
        hint: "hint: this is a bug in crac-native".into(),
    })?;
    Ok((manifest, executable.path.as_os_str().as_bytes()))
}
