//! The value a service and its adapters hold: register, ask, look.

use std::{
    ffi::OsString,
    fmt,
    path::PathBuf,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::{
    coordinator::{Coordinator, Message},
    deadlines::Deadlines,
    drain::Drain,
    engine::Engine,
    gate::Gate,
    hook,
    lineage::InstanceId,
    lock,
    policy::Policy,
    registry::{Registry, ResourceInfo},
    request::{CheckpointError, CheckpointRequest, Completed, Ticket},
    resource::{BoxError, Phase, Registration, Resource, ResourceOptions},
    restore::{Inner, Outcome, RestoreContext},
    seams::{Audit, Hold, Host, HostFacts, NoHost, Spawner, ThreadSpawner, Trigger, fresh_instance},
    state::RestoreFailure,
};

/// The context that adapters use when none is named.
static AMBIENT: RwLock<Option<Context>> = RwLock::new(None);

/// One checkpointable service: its resources, its coordinator, its lives. Cheap to clone; clones are the same context.
///
/// Dropping the last clone ends the coordinator's thread. Adapters take a context in their `*_in` functions and use the
/// [ambient](Context::current) one otherwise; without any they are inert, so that tests of a service need no context.
#[derive(Clone)]
pub struct Context {
    shared: Arc<Shared>,
    // Only contexts hold senders, so that the coordinator ends with the last of them.
    inbox: mpsc::Sender<Message>,
}

/// What contexts and their coordinator share.
pub(crate) struct Shared {
    label: RwLock<Label>,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) spawner: RwLock<Arc<dyn Spawner>>,
    pub(crate) audit: Option<Arc<dyn Audit>>,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) deadlines: Deadlines,
    pub(crate) policy: Policy,
    pub(crate) apply_env: bool,
    pub(crate) on_restore_failure: RestoreFailure,
    pub(crate) registry: Arc<Registry>,
    pub(crate) gates: Mutex<Vec<Gate>>,
    pub(crate) holds: Mutex<Vec<(u64, Arc<dyn Hold>)>>,
    pub(crate) sweeps: Mutex<Vec<(String, SweepWork)>>,
    pub(crate) triggers: Mutex<Vec<(u64, Arc<dyn Trigger>)>>,
    pub(crate) generation: AtomicU64,
    pub(crate) life: RwLock<RestoreContext>,
    pub(crate) state: Mutex<&'static str>,
    next_id: AtomicU64,
    ready: Gate,
    ready_deferred: AtomicBool,
}

/// What the service is called and where its images go; the first may change once its arguments are known.
struct Label {
    name: String,
    /// Without it, `NAME.crac`.
    image: Option<PathBuf>,
}

impl Shared {
    /// The service's name.
    pub(crate) fn name(&self) -> String {
        self.label.read().unwrap_or_else(std::sync::PoisonError::into_inner).name.clone()
    }

    /// Where images go when a request does not say.
    pub(crate) fn image(&self) -> PathBuf {
        let label = self.label.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        label.image.clone().unwrap_or_else(|| PathBuf::from(format!("{}.crac", label.name)))
    }
}

/// Work that a sweep does on each held thread.
pub(crate) type SweepWork = Arc<dyn Fn() + Send + Sync>;

/// Everything about a context that can be chosen.
#[must_use = "call `build`"]
pub struct ContextBuilder {
    name: String,
    engine: Arc<dyn Engine>,
    spawner: Arc<dyn Spawner>,
    audit: Option<Arc<dyn Audit>>,
    host: Arc<dyn Host>,
    deadlines: Deadlines,
    policy: Policy,
    image: Option<PathBuf>,
    apply_env: bool,
    on_restore_failure: RestoreFailure,
}

impl ContextBuilder {
    /// Sets who runs the hooks. Default: a thread for each, [`ThreadSpawner`].
    pub fn spawner(mut self, spawner: Arc<dyn Spawner>) -> Self {
        self.spawner = spawner;
        self
    }

    /// Sets who looks through the process. Default: nobody.
    pub fn audit(mut self, audit: Arc<dyn Audit>) -> Self {
        self.audit = Some(audit);
        self
    }

    /// Sets who knows the machine. Default: [`NoHost`].
    pub fn host(mut self, host: Arc<dyn Host>) -> Self {
        self.host = host;
        self
    }

