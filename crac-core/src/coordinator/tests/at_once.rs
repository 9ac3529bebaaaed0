//! Hooks that begin on the coordinator's own thread.

use std::sync::atomic::AtomicUsize;

use super::*;
use crate::{BoxFuture, Spawned};

/// Counts the tasks that hooks become.
#[derive(Default)]
struct Counts(AtomicUsize);

impl crate::Spawner for Counts {
    fn spawn(&self, future: BoxFuture<()>) -> Result<Box<dyn Spawned>, BoxError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        crate::ThreadSpawner.spawn(future)
    }
}

#[test]
fn a_hook_that_begins_at_once_becomes_a_task_only_if_it_has_to_wait() {
    let spawner = Arc::new(Counts::default());
    let setup = setup_with(Deadlines::default(), |builder| builder.spawner(spawner.clone()));
    let gate = crate::Gate::new("something to wait for");
    let acts = [("ends", Act::Well), ("fails", Act::Fail), ("panics", Act::Panic), ("waits", Act::Until(gate.clone()))];
    let _kept: Vec<_> = acts
        .into_iter()
        .map(|(name, after)| {
            let options = ResourceOptions::new(name).concurrent(true).begin_at_once();
            setup.context.register(options, Told { name, log: setup.log.clone(), before: Act::Well, after })
        })
        .collect();
    gate.shut();
    let ticket = setup.ask(Mode::Continue);
    // Four on the way down, one on the way up.
    let deadline = Instant::now() + LONG;
    while spawner.0.load(Ordering::SeqCst) < 5 {
        assert!(Instant::now() < deadline, "the one that waits does not become a task");
        std::thread::yield_now();
    }
    gate.open();
    let Ok(Completed::Continued(report)) = ticket.wait(LONG).unwrap() else { panic!("the round continues") };
    let mut failures: Vec<_> = report.failures.iter().map(|failure| (failure.subject.as_str(), failure.kind)).collect();
    failures.sort_unstable_by_key(|(subject, _)| *subject);
    assert_eq!(failures, [("fails", FailureKind::Error), ("panics", FailureKind::Panicked)]);
    assert_eq!(spawner.0.load(Ordering::SeqCst), 5, "those that ended at once became tasks");
}
