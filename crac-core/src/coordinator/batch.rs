//! Telling one batch of resources, and waiting for them: the only place where hooks run.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, atomic::Ordering, mpsc},
    task::{Context, Waker},
    time::{Duration, Instant},
};

use tracing::Instrument as _;

use super::{Coordinator, Message};
use crate::{
    context::describe,
    hook::{self, HookEnd, Token},
    registry::Entry,
    report::FailureKind,
    resource::{BoxError, CheckpointContext},
    restore::{Inner, Outcome, RestoreContext},
    round::RoundData,
    seams::{BoxFuture, RoundProgress, Spawned, Spawner},
    state::{Ending, Event},
};

/// The direction of a batch.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Down,
    Up,
}

impl Way {
    fn hook(self) -> &'static str {
        match self {
            Way::Down => "before_checkpoint",
            Way::Up => "after_restore",
        }
    }
}

/// Makes one hook call of a resource, which may take so long.
type MakeHook<'a> = dyn Fn(&Arc<Entry>, Duration) -> BoxFuture<Result<(), BoxError>> + 'a;

/// A hook call that is under way.
struct Running {
    entry: Arc<Entry>,
    task: Box<dyn Spawned>,
    deadline: Instant,
    limit: Duration,
}

impl Coordinator {
    /// Tells batch `at` to let go.
    pub(super) fn before(&mut self, at: usize, round: &mut RoundData, inbox: &mpsc::Sender<Message>) -> Event {
        let (mode, generation) = (round.request.mode, round.metadata.generation);
        let needs = self.shared.engine.needs();
        let (keeps_sockets, leaves_out_undumpable) = (needs.keeps_sockets, needs.leaves_out_undumpable);
        let left_out = round.left_out.clone();
        let hook = move |entry: &Arc<Entry>, limit: Duration| -> BoxFuture<Result<(), BoxError>> {
            let resource = entry.resource.clone();
            let context = CheckpointContext {
                mode,
                generation,
                keeps_sockets,
                remaining: limit,
                leaves_out_undumpable,
                left_out: left_out.clone(),
            };
            Box::pin(async move { resource.before_checkpoint(&context).await })
        };
        let failures = round.failures.len();
        if self.batch(Way::Down, at, round, inbox, &hook) {
            return Event::BatchDone { failed: round.failures.len() > failures };
        }
        // The way up begins here, without a release.
        round.way_deadline = Instant::now() + self.shared.deadlines.up;
        Event::DownDeadline
    }

    /// Tells batch `at` how the round ended.
    pub(super) fn after(&mut self, at: usize, ending: Ending, round: &mut RoundData, inbox: &mpsc::Sender<Message>) -> Event {
        let life = self.shared.life.read().unwrap_or_else(PoisonError::into_inner).clone();
        let outcome = match ending {
            Ending::Aborted(reason) => Outcome::Aborted(reason),
            Ending::Continued => Outcome::Continued,
            Ending::Restored => Outcome::Restored,
        };
        let context = if outcome == life.outcome() { life } else { same_life(&life, outcome, round) };
        let hook = move |entry: &Arc<Entry>, _limit: Duration| -> BoxFuture<Result<(), BoxError>> {
            let (resource, context) = (entry.resource.clone(), context.clone());
            Box::pin(async move { resource.after_restore(&context).await })
        };
        let failures = round.failures.len();
        let in_time = self.batch(Way::Up, at, round, inbox, &hook);
        if in_time { Event::BatchDone { failed: round.failures.len() > failures } } else { Event::UpDeadline }
    }

    /// Runs one hook of each resource of batch `at`; false if the deadline of the whole way passed meanwhile.
    fn batch(&mut self, way: Way, at: usize, round: &mut RoundData, inbox: &mpsc::Sender<Message>, hook: &MakeHook<'_>) -> bool {
        let begun = Instant::now();
        let mut batch = round.batches[at].clone();
        if way == Way::Up {
            batch.reverse();
            batch.retain(|entry| !entry.options.only_before);
            if batch.is_empty() {
                return Instant::now() < round.way_deadline;
            }
        }
        let mut running = HashMap::new();
        for entry in batch {
            self.tell(way, entry, round, inbox, hook, &mut running);
        }
        let in_time = self.wait(way, round, &mut running);
        let phase = round.batches[at].first().map(|entry| entry.options.phase.to_string()).unwrap_or_default();
        let direction = if way == Way::Down { "down" } else { "up" };
        round.stage(&format!("{phase} {direction}"), begun);
        in_time
    }

    fn tell(
        &mut self,
        way: Way,
        entry: Arc<Entry>,
        round: &mut RoundData,
        inbox: &mpsc::Sender<Message>,
        hook: &MakeHook<'_>,
        running: &mut HashMap<Token, Running>,
    ) {
        let name = entry.options.name.clone();
        if !self.is_free(way, &entry, round, running) {
            let wedged_before = entry.wedged.swap(true, Ordering::Relaxed);
            // A wedged resource makes a checkpoint impossible, but must not keep an abort from ending.
            if way == Way::Down || !wedged_before {
                round.fail(
                    name,
                    way.hook(),
                    FailureKind::Wedged,
                    "an earlier hook never ended; it is skipped from now on, restart the service",
                );
            }
            return;
        }
        let is_late = round.confined_until.is_some_and(|until| until <= Instant::now());
        if !entry.options.brief || is_late {
            self.spread(round);
        }
        let phase = entry.options.phase;
        round.advanced(match way {
            Way::Down => RoundProgress::Before { resource: name.clone(), phase },
            Way::Up => RoundProgress::After { resource: name.clone(), phase },
        });
        let now = Instant::now();
        let limit = entry.options.deadline.unwrap_or(self.shared.deadlines.hook);
        let limit = limit.min(round.way_deadline.saturating_duration_since(now));
        let token = self.next_token;
        self.next_token += 1;
        let span = tracing::debug_span!("resource", %name, %phase, hook = way.hook());
        let mut task: BoxFuture<()> = Box::pin(hook::task(token, hook(&entry, limit), inbox.clone()).instrument(span));
        let spawner = self.shared.spawner.read().unwrap_or_else(PoisonError::into_inner).clone();
        let spawned = match way == Way::Up && entry.options.begin_at_once && ends_at_once(&*spawner, &mut task) {
            true => Ok(Box::new(HasEnded) as Box<dyn Spawned>),
            false => spawner.spawn(task),
        };
        match spawned {
            Ok(task) => {
                running.insert(token, Running { entry, task, deadline: now + limit, limit });
            }
            Err(error) => round.fail(name, way.hook(), FailureKind::Error, describe(&error)),
        }
    }

