//! The one thread that may change the state.
//!
//! It takes messages (requests, ends of hooks), turns them into events, asks [`step`](crate::state::step) what to do, and does
//! it. It is a plain thread with its own deadlines, because no async task runs while the runtimes are held.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, PoisonError, atomic::Ordering, mpsc},
    time::{Duration, Instant},
};

use crate::{
    EXIT_RESTORE_FAILED, chart,
    context::{Shared, SweepWork, describe},
    engine::{CaptureRequest, Captured, EngineError, ImageMetadata, Mode, Restoration},
    hook::{HookEnd, Token, panic_text},
    lineage::ImageId,
    lock,
    report::{FailureKind, Report, RoundEnding},
    request::{Admission, CheckpointError, CheckpointRequest, Completed, Denial, Standing, admit},
    resource::LeftOut,
    restore::{AbortReason, Inner, Outcome, RestoreContext},
    round::{Answer, RoundData, Watches},
    seams::RoundProgress,
    state::{Effect, Ending, Event, RestoreFailure, Round, State, step},
};

mod batch;

/// How often requests are answered while a capture goes on beside the process.
const SETTLE_LOOK: Duration = Duration::from_millis(20);

/// For how long a restored life may be kept on one processor. What takes longer than this has more to do than to wake others.
/// If its door is open before, the first requests have what is left of it for themselves.
const CONFINED_MAX: Duration = Duration::from_millis(3);

/// What the coordinator is told.
pub(crate) enum Message {
    /// Somebody asks for a checkpoint. `inbox` is a sender into the coordinator's own inbox, for the hooks of the round: the
    /// coordinator keeps none between rounds, so that it ends with the last context.
    Request { request: CheckpointRequest, recursive: bool, answer: Answer, inbox: mpsc::Sender<Message> },
    /// A hook call has ended.
    HookEnded { token: Token, end: HookEnd, took: Duration },
}

/// The coordinator: its state and what it drives.
pub(crate) struct Coordinator {
    shared: Arc<Shared>,
    inbox: mpsc::Receiver<Message>,
    state: State,
    next_token: Token,
    /// Hooks that were given up but are not gone yet, by the resource they belong to.
    lingering: HashMap<u64, Token>,
}

impl Coordinator {
    /// Starts the thread; the sender is its inbox. The thread ends when all senders are gone.
    pub(crate) fn start(shared: Arc<Shared>) -> std::io::Result<mpsc::Sender<Message>> {
        let (sender, inbox) = mpsc::channel();
        let coordinator = Coordinator { shared, inbox, state: State::Open, next_token: 0, lingering: HashMap::new() };
        std::thread::Builder::new().name("crac-coord".into()).spawn(move || coordinator.run())?;
        Ok(sender)
    }

    fn run(mut self) {
        while let Ok(message) = self.inbox.recv() {
            match message {
                Message::Request { request, recursive, answer, inbox } => match self.admit(&request, recursive, None) {
                    Admission::Accept => self.round(request, answer, &inbox),
                    Admission::Join => unreachable!("there is no round to join between rounds"),
                    Admission::Deny(denial) => deny(&request, answer, denial),
                },
                Message::HookEnded { token, .. } => self.lingering.retain(|_, lingering| *lingering != token),
            }
        }
    }

    fn admit(&self, request: &CheckpointRequest, recursive: bool, round: Option<&RoundData>) -> Admission {
        let needs = self.shared.engine.needs();
        let standing = Standing {
            running: round.map(|round| &round.request),
            joinable: round.is_some_and(|round| !round.captured && round.request.outside.is_none()),
            degraded: matches!(self.state, State::Shut | State::Gone),
            modes: needs.modes,
            outside: needs.outside,
        };
        admit(request, recursive, standing)
    }

    /// Takes what is in the inbox while a round runs.
    fn answer_late_comer(&self, round: &mut RoundData, request: CheckpointRequest, recursive: bool, answer: Answer) {
        match self.admit(&request, recursive, Some(round)) {
            Admission::Join => round.join(request, answer),
            Admission::Deny(denial) => deny(&request, answer, denial),
            Admission::Accept => unreachable!("a round is under way"),
        }
    }

