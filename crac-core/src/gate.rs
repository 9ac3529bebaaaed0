//! The door that requests pass, and the count of those inside.
//!
//! ```text
//!   word:  [ SHUT | number of passes out ]
//!
//!   enter   SHUT set?  yes -> refused        no -> count + 1, pass handed out     (one compare-exchange)
//!   pass dropped       count - 1; shut and zero -> whoever waits for `drained` is woken
//! ```
//!
//! Admission and count are one word, so no request can slip in between "is it open" and "I am inside".

use std::{
    fmt,
    future::poll_fn,
    task::{Poll, Waker},
};

use sync::{Arc, AtomicBool, AtomicUsize, Mutex, Ordering};

#[cfg(crac_loom)]
mod sync {
    pub(super) use loom::sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    };
}
#[cfg(not(crac_loom))]
mod sync {
    pub(super) use std::sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    };
}

const SHUT: usize = 1 << (usize::BITS - 1);
const COUNT: usize = !SHUT;

/// A door with a count of what is inside. Cheap to clone; clones are the same door.
///
/// A gate made by [`Context::gate`](crate::Context::gate) is shut at the begin of every round, drained in
/// [`Phase::Work`](crate::Phase::Work) within the drain deadline, and opened at the very end. One made by [`Gate::new`] belongs
/// to nobody and stays as its owner leaves it.
#[derive(Clone)]
pub struct Gate {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    word: AtomicUsize,
    /// Whether anything has ever passed.
    used: AtomicBool,
    waiting: Mutex<Vec<Waker>>,
}

/// The door is shut: nothing new may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the service is being checkpointed; try again in a moment")]
pub struct Shut;

impl Gate {
    /// An open gate; `name` says in the plural what passes it: `http requests`.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            inner: Arc::new(Inner {
                name: name.into(),
                word: AtomicUsize::new(0),
                used: AtomicBool::new(false),
                waiting: Mutex::new(Vec::new()),
            }),
        }
    }

    /// What passes this gate.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Passes the gate, if it is open. Never blocks.
    ///
    /// # Errors
    ///
    /// [`Shut`] from the begin of a round until its end.
    pub fn enter(&self) -> Result<Pass, Shut> {
        let mut word = self.inner.word.load(Ordering::Relaxed);
        loop {
            if word & SHUT != 0 {
                return Err(Shut);
            }
            match self.inner.word.compare_exchange_weak(word, word + 1, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => {
                    // Written once: the line stays shared between the threads that serve.
                    if !self.inner.used.load(Ordering::Relaxed) {
                        self.inner.used.store(true, Ordering::Release);
                    }
                    return Ok(Pass { inner: self.inner.clone() });
                }
                Err(now) => word = now,
            }
        }
    }

    /// Whether anything has ever passed the gate, in this life or in one it came from.
    pub fn was_used(&self) -> bool {
        self.inner.used.load(Ordering::Acquire)
    }

    /// Counts in work that is a consequence of something already inside, whether the gate is shut or not: a response that is
    /// still being written, an upgraded connection.
    pub fn enter_anyway(&self) -> Pass {
        self.inner.word.fetch_add(1, Ordering::AcqRel);
        Pass { inner: self.inner.clone() }
    }

    /// Shuts the gate. What is inside stays inside.
    pub fn shut(&self) {
        self.inner.word.fetch_or(SHUT, Ordering::AcqRel);
        self.inner.wake();
    }

    /// Opens the gate.
    pub fn open(&self) {
        self.inner.word.fetch_and(COUNT, Ordering::AcqRel);
        self.inner.wake();
    }

    /// Whether the gate is shut.
    pub fn is_shut(&self) -> bool {
        self.inner.word.load(Ordering::Acquire) & SHUT != 0
    }

    /// How many passes are out.
    pub fn inside(&self) -> usize {
        self.inner.word.load(Ordering::Acquire) & COUNT
    }

    /// Waits until nothing is inside. May be dropped at any time. Only with the gate shut is the answer more than a moment old.
    pub async fn drained(&self) {
        self.wait_for(|word| word & COUNT == 0).await;
    }

    /// Waits until the gate is open. May be dropped at any time.
    pub async fn opened(&self) {
        self.wait_for(|word| word & SHUT == 0).await;
    }

    /// Waits until the gate is shut. May be dropped at any time.
    pub async fn shutting(&self) {
        self.wait_for(|word| word & SHUT != 0).await;
    }

    async fn wait_for(&self, done: impl Fn(usize) -> bool) {
        poll_fn(|cx| {
            // The list is locked before the word is read, and whoever changes the word locks it afterwards: no wake is lost.
            let mut waiting = self.inner.waiting();
            if done(self.inner.word.load(Ordering::Acquire)) {
                return Poll::Ready(());
            }
            if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

impl Inner {
    fn waiting(&self) -> sync_guard::Guard<'_> {
        self.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn wake(&self) {
        let waiting = std::mem::take(&mut *self.waiting());
        waiting.into_iter().for_each(Waker::wake);
    }
}

mod sync_guard {
    #[cfg(crac_loom)]
    pub(super) type Guard<'a> = loom::sync::MutexGuard<'a, Vec<std::task::Waker>>;
    #[cfg(not(crac_loom))]
    pub(super) type Guard<'a> = std::sync::MutexGuard<'a, Vec<std::task::Waker>>;
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = self.inner.word.load(Ordering::Relaxed);
        f.debug_struct("Gate")
            .field("name", &self.inner.name)
            .field("shut", &(word & SHUT != 0))
            .field("inside", &(word & COUNT))
            .finish()
    }
}

/// The right to be inside; given back by dropping it.
#[must_use = "dropping the pass leaves the gate at once"]
pub struct Pass {
    inner: Arc<Inner>,
}

impl Drop for Pass {
    fn drop(&mut self) {
        if (self.inner.word.fetch_sub(1, Ordering::AcqRel) - 1) & COUNT == 0 {
            self.inner.wake();
        }
    }
}

impl fmt::Debug for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pass").field("gate", &self.inner.name).finish()
    }
}

