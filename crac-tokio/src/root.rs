//! The future given to `block_on`: its thread is no worker, so it is brought to a stop inside `poll`.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    thread::ThreadId,
};

use crate::{
    lock,
    station::{Place, Station},
};

/// A future whose thread stands still while its runtime is held. Made by [`TokioHold::root`](crate::TokioHold::root).
///
/// It need not be `Send`. Between holds it costs two locks that nobody contends for per poll.
pub struct Root<F> {
    future: Pin<Box<F>>,
    roots: Roots,
    slot: Arc<Slot>,
}

/// The roots of one runtime, and the station they are asked to.
#[derive(Clone, Default)]
pub(crate) struct Roots {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    slots: Vec<Arc<Slot>>,
    asked_to: Option<Arc<Station>>,
}

/// Where one root was polled last.
#[derive(Default)]
struct Slot {
    polled: Mutex<Option<Polled>>,
}

struct Polled {
    waker: Waker,
    thread: ThreadId,
    name: String,
}

/// A root that is asked to stop.
pub(crate) struct Asked {
    pub(crate) thread: ThreadId,
    pub(crate) name: String,
}

impl Roots {
    pub(crate) fn root<F: Future>(&self, future: F) -> Root<F> {
        let slot = Arc::<Slot>::default();
        lock(&self.inner).slots.push(slot.clone());
        Root { future: Box::pin(future), roots: self.clone(), slot }
    }

    /// Asks every root to `station`: it stands there at its next poll, and is woken for it.
    pub(crate) fn ask(&self, station: &Arc<Station>) {
        let slots = {
            let mut inner = lock(&self.inner);
            inner.asked_to = Some(station.clone());
            inner.slots.clone()
        };
        for slot in slots {
            let waker = lock(&slot.polled).as_ref().map(|polled| polled.waker.clone());
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// The roots that have been polled so far and are not done.
    pub(crate) fn running(&self) -> Vec<Asked> {
        let slots = lock(&self.inner).slots.clone();
        let asked = |slot: &Arc<Slot>| {
            lock(&slot.polled).as_ref().map(|polled| Asked { thread: polled.thread, name: polled.name.clone() })
        };
        slots.iter().filter_map(asked).collect()
    }

    /// Roots are no longer asked anywhere.
    pub(crate) fn dismiss(&self) {
        let station = lock(&self.inner).asked_to.take();
        drop(station);
    }
}

impl Slot {
    /// Notes who polls, before it is seen whether the root is asked: then no wake is lost.
    fn note(&self, waker: &Waker) {
        let mut polled = lock(&self.polled);
        let thread = std::thread::current();
        match &mut *polled {
            Some(polled) if polled.thread == thread.id() => polled.waker.clone_from(waker),
            other => {
                let name = thread.name().unwrap_or("unnamed").to_owned();
                *other = Some(Polled { waker: waker.clone(), thread: thread.id(), name });
            }
        }
    }
}

impl<F: Future> Future for Root<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.slot.note(cx.waker());
        let asked_to = lock(&self.roots.inner).asked_to.clone();
        if let Some(station) = asked_to {
            station.stand(Place::Root);
        }
        self.future.as_mut().poll(cx)
    }
}

impl<F> Drop for Root<F> {
    fn drop(&mut self) {
        lock(&self.roots.inner).slots.retain(|slot| !Arc::ptr_eq(slot, &self.slot));
    }
}

impl<F> fmt::Debug for Root<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Root").finish_non_exhaustive()
    }
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Roots").field("count", &lock(&self.inner).slots.len()).finish()
    }
}
