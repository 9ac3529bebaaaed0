//! The runtime a pool lives on.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::runtime::Handle;

/// Polls and drops a future inside a runtime, wherever that happens: hooks need not run on the runtime that the pool belongs to,
/// and sqlx panics outside of any.
pub(crate) struct On<F> {
    runtime: Handle,
    // Only the drop takes it out.
    future: Option<Pin<Box<F>>>,
}

/// `future`, inside `runtime`.
pub(crate) fn on<F: Future>(runtime: &Handle, future: F) -> On<F> {
    On { runtime: runtime.clone(), future: Some(Box::pin(future)) }
}

impl<F: Future> Future for On<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        let _inside = this.runtime.enter();
        this.future.as_mut().expect("the future is there until the drop").as_mut().poll(cx)
    }
}

impl<F> Drop for On<F> {
    fn drop(&mut self) {
        let _inside = self.runtime.enter();
        drop(self.future.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Spawns when it is dropped, as a connection of sqlx does.
    struct Spawns;

    impl Drop for Spawns {
        fn drop(&mut self) {
            tokio::spawn(async {});
        }
    }

    #[test]
    fn a_future_finds_its_runtime_on_any_thread() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
        let mut future = on(runtime.handle(), async {
            let _held = Spawns;
            tokio::time::sleep(std::time::Duration::from_secs(3600)).await;
        });
        // This thread is outside of the runtime: without entering it, both the poll and the drop would panic.
        assert!(futures_util::FutureExt::now_or_never(&mut future).is_none());
        drop(future);
    }
}
