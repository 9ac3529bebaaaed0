//! The engine as the coordinator sees it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use crac_core::{CaptureRequest, Captured, Engine, EngineError, Mode, Needs};

/// The oldest CRIU that is accepted, major and minor.
pub const VERSION_MIN: (i32, i32) = (4, 2);

/// How long CRIU may take for a checkpoint if nothing else is said: some gigabytes on a slow disk.
const DEADLINE: Duration = Duration::from_secs(5 * 60);

/// Saves this process through CRIU. See [`Engine`] for what a capture promises.
///
/// * `Mode::Exit`: the process stands still until the image is durable, then exits with status 0. Threads that crac does not
///   hold may run for the microseconds between.
/// * `Mode::Continue`: the process stands still while CRIU reads and writes it, and runs on while that is made durable.
/// * `Mode::Rehearse`: what can be told without stopping anything; CRIU itself has no rehearsal.
/// * From outside ([`CaptureRequest::outside`]): the process stands still, for at most the deadline of a checkpoint and that of making
///   it durable, until whoever captures it has said how it ended.
/// * `Mode::Become` is not offered: CRIU cannot restore into a living process.
#[derive(Debug, Clone)]
pub struct CriuEngine {
    pub(crate) program: Option<PathBuf>,
    pub(crate) deadline: Duration,
}

impl CriuEngine {
    /// An engine that takes the `criu` on `PATH`, and gives it five minutes.
    pub fn new() -> Self {
        Self { program: None, deadline: DEADLINE }
    }

    /// Takes the CRIU at `program` rather than the one on `PATH`.
    #[must_use]
    pub fn with_program(mut self, program: impl AsRef<Path>) -> Self {
        self.program = Some(program.as_ref().to_owned());
        self
    }

    /// How long a checkpoint may take. CRIU is killed then, and the process goes on.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }
}

impl Default for CriuEngine {
    fn default() -> Self {
        Self::new()
    }
}

impl Engine for CriuEngine {
    fn needs(&self) -> Needs {
        Needs::new("criu", &[Mode::Exit, Mode::Continue, Mode::Rehearse]).with_outside(true)
    }

    fn capture(&self, request: CaptureRequest<'_>) -> Result<Captured, EngineError> {
        match request.mode {
            Mode::Exit | Mode::Continue | Mode::Rehearse => capture(self, &request),
            mode => Err(EngineError::Unsupported {
                engine: "criu",
                what: format!("mode {mode}"),
                instead: "checkpoint with exit or continue, and restore the image with `crac restore`".into(),
            }),
        }
    }
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn capture(engine: &CriuEngine, request: &CaptureRequest<'_>) -> Result<Captured, EngineError> {
    let outcome = crate::capture::capture(engine, request);
    match &outcome {
        Ok(Captured::Restored(life)) => tracing::debug!(image = %life.image_id, generation = life.generation, "restored"),
        Ok(Captured::Original(_)) => tracing::debug!(mode = %request.mode, "rehearsed"),
        Ok(Captured::Underway(_)) => tracing::debug!(mode = %request.mode, "captured; the image is made durable"),
        Err(error) => tracing::debug!(mode = %request.mode, %error, "not captured"),
    }
    outcome
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn capture(_engine: &CriuEngine, _request: &CaptureRequest<'_>) -> Result<Captured, EngineError> {
    Err(EngineError::Unsupported {
        engine: "criu",
        what: format!("{} on {}", std::env::consts::OS, std::env::consts::ARCH),
        instead: "run the service on x86_64 Linux, or use the sim engine in tests".into(),
    })
}
