//! The coordination contract of crac: what takes part in a checkpoint, in which order, within which time, and what happens when
//! something goes wrong.
//!
//! ```text
//! request ─► coordinator ─► ingress stops ─► drain ─► resources ─► hold ─► audit ─► capture ─► image
//!                                                                                      │
//!    open ◄── resources ◄── release ◄── sweep (each held thread) ◄── clocks ◄── thaw ◄─┘  restore - or the same process goes on
//! ```
//!
//! Nothing in here names a system call, an async runtime or an engine: those come in through the traits of `seams.rs` and
//! `engine.rs`. A service uses the `crac` crate, which composes all of them; a library that wants to take part in checkpoints
//! depends on this crate alone.
//!
//! * A [`Resource`] is told before the checkpoint and after it. [`Context::register`] takes it in.
//! * A [`Gate`] counts what is in flight and refuses what is new.
//! * [`Context::checkpoint`] asks; the answer comes in both lives ([`Completed`]).
//! * [`RestoreContext`] says what changed.
//!
//! Lock order: none of the locks in this crate is held while another is taken, and none across an `.await` or a call into a seam.

#![doc(html_no_source)]

mod block_on;
mod chart;
mod context;
pub mod control;
mod coordinator;
mod deadlines;
mod drain;
mod engine;
mod gate;
mod hook;
mod lineage;
mod listeners;
mod obstacle;
mod outside;
mod policy;
mod registry;
mod report;
mod request;
mod resource;
mod restore;
mod round;
mod seams;
mod sim;
mod state;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use async_trait::async_trait;
pub use chart::chart;
pub use context::{AlreadyInstalled, Ambient, Attachment, Context, ContextBuilder, Status};
pub use deadlines::Deadlines;
pub use engine::{
    CaptureProgress, CaptureReport, CaptureRequest, CaptureWatch, Captured, Engine, EngineError, ImageMetadata, Mode, Needs,
    Restoration, Stage, Underway, Unwatched,
};
pub use gate::{Gate, Pass, Shut};
pub use lineage::{ImageId, InstanceId, NotAnIdentity};
pub use listeners::Listeners;
pub use obstacle::{Obstacle, ObstacleKind, UnknownObstacleKind};
pub use outside::{Heard, Outside, Ready, Word};
pub use policy::{Action, Policy, PolicyError, Rule};
pub use registry::ResourceInfo;
pub use report::{Failure, FailureKind, Report, ResourceReport, RoundEnding};
pub use request::{CheckpointError, CheckpointRequest, Completed, Denial, Ticket};
pub use resource::{BoxError, CheckpointContext, Phase, Registration, Resource, ResourceOptions};
pub use restore::{AbortReason, EnvChange, Outcome, RestoreContext};
pub use seams::{
    Audit, BoxFuture, Held, Hold, Host, HostFacts, NoHost, RoundProgress, RoundWatch, Spawned, Spawner, Sweeping, ThreadSpawner,
    Trigger,
};
pub use sim::{SimEngine, SimScript};
pub use state::RestoreFailure;

/// Exit status of a restored life whose `after_restore` failed under [`RestoreFailure::Exit`]: start cold instead.
pub const EXIT_RESTORE_FAILED: i32 = 23;

/// Locks `mutex`. Nothing in this crate leaves data half changed when it panics, so a poisoned lock is as good as any.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