    /// Answers what is in the inbox, without waiting. A request that was made before the capture must not be found there by the
    /// restored life, which would save itself and end, in every clone.
    fn answer_late_comers(&mut self, round: &mut RoundData) {
        while let Ok(message) = self.inbox.try_recv() {
            match message {
                Message::Request { request, recursive, answer, .. } => self.answer_late_comer(round, request, recursive, answer),
                Message::HookEnded { token, .. } => self.lingering.retain(|_, lingering| *lingering != token),
            }
        }
    }

    /// Drives one round from the request to the answer.
    fn round(&mut self, request: CheckpointRequest, answer: Answer, inbox: &mpsc::Sender<Message>) {
        let mut round = self.begin(request, answer);
        let span = tracing::info_span!("checkpoint", name = %self.shared.name(), mode = %round.request.mode, image = %round.image.display());
        let _entered = span.enter();
        let mut event = Event::Requested { round: Round { mode: round.request.mode, batches: round.batches.len() } };
        loop {
            let (next, effects) = step(self.state, event, self.shared.on_restore_failure)
                .unwrap_or_else(|_| unreachable!("{event:?} cannot happen in {:?}", self.state));
            self.state = next;
            *lock(&self.shared.state) = chart::name(next);
            let mut follow_up = None;
            for effect in effects {
                follow_up = self.perform(effect, &mut round, inbox).or(follow_up);
            }
            match follow_up {
                Some(next_event) => event = next_event,
                None => return,
            }
        }
    }

    fn begin(&self, request: CheckpointRequest, answer: Answer) -> RoundData {
        let now = Instant::now();
        let life = self.shared.life.read().unwrap_or_else(PoisonError::into_inner).clone();
        let image = request.image.clone().unwrap_or_else(|| self.shared.image());
        // Without a working directory a relative path stays relative, and the engine says what is wrong with it.
        let image = std::path::absolute(&image).unwrap_or(image);
        RoundData {
            image,
            metadata: ImageMetadata::new(
                self.shared.name(),
                ImageId(self.shared.host.fresh_id()),
                life.generation(),
                life.lineage(),
            ),
            batches: self.shared.registry.batches(),
            host_before: self.shared.host.facts(),
            answers: vec![answer],
            captured: false,
            watches: Watches(request.watch.iter().cloned().collect()),
            own_descriptors: request.own_descriptors.clone(),
            left_out: LeftOut::default(),
            request,
            held: Vec::new(),
            suspended: Vec::new(),
            held_threads: 0,
            stages: Vec::new(),
            resources: Vec::new(),
            failures: Vec::new(),
            obstacles: Vec::new(),
            sweeping: Vec::new(),
            capture: None,
            underway: None,
            asleep: None,
            took_before: Duration::ZERO,
            begun: now,
            way_deadline: now + self.shared.deadlines.down,
            confined_until: None,
        }
    }

    /// Does one effect; what comes of it is the next event. Effects that nothing comes of are followed by others.
    fn perform(&mut self, effect: Effect, round: &mut RoundData, inbox: &mpsc::Sender<Message>) -> Option<Event> {
        let _span = tracing::debug_span!("phase", ?effect).entered();
        match effect {
            Effect::ShutDoor => {
                lock(&self.shared.gates).iter().for_each(crate::Gate::shut);
                round.advanced(RoundProgress::Shut);
                None
            }
            Effect::Before(at) => Some(self.before(at, round, inbox)),
            Effect::Hold => Some(self.hold(round)),
            Effect::Audit => Some(self.audit(round)),
            Effect::Capture { rehearse } => Some(self.capture(rehearse, round)),
            Effect::Sweep => Some(self.sweep(round)),
            Effect::Release => Some(self.release(round)),
            Effect::After { at, ending } => Some(self.after(at, ending, round, inbox)),
            Effect::OpenDoor => {
                lock(&self.shared.gates).iter().for_each(crate::Gate::open);
                round.advanced(RoundProgress::Open);
                None
            }
            Effect::Answer { ending } => {
                self.answer(ending, round);
                None
            }
            Effect::RestoreFailed => {
                self.spread(round);
                self.restore_failed(round);
                None
            }
        }
    }