    /// Sets the deadlines.
    pub fn deadlines(mut self, deadlines: Deadlines) -> Self {
        self.deadlines = deadlines;
        self
    }

    /// Sets what to do about things that cannot be saved. Default: refuse all.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Sets where images go when a request does not say. Default: `NAME.crac` in the working directory.
    pub fn image(mut self, image: impl Into<PathBuf>) -> Self {
        self.image = Some(image.into());
        self
    }

    /// Makes the environment of the restore visible to `std::env::vars` in a restored life, through [`Host::apply_env`].
    pub fn apply_env(mut self, apply: bool) -> Self {
        self.apply_env = apply;
        self
    }

    /// Sets what becomes of a restored life whose `after_restore` failed.
    pub fn on_restore_failure(mut self, on_restore_failure: RestoreFailure) -> Self {
        self.on_restore_failure = on_restore_failure;
        self
    }

    /// Starts the coordinator on a thread of its own, `crac-coord`.
    ///
    /// # Errors
    ///
    /// If the thread cannot be started.
    pub fn build(self) -> std::io::Result<Context> {
        let instance_id = fresh_instance(&*self.host);
        let ready = Gate::new("readiness");
        ready.shut();
        let shared = Arc::new(Shared {
            life: RwLock::new(first_life(instance_id, self.host.clone(), &self.deadlines)),
            label: RwLock::new(Label { name: self.name, image: self.image }),
            engine: self.engine,
            spawner: RwLock::new(self.spawner),
            audit: self.audit,
            host: self.host,
            deadlines: self.deadlines,
            policy: self.policy,
            apply_env: self.apply_env,
            on_restore_failure: self.on_restore_failure,
            registry: Arc::default(),
            gates: Mutex::default(),
            holds: Mutex::default(),
            sweeps: Mutex::default(),
            triggers: Mutex::default(),
            generation: AtomicU64::new(0),
            state: Mutex::new("open"),
            next_id: AtomicU64::new(0),
            ready,
            ready_deferred: AtomicBool::new(false),
        });
        let inbox = Coordinator::start(shared.clone())?;
        Ok(Context { shared, inbox })
    }
}

impl fmt::Debug for ContextBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContextBuilder").field("name", &self.name).field("deadlines", &self.deadlines).finish_non_exhaustive()
    }
}

impl Context {
    /// Begins a context of the service called `name`, saved by `engine`.
    pub fn builder(name: impl Into<String>, engine: Arc<dyn Engine>) -> ContextBuilder {
        ContextBuilder {
            name: name.into(),
            engine,
            spawner: Arc::new(ThreadSpawner),
            audit: None,
            host: Arc::new(NoHost),
            deadlines: Deadlines::default(),
            policy: Policy::default(),
            image: None,
            apply_env: false,
            on_restore_failure: RestoreFailure::default(),
        }
    }

