//! One hook call as a task: it ends with exactly one message, whether it returns, panics or is dropped.

use std::{
    any::Any,
    cell::Cell,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc,
    task::Poll,
    time::{Duration, Instant},
};

use crate::{context::describe, coordinator::Message, resource::BoxError, seams::BoxFuture};

thread_local! {
    static RUNNING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is just now running a hook: then a request for a checkpoint would wait for itself.
pub(crate) fn running_here() -> bool {
    RUNNING.with(Cell::get)
}

/// Names one hook call among all of a coordinator.
pub(crate) type Token = u64;

/// How a hook call ended.
#[derive(Debug)]
pub(crate) enum HookEnd {
    Done,
    Failed(String),
    Panicked(String),
    /// The task was dropped before the hook had ended.
    Dropped,
}

/// Wraps `hook` so that its end is told to `inbox`.
pub(crate) fn task(token: Token, hook: BoxFuture<Result<(), BoxError>>, inbox: mpsc::Sender<Message>) -> BoxFuture<()> {
    let guard = EndGuard { token, inbox, end: HookEnd::Dropped, took: Duration::ZERO };
    Box::pin(async move {
        // Locals are dropped last first: when the task is dropped midway, the hook is gone before its end is told.
        let mut guard = guard;
        let mut hook = hook;
        let begun = Instant::now();
        let end = poll_fn(|cx| {
            let running = Mark::set();
            let polled = catch_unwind(AssertUnwindSafe(|| hook.as_mut().poll(cx)));
            drop(running);
            match polled {
                Ok(Poll::Pending) => Poll::Pending,
                Ok(Poll::Ready(Ok(()))) => Poll::Ready(HookEnd::Done),
                Ok(Poll::Ready(Err(error))) => Poll::Ready(HookEnd::Failed(describe(&error))),
                Err(panic) => Poll::Ready(HookEnd::Panicked(panic_text(&*panic))),
            }
        })
        .await;
        guard.end = end;
        guard.took = begun.elapsed();
    })
}

/// Sends the end of the hook when the task is gone, however it went.
struct EndGuard {
    token: Token,
    inbox: mpsc::Sender<Message>,
    end: HookEnd,
    took: Duration,
}

impl Drop for EndGuard {
    fn drop(&mut self) {
        let end = std::mem::replace(&mut self.end, HookEnd::Dropped);
        // A coordinator that has ended asks for nothing any more.
        let _ = self.inbox.send(Message::HookEnded { token: self.token, end, took: self.took });
    }
}

/// Marks the thread as running a hook while a poll lasts.
struct Mark {
    before: bool,
}

impl Mark {
    fn set() -> Self {
        Self { before: RUNNING.with(|running| running.replace(true)) }
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        RUNNING.with(|running| running.set(self.before));
    }
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "it panicked with a value that is no text".to_owned())
}
