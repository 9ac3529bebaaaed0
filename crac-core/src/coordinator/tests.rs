use std::{
    sync::{Condvar, Mutex},
    time::Duration,
};

use async_trait::async_trait;

use super::*;
use crate::{
    Audit, BoxError, CheckpointContext, CheckpointError, CheckpointRequest, Context, Deadlines, Denial, Held, Hold, Needs,
    Obstacle, ObstacleKind, Phase, Policy, Registration, Resource, ResourceOptions, SimEngine, SimScript, Sweeping, Ticket,
};

mod at_once;
mod spread;

const LONG: Duration = Duration::from_secs(20);

/// What happened, in order, as text.
#[derive(Clone, Default)]
struct Log(Arc<(Mutex<Vec<String>>, Condvar)>);

impl Log {
    fn say(&self, text: impl Into<String>) {
        lock(&self.0.0).push(text.into());
        self.0.1.notify_all();
    }

    fn lines(&self) -> Vec<String> {
        lock(&self.0.0).clone()
    }

    fn wait_for(&self, text: &str) {
        let mut lines = lock(&self.0.0);
        while !lines.iter().any(|line| line == text) {
            let (next, late) = self.0.1.wait_timeout(lines, LONG).unwrap();
            assert!(!late.timed_out(), "`{text}` never happened: {:?}", *next);
            lines = next;
        }
    }
}

/// A resource that writes down what it is told and does as its script says.
struct Told {
    name: &'static str,
    log: Log,
    before: Act,
    after: Act,
}

#[derive(Clone)]
enum Act {
    Well,
    Fail,
    Panic,
    Hang,
    /// Blocks its thread until the receiver's sender is gone.
    Block(Arc<Mutex<mpsc::Receiver<()>>>),
    /// Waits for the gate to open.
    Until(crate::Gate),
    AskAgain(Context),
}

impl Told {
    async fn act(&self, act: &Act) -> Result<(), BoxError> {
        match act {
            Act::Well => Ok(()),
            Act::Fail => Err(format!("{} cannot", self.name).into()),
            Act::Panic => panic!("{} panics", self.name),
            Act::Hang => std::future::pending().await,
            Act::Block(forever) => {
                let _ended = lock(forever).recv();
                Ok(())
            }
            Act::Until(gate) => {
                gate.opened().await;
                Ok(())
            }
            Act::AskAgain(context) => match context.checkpoint(CheckpointRequest::new(Mode::Exit)).await {
                Err(CheckpointError::Denied(Denial::Recursive)) => Ok(()),
                other => Err(format!("{other:?}").into()),
            },
        }
    }
}

#[async_trait]
impl Resource for Told {
    async fn before_checkpoint(&self, _context: &CheckpointContext) -> Result<(), BoxError> {
        self.log.say(format!("before {}", self.name));
        self.act(&self.before).await
    }

    async fn after_restore(&self, context: &RestoreContext) -> Result<(), BoxError> {
        self.log.say(format!("after {} {:?}", self.name, context.outcome()));
        self.act(&self.after).await
    }
}

struct Setup {
    context: Context,
    engine: Arc<SimEngine>,
    log: Log,
    kept: Vec<Registration>,
}

/// Soon over where a hook hangs, and time enough for those that do not, on a loaded machine.
fn quick() -> Deadlines {
    Deadlines { hook: Duration::from_secs(1), grace: Duration::from_millis(500), ..Deadlines::default() }
}

fn setup() -> Setup {
    setup_with(quick(), |builder| builder)
}

fn setup_with(deadlines: Deadlines, more: impl FnOnce(crate::ContextBuilder) -> crate::ContextBuilder) -> Setup {
    let engine = Arc::new(SimEngine::new());
    let builder = Context::builder("test", engine.clone()).deadlines(deadlines).on_restore_failure(RestoreFailure::StayShut);
    let context = more(builder).build().unwrap();
    Setup { context, engine, log: Log::default(), kept: Vec::new() }
}

impl Setup {
    fn add(&mut self, name: &'static str, phase: Phase, before: Act, after: Act) {
        let told = Told { name, log: self.log.clone(), before, after };
        self.kept.push(self.context.register(ResourceOptions::new(name).phase(phase), told));
    }

    fn ask(&self, mode: Mode) -> Ticket {
        self.context.request(CheckpointRequest::new(mode))
    }

