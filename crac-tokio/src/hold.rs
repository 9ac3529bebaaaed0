//! Bringing a runtime to a stop from outside, through nothing but its handle.
//!
//! N tasks that wait for each other can deadlock, because a worker takes several tasks from the queue at a time and would stand in
//! the first. So hold tasks are pushed one by one, about 50 µs apart, until N stand; each stands on a worker of its own, and
//! those that come too late return at once.

use std::{
    fmt,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use crac_core::{Held, Hold, Obstacle, ObstacleKind, Sweeping};
use tokio::runtime::Handle;

use crate::{
    board::{self, HeldRuntime},
    root::{Root, Roots},
    station::{Place, Standing, Station},
    stuck,
    threads::{self, Listed, Threads},
};

/// Stops one tokio runtime: its workers, its root futures and its idle blocking threads.
///
/// Works for every flavor. The one worker of a `current_thread` runtime and of a `LocalRuntime` is the thread inside its
/// `block_on`; while nobody is inside, it cannot be brought to a stop and counts as stuck.
///
/// What is not held: threads that run a blocking task or are inside `block_in_place`, `block_on` threads whose future is not
/// wrapped by [`root`](Self::root), and threads that are not the runtime's. They are named as not swept.
#[derive(Clone)]
pub struct TokioHold {
    handle: Handle,
    name: String,
    roots: Roots,
    threads: Option<Threads>,
    timers: bool,
}

/// First distance of two pushes; it grows when nobody comes.
const PACE: Duration = Duration::from_micros(50);
/// Largest distance of two pushes.
const PACE_MAX: Duration = Duration::from_millis(5);
/// Pushes at one distance.
const PUSHES_AT_A_PACE: u32 = 64;
/// How long one blocking hold may take to land before the pool counts as full.
const BLOCKING_MAX: Duration = Duration::from_millis(100);
/// How many threads at most are started to find out that no other is idle.
const NEWBORN_MAX: u32 = 3;

impl TokioHold {
    /// Stops the runtime of `handle`. It is called by the runtime's name in reports.
    pub fn new(handle: Handle) -> Self {
        let name = handle.name().map_or_else(|| format!("tokio runtime {}", handle.id()), str::to_owned);
        Self { handle, name, roots: Roots::default(), threads: None, timers: true }
    }

    /// Sets the name in reports.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Tells which threads the runtime has; see [`Threads::watch`].
    #[must_use]
    pub fn with_threads(mut self, threads: Threads) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Says that the runtime was built without `enable_time`, so that its time driver needs no kick after the release.
    #[must_use]
    pub fn without_timers(mut self) -> Self {
        self.timers = false;
        self
    }

    /// Wraps a future for `block_on`, so that its thread stands still with the runtime and is swept.
    pub fn root<F: Future>(&self, future: F) -> Root<F> {
        self.roots.root(future)
    }

    /// The runtime.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    fn hold_workers(&self, station: &Arc<Station>, deadline: Instant) -> Result<(), Vec<Obstacle>> {
        let wanted = self.handle.metrics().num_workers();
        let (mut pace, mut pushes) = (PACE, 0);
        while station.workers() < wanted && !station.is_refused() {
            if Instant::now() >= deadline {
                return Err(vec![self.stuck_workers(station, wanted)]);
            }
            let task = HoldTask::new(station);
            // Nobody waits for it: the station knows who has come.
            drop(self.handle.spawn(async move { task.stand(Place::Worker(tokio::runtime::worker_index())) }));
            pushes += 1;
            if pushes % PUSHES_AT_A_PACE == 0 {
                pace = (pace * 2).min(PACE_MAX);
            }
            let before = station.workers();
            station.wait_until(deadline.min(Instant::now() + pace), |standing| workers(standing) > before);
        }
        Ok(())
    }

    fn stuck_workers(&self, station: &Station, wanted: usize) -> Obstacle {
        let standing = station.standing();
        let inside: Vec<usize> = standing
            .iter()
            .filter_map(|standing| match standing.place {
                Place::Worker(index) => index,
                Place::Root | Place::Blocking => None,
            })
            .collect();
        let missing: Vec<String> = (0..wanted).filter(|index| !inside.contains(index)).map(|index| index.to_string()).collect();
        let names: Vec<&str> = standing.iter().map(|standing| standing.name.as_str()).collect();
        let suspects = stuck::suspects(missing.len(), &names);
        let (s, them) = if missing.len() == 1 { ("", "it") } else { ("s", "them") };
        let suspects = if suspects.is_empty() { String::new() } else { format!("; likely {them}: {}", suspects.join(", ")) };
        Obstacle::new(
            ObstacleKind::WorkerStuck,
            format!("{}: worker{s} {} of {wanted} did not stop{suspects}", self.name, missing.join(", ")),
        )
        .owned_by(format!("a task of {}", self.name))
    }

    fn hold_roots(&self, station: &Arc<Station>, deadline: Instant) -> Result<(), Vec<Obstacle>> {
        self.roots.ask(station);
        // The thread of a current_thread runtime stands already, as its worker.
        let missing = |standing: &[Standing]| -> Vec<String> {
            let still = |root: &crate::root::Asked| !standing.iter().any(|standing| standing.thread == root.thread);
            self.roots.running().into_iter().filter(still).map(|root| root.name).collect()
        };
        if station.wait_until(deadline, |standing| missing(standing).is_empty()) {
            return Ok(());
        }
        let late = missing(&station.standing()).into_iter().map(|thread| {
            Obstacle::new(ObstacleKind::WorkerStuck, format!("{}: the root future on thread {thread} did not stop", self.name))
                .owned_by(format!("the future given to block_on on thread {thread}"))
        });
        Err(late.collect())
    }

    /// Pushes blocking holds until one lands on a thread that did not exist before: then no idle one is left.
    ///
    /// A thread whose task has just ended is not idle yet, so a few more are pushed while there are threads that may be such.
    fn hold_blocking_threads(&self, station: &Arc<Station>, deadline: Instant) {
        let Some(born) = threads::tids() else { return };
        let mut newborn = 0;
        while !self.all_known_stand(station) {
            let before = station.standing().len();
            let task = HoldTask::new(station);
            // Nobody waits for it: the station knows who has come.
            drop(self.handle.spawn_blocking(move || task.stand(Place::Blocking)));
            let mut last = None;
            let landed = station.wait_until(deadline.min(Instant::now() + BLOCKING_MAX), |standing| {
                last = standing.last().cloned();
                standing.len() > before
            });
            // Not landed: every thread of the pool runs a task and no further one may be started.
            let Some(last) = last.filter(|_| landed) else { return };
            if born.contains(&last.tid) {
                continue;
            }
            newborn += 1;
            if newborn >= NEWBORN_MAX || !stuck::may_become_idle(&last.name, &born) {
                return;
            }
            std::thread::sleep(PACE * 4);
        }
    }

    /// Whether the runtime announces its threads and all of them stand.
    fn all_known_stand(&self, station: &Station) -> bool {
        let Some(threads) = &self.threads else { return false };
        let standing = station.standing();
        threads.alive().iter().all(|thread| standing.iter().any(|standing| standing.thread == *thread))
    }
}

