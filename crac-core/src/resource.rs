//! What takes part in a checkpoint, and in which order.

use std::{
    fmt,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{engine::Mode, lock, registry::Registry, restore::RestoreContext};

/// What a hook may fail with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Something that must let go before the process is saved, and come back afterwards.
///
/// The model is `org.crac.Resource` of OpenJDK's CRaC. Both hooks default to nothing.
///
/// # What the coordinator owes you
///
/// * Hooks run as tasks of the runtime (through the context's [`Spawner`](crate::Spawner)), never two at a time for one resource.
/// * The door is already shut when the first `before_checkpoint` runs: no new request passes a [`Gate`](crate::Gate).
/// * Order at the checkpoint: [`Phase::Ingress`] → [`Phase::Work`] → [`Phase::Service`] → [`Phase::Egress`]; within a phase the
///   resource registered last comes first. Order afterwards: exactly backwards.
/// * Everyone is told. A resource whose `before_checkpoint` failed, was late or panicked still gets `after_restore`.
/// * `after_restore` runs once for each `before_checkpoint` that was started, in each of the three outcomes: see
///   [`RestoreContext::outcome`]; unless the resource was registered [`only_before`](ResourceOptions::only_before). It must put back in order whatever `before_checkpoint` left half done.
///
/// # What you owe
///
/// * Keep to the deadline. A late future is dropped at its next `.await`; the round fails and names you. A hook that blocks
///   its thread cannot be dropped: such a resource is *wedged* and is skipped, by name, from then on.
/// * Do not ask for a checkpoint from a hook: that request is denied.
/// * A registration made inside a hook counts from the next round.
///
/// A panic counts as a failure. With `panic = "abort"` in the profile that promise cannot be kept: the process dies.
#[async_trait]
pub trait Resource: Send + Sync + 'static {
    /// Lets go of what cannot be saved.
    ///
    /// # Errors
    ///
    /// Any error makes the round fail: the process is not saved, and all resources get `after_restore` with
    /// [`Outcome::Aborted`](crate::Outcome::Aborted).
    async fn before_checkpoint(&self, _context: &CheckpointContext) -> Result<(), BoxError> {
        Ok(())
    }

    /// Comes back: in a restored life, in the same process that went on, or after an aborted round.
    ///
    /// # Errors
    ///
    /// Reported with the round. In a restored life an error also triggers the context's
    /// [`RestoreFailure`](crate::RestoreFailure) policy.
    async fn after_restore(&self, _context: &RestoreContext) -> Result<(), BoxError> {
        Ok(())
    }
}

/// When a resource is told, relative to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// What lets work in: listeners, consumers, timers that start jobs.
    Ingress,
    /// What is in flight: requests, jobs, upgraded connections.
    Work,
    /// Everything else. The default.
    Service,
    /// What work leaves through: connection pools, clients, log shippers.
    Egress,
}

impl Phase {
    /// All phases in the order of the checkpoint.
    pub const ALL: [Phase; 4] = [Phase::Ingress, Phase::Work, Phase::Service, Phase::Egress];
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Phase::Ingress => "ingress",
            Phase::Work => "work",
            Phase::Service => "service",
            Phase::Egress => "egress",
        })
    }
}

/// How a resource is registered.
#[derive(Clone)]
#[must_use = "pass it to `Context::register`"]
pub struct ResourceOptions {
    pub(crate) name: String,
    pub(crate) phase: Phase,
    pub(crate) deadline: Option<Duration>,
    pub(crate) concurrent: bool,
    pub(crate) explain: Option<Arc<dyn Fn() -> String + Send + Sync>>,
    pub(crate) only_before: bool,
    pub(crate) begin_at_once: bool,
    pub(crate) brief: bool,
}