#[cfg(all(test, not(crac_loom)))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::block_on::block_on_for;

    #[test]
    fn a_shut_gate_refuses_and_keeps_its_count() {
        let gate = Gate::new("requests");
        let pass = gate.enter().unwrap();
        gate.shut();
        assert_eq!(gate.enter().unwrap_err(), Shut);
        assert_eq!(gate.inside(), 1);
        drop(pass);
        assert_eq!(gate.inside(), 0);
        gate.open();
        assert!(gate.enter().is_ok());
    }

    #[test]
    fn drained_ends_with_the_last_pass() {
        let gate = Gate::new("requests");
        let pass = gate.enter().unwrap();
        gate.shut();
        assert!(block_on_for(gate.drained(), Some(Duration::from_millis(1))).is_none());
        let leaver = std::thread::spawn(move || drop(pass));
        assert!(block_on_for(gate.drained(), None).is_some());
        leaver.join().unwrap();
    }

    #[test]
    fn consequences_are_counted_while_shut() {
        let gate = Gate::new("requests");
        gate.shut();
        let pass = gate.enter_anyway();
        assert_eq!((gate.inside(), gate.is_shut()), (1, true));
        drop(pass);
        assert_eq!((gate.inside(), gate.is_shut()), (0, true));
    }
}

#[cfg(all(test, crac_loom))]
mod loom_tests {
    use super::*;

    /// Every interleaving of a request, the coordinator and the drain: a request that got in is seen by the drain, and the
    /// drain always ends.
    #[test]
    fn no_request_slips_past_the_drain() {
        loom::model(|| {
            let gate = Gate::new("requests");
            let done = Arc::new(AtomicUsize::new(0));
            let request = {
                let (gate, done) = (gate.clone(), done.clone());
                loom::thread::spawn(move || {
                    if let Ok(_pass) = gate.enter() {
                        done.fetch_add(1, Ordering::SeqCst);
                        return 1;
                    }
                    0
                })
            };
            gate.shut();
            loom::future::block_on(gate.drained());
            let at_drain = done.load(Ordering::SeqCst);
            assert_eq!(request.join().unwrap(), at_drain, "a request ran past the drain");
        });
    }

    /// A waiter for the opening is woken whatever the order.
    #[test]
    fn an_opening_wakes_who_waits() {
        loom::model(|| {
            let gate = Gate::new("requests");
            gate.shut();
            let opener = {
                let gate = gate.clone();
                loom::thread::spawn(move || gate.open())
            };
            loom::future::block_on(gate.opened());
            opener.join().unwrap();
        });
    }
}
