//! Asking for a checkpoint: the request, its admission, its answer.

use std::{
    fmt,
    future::Future,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::{block_on::block_on_for, engine::Mode, outside::Outside, report::Report, restore::RestoreContext, seams::RoundWatch};

/// What is asked for.
#[derive(Clone)]
#[must_use = "hand it to `Context::checkpoint`"]
pub struct CheckpointRequest {
    pub(crate) mode: Mode,
    pub(crate) image: Option<PathBuf>,
    pub(crate) data_only: bool,
    pub(crate) own_descriptors: Vec<i32>,
    pub(crate) watch: Option<Arc<dyn RoundWatch>>,
    pub(crate) outside: Option<Arc<dyn Outside>>,
}

impl CheckpointRequest {
    /// A checkpoint in `mode` into the context's image path.
    pub fn new(mode: Mode) -> Self {
        Self { mode, image: None, data_only: false, own_descriptors: Vec::new(), watch: None, outside: None }
    }

    /// Sets the image's path, relative to the working directory of the service.
    pub fn image(mut self, image: impl Into<PathBuf>) -> Self {
        self.image = Some(image.into());
        self
    }

    /// Asks for an image that holds data alone: programs and libraries are mapped from their files in a restored life, and a program
    /// that may be executed does the restore. Engines whose images are no programs do so in any case.
    pub fn data_only(mut self, data_only: bool) -> Self {
        self.data_only = data_only;
        self
    }

    /// Names a descriptor of the request itself, such as the control connection it came in by: not an obstacle, and not part of
    /// the restored life.
    pub fn own_descriptor(mut self, descriptor: i32) -> Self {
        self.own_descriptors.push(descriptor);
        self
    }

    /// Sets who is told about the progress.
    pub fn watch(mut self, watch: Arc<dyn RoundWatch>) -> Self {
        self.watch = Some(watch);
        self
    }

    /// Has `outside` take the snapshot: everything is prepared as usual, then the process stands still until the outside says how
    /// it ended. Such a request joins no other, and none joins it.
    pub fn outside(mut self, outside: Arc<dyn Outside>) -> Self {
        self.outside = Some(outside);
        self
    }
}

impl CheckpointRequest {
    fn asks_for_the_same(&self, other: &Self) -> bool {
        (self.mode, &self.image, self.data_only) == (other.mode, &other.image, other.data_only)
    }
}

impl fmt::Debug for CheckpointRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CheckpointRequest").field("mode", &self.mode).field("image", &self.image).finish_non_exhaustive()
    }
}

/// How a round ended for the one who asked. Both lives get an answer.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Completed {
    /// The image was taken and this process goes on.
    Continued(Arc<Report>),
    /// Nothing stands in the way; nothing was taken.
    Rehearsed(Arc<Report>),
    /// This is another life.
    Restored(RestoreContext, Arc<Report>),
}

impl Completed {
    /// The report of the round.
    pub fn report(&self) -> &Arc<Report> {
        match self {
            Completed::Continued(report) | Completed::Rehearsed(report) | Completed::Restored(_, report) => report,
        }
    }
}

/// Why there is no image. The service goes on serving.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The request was not admitted.
    #[error("the checkpoint was not started: {0}")]
    Denied(#[from] Denial),
    /// The round was started and aborted; the report says everything that went wrong.
    #[error("{0}")]
    Aborted(Arc<Report>),
    /// The coordinator is gone: the context was dropped.
    #[error("the coordinator has ended; keep the context alive as long as the service runs")]
    Gone,
}

/// Why a request was not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Denial {
    /// A round that asks for something else is under way.
    #[error("another checkpoint is under way; try again when it has ended")]
    Busy,
    /// It was asked for from inside a hook of a round.
    #[error("a hook must not ask for a checkpoint; spawn a task that does")]
    Recursive,
    /// The engine does not offer the mode.
    #[error("this engine does not offer that mode; `crac doctor` lists what it does")]
    Unsupported,
    /// The engine takes images itself, and leaves that to nobody outside.
    #[error(
        "this engine takes its images from inside; ask for one without `--outside`, or start the service with CRAC_ENGINE=criu"
    )]
    Inside,
    /// A restored life that did not come back whole keeps its door shut.
    #[error("this life did not come back whole and stays shut; restart the service")]
    Degraded,
}

/// What is done with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// A round begins.
    Accept,
    /// The round under way asks for the same; both get its answer.
    Join,
    /// No.
    Deny(Denial),
}

/// What an admission is decided upon.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing<'a> {
    /// The round under way: what was asked for.
    pub(crate) running: Option<&'a CheckpointRequest>,
    /// Whether that round has not captured yet, and captures by itself: who joins later would be told of an image that is older
    /// than the request, and the outside takes one image for one who asks.
    pub(crate) joinable: bool,
    /// Whether the life is degraded.
    pub(crate) degraded: bool,
    /// What the engine offers.
    pub(crate) modes: &'a [Mode],
    /// Whether the engine leaves the snapshot to somebody outside.
    pub(crate) outside: bool,
}