    fn hold(&self, round: &mut RoundData) -> Event {
        let begun = Instant::now();
        round.advanced(RoundProgress::Hold);
        let triggers: Vec<_> = lock(&self.shared.triggers).iter().map(|(_, trigger)| trigger.clone()).collect();
        triggers.iter().for_each(|trigger| trigger.suspend());
        round.suspended = triggers;
        let deadline = begun + self.shared.deadlines.hold;
        let runtimes: Vec<_> = lock(&self.shared.holds).iter().map(|(_, runtime)| runtime.clone()).collect();
        let mut all_held = true;
        for runtime in runtimes {
            match runtime.hold(deadline) {
                Ok(held) => round.held.push(held),
                Err(obstacles) => {
                    all_held = false;
                    round.fail(
                        runtime.name(),
                        "hold",
                        FailureKind::Late,
                        format!("the runtime did not stop within {:?}", self.shared.deadlines.hold),
                    );
                    round.obstacles.extend(obstacles);
                }
            }
        }
        round.held_threads = round.held.iter().map(|held| held.threads()).sum();
        round.stage("hold", begun);
        if all_held { Event::Held } else { Event::NotHeld }
    }

    fn audit(&self, round: &mut RoundData) -> Event {
        let begun = Instant::now();
        round.advanced(RoundProgress::Audit);
        let mut clear = true;
        // No hook of the way down is told any more.
        round.own_descriptors.append(&mut lock(&round.left_out));
        if let Some(audit) = &self.shared.audit {
            match audit.audit(&self.shared.engine.needs(), &self.shared.policy, &round.own_descriptors) {
                Ok(obstacles) => {
                    clear = obstacles.is_empty();
                    round.obstacles.extend(obstacles);
                }
                Err(error) => {
                    clear = false;
                    round.fail("audit", "audit", FailureKind::Error, describe(&error));
                }
            }
        }
        if self.shared.policy.is_pristine() {
            let used: Vec<_> =
                lock(&self.shared.gates).iter().filter(|gate| gate.was_used()).map(|gate| gate.name().to_owned()).collect();
            clear &= used.is_empty();
            round.obstacles.extend(used.into_iter().map(|name| crate::Obstacle::new(crate::ObstacleKind::RequestServed, name)));
        }
        round.stage("audit", begun);
        Event::Audited { clear }
    }

    fn capture(&mut self, rehearse: bool, round: &mut RoundData) -> Event {
        self.answer_late_comers(round);
        round.captured = true;
        let event = self.call_engine(rehearse, round);
        // Of threads that are not held and asked between the look above and the capture.
        self.answer_late_comers(round);
        event
    }

    fn call_engine(&self, rehearse: bool, round: &mut RoundData) -> Event {
        let begun = Instant::now();
        round.advanced(RoundProgress::Capture);
        let mode = if rehearse { Mode::Rehearse } else { round.request.mode };
        let request = CaptureRequest::new(round.image.clone(), mode, round.metadata.clone(), &self.shared.policy)
            .data_only(round.request.data_only)
            .own_descriptors(round.own_descriptors.clone())
            .watch(Arc::new(round.watches.clone()))
            .outside(round.request.outside.clone());
        round.took_before = round.begun.elapsed();
        let captured = catch_unwind(AssertUnwindSafe(|| self.shared.engine.capture(request)));
        match captured {
            Ok(Ok(Captured::Original(report))) => {
                round.capture = Some(report);
                round.stage("capture", begun);
                round.begun = begun;
                Event::CaptureDone
            }
            Ok(Ok(Captured::Underway(underway))) => {
                round.underway = Some(underway);
                round.stage("capture", begun);
                round.begun = begun;
                Event::CaptureDone
            }
            Ok(Ok(Captured::Restored(restoration))) => {
                round.begun = Instant::now();
                round.confined_until = Some(round.begun + CONFINED_MAX);
                round.capture = Some(crate::CaptureReport { bytes: 0, stages: restoration.stages.clone() });
                self.begin_life(restoration, round);
                Event::CameBack
            }
            Ok(Err(error)) => {
                round.stage("capture", begun);
                round.begun = begun;
                Event::CaptureFailed { reason: self.engine_error(error, round) }
            }
            Err(panic) => {
                round.begun = begun;
                round.fail(self.shared.engine.needs().engine, "capture", FailureKind::Panicked, panic_text(&*panic));
                Event::CaptureFailed { reason: AbortReason::Engine }
            }
        }
    }