    /// The ambient context, if one is installed.
    pub fn current() -> Option<Context> {
        AMBIENT.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Makes this the ambient context, until the guard is dropped.
    ///
    /// # Errors
    ///
    /// If another one is installed: a process has one service. Tests that want several name them.
    pub fn install(&self) -> Result<Ambient, AlreadyInstalled> {
        let mut ambient = AMBIENT.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if ambient.is_some() {
            return Err(AlreadyInstalled);
        }
        *ambient = Some(self.clone());
        Ok(Ambient(()))
    }

    /// The service's name.
    pub fn name(&self) -> String {
        self.shared.name()
    }

    /// Gives the service another name, for one that learns it from its arguments. A round under way may report the old one.
    ///
    /// The default image, `NAME.crac`, follows; an image path that was set when the context was built stays. Names are file names
    /// and stand where a pid may stand: no `/`, not digits alone.
    pub fn rename(&self, name: impl Into<String>) {
        self.shared.label.write().unwrap_or_else(std::sync::PoisonError::into_inner).name = name.into();
    }

    /// The engine.
    pub fn engine(&self) -> &Arc<dyn Engine> {
        &self.shared.engine
    }

    /// The deadlines.
    pub fn deadlines(&self) -> &Deadlines {
        &self.shared.deadlines
    }

    /// Where images go when a request does not say.
    pub fn image(&self) -> PathBuf {
        self.shared.image()
    }

    /// Registers a resource until the registration is dropped. Inside a round it counts from the next one.
    pub fn register(&self, options: ResourceOptions, resource: impl Resource) -> Registration {
        self.shared.registry.add(options, Arc::new(resource))
    }

    /// The registered resources, in registration order.
    pub fn resources(&self) -> Vec<ResourceInfo> {
        self.shared.registry.list()
    }

    /// A gate of this context for the rest of its life: shut when a round begins, drained in [`Phase::Work`], opened at the end.
    ///
    /// `name` says in the plural what passes it. An adapter makes one gate and clones it; a gate that is made inside a round is
    /// open until the next one.
    pub fn gate(&self, name: impl Into<String>) -> Gate {
        let gate = Gate::new(name);
        lock(&self.shared.gates).push(gate.clone());
        let still = gate.clone();
        let options = ResourceOptions::new(format!("in flight: {}", gate.name()))
            .phase(Phase::Work)
            .deadline(self.shared.deadlines.drain)
            .concurrent(true)
            .only_before()
            .explain(move || format!("{} {} still in flight", still.inside(), still.name()));
        self.register(options, Drain(gate.clone())).forever();
        gate
    }

    /// Holds `runtime` in every round, until the guard is dropped.
    pub fn attach(&self, runtime: Arc<dyn Hold>) -> Attachment {
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        lock(&self.shared.holds).push((id, runtime));
        Attachment { shared: Arc::downgrade(&self.shared), id }
    }

    /// Sets who runs the hooks from now on.
    pub fn set_spawner(&self, spawner: Arc<dyn Spawner>) {
        *self.shared.spawner.write().unwrap_or_else(std::sync::PoisonError::into_inner) = spawner;
    }

    /// Runs `work` on every held thread of each restored life, before that thread runs anything else (others may go on by then): to make what is private to
    /// a thread fresh. For the rest of the context's life.
    pub fn on_sweep(&self, name: impl Into<String>, work: impl Fn() + Send + Sync + 'static) {
        lock(&self.shared.sweeps).push((name.into(), Arc::new(work)));
    }

    /// Adds a trigger, until the guard is dropped.
    pub fn add_trigger(&self, trigger: Arc<dyn Trigger>) -> Attachment {
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        lock(&self.shared.triggers).push((id, trigger));
        Attachment { shared: Arc::downgrade(&self.shared), id }
    }

    /// Asks for a checkpoint and waits for its end. In a restored life this returns too: there are two returns, see
    /// [`Completed`].
    ///
    /// Dropping the future does not stop the round.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`]: the request was denied, or the round was aborted and the service serves as before.
    pub async fn checkpoint(&self, request: CheckpointRequest) -> Result<Completed, CheckpointError> {
        self.request(request).await
    }

    /// Asks for a checkpoint; the ticket is the answer to come.
    pub fn request(&self, request: CheckpointRequest) -> Ticket {
        let (sender, answer) = oneshot::channel();
        let message = Message::Request { request, recursive: hook::running_here(), answer: sender, inbox: self.inbox.clone() };
        if let Err(mpsc::SendError(Message::Request { answer, .. })) = self.inbox.send(message) {
            // The receiver is in our hands, so somebody hears it.
            let _ = answer.send(Err(CheckpointError::Gone));
        }
        Ticket { answer }
    }

    /// The generation of this life: one atomic load.
    ///
    /// Zero in a process that was started; one more with every restore. Code that must not repeat itself compares it with the
    /// value it saw last.
    pub fn generation(&self) -> u64 {
        self.shared.generation.load(Ordering::Acquire)
    }

    /// This life: who it is, where it came from, what changed.
    ///
    /// In a process that was started, [`Outcome::Continued`] with generation 0. Aborted and continued rounds do not change it.
    pub fn life(&self) -> RestoreContext {
        self.shared.life.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Says that the service is ready to serve, and so worth a checkpoint. Calls after the first do nothing.
    pub fn mark_ready(&self) {
        if self.shared.ready.is_shut() {
            tracing::info!(name = %self.shared.name(), "ready");
            self.shared.ready.open();
        }
    }

    /// Like [`mark_ready`](Self::mark_ready), said by an adapter that only guesses: without effect after
    /// [`defer_ready`](Self::defer_ready).
    pub fn suggest_ready(&self) {
        if !self.shared.ready_deferred.load(Ordering::Acquire) {
            self.mark_ready();
        }
    }

    /// Announces that the service will say itself when it is ready, so that open listeners do not count as that.
    pub fn defer_ready(&self) {
        self.shared.ready_deferred.store(true, Ordering::Release);
    }

    /// Whether the service has said that it is ready.
    pub fn is_ready(&self) -> bool {
        !self.shared.ready.is_shut()
    }

    /// Waits until the service is ready. May be dropped at any time.
    pub async fn readied(&self) {
        self.shared.ready.opened().await;
    }

    /// What the context is doing.
    pub fn status(&self) -> Status {
        let life = self.life();
        Status {
            name: self.shared.name(),
            engine: self.shared.engine.needs().engine.to_owned(),
            state: (*lock(&self.shared.state)).to_owned(),
            ready: self.is_ready(),
            generation: life.generation(),
            instance_id: life.instance_id(),
            image: self.shared.image(),
            resources: self.resources(),
        }
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("name", &self.shared.name())
            .field("state", &*lock(&self.shared.state))
            .finish_non_exhaustive()
    }
}

/// What a context is doing, for people and scripts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Status {
    /// The service's name.
    pub name: String,
    /// The engine's name.
    pub engine: String,
    /// Where the coordinator stands: `open`, `down`, `holding`, ... as in the chart of states.
    pub state: String,
    /// Whether the service has said that it is ready.
    pub ready: bool,
    /// The generation of this life.
    pub generation: u64,
    /// The identity of this life.
    pub instance_id: InstanceId,
    /// Where images go when a request does not say.
    pub image: PathBuf,
    /// The registered resources.
    pub resources: Vec<ResourceInfo>,
}

/// Keeps a context ambient.
#[derive(Debug)]
#[must_use = "dropping it makes the context no longer ambient"]
pub struct Ambient(());

impl Drop for Ambient {
    fn drop(&mut self) {
        let context = AMBIENT.write().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        drop(context);
    }
}

/// Another context is ambient already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this process already has an ambient crac context; name this one in the adapters' `*_in` functions")]
pub struct AlreadyInstalled;

/// Keeps a runtime or a trigger with its context; dropping it takes it out. Inside a round that takes effect afterwards.
#[must_use = "dropping it takes the runtime or trigger out again"]
pub struct Attachment {
    shared: std::sync::Weak<Shared>,
    id: u64,
}

impl Attachment {
    /// Keeps it for the rest of the context's life.
    pub fn forever(self) {
        std::mem::forget(self);
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            lock(&shared.holds).retain(|(id, _)| *id != self.id);
            lock(&shared.triggers).retain(|(id, _)| *id != self.id);
        }
    }
}