/// Decides about `request`, which may come from inside a hook (`recursive`).
pub(crate) fn admit(request: &CheckpointRequest, recursive: bool, standing: Standing<'_>) -> Admission {
    if recursive {
        return Admission::Deny(Denial::Recursive);
    }
    if standing.degraded {
        return Admission::Deny(Denial::Degraded);
    }
    if !standing.modes.contains(&request.mode) {
        return Admission::Deny(Denial::Unsupported);
    }
    if request.outside.is_some() && !standing.outside {
        return Admission::Deny(Denial::Inside);
    }
    let joinable = standing.joinable && request.outside.is_none();
    match standing.running {
        None => Admission::Accept,
        Some(running) if joinable && running.asks_for_the_same(request) => Admission::Join,
        Some(_) => Admission::Deny(Denial::Busy),
    }
}

/// The answer to come: a future, or to be waited for on a plain thread.
///
/// Dropping it takes nothing back: the round goes on.
#[derive(Debug)]
#[must_use = "the answer says whether there is an image"]
pub struct Ticket {
    pub(crate) answer: oneshot::Receiver<Result<Completed, CheckpointError>>,
}

impl Ticket {
    /// Blocks this thread until the answer is there or `limit` has passed; then the ticket comes back.
    ///
    /// # Errors
    ///
    /// The ticket itself, if the answer is not there yet.
    pub fn wait(mut self, limit: Duration) -> Result<Result<Completed, CheckpointError>, Ticket> {
        match block_on_for(&mut self, Some(limit)) {
            Some(answer) => Ok(answer),
            None => Err(self),
        }
    }
}

impl Future for Ticket {
    type Output = Result<Completed, CheckpointError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer).poll(cx).map(|answer| answer.unwrap_or(Err(CheckpointError::Gone)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODES: &[Mode] = &[Mode::Exit, Mode::Rehearse];

    fn standing(running: Option<&CheckpointRequest>) -> Standing<'_> {
        Standing { running, joinable: true, degraded: false, modes: MODES, outside: false }
    }

    #[test]
    fn the_first_request_is_accepted() {
        assert_eq!(admit(&CheckpointRequest::new(Mode::Exit), false, standing(None)), Admission::Accept);
    }

    #[test]
    fn the_same_request_joins_and_another_is_denied() {
        let running = CheckpointRequest::new(Mode::Exit).image("/a");
        let running = Some(&running);
        assert_eq!(admit(&CheckpointRequest::new(Mode::Exit).image("/a"), false, standing(running)), Admission::Join);
        for other in [
            CheckpointRequest::new(Mode::Exit).image("/b"),
            CheckpointRequest::new(Mode::Rehearse).image("/a"),
            CheckpointRequest::new(Mode::Exit).image("/a").data_only(true),
        ] {
            assert_eq!(admit(&other, false, standing(running)), Admission::Deny(Denial::Busy));
        }
    }

    #[test]
    fn nobody_joins_a_round_that_has_captured() {
        let running = CheckpointRequest::new(Mode::Exit).image("/a");
        let standing = Standing { joinable: false, ..standing(Some(&running)) };
        assert_eq!(admit(&CheckpointRequest::new(Mode::Exit).image("/a"), false, standing), Admission::Deny(Denial::Busy));
    }

    struct Nobody;

    impl Outside for Nobody {
        fn limit(&self) -> Duration {
            Duration::ZERO
        }

        fn ready(&self, _: &crate::Ready) -> std::io::Result<()> {
            Ok(())
        }

        fn hear(&self, _: std::time::Instant) -> crate::Heard {
            crate::Heard::Gone
        }

        fn withdraw(&self) {}
    }

    #[test]
    fn an_image_from_outside_is_for_one_who_asks_and_not_of_every_engine() {
        let request = CheckpointRequest::new(Mode::Exit).image("/a").outside(Arc::new(Nobody));
        assert_eq!(admit(&request, false, standing(None)), Admission::Deny(Denial::Inside));
        let running = CheckpointRequest::new(Mode::Exit).image("/a");
        let offers = |running| Standing { outside: true, ..standing(running) };
        assert_eq!(admit(&request, false, offers(None)), Admission::Accept);
        assert_eq!(admit(&request, false, offers(Some(&running))), Admission::Deny(Denial::Busy));
    }

    #[test]
    fn a_hook_cannot_ask() {
        assert_eq!(admit(&CheckpointRequest::new(Mode::Exit), true, standing(None)), Admission::Deny(Denial::Recursive));
    }

    #[test]
    fn what_the_engine_does_not_offer_is_denied() {
        assert_eq!(admit(&CheckpointRequest::new(Mode::Become), false, standing(None)), Admission::Deny(Denial::Unsupported));
    }

    #[test]
    fn a_degraded_life_is_not_saved() {
        let standing = Standing { degraded: true, ..standing(None) };
        assert_eq!(admit(&CheckpointRequest::new(Mode::Exit), false, standing), Admission::Deny(Denial::Degraded));
    }
}
