//! What the coordinator carries through one round.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use crate::{
    engine::{CaptureProgress, CaptureReport, CaptureWatch, ImageMetadata, Stage, Underway},
    obstacle::Obstacle,
    registry::Entry,
    report::{Failure, FailureKind, ResourceReport},
    request::{CheckpointError, CheckpointRequest, Completed},
    resource::{LeftOut, Phase},
    seams::{Held, HostFacts, RoundProgress, RoundWatch, Sweeping, Trigger},
};

/// Where an answer goes.
pub(crate) type Answer = oneshot::Sender<Result<Completed, CheckpointError>>;

/// All who watch a round, as one.
#[derive(Clone, Default)]
pub(crate) struct Watches(pub(crate) Vec<Arc<dyn RoundWatch>>);

impl CaptureWatch for Watches {
    fn reached(&self, progress: CaptureProgress) {
        self.0.iter().for_each(|watch| watch.reached(progress));
    }
}

/// One round, from the admitted request to the answer.
pub(crate) struct RoundData {
    pub(crate) request: CheckpointRequest,
    pub(crate) answers: Vec<Answer>,
    /// Whether the engine has been called: then nobody joins any more.
    pub(crate) captured: bool,
    /// Who watches: of the request itself and of those that joined it.
    pub(crate) watches: Watches,
    /// Descriptors of all these requests.
    pub(crate) own_descriptors: Vec<i32>,
    /// Descriptors that resources keep out of the image.
    pub(crate) left_out: LeftOut,
    pub(crate) image: PathBuf,
    pub(crate) metadata: ImageMetadata,
    pub(crate) batches: Vec<Vec<Arc<Entry>>>,
    pub(crate) host_before: HostFacts,
    pub(crate) held: Vec<Box<dyn Held>>,
    /// Triggers that are suspended.
    pub(crate) suspended: Vec<Arc<dyn Trigger>>,
    pub(crate) held_threads: usize,
    pub(crate) stages: Vec<Stage>,
    pub(crate) resources: Vec<ResourceReport>,
    pub(crate) failures: Vec<Failure>,
    pub(crate) obstacles: Vec<Obstacle>,
    /// The held threads of a restored life, until they have swept.
    pub(crate) sweeping: Vec<Box<dyn Sweeping>>,
    pub(crate) capture: Option<CaptureReport>,
    /// A capture that goes on beside the process.
    pub(crate) underway: Option<Box<dyn Underway>>,
    pub(crate) asleep: Option<Duration>,
    /// Time of the round before the capture, once that is known: the clock may jump inside the capture.
    pub(crate) took_before: Duration,
    /// When the stretch of the round began that `took_before` does not cover.
    pub(crate) begun: Instant,
    /// When the way down or up has to be over.
    pub(crate) way_deadline: Instant,
    /// Until when a restored life may be kept on one processor; nothing once it is not.
    pub(crate) confined_until: Option<Instant>,
}

impl RoundData {
    /// Takes a request for the same in.
    pub(crate) fn join(&mut self, request: CheckpointRequest, answer: Answer) {
        self.answers.push(answer);
        self.own_descriptors.extend(request.own_descriptors);
        self.watches.0.extend(request.watch);
    }

    /// Whether a resource is among those of the round that lets work in.
    pub(crate) fn lets_work_in(&self) -> bool {
        self.batches.iter().flatten().any(|entry| entry.options.phase == Phase::Ingress)
    }

    pub(crate) fn advanced(&self, progress: RoundProgress) {
        self.watches.0.iter().for_each(|watch| watch.advanced(&progress));
    }

    /// Records that the stretch called `name` took until now, and begins the next.
    pub(crate) fn stage(&mut self, name: &str, begun: Instant) {
        let took = begun.elapsed();
        tracing::debug!(phase = name, took_us = took.as_micros() as u64, "checkpoint phase");
        match self.stages.last_mut() {
            Some(stage) if stage.name == name => stage.took += took,
            _ => self.stages.push(Stage { name: name.to_owned(), took }),
        }
    }

    pub(crate) fn fail(&mut self, subject: impl Into<String>, during: &str, kind: FailureKind, what: impl Into<String>) {
        let failure = Failure { subject: subject.into(), during: during.to_owned(), kind, what: what.into() };
        tracing::warn!(subject = %failure.subject, during = %failure.during, what = %failure.what, "checkpoint failure");
        self.failures.push(failure);
    }

    /// The report of `entry`, made at the first call.
    pub(crate) fn resource(&mut self, entry: &Entry) -> &mut ResourceReport {
        let at = self
            .resources
            .iter()
            .position(|report| report.name == entry.options.name && report.phase == entry.options.phase && !report.is_full());
        let at = at.unwrap_or_else(|| {
            self.resources.push(ResourceReport {
                name: entry.options.name.clone(),
                phase: entry.options.phase,
                before: None,
                after: None,
            });
            self.resources.len() - 1
        });
        &mut self.resources[at]
    }
}

impl ResourceReport {
    fn is_full(&self) -> bool {
        self.before.is_some() && self.after.is_some()
    }
}