impl fmt::Debug for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attachment").field("id", &self.id).finish_non_exhaustive()
    }
}

fn first_life(instance_id: InstanceId, host: Arc<dyn Host>, deadlines: &Deadlines) -> RestoreContext {
    let nothing: Vec<OsString> = Vec::new();
    RestoreContext {
        inner: Arc::new(Inner {
            outcome: Outcome::Continued,
            generation: 0,
            image_id: None,
            instance_id,
            asleep_wall: std::time::Duration::ZERO,
            asleep_monotonic: std::time::Duration::ZERO,
            args: nothing,
            env: Vec::new(),
            listeners: Default::default(),
            host_before: HostFacts::default(),
            host,
            host_after: Default::default(),
            env_changes: Default::default(),
            limit: deadlines.hook,
        }),
    }
}

/// A failure as text, with its causes.
pub(crate) fn describe(error: &BoxError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::SimEngine;

    #[test]
    fn the_default_image_follows_a_new_name() {
        let context = Context::builder("orders", Arc::new(SimEngine::new())).build().unwrap();
        assert_eq!(context.image(), Path::new("orders.crac"));
        context.rename("billing");
        assert_eq!((context.status().name.as_str(), context.image()), ("billing", PathBuf::from("billing.crac")));
    }

    #[test]
    fn a_chosen_image_stays_with_a_new_name() {
        let context = Context::builder("orders", Arc::new(SimEngine::new())).image("/srv/a.crac").build().unwrap();
        context.rename("billing");
        assert_eq!(context.image(), Path::new("/srv/a.crac"));
    }
}
