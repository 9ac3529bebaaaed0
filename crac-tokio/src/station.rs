//! The place where held threads stand: they arrive, run closures when told to, and go on when released.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, Thread, ThreadId},
    time::Instant,
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
    handle: Thread,
    pub(crate) name: String,
    pub(crate) tid: Tid,
    pub(crate) place: Place,
}

/// One hold: who stands, and what they are to do.
///
/// Those who stand are parked: all of them go on at once in a restored life, and would wait for each other at a lock.
#[derive(Default)]
pub(crate) struct Station {
    inner: Mutex<Inner>,
    /// Rung for the holder.
    arrived: Condvar,
    work: OnceLock<Arc<dyn Fn() + Send + Sync>>,
    released: AtomicBool,
}

#[derive(Default)]
struct Inner {
    standing: Vec<Standing>,
    /// How many workers are to stand; those beyond that pass.
    workers_wanted: usize,
    /// A hold task was dropped without having run: the runtime is shutting down.
    refused: bool,
    /// Those who were told to do the work and have not ended it.
    at_work: Vec<(ThreadId, String)>,
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
        let thread = thread::current();
        let (id, tid) = (thread.id(), own_tid());
        let mut inner = lock(&self.inner);
        let surplus = matches!(place, Place::Worker(_)) && inner.workers() >= inner.workers_wanted;
        if self.released.load(Ordering::Acquire) || surplus {
            return;
        }
        // Before it counts as standing, so that whoever sees it stand also finds it on the board.
        board::stands(tid);
        let name = thread.name().unwrap_or("unnamed").to_owned();
        inner.standing.push(Standing { thread: id, handle: thread.clone(), name, tid, place });
        drop(inner);
        self.arrived.notify_all();
        let mut swept = false;
        loop {
            // In this order: whoever is released sees the work, too.
            let released = self.released.load(Ordering::Acquire);
            match self.work.get() {
                Some(work) if !swept => {
                    swept = true;
                    // The closure is the coordinator's, which has caught and reported what it could.
                    let _ = catch_unwind(AssertUnwindSafe(|| work()));
                    let mut inner = lock(&self.inner);
                    inner.at_work.retain(|(thread, _)| *thread != id);
                    if inner.at_work.is_empty() {
                        self.arrived.notify_all();
                    }
                }
                _ if released => break,
                _ => thread::park(),
            }
        }
        lock(&self.inner).standing.retain(|standing| standing.thread != id);
        board::goes_on(tid);
        // What was called away from its own parking may have been woken meanwhile, and the token was used up here.
        thread.unpark();
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

    /// Has every thread that stands run `work` once, before it does anything else. Once for each hold.
    pub(crate) fn sweep(&self, work: Arc<dyn Fn() + Send + Sync>) {
        let mut inner = lock(&self.inner);
        inner.at_work = inner.standing.iter().map(|standing| (standing.thread, standing.name.clone())).collect();
        drop(inner);
        // There is one sweep in a hold; another would find the first one's work.
        let _ = self.work.set(work);
        self.call();
    }

    /// Waits until all have swept, at most until `deadline`; the names of those still at it.
    pub(crate) fn unswept(&self, deadline: Instant) -> Vec<String> {
        let mut inner = lock(&self.inner);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if inner.at_work.is_empty() || left.is_zero() {
                return inner.at_work.iter().map(|(_, name)| name.clone()).collect();
            }
            inner = self.arrived.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Lets everyone go on as soon as it has swept, those who have yet to arrive too.
    pub(crate) fn release(&self) {
        self.released.store(true, Ordering::Release);
        self.call();
    }

    fn call(&self) {
        // Not with the lock held: who is woken on this very processor runs at once, and wants it.
        let standing: Vec<Thread> = lock(&self.inner).standing.iter().map(|standing| standing.handle.clone()).collect();
        standing.iter().for_each(Thread::unpark);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

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
        station.sweep(Arc::new(move || _ = counter.fetch_add(1, Ordering::SeqCst)));
        station.release(); // Does not save them from the work.
        assert!(station.unswept(Instant::now() + LONG).is_empty());
        assert_eq!(swept.load(Ordering::SeqCst), 2);
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
        station.sweep(Arc::new(move || _ = lock(&stuck).recv()));
        assert_eq!(station.unswept(Instant::now() + Duration::from_millis(5)), ["slow"]);
        drop(let_go);
        station.release();
        thread.join().unwrap();
    }
}