impl ResourceOptions {
    /// A resource called `name` in [`Phase::Service`], with the context's hook deadline, alone in its turn.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            phase: Phase::Service,
            deadline: None,
            concurrent: false,
            explain: None,
            only_before: false,
            begin_at_once: false,
            brief: false,
        }
    }

    /// Sets the phase.
    pub fn phase(mut self, phase: Phase) -> Self {
        self.phase = phase;
        self
    }

    /// Sets the deadline of each hook call, instead of the context's.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Lets the hooks run together with those of registration neighbours in the same phase that are concurrent too.
    pub fn concurrent(mut self, concurrent: bool) -> Self {
        self.concurrent = concurrent;
        self
    }

    /// Says that `after_restore` does nothing, so that nobody waits for it: each hook of a restored life delays its first answer.
    pub fn only_before(mut self) -> Self {
        self.only_before = true;
        self
    }

    /// Lets `after_restore` begin on the coordinator's own thread, inside the runtime: what ends at its first poll needs no task, and
    /// what does not goes on as one from there. Saves the first answer of a restored life two wake-ups.
    ///
    /// A promise goes with it: that first poll does not block. While it does, no deadline strikes.
    pub fn begin_at_once(mut self) -> Self {
        self.begin_at_once = true;
        self
    }

    /// Says that `after_restore` needs little of a processor, and starts neither processes nor pools of threads: it may then run while the
    /// engine keeps the restored life on one processor ([`Engine::spread`](crate::Engine::spread)), as crac's sockets and pools do.
    pub fn brief(mut self) -> Self {
        self.brief = true;
        self
    }

    /// Says what is still open when a hook is late: `2 connections are checked out`. Called on the coordinator's thread; must not
    /// block.
    pub fn explain(mut self, explain: impl Fn() -> String + Send + Sync + 'static) -> Self {
        self.explain = Some(Arc::new(explain));
        self
    }
}

impl fmt::Debug for ResourceOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResourceOptions")
            .field("name", &self.name)
            .field("phase", &self.phase)
            .field("deadline", &self.deadline)
            .field("concurrent", &self.concurrent)
            .finish_non_exhaustive()
    }
}

/// What `before_checkpoint` may know about the round.
#[derive(Debug, Clone)]
pub struct CheckpointContext {
    pub(crate) mode: Mode,
    pub(crate) generation: u64,
    pub(crate) keeps_sockets: bool,
    pub(crate) remaining: Duration,
    pub(crate) leaves_out_undumpable: bool,
    pub(crate) left_out: LeftOut,
}

/// Numbers of descriptors that are not part of the image.
pub(crate) type LeftOut = Arc<Mutex<Vec<i32>>>;

impl CheckpointContext {
    /// What becomes of this process if the round succeeds.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The generation of the life that is about to be saved.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether sockets survive in the restored life: then there is no need to close and rebind them.
    pub fn keeps_sockets(&self) -> bool {
        self.keeps_sockets
    }

    /// Whether memory with `MADV_DONTDUMP` (madvise(2)) is not saved and is zero in a restored life.
    pub fn leaves_out_undumpable(&self) -> bool {
        self.leaves_out_undumpable
    }

    /// Leaves an open descriptor out of the image: this process keeps it, a restored life does not have it.
    ///
    /// For what belongs to the process that goes on ([`Mode::Continue`]), such as a socket that listens. In a restored life its
    /// number may belong to somebody else before `after_restore` runs: the owner forgets it there and does not close it.
    pub fn leave_out(&self, descriptor: i32) {
        lock(&self.left_out).push(descriptor);
    }

    /// How long this hook may take.
    pub fn deadline(&self) -> Duration {
        self.remaining
    }
}

/// Keeps a resource registered; dropping it takes the resource out.
///
/// Dropped inside a round, it takes effect after that round: a resource that was told to let go is also told to come back.
#[must_use = "dropping the registration takes the resource out again"]
pub struct Registration {
    pub(crate) registry: Weak<Registry>,
    pub(crate) id: u64,
}

impl Registration {
    /// Keeps the resource registered for the rest of the context's life.
    pub fn forever(self) {
        std::mem::forget(self);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(registry) = self.registry.upgrade() {
            registry.remove(self.id);
        }
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration").field("id", &self.id).finish_non_exhaustive()
    }
}
