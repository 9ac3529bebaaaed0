//! Runtimes that nobody attached. One test in a program of its own: it is about all threads of the process.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::{
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use crac_core::{Audit, BoxError, Hold, Mode, Needs, Obstacle, ObstacleKind, Policy};
use crac_tokio::{TokioHold, WithRuntimes};
use tokio::runtime::Builder;

struct Nothing;

impl Audit for Nothing {
    fn audit(&self, _: &Needs, _: &Policy, _: &[i32]) -> Result<Vec<Obstacle>, BoxError> {
        Ok(Vec::new())
    }
}

const LONG: Duration = Duration::from_secs(20);

fn needs() -> Needs {
    Needs::new("test", &[Mode::Exit])
}

/// Holds `hold` and audits. A foreign runtime is seen once its thread has gone to wait for events, so this looks until `expected`
/// threads are found, or for a while.
fn found(hold: &TokioHold, expected: usize) -> Vec<Obstacle> {
    let deadline = Instant::now() + LONG;
    loop {
        let held = hold.hold(deadline).unwrap();
        let obstacles = WithRuntimes::new(Nothing).audit(&needs(), &Policy::new(), &[]).unwrap();
        held.release();
        if obstacles.len() == expected || Instant::now() >= deadline {
            return obstacles;
        }
    }
}

#[test]
fn a_runtime_that_is_not_attached_is_found_whatever_its_threads_are_called() {
    let own = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let hold = TokioHold::new(own.handle().clone());
    // A running blocking task of an attached runtime is not taken for another runtime.
    let (let_go, waits) = mpsc::channel::<()>();
    own.spawn_blocking(move || waits.recv());
    for _ in 0..10 {
        assert_eq!(found(&hold, 0), [], "there is no other runtime");
    }

    let named = Builder::new_multi_thread().worker_threads(1).thread_name("elsewhere").enable_all().build().unwrap();
    let obstacles = found(&hold, 1);
    assert_eq!(obstacles.len(), 1, "{obstacles:?}");
    assert_eq!(obstacles[0].kind, ObstacleKind::RuntimeForeign);
    assert!(obstacles[0].subject.contains("elsewhere"), "{}", obstacles[0]);

    let held = hold.hold(Instant::now() + LONG).unwrap();
    let kept: Policy = "runtime-foreign:else* = keep".parse().unwrap();
    assert_eq!(WithRuntimes::new(Nothing).audit(&needs(), &kept, &[]).unwrap(), []);
    let keeps_everything = needs().with_descriptors(false);
    assert_eq!(WithRuntimes::new(Nothing).audit(&keeps_everything, &Policy::new(), &[]).unwrap(), []);
    held.release();

    let held_too = TokioHold::new(named.handle().clone()).hold(Instant::now() + LONG).unwrap();
    assert_eq!(found(&hold, 0), [], "held, it is no obstacle");
    held_too.release();
    drop(named);

    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let other = std::thread::Builder::new()
        .name("blocking-client".into())
        .spawn(|| Builder::new_current_thread().enable_all().build().unwrap().block_on(async { ended.await.is_ok() }))
        .unwrap();
    let obstacles = found(&hold, 1);
    assert!(obstacles.iter().any(|obstacle| obstacle.subject.contains("blocking-client")), "{obstacles:?}");
    end.send(()).unwrap();
    assert!(other.join().unwrap());
    drop(let_go);
    drop(Arc::new(own));
}
