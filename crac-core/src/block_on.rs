//! Waiting for a future on a plain thread, with a deadline.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use crate::{
    lock,
    seams::{BoxFuture, Spawned},
};

/// A waker that a plain thread waits on.
#[derive(Debug, Default)]
struct Bell {
    rung: Mutex<bool>,
    ring: Condvar,
}

impl Bell {
    /// Waits until the bell has rung, at most until `deadline`; false if it was the deadline.
    fn wait(&self, deadline: Option<Instant>) -> bool {
        let mut rung = lock(&self.rung);
        while !*rung {
            rung = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                None => self.ring.wait(rung).unwrap_or_else(std::sync::PoisonError::into_inner),
                Some(Duration::ZERO) => return false,
                Some(left) => self.ring.wait_timeout(rung, left).unwrap_or_else(std::sync::PoisonError::into_inner).0,
            };
        }
        *rung = false;
        true
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        *lock(&self.rung) = true;
        self.ring.notify_one();
    }
}

/// Runs `future` on this thread until it is done or `limit` has passed; then `None`, and the future is dropped.
pub(crate) fn block_on_for<F: Future>(future: F, limit: Option<Duration>) -> Option<F::Output> {
    let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
    let bell = Arc::new(Bell::default());
    let waker = Waker::from(bell.clone());
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(output);
        }
        if !bell.wait(deadline) {
            return None;
        }
    }
}

/// A future that a thread of its own drives.
#[derive(Debug, Clone, Default)]
pub(crate) struct ThreadTask {
    bell: Arc<Bell>,
    aborted: Arc<AtomicBool>,
}

impl ThreadTask {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Drives `future` to its end or to the abort. The future has been dropped on return.
    pub(crate) fn run(self, mut future: BoxFuture<()>) {
        let waker = Waker::from(self.bell.clone());
        while !self.aborted.load(Ordering::Acquire) {
            if future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                return;
            }
            self.bell.wait(None);
        }
    }
}

impl Spawned for ThreadTask {
    fn abort(&self) {
        self.aborted.store(true, Ordering::Release);
        self.bell.clone().wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_future_that_never_ends_is_given_up_at_the_limit() {
        assert_eq!(block_on_for(std::future::pending::<()>(), Some(Duration::from_millis(1))), None);
        assert_eq!(block_on_for(std::future::ready(7), None), Some(7));
    }

    #[test]
    fn an_aborted_task_ends() {
        let task = ThreadTask::new();
        let aborter = task.clone();
        let runner = std::thread::spawn(move || task.run(Box::pin(std::future::pending())));
        aborter.abort();
        runner.join().unwrap();
    }
}