    /// Waits for the end of a capture that goes on beside the process, which serves meanwhile. The resources have been told that
    /// it was captured; whether there is an image, they do not need to know.
    fn settle(&mut self, ending: Ending, round: &mut RoundData) -> Ending {
        let Some(mut underway) = round.underway.take() else { return ending };
        let begun = Instant::now();
        let ended = loop {
            match catch_unwind(AssertUnwindSafe(|| underway.wait(SETTLE_LOOK))) {
                Ok(None) => self.answer_late_comers(round),
                Ok(Some(ended)) => break Ok(ended),
                Err(panic) => break Err(panic_text(&*panic)),
            }
        };
        round.stage("write", begun);
        let reason = match ended {
            Ok(Ok(report)) => {
                round.capture = Some(report);
                return ending;
            }
            Ok(Err(error)) => self.engine_error(error, round),
            Err(panic) => {
                round.fail(self.shared.engine.needs().engine, "capture", FailureKind::Panicked, panic);
                AbortReason::Engine
            }
        };
        Ending::Aborted(reason)
    }

    /// Lets a restored life use all its processors, if that has not been done.
    fn spread(&self, round: &mut RoundData) {
        if round.confined_until.take().is_some() {
            self.shared.engine.spread();
        }
    }

    fn engine_error(&self, error: EngineError, round: &mut RoundData) -> AbortReason {
        match error {
            EngineError::Refused(obstacles) => {
                // The audit may have found the same, and knows the owner.
                let is_new = |new: &crate::Obstacle| !round.obstacles.iter().any(|known| known.is_about_same_thing(new));
                let new: Vec<_> = obstacles.into_iter().filter(is_new).collect();
                round.obstacles.extend(new);
                AbortReason::Obstacles
            }
            other => {
                let what = describe(&(Box::new(other) as crate::BoxError));
                round.fail(self.shared.engine.needs().engine, "capture", FailureKind::Error, what);
                AbortReason::Engine
            }
        }
    }

    /// Makes the restored life the current one, before anything else of it runs.
    fn begin_life(&self, restoration: Restoration, round: &mut RoundData) {
        round.asleep = Some(restoration.asleep_wall);
        let life = RestoreContext {
            inner: Arc::new(Inner {
                outcome: Outcome::Restored,
                generation: restoration.generation,
                image_id: Some(restoration.image_id),
                instance_id: restoration.instance_id,
                asleep_wall: restoration.asleep_wall,
                asleep_monotonic: restoration.asleep_monotonic,
                args: restoration.args,
                env: restoration.env,
                listeners: restoration.listeners,
                host_before: round.host_before.clone(),
                host: self.shared.host.clone(),
                host_after: Default::default(),
                env_changes: Default::default(),
                limit: self.shared.deadlines.hook,
            }),
        };
        self.shared.generation.store(restoration.generation, Ordering::Release);
        if self.shared.apply_env {
            // The difference to the old environment can only be seen before the new one is applied.
            life.env_changes();
            if let Err(error) = self.shared.host.apply_env(life.env()) {
                round.fail("environment", "apply_env", FailureKind::Error, describe(&error));
            }
        }
        *self.shared.life.write().unwrap_or_else(PoisonError::into_inner) = life;
    }

    fn sweep(&self, round: &mut RoundData) -> Event {
        let begun = Instant::now();
        let work: Vec<(String, SweepWork)> = lock(&self.shared.sweeps).clone();
        let all: SweepWork = Arc::new(move || {
            for (name, work) in &work {
                if catch_unwind(AssertUnwindSafe(|| work())).is_err() {
                    tracing::error!(sweep = %name, "a sweep closure panicked: what it should have made fresh may repeat");
                }
            }
        });
        // Each held thread goes on as soon as it has swept: the last is asked for when the door is open.
        round.sweeping = round.held.iter().map(|held| held.sweep(all.clone())).collect();
        all();
        round.stage("sweep", begun);
        Event::Swept
    }

    fn release(&self, round: &mut RoundData) -> Event {
        let begun = Instant::now();
        round.held.drain(..).for_each(|held| held.release());
        round.way_deadline = begun + self.shared.deadlines.up;
        round.stage("release", begun);
        Event::Released
    }

    /// Lets requests in from outside again: last, so that the first answer of a restored life does not wait for it.
    fn resume_triggers(&self, round: &mut RoundData) {
        let restored = round.asleep.is_some();
        for trigger in std::mem::take(&mut round.suspended) {
            if let Err(error) = trigger.resume(restored) {
                round.fail("trigger", "resume", FailureKind::Error, describe(&error));
            }
        }
    }

