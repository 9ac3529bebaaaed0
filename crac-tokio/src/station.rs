//! The place where held threads stand: they arrive, run closures when told to, and go on when released.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::ThreadId,
    time::{Duration, Instant},
};

use crate::{
    board, lock,
    threads::{Tid, own_tid},
};

/// What a thread was doing when it came to a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// It runs tasks; the runtime's number of it.
    Worker(Option<usize>),
    /// It polls a root future.
    Root,
    /// It was an idle blocking thread.
    Blocking,
}

/// A thread that stands.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    pub(crate) thread: ThreadId,
    pub(crate) name: String,
    pub(crate) tid: Tid,
    pub(crate) place: Place,
    swept: u64,
}

/// One hold: who stands, and what they are to do.
#[derive(Default)]
pub(crate) struct Station {
    inner: Mutex<Inner>,
    /// Rung for the holder.
    arrived: Condvar,
    /// Rung for those who stand.
    called: Condvar,
}

#[derive(Default)]
struct Inner {
    standing: Vec<Standing>,
    /// How many workers are to stand; those beyond that pass.
    workers_wanted: usize,
    /// A hold task was dropped without having run: the runtime is shutting down.
    refused: bool,
    released: bool,
    work: Option<Arc<dyn Fn() + Send + Sync>>,
    work_number: u64,
}

impl Inner {
    fn workers(&self) -> usize {
        self.standing.iter().filter(|standing| matches!(standing.place, Place::Worker(_))).count()
    }
}

impl Station {
    /// A station for `workers_wanted` workers and any number of others.
    pub(crate) fn new(workers_wanted: usize) -> Arc<Self> {
        let inner = Inner { workers_wanted, ..Inner::default() };
        Arc::new(Self { inner: Mutex::new(inner), ..Self::default() })
    }

    /// The calling thread comes to a stop and stands until [`release`](Self::release). It passes if it is not wanted.
    pub(crate) fn stand(&self, place: Place) {
        let thread = std::thread::current();
        let (id, tid) = (thread.id(), own_tid());
        let mut inner = lock(&self.inner);
        let surplus = matches!(place, Place::Worker(_)) && inner.workers() >= inner.workers_wanted;
        if inner.released || surplus {
            return;
        }
        // Before it counts as standing, so that whoever sees it stand also finds it on the board.
        board::stands(tid);
        let name = thread.name().unwrap_or("unnamed").to_owned();
        inner.standing.push(Standing { thread: id, name, tid, place, swept: 0 });
        self.arrived.notify_all();
        let mut done = 0;
        while !inner.released {
            match inner.work.clone() {
                Some(work) if done < inner.work_number => {
                    done = inner.work_number;
                    drop(inner);
                    // The closure is the coordinator's, which has caught and reported what it could.
                    let _ = catch_unwind(AssertUnwindSafe(|| work()));
                    drop(work);
                    inner = lock(&self.inner);
                    if let Some(standing) = inner.standing.iter_mut().find(|standing| standing.thread == id) {
                        standing.swept = done;
                    }
                    self.arrived.notify_all();
                }
                _ => inner = self.called.wait(inner).unwrap_or_else(PoisonError::into_inner),
            }
        }
        inner.standing.retain(|standing| standing.thread != id);
        drop(inner);
        board::goes_on(tid);
    }

    /// Notes that a hold task was dropped without having run.
    pub(crate) fn refuse(&self) {
        lock(&self.inner).refused = true;
        self.arrived.notify_all();
    }

    /// Whether the runtime refused a hold task because it is shutting down.
    pub(crate) fn is_refused(&self) -> bool {
        lock(&self.inner).refused
    }

    /// Waits until `done` says so about those who stand, at most until `deadline`; the last answer.
    pub(crate) fn wait_until(&self, deadline: Instant, mut done: impl FnMut(&[Standing]) -> bool) -> bool {
        let mut inner = lock(&self.inner);
        loop {
            if done(&inner.standing) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || inner.refused {
                return false;
            }
            inner = self.arrived.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Who stands now.
    pub(crate) fn standing(&self) -> Vec<Standing> {
        lock(&self.inner).standing.clone()
    }

    /// How many workers stand.
    pub(crate) fn workers(&self) -> usize {
        lock(&self.inner).workers()
    }

    /// Runs `work` once on every thread that stands and waits for them, at most for `limit`; the names of those still at it.
    pub(crate) fn sweep(&self, work: Arc<dyn Fn() + Send + Sync>, limit: Duration) -> Vec<String> {
        let number = {
            let mut inner = lock(&self.inner);
            inner.work = Some(work);
            inner.work_number += 1;
            self.called.notify_all();
            inner.work_number
        };
        self.wait_until(Instant::now() + limit, |standing| standing.iter().all(|standing| standing.swept >= number));
        let inner = lock(&self.inner);
        inner.standing.iter().filter(|standing| standing.swept < number).map(|standing| standing.name.clone()).collect()
    }

    /// Lets everyone go on, those who have yet to arrive too.
    pub(crate) fn release(&self) {
        let work = {
            let mut inner = lock(&self.inner);
            inner.released = true;
            self.called.notify_all();
            inner.work.take()
        };
        drop(work);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn who_stands_sweeps_and_goes_on() {
        let station = Station::new(2);
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let station = station.clone();
                std::thread::spawn(move || station.stand(Place::Worker(None)))
            })
            .collect();
        assert!(station.wait_until(Instant::now() + LONG, |standing| standing.len() == 2));
        station.stand(Place::Worker(None)); // A third is not wanted: it would never come back.
        let swept = Arc::new(AtomicUsize::new(0));
        let counter = swept.clone();
        let late = station.sweep(Arc::new(move || _ = counter.fetch_add(1, Ordering::SeqCst)), LONG);
        assert_eq!((late.len(), swept.load(Ordering::SeqCst)), (0, 2));
        station.release();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn a_late_sweep_is_named() {
        let station = Station::new(1);
        let there = station.clone();
        let thread = std::thread::Builder::new().name("slow".into()).spawn(move || there.stand(Place::Worker(None))).unwrap();
        assert!(station.wait_until(Instant::now() + LONG, |standing| standing.len() == 1));
        let (let_go, stuck) = std::sync::mpsc::channel::<()>();
        let stuck = Mutex::new(stuck);
        let late = station.sweep(Arc::new(move || _ = lock(&stuck).recv()), Duration::from_millis(5));
        assert_eq!(late, ["slow"]);
        drop(let_go);
        station.release();
        thread.join().unwrap();
    }
}
