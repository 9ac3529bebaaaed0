//! Holds tokio runtimes for crac: workers, root futures, listeners, sockets, tasks, triggers.
//!
//! ```text
//!   crac-coord                     runtime                               /proc/self/task
//!   hold ── push hold tasks ─────► worker 0..N stand in `poll`
//!        ── wake the roots ──────► block_on threads stand in `poll`
//!        ── push blocking holds ─► idle blocking threads stand            the rest is named: running blocking tasks, others
//!   sweep ── closure ────────────► each standing thread runs it
//!   release ─────────────────────► all go on; one 1 ms sleep makes the time driver look at the clock
//! ```
//!
//! * [`TokioHold`] stops a runtime, whichever flavor, through nothing but its `Handle`; [`attach`] hands one to a context.
//! * [`TokioSpawner`] runs the hooks of resources. [`WithRuntimes`] reports runtimes that nobody attached.
//! * [`net`] has the listener and sockets that come back at another address; [`spawn`] and [`in_flight`] count work in.
//! * [`control`], [`checkpoint_on_signal`] and [`checkpoint_when`] ask for checkpoints; [`sweep_generators`] makes randomness fresh.
//!
//! Lock order: the board (`board.rs`) is locked last and alone; a station's lock is never held while a closure runs.

mod attach;
mod board;
pub mod control;
mod foreign;
mod hold;
pub mod net;
mod root;
mod spawner;
mod station;
mod stuck;
mod sweeps;
mod tasks;
mod threads;
pub mod time;
mod triggers;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use attach::{Attached, attach, attach_hold, attach_in};
pub use foreign::WithRuntimes;
pub use hold::TokioHold;
pub use root::Root;
pub use spawner::TokioSpawner;
pub use sweeps::sweep_generators;
pub use tasks::{InFlight, Tasks, in_flight, spawn};
pub use threads::Threads;
pub use triggers::{When, checkpoint_on_signal, checkpoint_when, signal_named};

/// Locks `mutex`. Nothing in this crate leaves data half changed when it panics, so a poisoned lock is as good as any.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
