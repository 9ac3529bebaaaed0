//! When a restored life gets all its processors.

use super::*;

/// Says when it lets go.
struct Confining(SimEngine, Log);

impl crate::Engine for Confining {
    fn needs(&self) -> Needs {
        self.0.needs()
    }

    fn capture(&self, request: CaptureRequest<'_>) -> Result<Captured, EngineError> {
        self.0.capture(request)
    }

    fn spread(&self) {
        self.1.say("spread");
    }

    fn settle(&self) {
        self.1.say("settled");
    }
}

/// A context with resources of these names, told in this order after a restore; whether they are brief, and what they do then.
fn setup(resources: Vec<(&'static str, bool, Act)>) -> (Context, Log, Vec<Registration>) {
    let log = Log::default();
    let engine = Arc::new(Confining(SimEngine::new(), log.clone()));
    let context = Context::builder("test", engine).on_restore_failure(RestoreFailure::StayShut).build().unwrap();
    let register = |(name, brief, after): (&'static str, bool, Act)| {
        let options = ResourceOptions::new(name);
        let options = if brief { options.brief() } else { options };
        context.register(options, Told { name, log: log.clone(), before: Act::Well, after })
    };
    let kept = resources.into_iter().map(register).collect();
    (context, log, kept)
}

/// What is said from the restore on.
fn said(log: &Log) -> Vec<String> {
    log.lines().into_iter().filter(|line| !line.starts_with("before")).collect()
}

#[test]
fn it_comes_before_a_hook_that_is_not_brief_and_once() {
    let (context, log, _kept) = setup(vec![("brief", true, Act::Well), ("any", false, Act::Well)]);
    let ticket = context.request(CheckpointRequest::new(Mode::Exit));
    assert!(matches!(ticket.wait(LONG).unwrap(), Ok(Completed::Restored(..))));
    let mut said = said(&log);
    // Where it comes among those that are brief depends on the time they take.
    said.retain(|line| line != "after brief Restored");
    assert_eq!(said, ["spread", "after any Restored", "settled"]);
}

#[test]
fn it_comes_with_the_open_door_at_the_latest() {
    let (context, log, _kept) = setup(vec![("brief", true, Act::Well)]);
    let ticket = context.request(CheckpointRequest::new(Mode::Exit));
    assert!(matches!(ticket.wait(LONG).unwrap(), Ok(Completed::Restored(..))));
    let spreads = |log: &Log| said(log).iter().filter(|line| *line == "spread").count();
    assert_eq!((spreads(&log), said(&log).last().map(String::as_str)), (1, Some("settled")));
    // A life that goes on was never kept on one.
    assert!(matches!(context.request(CheckpointRequest::new(Mode::Continue)).wait(LONG).unwrap(), Ok(Completed::Continued(_))));
    assert_eq!(spreads(&log), 1);
}

#[test]
fn a_hook_that_is_not_as_brief_as_it_says_does_not_keep_it_away() {
    let gate = crate::Gate::new("something to wait for");
    let (context, log, _kept) = setup(vec![("brief", true, Act::Until(gate.clone()))]);
    gate.shut();
    let ticket = context.request(CheckpointRequest::new(Mode::Exit));
    log.wait_for("spread");
    gate.open();
    assert!(matches!(ticket.wait(LONG).unwrap(), Ok(Completed::Restored(..))));
}

#[test]
fn a_restore_that_fails_gets_them_too() {
    let (context, log, _kept) = setup(vec![("brief", true, Act::Fail)]);
    let _ticket = context.request(CheckpointRequest::new(Mode::Exit));
    log.wait_for("spread");
}

/// Notes when a life came back, and when it was let go.
struct Noting(SimEngine, Arc<Mutex<Vec<Instant>>>);

impl crate::Engine for Noting {
    fn needs(&self) -> Needs {
        self.0.needs()
    }

    fn capture(&self, request: CaptureRequest<'_>) -> Result<Captured, EngineError> {
        let captured = self.0.capture(request);
        lock(&self.1).push(Instant::now());
        captured
    }

    fn spread(&self) {
        lock(&self.1).push(Instant::now());
    }
}

#[test]
fn what_lets_work_in_has_the_rest_of_it_for_the_first_requests() {
    let noted = Arc::new(Mutex::new(Vec::new()));
    let engine = Arc::new(Noting(SimEngine::new(), noted.clone()));
    let context = Context::builder("test", engine).build().unwrap();
    let told = Told { name: "listener", log: Log::default(), before: Act::Well, after: Act::Well };
    let _kept = context.register(ResourceOptions::new("listener").phase(Phase::Ingress).brief(), told);
    let completed = context.request(CheckpointRequest::new(Mode::Exit)).wait(LONG).unwrap();
    let Ok(Completed::Restored(_, report)) = completed else { panic!("{completed:?}") };
    let noted = lock(&noted);
    let [came_back, spread] = noted[..] else { panic!("{noted:?}") };
    assert!(spread - came_back >= CONFINED_MAX, "{:?}", spread - came_back);
    assert!(report.resources.iter().any(|resource| resource.name == "listener" && resource.after.is_some()));
}