    /// Whether no earlier hook of `entry` is still there; waits for its end, at most the grace.
    fn is_free(&mut self, way: Way, entry: &Arc<Entry>, round: &mut RoundData, running: &mut HashMap<Token, Running>) -> bool {
        let deadline = Instant::now() + self.shared.deadlines.grace;
        while self.lingering.contains_key(&entry.id) {
            if entry.wedged.load(Ordering::Relaxed) {
                return false;
            }
            match self.inbox.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                // It may be that of a neighbour that was told a moment ago.
                Ok(Message::HookEnded { token, end, took }) => match running.remove(&token) {
                    Some(hook) => Self::ended(way, &hook.entry, end, took, round),
                    None => self.lingering.retain(|_, lingering| *lingering != token),
                },
                Ok(Message::Request { request, recursive, answer, .. }) => {
                    self.answer_late_comer(round, request, recursive, answer)
                }
                Err(_) => return false,
            }
        }
        !entry.wedged.load(Ordering::Relaxed)
    }

    /// Waits for the hooks in `running`, each within its deadline.
    fn wait(&mut self, way: Way, round: &mut RoundData, running: &mut HashMap<Token, Running>) -> bool {
        while let Some(first) = running.values().map(|hook| hook.deadline).min() {
            let until = round.confined_until.map_or(first, |confined_until| confined_until.min(first));
            match self.inbox.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Message::HookEnded { token, end, took }) => match running.remove(&token) {
                    Some(hook) => Self::ended(way, &hook.entry, end, took, round),
                    None => self.lingering.retain(|_, lingering| *lingering != token),
                },
                Ok(Message::Request { request, recursive, answer, .. }) => {
                    self.answer_late_comer(round, request, recursive, answer)
                }
                Err(_) => {
                    self.spread(round);
                    self.give_up_late(way, round, running);
                }
            }
        }
        Instant::now() < round.way_deadline
    }

    fn ended(way: Way, entry: &Entry, end: HookEnd, took: Duration, round: &mut RoundData) {
        let report = round.resource(entry);
        *(if way == Way::Down { &mut report.before } else { &mut report.after }) = Some(took);
        let (kind, what) = match end {
            HookEnd::Done => return,
            HookEnd::Failed(what) => (FailureKind::Error, what),
            HookEnd::Panicked(what) => (FailureKind::Panicked, format!("it panicked: {what}")),
            HookEnd::Dropped => {
                (FailureKind::Error, "its task was dropped by the runtime; is the runtime shutting down?".to_owned())
            }
        };
        round.fail(&entry.options.name, way.hook(), kind, what);
    }

    fn give_up_late(&mut self, way: Way, round: &mut RoundData, running: &mut HashMap<Token, Running>) {
        let now = Instant::now();
        let late: Vec<Token> = running.iter().filter(|(_, hook)| hook.deadline <= now).map(|(token, _)| *token).collect();
        for token in late {
            let Some(hook) = running.remove(&token) else { continue };
            hook.task.abort();
            let open = hook.entry.options.explain.as_ref().map(|explain| format!("; {}", explain())).unwrap_or_default();
            let what =
                format!("it did not end within {:?} and was dropped{open}; make it faster or raise its deadline", hook.limit);
            round.fail(&hook.entry.options.name, way.hook(), FailureKind::Late, what);
            self.lingering.insert(hook.entry.id, token);
        }
    }
}

/// Polls a hook's task once, here. If it is not at its end then, the task it becomes polls it again and is woken from there on.
fn ends_at_once(spawner: &dyn Spawner, task: &mut BoxFuture<()>) -> bool {
    let mut ended = false;
    spawner.inside(&mut || {
        ended = task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
    });
    ended
}

/// A hook that needed no task; its end is in the inbox.
struct HasEnded;

impl Spawned for HasEnded {
    fn abort(&self) {}
}

/// `life` as a resource sees it when no other life has begun.
fn same_life(life: &RestoreContext, outcome: Outcome, round: &RoundData) -> RestoreContext {
    RestoreContext {
        inner: Arc::new(Inner {
            outcome,
            generation: life.generation(),
            image_id: life.lineage(),
            instance_id: life.instance_id(),
            asleep_wall: Duration::ZERO,
            asleep_monotonic: Duration::ZERO,
            args: Vec::new(),
            env: Vec::new(),
            listeners: Default::default(),
            host_before: round.host_before.clone(),
            host: life.inner.host.clone(),
            host_after: Default::default(),
            env_changes: Default::default(),
            limit: life.inner.limit,
        }),
    }
}
