//! What a round did and how long it took.

use std::{fmt, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    engine::{CaptureReport, Mode, Stage},
    lineage::{ImageId, InstanceId},
    obstacle::Obstacle,
    resource::Phase,
};

/// The account of one round: as a value, as text (`Display`) and as JSON (`serde`).
///
/// All durations serialise as seconds and nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Report {
    /// The service's name.
    pub name: String,
    /// The engine's name.
    pub engine: String,
    /// What was asked for.
    pub mode: Mode,
    /// How it ended.
    pub ending: RoundEnding,
    /// The generation of the life that gives this report.
    pub generation: u64,
    /// The instance that gives this report.
    pub instance_id: InstanceId,
    /// The image of this round.
    pub image_id: ImageId,
    /// Where the image was to go.
    pub image: PathBuf,
    /// The stretches of the round, in order.
    pub phases: Vec<Stage>,
    /// Each resource that was told.
    pub resources: Vec<ResourceReport>,
    /// How many threads stood still.
    pub held_threads: usize,
    /// What the engine said.
    pub capture: Option<CaptureReport>,
    /// Everything that went wrong.
    pub failures: Vec<Failure>,
    /// Everything that could not be saved.
    pub obstacles: Vec<Obstacle>,
    /// Threads on which the sweep did not run: their private generators may repeat what other lives draw.
    pub unswept: Vec<String>,
    /// Time asleep by the wall clock, in a restored life.
    pub asleep: Option<Duration>,
    /// Time from the request to the open door; the time asleep not counted.
    pub took: Duration,
}

/// How a round ended, in a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RoundEnding {
    /// Nothing was taken: see failures and obstacles.
    Aborted,
    /// It was a rehearsal, and nothing stands in the way.
    Rehearsed,
    /// The image was taken and the process went on.
    Continued,
    /// This is the restored life.
    Restored,
}

/// What one resource did in a round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ResourceReport {
    /// Its name.
    pub name: String,
    /// Its phase.
    pub phase: Phase,
    /// Duration of `before_checkpoint`.
    pub before: Option<Duration>,
    /// Duration of `after_restore`.
    pub after: Option<Duration>,
}

/// Something that went wrong in a round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Failure {
    /// Who: a resource, a runtime, a trigger, the engine.
    pub subject: String,
    /// At what: `before_checkpoint`, `after_restore`, `hold`, `audit`, `capture`, `resume`.
    pub during: String,
    /// What kind of failure.
    pub kind: FailureKind,
    /// What happened and what to do.
    pub what: String,
}

/// The kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FailureKind {
    /// It returned an error.
    Error,
    /// It did not end in time and was dropped.
    Late,
    /// It panicked.
    Panicked,
    /// It did not end in time, could not be dropped, and is skipped from now on.
    Wedged,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}: {}", self.subject, self.during, self.what)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let image = self.image.display();
        match self.ending {
            RoundEnding::Aborted => write!(f, "no checkpoint was taken; {} goes on", self.name)?,
            RoundEnding::Rehearsed => write!(f, "nothing stands in the way of a checkpoint of {}", self.name)?,
            RoundEnding::Continued => write!(f, "checkpoint of {} taken into {image}; it goes on", self.name)?,
            RoundEnding::Restored => write!(f, "{} restored from {image} as generation {}", self.name, self.generation)?,
        }
        write!(f, " ({:.1} ms)", ms(self.took))?;
        for failure in &self.failures {
            write!(f, "\n  failed: {failure}")?;
        }
        for obstacle in &self.obstacles {
            write!(f, "\n  obstacle: {obstacle}")?;
        }
        for phase in &self.phases {
            write!(f, "\n  {:<18} {:>9.2} ms", phase.name, ms(phase.took))?;
        }
        for stage in self.capture.iter().flat_map(|capture| &capture.stages) {
            write!(f, "\n    {:<16} {:>9.2} ms", stage.name, ms(stage.took))?;
        }
        for resource in &self.resources {
            let part = |time: Option<Duration>| time.map_or_else(|| "-".to_owned(), |time| format!("{:.2}", ms(time)));
            write!(
                f,
                "\n  {} ({}): {} ms down, {} ms up",
                resource.name,
                resource.phase,
                part(resource.before),
                part(resource.after)
            )?;
        }
        if let Some(capture) = self.capture.as_ref().filter(|capture| capture.bytes > 0) {
            write!(f, "\n  image: {:.1} MiB", capture.bytes as f64 / f64::from(1 << 20))?;
        }
        for thread in &self.unswept {
            write!(f, "\n  not swept: thread {thread}; its generators may repeat")?;
        }
        Ok(())
    }
}
