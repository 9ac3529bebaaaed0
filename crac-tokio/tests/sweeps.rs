//! Thread generators are fresh in every restored life, on every thread.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use crac_core::{CheckpointRequest, Completed, Context, Hold, Mode, SimEngine};
use crac_tokio::{TokioHold, TokioSpawner, attach_in, sweep_generators};
use tokio::runtime::{Builder, Runtime};

const LONG: Duration = Duration::from_secs(20);

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(3).enable_all().build().unwrap()
}

/// Runs `work` on each thread of `runtime` and gives back what it returned there.
fn on_each_thread<T: Send + 'static>(runtime: &Runtime, work: impl Fn() -> T + Send + Sync + 'static) -> Vec<T> {
    let held = TokioHold::new(runtime.handle().clone()).hold(Instant::now() + LONG).unwrap();
    let results = Arc::<Mutex<Vec<T>>>::default();
    let list = results.clone();
    let threads = held.threads();
    let sweeping = held.sweep(Arc::new(move || list.lock().unwrap().push(work())));
    held.release();
    sweeping.unswept(Instant::now() + LONG);
    let results = std::mem::take(&mut *results.lock().unwrap());
    assert_eq!(results.len(), threads);
    results
}

fn round(runtime: &Runtime, mode: Mode) {
    let context = Context::builder("test", Arc::new(SimEngine::new()))
        .spawner(Arc::new(TokioSpawner::new(runtime.handle().clone())))
        .build()
        .unwrap();
    sweep_generators(&context);
    let _attached = attach_in(&context, runtime.handle());
    let answer = context.request(CheckpointRequest::new(mode)).wait(LONG).unwrap().unwrap();
    assert_eq!(matches!(answer, Completed::Restored(..)), mode == Mode::Exit);
}

#[test]
fn a_seeded_generator_repeats_only_in_the_same_life() {
    let runtime = runtime();
    let workers = |seeds: Vec<u64>| seeds.into_iter().filter(|seed| *seed == 7).count();
    on_each_thread(&runtime, || fastrand::seed(7));
    round(&runtime, Mode::Continue);
    assert!(workers(on_each_thread(&runtime, fastrand::get_seed)) >= 3, "the same process keeps its generators");
    round(&runtime, Mode::Exit);
    let seeds = on_each_thread(&runtime, fastrand::get_seed);
    assert_eq!(workers(seeds.clone()), 0, "{seeds:?}");
    let mut distinct = seeds.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), seeds.len(), "every thread has a seed of its own: {seeds:?}");
}
