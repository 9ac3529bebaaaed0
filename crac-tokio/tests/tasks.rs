//! Counted work holds a checkpoint up. One test: the ambient context belongs to the whole program.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::{sync::Arc, time::Duration};

use crac_core::{CheckpointError, CheckpointRequest, Context, Deadlines, Mode, SimEngine};
use crac_tokio::TokioSpawner;
use tokio::runtime::Handle;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_waits_for_spawned_work_and_names_what_does_not_end() {
    assert_eq!(crac_tokio::spawn(async { 7 }).await.unwrap(), 7, "without a context it is a plain task");
    drop(crac_tokio::in_flight());

    let spawner = Arc::new(TokioSpawner::new(Handle::current()));
    let mut deadlines = Deadlines::default();
    deadlines.drain = Duration::from_secs(1);
    let context = Context::builder("test", Arc::new(SimEngine::new())).spawner(spawner).deadlines(deadlines).build().unwrap();
    let _ambient = context.install().unwrap();

    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let task = crac_tokio::spawn(async move { ended.await.is_ok() });
    let answer = context.checkpoint(CheckpointRequest::new(Mode::Continue)).await;
    let Err(CheckpointError::Aborted(report)) = answer else { panic!("{answer:?}") };
    assert!(report.failures.iter().any(|failure| failure.what.contains("1 tasks still in flight")), "{report}");

    let ticket = context.request(CheckpointRequest::new(Mode::Continue));
    while context.status().state != "down" {
        tokio::task::yield_now().await;
    }
    // Begun while the door is shut: counted, and not held back.
    assert_eq!(crac_tokio::spawn(async { 8 }).await.unwrap(), 8);
    end.send(()).unwrap();
    assert!(task.await.unwrap());
    ticket.await.expect("nothing is in flight any more");

    let panicked = crac_tokio::spawn(async { panic!("on purpose") }).await;
    assert!(panicked.unwrap_err().is_panic());
    let guard = crac_tokio::in_flight();
    assert!(context.checkpoint(CheckpointRequest::new(Mode::Continue)).await.is_err());
    drop(guard);
    context.checkpoint(CheckpointRequest::new(Mode::Continue)).await.expect("nothing is in flight any more");
}
