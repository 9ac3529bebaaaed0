//! The round as a pure table: which state, on which event, goes where and does what.
//!
//! ```text
//!  Open ─► Down(batch 0..n) ─► Holding ─► Auditing ─► Capturing ─► Sweeping ─► Releasing ─► Up(batch n..0) ─► Open
//!            │ deadline          │ stuck     (failures so far: the capture is only rehearsed, to find every obstacle)
//!            └────────► Up ◄─────┘                          a restored life that failed to come back: Shut | Gone
//! ```
//!
//! No clock, no I/O: every pair can be tested, and the chart in the documentation is made from this very function. The match has
//! no wildcard over events, so that a new event makes the compiler list every state that must answer it.

use crate::{engine::Mode, restore::AbortReason};

/// What is fixed for one round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Round {
    /// What becomes of the process.
    pub(crate) mode: Mode,
    /// How many batches of resources are told.
    pub(crate) batches: usize,
}

/// How a round turned out, known from the capture on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Ending {
    Aborted(AbortReason),
    Continued,
    Restored,
}

/// Where the coordinator stands. Each state carries what exists only there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum State {
    /// The door is open, no round runs.
    Open,
    /// Batch `at` is being told to let go. `fault` is the first thing that went wrong.
    Down { round: Round, at: usize, fault: Option<AbortReason> },
    /// The runtimes are being brought to a stop.
    Holding { round: Round, fault: Option<AbortReason> },
    /// All is still; the process is being looked through.
    Auditing { round: Round, fault: Option<AbortReason> },
    /// The engine has been called.
    Capturing { round: Round, fault: Option<AbortReason> },
    /// A restored life: every held thread makes its private randomness fresh.
    Sweeping { round: Round },
    /// The runtimes are let go.
    Releasing { round: Round, ending: Ending },
    /// Batch `at` is being told to come back. `failed`: a hook on the way up failed.
    Up { round: Round, ending: Ending, at: usize, failed: bool },
    /// A restored life that could not come back whole; the door stays shut.
    Shut,
    /// The process is about to exit.
    Gone,
}

/// What may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    /// An admitted request.
    Requested { round: Round },
    /// Every hook of the batch has ended or was given up.
    BatchDone { failed: bool },
    /// The way down has taken too long; the batch in hand was given up.
    DownDeadline,
    /// The way up has taken too long; what has not been told is skipped.
    UpDeadline,
    /// All runtimes stand still.
    Held,
    /// A runtime did not come to a stop; all run again.
    NotHeld,
    /// The audit is done.
    Audited { clear: bool },
    /// The engine is done and this is the original process.
    CaptureDone,
    /// The engine refused or failed.
    CaptureFailed { reason: AbortReason },
    /// The engine has returned in another life.
    CameBack,
    /// The sweep is done.
    Swept,
    /// The runtimes run.
    Released,
}

/// What the coordinator has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Effect {
    /// Shut every gate.
    ShutDoor,
    /// Tell batch `.0` to let go.
    Before(usize),
    /// Suspend the triggers and bring all runtimes to a stop.
    Hold,
    /// Look through the process.
    Audit,
    /// Call the engine; `rehearse`: only for its obstacles.
    Capture { rehearse: bool },
    /// Run the sweep on every held thread.
    Sweep,
    /// Let the runtimes go and resume the triggers.
    Release,
    /// Tell batch `at` how it ended.
    After { at: usize, ending: Ending },
    /// Open every gate.
    OpenDoor,
    /// Act on a restored life that did not come back whole.
    RestoreFailed,
    /// Answer whoever asked.
    Answer { ending: Ending },
}

/// The event cannot happen in this state: a defect of the coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Illegal;

/// What becomes of a restored life whose `after_restore` failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum RestoreFailure {
    /// The process exits with [`EXIT_RESTORE_FAILED`](crate::EXIT_RESTORE_FAILED), so that a supervisor starts cold.
    #[default]
    Exit,
    /// The process stays, the door stays shut.
    StayShut,
}