    fn round(&self, mode: Mode) -> Result<Completed, CheckpointError> {
        self.ask(mode).wait(LONG).expect("the round ends")
    }

    fn aborted(&self, mode: Mode) -> Arc<Report> {
        match self.round(mode) {
            Err(CheckpointError::Aborted(report)) => report,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_restored_round_tells_everyone_down_and_up_in_order() {
    let mut setup = setup();
    setup.add("pool", Phase::Egress, Act::Well, Act::Well);
    setup.add("cache", Phase::Service, Act::Well, Act::Well);
    setup.add("listener", Phase::Ingress, Act::Well, Act::Well);
    setup.add("index", Phase::Service, Act::Well, Act::Well);
    let Ok(Completed::Restored(life, report)) = setup.round(Mode::Exit) else { panic!("restored") };
    assert_eq!(
        setup.log.lines(),
        [
            "before listener",
            "before index",
            "before cache",
            "before pool",
            "after pool Restored",
            "after cache Restored",
            "after index Restored",
            "after listener Restored"
        ]
    );
    assert_eq!((life.generation(), setup.context.generation(), report.generation), (1, 1, 1));
    assert_eq!(life.lineage(), Some(report.image_id));
    assert_eq!(report.resources.len(), 4);
    assert!(report.resources.iter().all(|resource| resource.before.is_some() && resource.after.is_some()));
}

#[test]
fn continued_and_aborted_are_other_endings_of_the_same_life() {
    let mut setup = setup();
    setup.add("cache", Phase::Service, Act::Well, Act::Well);
    let before = setup.context.life().instance_id();
    assert!(matches!(setup.round(Mode::Continue), Ok(Completed::Continued(_))));
    setup.engine.then(SimScript::Fail(EngineError::Failed { what: "the disk is full".into(), hint: "free some space".into() }));
    let report = setup.aborted(Mode::Exit);
    assert!(report.failures[0].what.contains("the disk is full; free some space"), "{report}");
    assert_eq!(setup.log.lines()[1], "after cache Continued");
    assert_eq!(setup.log.lines()[3], "after cache Aborted(Engine)");
    assert_eq!((setup.context.generation(), setup.context.life().instance_id()), (0, before));
}

#[test]
fn a_capture_that_goes_on_beside_the_process_keeps_no_door_shut() {
    let mut setup = setup();
    setup.add("cache", Phase::Service, Act::Well, Act::Well);
    let gate = setup.context.gate("door");
    let (end, until) = std::sync::mpsc::channel();
    setup.engine.then(SimScript::Underway { until, ends: Ok(crate::CaptureReport { bytes: 7, stages: Vec::new() }) });
    let log = Log::default();
    let first = setup.context.request(CheckpointRequest::new(Mode::Continue).watch(Arc::new(Watching(log.clone()))));
    log.wait_for("Open");
    assert!(gate.enter().is_ok(), "the door is open while the image is written");
    assert!(matches!(setup.round(Mode::Continue), Err(CheckpointError::Denied(Denial::Busy))), "one capture at a time");
    end.send(()).unwrap();
    let Ok(Ok(Completed::Continued(report))) = first.wait(LONG) else { panic!("it ends well") };
    assert_eq!(report.capture.as_ref().map(|capture| capture.bytes), Some(7));
    assert_eq!(setup.log.lines(), ["before cache", "after cache Continued"]);
    assert!(setup.round(Mode::Continue).is_ok(), "and then the next");
}

#[test]
fn a_pristine_service_is_saved_until_it_has_served_a_request() {
    let setup = setup_with(quick(), |builder| builder.policy("pristine".parse().unwrap()));
    let gate = setup.context.gate("http requests");
    assert!(setup.round(Mode::Continue).is_ok());
    drop(gate.enter().unwrap());
    let report = setup.aborted(Mode::Exit);
    assert_eq!(report.obstacles, [Obstacle::new(ObstacleKind::RequestServed, "http requests")]);
}

#[test]
fn a_capture_that_fails_beside_the_process_is_no_image() {
    let mut setup = setup();
    setup.add("cache", Phase::Service, Act::Well, Act::Well);
    let full = EngineError::Failed { what: "the disk is full".into(), hint: "free some space".into() };
    let refused = EngineError::Refused(vec![crate::Obstacle::new(crate::ObstacleKind::MemoryOther, "a mapping")]);
    for (ends, says) in [(full, "the disk is full"), (refused, "a mapping")] {
        let (_, until) = std::sync::mpsc::channel();
        setup.engine.then(SimScript::Underway { until, ends: Err(ends) });
        let report = setup.aborted(Mode::Continue);
        assert!(report.to_string().contains(says), "{report}");
        assert!(setup.context.gate("door").enter().is_ok());
    }
}

#[test]
fn everyone_is_told_even_if_others_failed_and_all_failures_are_reported() {
    // Printing where the panic came from may take longer than the deadlines of the other tests.
    let mut setup = setup_with(Deadlines::default(), |builder| builder);
    setup.add("last", Phase::Service, Act::Well, Act::Well);
    setup.add("panics", Phase::Service, Act::Panic, Act::Well);
    setup.add("fails", Phase::Service, Act::Fail, Act::Fail);
    let report = setup.aborted(Mode::Exit);
    let lines = setup.log.lines();
    assert_eq!(lines[..3], ["before fails", "before panics", "before last"]);
    assert!(lines[3..].iter().all(|line| line.ends_with("Aborted(Resource)")), "{lines:?}");
    let failures: Vec<_> =
        report.failures.iter().map(|failure| (failure.subject.as_str(), failure.during.as_str(), failure.kind)).collect();
    assert_eq!(
        failures,
        [
            ("fails", "before_checkpoint", FailureKind::Error),
            ("panics", "before_checkpoint", FailureKind::Panicked),
            ("fails", "after_restore", FailureKind::Error)
        ]
    );
    assert!(setup.context.gate("requests").enter().is_ok());
}

#[test]
fn a_hook_that_hangs_is_late_dropped_and_named_with_what_is_open() {
    let mut setup = setup();
    let told = Told { name: "pool", log: setup.log.clone(), before: Act::Hang, after: Act::Well };
    let options = ResourceOptions::new("pool").explain(|| "2 connections are checked out".into());
    setup.kept.push(setup.context.register(options, told));
    let report = setup.aborted(Mode::Exit);
    assert_eq!(report.failures[0].kind, FailureKind::Late);
    assert!(report.failures[0].what.contains("2 connections are checked out"), "{report}");
    setup.log.wait_for("after pool Aborted(Resource)");
}

#[test]
fn a_hook_that_cannot_be_dropped_wedges_its_resource_and_the_service_goes_on() {
    let mut setup = setup();
    let (hold, forever) = mpsc::channel();
    setup.add("blocks", Phase::Service, Act::Block(Arc::new(Mutex::new(forever))), Act::Well);
    let gate = setup.context.gate("requests");
    let report = setup.aborted(Mode::Exit);
    assert_eq!(report.failures.iter().map(|failure| failure.kind).collect::<Vec<_>>(), [FailureKind::Late, FailureKind::Wedged]);
    assert!(setup.context.resources()[0].wedged);
    assert!(gate.enter().is_ok(), "the door is open again");
    assert!(!setup.log.lines().iter().any(|line| line.starts_with("after")), "a wedged resource is skipped");
    let again = setup.aborted(Mode::Exit);
    assert_eq!(again.failures[0].kind, FailureKind::Wedged);
    drop(hold);
}

/// The end of a healthy hook used to be thrown away while the coordinator waited for a late neighbour of the same batch.
#[test]
fn a_late_neighbour_does_not_drag_others_along() {
    let mut setup = setup_with(Deadlines { grace: LONG, ..quick() }, |builder| builder);
    let (hold, forever) = mpsc::channel::<()>();
    let mut add = |name, before| {
        let told = Told { name, log: setup.log.clone(), before, after: Act::Well };
        let options = ResourceOptions::new(name).concurrent(true);
        setup.kept.push(setup.context.register(options, told));
    };
    // On the way up the healthy one is told first; then the coordinator waits for the other to be gone.
    add("healthy", Act::Well);
    add("late", Act::Block(Arc::new(Mutex::new(forever))));
    let log = setup.log.clone();
    let releaser = std::thread::spawn(move || {
        log.wait_for("after healthy Aborted(Resource)");
        drop(hold);
    });
    let report = setup.aborted(Mode::Exit);
    releaser.join().unwrap();
    let failed: Vec<_> = report.failures.iter().map(|failure| failure.subject.as_str()).collect();
    assert_eq!(failed, ["late"], "{report}");
    assert!(report.resources.iter().any(|resource| resource.name == "healthy" && resource.after.is_some()));
}

#[test]
fn work_in_flight_is_waited_for_and_named_when_it_is_late() {
    let setup = setup_with(Deadlines { drain: Duration::from_millis(100), ..quick() }, |builder| builder);
    let gate = setup.context.gate("http requests");
    let pass = gate.enter().unwrap();
    let report = setup.aborted(Mode::Exit);
    assert!(report.failures[0].what.contains("1 http requests still in flight"), "{report}");
    drop(pass);
    assert!(setup.round(Mode::Exit).is_ok());
}

#[test]
fn the_door_is_shut_before_the_first_hook_and_opens_last() {
    let mut setup = setup();
    let gate = setup.context.gate("requests");
    let opener = crate::Gate::new("opener");
    opener.shut();
    setup.add("listener", Phase::Ingress, Act::Until(opener.clone()), Act::Well);
    let ticket = setup.ask(Mode::Exit);
    setup.log.wait_for("before listener");
    assert!(gate.enter().is_err());
    opener.open();
    assert!(ticket.wait(LONG).unwrap().is_ok());
    assert!(gate.enter().is_ok());
}

#[test]
fn concurrent_requests_join_or_are_denied_and_a_hook_cannot_ask() {
    let mut setup = setup();
    let opener = crate::Gate::new("opener");
    opener.shut();
    let context = setup.context.clone();
    setup.add("asks", Phase::Service, Act::AskAgain(context), Act::Well);
    setup.add("waits", Phase::Ingress, Act::Until(opener.clone()), Act::Well);
    let first = setup.ask(Mode::Exit);
    setup.log.wait_for("before waits");
    let same = setup.ask(Mode::Exit);
    let other = setup.ask(Mode::Continue);
    assert!(matches!(other.wait(LONG), Ok(Err(CheckpointError::Denied(Denial::Busy)))));
    opener.open();
    assert!(matches!(first.wait(LONG), Ok(Ok(Completed::Restored(..)))));
    assert!(matches!(same.wait(LONG), Ok(Ok(Completed::Restored(..)))));
}

/// Writes the answers down.
struct Watching(Log);

impl crate::CaptureWatch for Watching {
    fn reached(&self, progress: crate::CaptureProgress) {
        self.0.say(format!("{progress:?}"));
    }
}

impl crate::RoundWatch for Watching {
    fn advanced(&self, progress: &RoundProgress) {
        self.0.say(format!("{progress:?}"));
    }

    fn ended(&self, answer: &Result<Completed, CheckpointError>) {
        self.0.say(match answer {
            Ok(_) => "ended well".to_owned(),
            Err(error) => error.to_string(),
        });
    }
}

#[test]
fn whoever_watches_hears_the_end_also_who_joined_or_was_denied() {
    let mut setup = setup();
    let opener = crate::Gate::new("opener");
    opener.shut();
    setup.add("waits", Phase::Ingress, Act::Until(opener.clone()), Act::Well);
    let logs = [Log::default(), Log::default(), Log::default()];
    let ask = |mode, log: &Log| setup.context.request(CheckpointRequest::new(mode).watch(Arc::new(Watching(log.clone()))));
    let first = ask(Mode::Exit, &logs[0]);
    setup.log.wait_for("before waits");
    let joined = ask(Mode::Exit, &logs[1]);
    let denied = ask(Mode::Continue, &logs[2]);
    assert!(denied.wait(LONG).unwrap().is_err());
    assert!(logs[2].lines()[0].contains("another checkpoint is under way"));
    opener.open();
    for ticket in [first, joined] {
        assert!(ticket.wait(LONG).unwrap().is_ok());
    }
    assert_eq!(logs[0].lines()[0], "Shut");
    for log in &logs[..2] {
        assert!(log.lines().contains(&"Planned { bytes: 0 }".to_owned()), "{:?}", log.lines());
        assert_eq!(log.lines().last().unwrap(), "ended well");
    }
}

/// An engine during whose capture somebody asks for the same again.
struct AskedMeanwhile(SimEngine, Mutex<Option<Context>>, Mutex<Vec<Ticket>>, std::sync::atomic::AtomicUsize);

impl crate::Engine for AskedMeanwhile {
    fn needs(&self) -> Needs {
        self.0.needs()
    }

    fn capture(&self, request: CaptureRequest<'_>) -> Result<Captured, EngineError> {
        self.3.fetch_add(1, Ordering::SeqCst);
        if let Some(context) = lock(&self.1).take() {
            lock(&self.2).push(context.request(CheckpointRequest::new(Mode::Exit)));
        }
        self.0.capture(request)
    }
}

/// It used to be found in the inbox by the restored life, which then saved itself and ended.
#[test]
fn a_request_made_before_the_capture_does_not_outlive_it() {
    let engine = Arc::new(AskedMeanwhile(SimEngine::new(), Mutex::default(), Mutex::default(), Default::default()));
    let context = Context::builder("test", engine.clone()).build().unwrap();
    *lock(&engine.1) = Some(context.clone());
    let answer = context.request(CheckpointRequest::new(Mode::Exit)).wait(LONG).unwrap();
    assert!(matches!(answer, Ok(Completed::Restored(..))));
    let late = lock(&engine.2).remove(0).wait(LONG).unwrap();
    assert!(matches!(late, Err(CheckpointError::Denied(Denial::Busy))), "{late:?}");
    assert_eq!((engine.3.load(Ordering::SeqCst), context.generation()), (1, 1));
}

#[test]
fn a_registration_inside_a_round_counts_from_the_next() {
    struct Registers(Context, Log, Arc<Mutex<Vec<Registration>>>);
    #[async_trait]
    impl Resource for Registers {
        async fn before_checkpoint(&self, _context: &CheckpointContext) -> Result<(), BoxError> {
            let late = Told { name: "late", log: self.1.clone(), before: Act::Well, after: Act::Well };
            lock(&self.2).push(self.0.register(ResourceOptions::new("late").phase(Phase::Egress), late));
            Ok(())
        }
    }
    let mut setup = setup();
    let kept = Arc::default();
    let registers = Registers(setup.context.clone(), setup.log.clone(), Arc::clone(&kept));
    setup.kept.push(setup.context.register(ResourceOptions::new("registers"), registers));
    setup.round(Mode::Exit).unwrap();
    assert!(setup.log.lines().is_empty());
    setup.round(Mode::Exit).unwrap();
    assert!(setup.log.lines().contains(&"before late".to_owned()));
    lock(&kept).clear();
}

#[test]
fn a_failed_way_up_shuts_a_restored_life_and_only_that() {
    let mut setup = setup();
    setup.add("pool", Phase::Egress, Act::Well, Act::Fail);
    let gate = setup.context.gate("requests");
    setup.engine.then(SimScript::Original);
    assert!(matches!(setup.round(Mode::Exit), Ok(Completed::Continued(_))));
    assert!(gate.enter().is_ok());
    setup.round(Mode::Exit).unwrap();
    assert!(gate.enter().is_err(), "a life that is not whole keeps its door shut");
    assert!(matches!(setup.round(Mode::Exit), Err(CheckpointError::Denied(Denial::Degraded))));
    assert_eq!(setup.context.status().state, "shut");
}

#[test]
fn a_rehearsal_reports_resources_and_obstacles_together() {
    struct Finds;
    impl Audit for Finds {
        fn audit(&self, _: &Needs, _: &Policy, own: &[i32]) -> Result<Vec<Obstacle>, BoxError> {
            assert_eq!(own, [7]);
            Ok(vec![Obstacle::new(ObstacleKind::Child, "process 12")])
        }
    }
    let mut setup = setup_with(quick(), |builder| builder.audit(Arc::new(Finds)));
    setup.add("fails", Phase::Service, Act::Fail, Act::Well);
    setup.engine.then(SimScript::Fail(EngineError::Refused(vec![Obstacle::new(ObstacleKind::Tracer, "gdb")])));
    let ticket = setup.context.request(CheckpointRequest::new(Mode::Rehearse).own_descriptor(7));
    let Ok(Err(CheckpointError::Aborted(report))) = ticket.wait(LONG) else { panic!("aborted") };
    assert_eq!(report.failures.len(), 1);
    assert_eq!(
        report.obstacles.iter().map(|obstacle| obstacle.kind).collect::<Vec<_>>(),
        [ObstacleKind::Child, ObstacleKind::Tracer]
    );
    let text = report.to_string();
    assert!(text.contains("fails cannot") && text.contains("process 12") && text.contains("gdb"), "{text}");
    assert_eq!(serde_json::from_str::<Report>(&serde_json::to_string(&*report).unwrap()).unwrap(), *report);
}

/// A runtime that writes down what is done with it.
struct Stands(Log, bool);

impl Hold for Stands {
    fn name(&self) -> String {
        "workers".into()
    }

    fn hold(&self, _deadline: Instant) -> Result<Box<dyn Held>, Vec<Obstacle>> {
        self.0.say("hold");
        if self.1 {
            Ok(Box::new(Stands(self.0.clone(), true)))
        } else {
            Err(vec![Obstacle::new(ObstacleKind::WorkerStuck, "worker 1")])
        }
    }
}

impl Held for Stands {
    fn threads(&self) -> usize {
        2
    }

    fn sweep(&self, work: Arc<dyn Fn() + Send + Sync>) -> Box<dyn Sweeping> {
        work();
        Box::new(OddOne)
    }

    fn release(self: Box<Self>) {
        self.0.say("release");
    }
}

struct OddOne;

impl Sweeping for OddOne {
    fn unswept(&self, _deadline: Instant) -> Vec<String> {
        vec!["odd one".into()]
    }
}

#[test]
fn a_sweep_runs_only_in_a_restored_life_and_names_whom_it_missed() {
    let setup = setup();
    let log = setup.log.clone();
    setup.context.attach(Arc::new(Stands(log.clone(), true))).forever();
    setup.context.on_sweep("bad", || panic!("a sweep that panics"));
    setup.context.on_sweep("good", move || log.say("swept"));
    setup.round(Mode::Continue).unwrap();
    assert_eq!(setup.log.lines(), ["hold", "release"]);
    let completed = setup.round(Mode::Exit).unwrap();
    assert_eq!(setup.log.lines()[2..], ["hold", "swept", "swept", "release"]);
    assert_eq!(completed.report().unswept, ["odd one"]);
    assert_eq!(completed.report().held_threads, 2);
}

#[test]
fn a_runtime_that_does_not_stop_is_named_and_everything_runs_again() {
    let setup = setup();
    setup.context.attach(Arc::new(Stands(setup.log.clone(), true))).forever();
    setup.context.attach(Arc::new(Stands(setup.log.clone(), false))).forever();
    let report = setup.aborted(Mode::Exit);
    assert_eq!(setup.log.lines(), ["hold", "hold", "release"]);
    assert_eq!(report.obstacles[0].kind, ObstacleKind::WorkerStuck);
}

#[test]
fn an_engine_that_panics_leaves_a_serving_service() {
    let setup = setup();
    setup.engine.then(SimScript::Panic);
    assert_eq!(setup.aborted(Mode::Exit).failures[0].kind, FailureKind::Panicked);
    assert!(setup.round(Mode::Exit).is_ok());
}

#[test]
fn the_way_down_has_a_deadline_of_its_own_and_skips_the_rest() {
    let mut setup = setup_with(Deadlines { down: Duration::from_millis(500), hook: LONG, ..quick() }, |builder| builder);
    setup.add("never told", Phase::Egress, Act::Well, Act::Well);
    setup.add("hangs", Phase::Ingress, Act::Hang, Act::Well);
    let report = setup.aborted(Mode::Exit);
    assert_eq!(report.failures[0].subject, "hangs");
    assert_eq!(setup.log.lines(), ["before hangs", "after hangs Aborted(Deadline)"]);
}

#[test]
fn arguments_environment_and_sleep_of_the_restore_reach_the_hooks() {
    let setup = setup();
    let asleep = Duration::from_secs(3600);
    let args = vec!["svc".into(), "--listen".into()];
    setup.engine.then(SimScript::Restored { asleep, args: args.clone(), env: vec![("CRAC_TEST_COLOUR".into(), "blue".into())] });
    let Ok(Completed::Restored(life, report)) = setup.round(Mode::Exit) else { panic!("restored") };
    assert_eq!((life.asleep_wall(), life.args(), report.asleep), (asleep, &args[..], Some(asleep)));
    assert_eq!(life.var("CRAC_TEST_COLOUR"), Some("blue".as_ref()));
    assert!(life.env_changes().contains(&crate::EnvChange::Added("CRAC_TEST_COLOUR".into(), "blue".into())));
    assert!(!format!("{life:?}").contains("blue"), "an environment may hold secrets");
}

#[test]
fn the_coordinator_ends_with_its_last_context() {
    let setup = setup();
    let weak = Arc::downgrade(&setup.engine);
    setup.round(Mode::Continue).unwrap();
    drop(setup);
    let deadline = Instant::now() + LONG;
    while weak.strong_count() > 0 {
        assert!(Instant::now() < deadline, "the coordinator still holds its engine");
        std::thread::yield_now();
    }
}
