//! What a resource may know when it comes back: how the round ended and what has changed.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fmt, io,
    net::{SocketAddr, TcpListener},
    sync::{Arc, OnceLock},
    time::Duration,
};

use crate::{
    lineage::{ImageId, InstanceId},
    listeners::Listeners,
    seams::{Host, HostFacts},
};

/// How a round ended, as `after_restore` sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// No image was taken; this is the process that was asked.
    Aborted(AbortReason),
    /// The image was taken; this is still the process that was asked.
    Continued,
    /// This is another life: the process came back from an image.
    Restored,
}

/// Why a round was aborted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AbortReason {
    /// Nothing went wrong: it was a rehearsal.
    Rehearsed,
    /// A resource failed, was late or panicked.
    Resource,
    /// The way down took longer than its deadline.
    Deadline,
    /// A runtime did not come to a stop.
    Hold,
    /// Something in the process could not be saved.
    Obstacles,
    /// The engine failed.
    Engine,
}

impl fmt::Display for AbortReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            AbortReason::Rehearsed => "it was a rehearsal",
            AbortReason::Resource => "a resource did not let go",
            AbortReason::Deadline => "the way down took too long",
            AbortReason::Hold => "a runtime did not come to a stop",
            AbortReason::Obstacles => "something cannot be saved",
            AbortReason::Engine => "the engine failed",
        })
    }
}

/// How the round ended and what has changed since. Cheap to clone.
///
/// What is known at once is read eagerly; what costs system calls ([`host`](Self::host), [`env_changes`](Self::env_changes)) is
/// read at the first call and kept for this life.
#[derive(Clone)]
pub struct RestoreContext {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) outcome: Outcome,
    pub(crate) generation: u64,
    pub(crate) image_id: Option<ImageId>,
    pub(crate) instance_id: InstanceId,
    pub(crate) asleep_wall: Duration,
    pub(crate) asleep_monotonic: Duration,
    pub(crate) args: Vec<OsString>,
    pub(crate) env: Vec<(OsString, OsString)>,
    pub(crate) listeners: Listeners,
    pub(crate) host_before: HostFacts,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) host_after: OnceLock<HostFacts>,
    pub(crate) env_changes: OnceLock<Vec<EnvChange>>,
    pub(crate) limit: Duration,
}

impl RestoreContext {
    /// How the round ended.
    pub fn outcome(&self) -> Outcome {
        self.inner.outcome
    }

    /// Whether this is another life than the one that was checkpointed.
    pub fn is_restored(&self) -> bool {
        self.inner.outcome == Outcome::Restored
    }

    /// The generation of this life: 0 in a process that was started, one more with every restore.
    pub fn generation(&self) -> u64 {
        self.inner.generation
    }

    /// The image this life came from.
    pub fn lineage(&self) -> Option<ImageId> {
        self.inner.image_id
    }

    /// Names this life; different in every clone.
    pub fn instance_id(&self) -> InstanceId {
        self.inner.instance_id
    }

    /// Time since the capture by the wall clock; zero outside a restored life, or if that clock went backwards.
    pub fn asleep_wall(&self) -> Duration {
        self.inner.asleep_wall
    }

    /// How far the monotonic clock (`Instant`) moved between capture and restore; zero outside a restored life.
    pub fn asleep_monotonic(&self) -> Duration {
        self.inner.asleep_monotonic
    }

    /// The arguments of the restore, program name first. Empty outside a restored life. `std::env::args` keeps the old ones.
    pub fn args(&self) -> &[OsString] {
        &self.inner.args
    }

    /// The environment of the restore. Empty outside a restored life. `std::env::vars` keeps the old one unless the context was
    /// built with `apply_env`.
    pub fn env(&self) -> &[(OsString, OsString)] {
        &self.inner.env
    }

    /// One variable of the environment of the restore.
    pub fn var(&self, name: impl AsRef<OsStr>) -> Option<&OsStr> {
        self.inner.env.iter().find(|(key, _)| key == name.as_ref()).map(|(_, value)| value.as_os_str())
    }

    /// Takes the socket that listens at `addr` from those that a supervisor handed to this life (`LISTEN_FDS`, sd_listen_fds(3)):
    /// it has kept the socket open, so that nobody was refused meanwhile. Each can be taken once, until the door opens; what is
    /// left then is closed.
    ///
    /// # Errors
    ///
    /// When no descriptor is left to look at the sockets.
    pub fn take_listener(&self, addr: SocketAddr) -> io::Result<Option<TcpListener>> {
        self.inner.listeners.take(addr)
    }

    /// How the environment of the restore differs from `std::env::vars_os`; empty outside a restored life.
    pub fn env_changes(&self) -> &[EnvChange] {
        self.inner.env_changes.get_or_init(|| {
            if !self.is_restored() {
                return Vec::new();
            }
            differences(std::env::vars_os(), self.inner.env.iter().cloned())
        })
    }

    /// What the machine was when the round began.
    pub fn host_before(&self) -> &HostFacts {
        &self.inner.host_before
    }

    /// What the machine is now.
    pub fn host(&self) -> &HostFacts {
        self.inner.host_after.get_or_init(|| self.inner.host.facts())
    }

    /// How long the hook that was handed this context may take.
    pub fn deadline(&self) -> Duration {
        self.inner.limit
    }
}

impl fmt::Debug for RestoreContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Arguments and environment may hold secrets and are left out.
        f.debug_struct("RestoreContext")
            .field("outcome", &self.inner.outcome)
            .field("generation", &self.inner.generation)
            .field("lineage", &self.inner.image_id)
            .field("instance_id", &self.inner.instance_id)
            .field("asleep_wall", &self.inner.asleep_wall)
            .field("asleep_monotonic", &self.inner.asleep_monotonic)
            .finish_non_exhaustive()
    }
}

/// One difference between two environments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvChange {
    /// Only the new environment has it.
    Added(OsString, OsString),
    /// The value is another one: name, old, new.
    Changed(OsString, OsString, OsString),
    /// Only the old environment has it.
    Removed(OsString),
}

fn differences(
    old: impl Iterator<Item = (OsString, OsString)>,
    new: impl Iterator<Item = (OsString, OsString)>,
) -> Vec<EnvChange> {
    let mut old: BTreeMap<_, _> = old.collect();
    let mut changes = Vec::new();
    for (name, value) in new.collect::<BTreeMap<_, _>>() {
        match old.remove(&name) {
            None => changes.push(EnvChange::Added(name, value)),
            Some(before) if before != value => changes.push(EnvChange::Changed(name, before, value)),
            Some(_) => {}
        }
    }
    changes.extend(old.into_keys().map(EnvChange::Removed));
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environments_are_compared_by_name() {
        let pair = |name: &str, value: &str| (OsString::from(name), OsString::from(value));
        let changes = differences(
            [pair("A", "1"), pair("B", "1"), pair("C", "1")].into_iter(),
            [pair("B", "2"), pair("C", "1"), pair("D", "1")].into_iter(),
        );
        assert_eq!(
            changes,
            [
                EnvChange::Changed("B".into(), "1".into(), "2".into()),
                EnvChange::Added("D".into(), "1".into()),
                EnvChange::Removed("A".into())
            ]
        );
    }
}
