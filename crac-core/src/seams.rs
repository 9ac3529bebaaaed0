//! What the coordinator needs from the outside and does not know how to do: run hooks, stop runtimes, look at the process.

use std::{ffi::OsString, fmt, future::Future, pin::Pin, sync::Arc, time::Instant};

use serde::{Deserialize, Serialize};

use crate::{
    engine::{CaptureWatch, Needs},
    lineage::InstanceId,
    obstacle::Obstacle,
    policy::Policy,
    request::{CheckpointError, Completed},
    resource::{BoxError, Phase},
};

/// A boxed future that owns what it needs.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send + 'static>>;

/// Runs hooks, usually on a tokio runtime.
pub trait Spawner: Send + Sync + 'static {
    /// Starts `future` as a task of its own.
    ///
    /// # Errors
    ///
    /// If the runtime is gone. The round then fails with this error.
    fn spawn(&self, future: BoxFuture<()>) -> Result<Box<dyn Spawned>, BoxError>;

    /// Calls `work` on this thread, where it finds the runtime that [`spawn`](Self::spawn) uses: timers and sockets made in it
    /// belong to that runtime. Without a runtime it is just a call.
    fn inside(&self, work: &mut dyn FnMut()) {
        work();
    }
}

/// A task started by a [`Spawner`].
pub trait Spawned: Send {
    /// Asks for the task's future to be dropped at its next `.await`. Does not wait.
    fn abort(&self);
}

/// A runtime whose threads can be brought to a stop at a known place.
pub trait Hold: Send + Sync + 'static {
    /// Name for reports.
    fn name(&self) -> String;

    /// Stops every thread of the runtime; blocks until all are stopped or `deadline` has passed.
    ///
    /// Called on the coordinator's thread. When it fails, everything that was stopped runs again.
    ///
    /// # Errors
    ///
    /// The threads that did not stop, by name.
    fn hold(&self, deadline: Instant) -> Result<Box<dyn Held>, Vec<Obstacle>>;
}

/// A runtime that stands still.
pub trait Held: Send {
    /// How many threads stand still.
    fn threads(&self) -> usize;

    /// Has every held thread run `work` once, before that thread runs anything else. Does not wait for them.
    fn sweep(&self, work: Arc<dyn Fn() + Send + Sync>) -> Box<dyn Sweeping>;

    /// Lets the threads run again, each as soon as it has swept. Does not block.
    fn release(self: Box<Self>);
}

/// Threads that sweep, each for itself.
pub trait Sweeping: Send {
    /// Waits until all have done so, at most until `deadline`; the names of threads on which the work did not run.
    fn unswept(&self, deadline: Instant) -> Vec<String>;
}

/// Looks at the whole process for what no engine of its kind would carry over.
pub trait Audit: Send + Sync + 'static {
    /// Everything that stands in the way, all at once.
    ///
    /// Called on the coordinator's thread while the runtimes are held. `own` are descriptors of the round itself.
    ///
    /// # Errors
    ///
    /// If the process could not be looked at; the round then fails.
    fn audit(&self, needs: &Needs, policy: &Policy, own: &[i32]) -> Result<Vec<Obstacle>, BoxError>;
}

/// Facts about the machine, and fresh identity.
pub trait Host: Send + Sync + 'static {
    /// 128 fresh random bits.
    fn fresh_id(&self) -> [u8; 16];

    /// What this machine is right now.
    fn facts(&self) -> HostFacts;

    /// Makes `env` visible to `std::env`, if the host offers that. Called only when [`ContextBuilder::apply_env`] asked for it,
    /// while all attached runtimes are held.
    ///
    /// # Errors
    ///
    /// If it cannot be done here.
    ///
    /// [`ContextBuilder::apply_env`]: crate::ContextBuilder::apply_env
    fn apply_env(&self, _env: &[(OsString, OsString)]) -> Result<(), BoxError> {
        Err("this host offers no way to change the environment; read RestoreContext::env instead".into())
    }
}

/// What a machine is, as far as a service may care.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HostFacts {
    /// The host's name.
    pub hostname: Option<String>,
    /// The kernel's boot id; another value means another boot or another machine.
    pub boot_id: Option<String>,
    /// Processors this process may use.
    pub cpus: Option<usize>,
    /// Memory limit in bytes, if there is one.
    pub memory_limit: Option<u64>,
    /// Kernel release.
    pub kernel: Option<String>,
}

/// Something that hands in requests from outside and has to be out of the way while the process is saved: a control socket.
pub trait Trigger: Send + Sync + 'static {
    /// Stops listening and gives up what cannot be saved. Called on the coordinator's thread, just before the hold.
    fn suspend(&self);

    /// Listens again; `restored` tells a new life from the old one. Called on the coordinator's thread.
    ///
    /// # Errors
    ///
    /// Reported with the round; the service goes on without this trigger.
    fn resume(&self, restored: bool) -> Result<(), BoxError>;
}

/// Who is told about the progress of a round, the capture included.
pub trait RoundWatch: CaptureWatch {
    /// The round has come this far. Called on the coordinator's thread; must not block.
    fn advanced(&self, progress: &RoundProgress);

    /// The request has its answer, in whichever life: it was denied, or its round has ended. The last call. On the
    /// coordinator's thread; must not block for long.
    fn ended(&self, _answer: &Result<Completed, CheckpointError>) {}
}

/// How far a round is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "at", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RoundProgress {
    /// The door is shut.
    Shut,
    /// A resource is being told to let go.
    Before {
        /// Its name.
        resource: String,
        /// Its phase.
        phase: Phase,
    },
    /// The runtimes are being held.
    Hold,
    /// The process is being looked through.
    Audit,
    /// The engine has been called.
    Capture,
    /// A resource is being told to come back.
    After {
        /// Its name.
        resource: String,
        /// Its phase.
        phase: Phase,
    },
    /// The door is open again.
    Open,
}

/// A host that knows nothing: no facts, and identities from the standard library's hash keys.
///
/// Good for tests and for engines that never leave the process. The keys are part of the process, so that identities would
/// repeat in clones: a context with a real engine gets a real host.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHost;

impl Host for NoHost {
    fn fresh_id(&self) -> [u8; 16] {
        use std::hash::{BuildHasher, RandomState};
        let half = |salt: u64| RandomState::new().hash_one(salt).to_le_bytes();
        let mut id = [0; 16];
        id[..8].copy_from_slice(&half(1));
        id[8..].copy_from_slice(&half(2));
        id
    }

    fn facts(&self) -> HostFacts {
        HostFacts::default()
    }
}

/// Runs each hook on a thread of its own: for contexts without a runtime.
///
/// A thread cannot be stopped from outside, so that [`Spawned::abort`] takes effect only between two polls.
#[derive(Debug, Clone, Copy, Default)]
pub struct ThreadSpawner;

impl Spawner for ThreadSpawner {
    fn spawn(&self, future: BoxFuture<()>) -> Result<Box<dyn Spawned>, BoxError> {
        let task = crate::block_on::ThreadTask::new();
        let aborter = task.clone();
        std::thread::Builder::new().name("crac-hook".into()).spawn(move || task.run(future))?;
        Ok(Box::new(aborter))
    }
}

impl fmt::Debug for dyn Spawned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Spawned")
    }
}

impl fmt::Debug for dyn Sweeping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sweeping")
    }
}

impl fmt::Debug for dyn Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("threads", &self.threads()).finish()
    }
}

/// The identity of this life, from `host`.
pub(crate) fn fresh_instance(host: &dyn Host) -> InstanceId {
    InstanceId(host.fresh_id())
}