fn workers(standing: &[Standing]) -> usize {
    standing.iter().filter(|standing| matches!(standing.place, Place::Worker(_))).count()
}

impl Hold for TokioHold {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn hold(&self, deadline: Instant) -> Result<Box<dyn Held>, Vec<Obstacle>> {
        let station = Station::new(self.handle.metrics().num_workers());
        let mut held = TokioHeld { hold: self.clone(), station, others: Vec::new(), runtime: board::hold(self.handle.id()) };
        if held.runtime.is_none() {
            // Attached twice: the other one holds it.
            return Ok(Box::new(held));
        }
        // On an error, dropping `held` releases whoever stands.
        self.hold_workers(&held.station, deadline)?;
        if !held.station.is_refused() {
            self.hold_roots(&held.station, deadline)?;
            self.hold_blocking_threads(&held.station, deadline);
        }
        held.others = threads::listed();
        Ok(Box::new(held))
    }
}

impl fmt::Debug for TokioHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokioHold").field("name", &self.name).field("roots", &self.roots).finish_non_exhaustive()
    }
}

/// What is pushed to a runtime: it stands when it runs, and tells if it never does.
struct HoldTask {
    station: Arc<Station>,
    ran: bool,
}

impl HoldTask {
    fn new(station: &Arc<Station>) -> Self {
        Self { station: station.clone(), ran: false }
    }

    fn stand(mut self, place: Place) {
        self.ran = true;
        self.station.stand(place);
    }
}

impl Drop for HoldTask {
    fn drop(&mut self) {
        if !self.ran {
            self.station.refuse();
        }
    }
}

/// A runtime that stands. Dropping it lets it go.
struct TokioHeld {
    hold: TokioHold,
    station: Arc<Station>,
    /// All threads of the process when the last had come.
    others: Vec<Listed>,
    runtime: Option<HeldRuntime>,
}

impl Held for TokioHeld {
    fn threads(&self) -> usize {
        self.station.standing().len()
    }

    fn sweep(&self, work: Arc<dyn Fn() + Send + Sync>) -> Box<dyn Sweeping> {
        // crac's own threads draw nothing that has to be unique; the coordinator sweeps itself.
        let is_own = |name: &str| ["crac-coord", "crac-hook", "crac-prefetch"].iter().any(|own| name.starts_with(own));
        let others = self.others.iter().filter(|other| !is_own(&other.name));
        let others = others.filter(|other| !board::is_standing(other.tid) && board::claim(other.tid));
        let out_of_reach = others.map(Listed::to_string).collect();
        self.station.sweep(work);
        Box::new(TokioSweeping { station: self.station.clone(), out_of_reach })
    }

    fn release(self: Box<Self>) {}
}

/// The threads of a runtime, on their way out of the hold.
struct TokioSweeping {
    station: Arc<Station>,
    /// Threads that were not held.
    out_of_reach: Vec<String>,
}

impl Sweeping for TokioSweeping {
    fn unswept(&self, deadline: Instant) -> Vec<String> {
        let mut unswept = self.station.unswept(deadline);
        unswept.extend(self.out_of_reach.iter().cloned());
        unswept
    }
}

impl Drop for TokioHeld {
    fn drop(&mut self) {
        if self.runtime.take().is_none() {
            return;
        }
        self.hold.roots.dismiss();
        self.station.release();
        if self.hold.timers && !self.station.is_refused() {
            // A driver that is parked computed its timeout before the clock moved; an earlier timer makes it look again.
            drop(self.hold.handle.spawn(async { tokio::time::sleep(Duration::from_millis(1)).await }));
        }
    }
}
