//! An engine that takes no image: both worlds of a checkpoint in one process, without any operating system.

use std::{
    collections::VecDeque,
    ffi::OsString,
    fmt,
    sync::{Mutex, mpsc},
    time::{Duration, Instant},
};

use crate::{
    engine::{CaptureProgress, CaptureReport, CaptureRequest, Captured, Engine, EngineError, Mode, Needs, Restoration, Underway},
    lineage::InstanceId,
    lock,
    outside::{Heard, Outside, Ready},
    seams::{Host, NoHost},
};

/// What the next capture of a [`SimEngine`] does.
#[derive(Debug)]
#[non_exhaustive]
pub enum SimScript {
    /// Returns in the original.
    Original,
    /// Returns as if in another life.
    Restored {
        /// Time asleep on both clocks.
        asleep: Duration,
        /// Arguments of the restore.
        args: Vec<OsString>,
        /// Environment of the restore.
        env: Vec<(OsString, OsString)>,
    },
    /// Returns in the original and goes on beside it until the sender of `until` says so or is dropped; then it ends like that.
    Underway {
        /// When it ends.
        until: mpsc::Receiver<()>,
        /// How it ends.
        ends: Result<CaptureReport, EngineError>,
    },
    /// Fails.
    Fail(EngineError),
    /// Panics, as an engine with a defect would.
    Panic,
}

/// The engine of tests, of `cargo test` on any system, and of platforms without another one.
///
/// [`Mode::Exit`] and [`Mode::Become`] return as a restored life, [`Mode::Continue`] and [`Mode::Rehearse`] in the original,
/// unless a [`SimScript`] says otherwise. Nothing is written and the process never ends. Where a request leaves the snapshot to
/// somebody outside, it stands still before, as other engines do.
#[derive(Default)]
pub struct SimEngine {
    script: Mutex<VecDeque<SimScript>>,
}

impl SimEngine {
    /// An engine without a script.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds what a further capture does. Rehearsals use up no entry unless the next one is a failure.
    pub fn then(&self, script: SimScript) {
        lock(&self.script).push_back(script);
    }
}

impl Engine for SimEngine {
    fn needs(&self) -> Needs {
        Needs::new("sim", &[Mode::Exit, Mode::Become, Mode::Continue, Mode::Rehearse]).with_descriptors(false).with_outside(true)
    }

    fn capture(&self, request: CaptureRequest<'_>) -> Result<Captured, EngineError> {
        let scripted = {
            let mut script = lock(&self.script);
            match (request.mode, script.front()) {
                (Mode::Rehearse, Some(SimScript::Original | SimScript::Restored { .. })) => None,
                _ => script.pop_front(),
            }
        };
        let scripted = scripted.unwrap_or_else(|| {
            if request.mode.ends_original() {
                SimScript::Restored { asleep: Duration::ZERO, args: Vec::new(), env: Vec::new() }
            } else {
                SimScript::Original
            }
        });
        request.watch.reached(CaptureProgress::Planned { bytes: 0 });
        if let Some(outside) = request.outside.as_deref().filter(|_| request.mode != Mode::Rehearse) {
            stand(outside, &request)?;
        }
        match scripted {
            SimScript::Original => Ok(Captured::Original(CaptureReport::default())),
            SimScript::Underway { until, ends } => Ok(Captured::Underway(Box::new(Beside { until, ends: Some(ends) }))),
            SimScript::Restored { asleep, args, env } => {
                let metadata = request.metadata;
                let mut life = Restoration::new(metadata.image_id, InstanceId(NoHost.fresh_id()), metadata.generation + 1);
                (life.asleep_wall, life.asleep_monotonic) = (asleep, asleep);
                (life.args, life.env) = (args, env);
                Ok(Captured::Restored(life))
            }
            SimScript::Fail(error) => Err(error),
            SimScript::Panic => panic!("the script of the sim engine asks for a panic"),
        }
    }
}

/// Stands still until the outside has said something good.
fn stand(outside: &dyn Outside, request: &CaptureRequest<'_>) -> Result<(), EngineError> {
    let limit = outside.limit();
    let deadline = Instant::now() + limit;
    let heard = match outside.ready(&Ready::new(limit, request.metadata.clone(), String::new())) {
        Ok(()) => outside.hear(deadline),
        Err(_) => Heard::Gone,
    };
    heard.good(outside, limit).map(drop)
}

/// A capture that goes on.
struct Beside {
    until: mpsc::Receiver<()>,
    ends: Option<Result<CaptureReport, EngineError>>,
}

impl Underway for Beside {
    fn wait(&mut self, limit: Duration) -> Option<Result<CaptureReport, EngineError>> {
        match self.until.recv_timeout(limit) {
            Err(mpsc::RecvTimeoutError::Timeout) => None,
            Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => self.ends.take(),
        }
    }
}

impl fmt::Debug for SimEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimEngine").field("script", &lock(&self.script)).finish()
    }
}