/// The next state and what to do, in order.
pub(crate) fn step(state: State, event: Event, on_failure: RestoreFailure) -> Result<(State, Vec<Effect>), Illegal> {
    use Effect as Do;
    use Event::*;
    match state {
        State::Open => match event {
            Requested { round } => {
                let (next, first) = down(round, 0, None);
                Ok((next, vec![Do::ShutDoor, first]))
            }
            BatchDone { .. }
            | DownDeadline
            | UpDeadline
            | Held
            | NotHeld
            | Audited { .. }
            | CaptureDone
            | CaptureFailed { .. }
            | CameBack
            | Swept
            | Released => Err(Illegal),
        },
        State::Down { round, at, fault } => match event {
            BatchDone { failed } => {
                let fault = fault.or(failed.then_some(AbortReason::Resource));
                let (next, effect) = down(round, at + 1, fault);
                Ok((next, vec![effect]))
            }
            DownDeadline => Ok(up(round, Ending::Aborted(fault.unwrap_or(AbortReason::Deadline)), at + 1, false, on_failure)),
            Requested { .. }
            | UpDeadline
            | Held
            | NotHeld
            | Audited { .. }
            | CaptureDone
            | CaptureFailed { .. }
            | CameBack
            | Swept
            | Released => Err(Illegal),
        },
        State::Holding { round, fault } => match event {
            Held => Ok((State::Auditing { round, fault }, vec![Do::Audit])),
            NotHeld => {
                let ending = Ending::Aborted(fault.unwrap_or(AbortReason::Hold));
                Ok((State::Releasing { round, ending }, vec![Do::Release]))
            }
            Requested { .. }
            | BatchDone { .. }
            | DownDeadline
            | UpDeadline
            | Audited { .. }
            | CaptureDone
            | CaptureFailed { .. }
            | CameBack
            | Swept
            | Released => Err(Illegal),
        },
        State::Auditing { round, fault } => match event {
            Audited { clear } => {
                let fault = fault.or((!clear).then_some(AbortReason::Obstacles));
                let rehearse = fault.is_some() || round.mode == Mode::Rehearse;
                Ok((State::Capturing { round, fault }, vec![Do::Capture { rehearse }]))
            }
            Requested { .. }
            | BatchDone { .. }
            | DownDeadline
            | UpDeadline
            | Held
            | NotHeld
            | CaptureDone
            | CaptureFailed { .. }
            | CameBack
            | Swept
            | Released => Err(Illegal),
        },
        State::Capturing { round, fault } => match event {
            CaptureDone => {
                let ending = match (fault, round.mode) {
                    (Some(reason), _) => Ending::Aborted(reason),
                    (None, Mode::Rehearse) => Ending::Aborted(AbortReason::Rehearsed),
                    (None, Mode::Exit | Mode::Become | Mode::Continue) => Ending::Continued,
                };
                Ok((State::Releasing { round, ending }, vec![Do::Release]))
            }
            CaptureFailed { reason } => {
                let ending = Ending::Aborted(fault.unwrap_or(reason));
                Ok((State::Releasing { round, ending }, vec![Do::Release]))
            }
            CameBack if fault.is_none() && round.mode != Mode::Rehearse => Ok((State::Sweeping { round }, vec![Do::Sweep])),
            Requested { .. }
            | BatchDone { .. }
            | DownDeadline
            | UpDeadline
            | Held
            | NotHeld
            | Audited { .. }
            | CameBack
            | Swept
            | Released => Err(Illegal),
        },
        State::Sweeping { round } => match event {
            Swept => Ok((State::Releasing { round, ending: Ending::Restored }, vec![Do::Release])),
            Requested { .. }
            | BatchDone { .. }
            | DownDeadline
            | UpDeadline
            | Held
            | NotHeld
            | Audited { .. }
            | CaptureDone
            | CaptureFailed { .. }
            | CameBack
            | Released => Err(Illegal),
        },
        State::Releasing { round, ending } => match event {
            Released => Ok(up(round, ending, round.batches, false, on_failure)),
            Requested { .. }
            | BatchDone { .. }
            | DownDeadline
            | UpDeadline
            | Held
            | NotHeld
            | Audited { .. }
            | CaptureDone
            | CaptureFailed { .. }
            | CameBack
            | Swept => Err(Illegal),
        },
        State::Up { round, ending, at, failed } => match event {
            BatchDone { failed: now } => Ok(up(round, ending, at, failed | now, on_failure)),
            UpDeadline => Ok(up(round, ending, 0, true, on_failure)),
            Requested { .. }
            | DownDeadline
            | Held
            | NotHeld
            | Audited { .. }
            | CaptureDone
            | CaptureFailed { .. }
            | CameBack
            | Swept
            | Released => Err(Illegal),
        },
        State::Shut | State::Gone => match event {
            Requested { .. }
            | BatchDone { .. }
            | DownDeadline
            | UpDeadline
            | Held
            | NotHeld
            | Audited { .. }
            | CaptureDone
            | CaptureFailed { .. }
            | CameBack
            | Swept
            | Released => Err(Illegal),
        },
    }
}

/// The way down from batch `at` on.
fn down(round: Round, at: usize, fault: Option<AbortReason>) -> (State, Effect) {
    if at < round.batches {
        (State::Down { round, at, fault }, Effect::Before(at))
    } else {
        (State::Holding { round, fault }, Effect::Hold)
    }
}

/// The way up: batches below `told` have still to be told, the highest first.
fn up(round: Round, ending: Ending, told: usize, failed: bool, on_failure: RestoreFailure) -> (State, Vec<Effect>) {
    if let Some(at) = told.checked_sub(1) {
        return (State::Up { round, ending, at, failed }, vec![Effect::After { at, ending }]);
    }
    match (ending, failed, on_failure) {
        (Ending::Restored, true, RestoreFailure::Exit) => (State::Gone, vec![Effect::Answer { ending }, Effect::RestoreFailed]),
        (Ending::Restored, true, RestoreFailure::StayShut) => {
            (State::Shut, vec![Effect::Answer { ending }, Effect::RestoreFailed])
        }
        (Ending::Restored, false, _) | (Ending::Aborted(_) | Ending::Continued, _, _) => {
            (State::Open, vec![Effect::OpenDoor, Effect::Answer { ending }])
        }
    }
}

#[cfg(test)]
mod tests;