    /// Leaves the processor on which a restored life still is to the first requests, behind a door that has just been opened. What
    /// is left of the round would run there before them, and more processors would have to be told of every page that they touch.
    fn serve_first(round: &mut RoundData) {
        let Some(until) = round.confined_until.filter(|_| round.lets_work_in()) else { return };
        let begun = Instant::now();
        // Whoever asks for a checkpoint meanwhile is answered when this round has been.
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            std::thread::park_timeout(left);
        }
        // This is no part of what the round took.
        round.begun += begun.elapsed();
    }

    fn answer(&mut self, ending: Ending, round: &mut RoundData) {
        Self::serve_first(round);
        self.spread(round);
        if ending == Ending::Restored {
            self.shared.engine.settle();
            self.shared.life.read().unwrap_or_else(PoisonError::into_inner).inner.listeners.close();
        }
        let deadline = Instant::now() + self.shared.deadlines.hold;
        let unswept = round.sweeping.drain(..).flat_map(|sweeping| sweeping.unswept(deadline)).collect();
        self.resume_triggers(round);
        let ending = self.settle(ending, round);
        let report = Arc::new(self.report(ending, round, unswept));
        tracing::info!(ending = ?report.ending, took_ms = report.took.as_secs_f64() * 1e3, failures = report.failures.len(), obstacles = report.obstacles.len(), "checkpoint round ended");
        let completed = match ending {
            Ending::Continued => Ok(Completed::Continued(report)),
            Ending::Restored => {
                Ok(Completed::Restored(self.shared.life.read().unwrap_or_else(PoisonError::into_inner).clone(), report))
            }
            Ending::Aborted(AbortReason::Rehearsed) => Ok(Completed::Rehearsed(report)),
            Ending::Aborted(_) => Err(CheckpointError::Aborted(report)),
        };
        round.watches.0.iter().for_each(|watch| watch.ended(&completed));
        for answer in round.answers.drain(..) {
            // Whoever dropped the ticket does not want to know.
            let _ = answer.send(completed.clone());
        }
    }

    fn report(&self, ending: Ending, round: &mut RoundData, unswept: Vec<String>) -> Report {
        let life = self.shared.life.read().unwrap_or_else(PoisonError::into_inner).clone();
        Report {
            name: self.shared.name(),
            engine: self.shared.engine.needs().engine.to_owned(),
            mode: round.request.mode,
            ending: match ending {
                Ending::Aborted(AbortReason::Rehearsed) => RoundEnding::Rehearsed,
                Ending::Aborted(_) => RoundEnding::Aborted,
                Ending::Continued => RoundEnding::Continued,
                Ending::Restored => RoundEnding::Restored,
            },
            generation: life.generation(),
            instance_id: life.instance_id(),
            image_id: round.metadata.image_id,
            image: round.image.clone(),
            phases: std::mem::take(&mut round.stages),
            resources: std::mem::take(&mut round.resources),
            held_threads: round.held_threads,
            capture: round.capture.take(),
            failures: round.failures.clone(),
            obstacles: std::mem::take(&mut round.obstacles),
            unswept,
            asleep: round.asleep,
            took: round.took_before + round.begun.elapsed(),
        }
    }

    fn restore_failed(&self, round: &RoundData) {
        let failures: Vec<_> = round.failures.iter().map(ToString::to_string).collect();
        let failures = failures.join("; ");
        match self.shared.on_restore_failure {
            RestoreFailure::Exit => {
                // Not only to the log: whoever reads the exit status looks at standard error next.
                eprintln!("crac: {} was restored but did not come back whole: {failures}; start it cold", self.shared.name());
                std::process::exit(EXIT_RESTORE_FAILED)
            }
            RestoreFailure::StayShut => {
                tracing::error!(name = %self.shared.name(), %failures, "the restored life did not come back whole: the door stays shut");
            }
        }
    }
}

fn deny(request: &CheckpointRequest, answer: Answer, denial: Denial) {
    let error = CheckpointError::Denied(denial);
    if let Some(watch) = &request.watch {
        watch.ended(&Err(error.clone()));
    }
    // Whoever dropped the ticket does not want to know.
    let _ = answer.send(Err(error));
}

#[cfg(test)]
mod tests;
