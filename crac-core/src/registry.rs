//! Who takes part, and in which order.

use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    lock,
    resource::{Phase, Registration, Resource, ResourceOptions},
};

/// The list of resources of a context.
#[derive(Default)]
pub(crate) struct Registry {
    entries: Mutex<Vec<Arc<Entry>>>,
    next_id: AtomicU64,
}

/// One registered resource.
pub(crate) struct Entry {
    pub(crate) id: u64,
    pub(crate) options: ResourceOptions,
    pub(crate) resource: Arc<dyn Resource>,
    /// A hook of this resource neither ended nor could be dropped: it is skipped from then on.
    pub(crate) wedged: AtomicBool,
}

/// One registered resource, as a list shows it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct ResourceInfo {
    /// Its name.
    pub name: String,
    /// Its phase.
    pub phase: Phase,
    /// Its own deadline, if it has one.
    pub deadline: Option<Duration>,
    /// Whether it runs together with its neighbours.
    pub concurrent: bool,
    /// Whether it is skipped because a hook never ended.
    pub wedged: bool,
}

impl Registry {
    /// Adds a resource; dropping the registration takes it out.
    pub(crate) fn add(self: &Arc<Self>, options: ResourceOptions, resource: Arc<dyn Resource>) -> Registration {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        lock(&self.entries).push(Arc::new(Entry { id, options, resource, wedged: AtomicBool::new(false) }));
        Registration { registry: Arc::downgrade(self), id }
    }

    pub(crate) fn remove(&self, id: u64) {
        // Dropped outside the lock: the resource's own drop may register or unregister others.
        let removed = {
            let mut entries = lock(&self.entries);
            entries.iter().position(|entry| entry.id == id).map(|at| entries.remove(at))
        };
        drop(removed);
    }

    pub(crate) fn list(&self) -> Vec<ResourceInfo> {
        lock(&self.entries)
            .iter()
            .map(|entry| ResourceInfo {
                name: entry.options.name.clone(),
                phase: entry.options.phase,
                deadline: entry.options.deadline,
                concurrent: entry.options.concurrent,
                wedged: entry.wedged.load(Ordering::Relaxed),
            })
            .collect()
    }

    /// The batches of a round, in the order of the way down. The way up is the reverse. Entries live until the round drops them.
    pub(crate) fn batches(&self) -> Vec<Vec<Arc<Entry>>> {
        let entries = lock(&self.entries).clone();
        order(&entries, |entry| (entry.options.phase, entry.options.concurrent))
            .into_iter()
            .map(|batch| batch.into_iter().map(|at| entries[at].clone()).collect())
            .collect()
    }
}

/// Positions of `items` (in registration order) as batches in the order of the way down: by phase, the last registered first,
/// concurrent neighbours together.
fn order<T>(items: &[T], key: impl Fn(&T) -> (Phase, bool)) -> Vec<Vec<usize>> {
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for phase in Phase::ALL {
        let mut neighbours = false;
        for at in (0..items.len()).rev() {
            let (its_phase, concurrent) = key(&items[at]);
            if its_phase != phase {
                continue;
            }
            match batches.last_mut() {
                Some(batch) if concurrent && neighbours => batch.push(at),
                _ => batches.push(vec![at]),
            }
            neighbours = concurrent;
        }
    }
    batches
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.list()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;
    impl Resource for Nothing {}

    #[test]
    fn phases_come_in_order_and_the_last_registered_first() {
        let items = [
            (Phase::Egress, false),
            (Phase::Service, false),
            (Phase::Ingress, false),
            (Phase::Service, false),
            (Phase::Work, false),
        ];
        assert_eq!(order(&items, |item| *item), [[2], [4], [3], [1], [0]]);
    }

    #[test]
    fn concurrent_neighbours_share_a_batch_within_their_phase() {
        let items = [
            (Phase::Service, true),
            (Phase::Service, true),
            (Phase::Service, false),
            (Phase::Service, true),
            (Phase::Egress, true),
        ];
        assert_eq!(order(&items, |item| *item), vec![vec![3], vec![2], vec![1, 0], vec![4]]);
    }

    #[test]
    fn a_dropped_registration_is_gone_from_the_list_but_not_from_a_round() {
        let registry = Arc::new(Registry::default());
        let kept = registry.add(ResourceOptions::new("kept"), Arc::new(Nothing));
        let dropped = registry.add(ResourceOptions::new("dropped"), Arc::new(Nothing));
        let round = registry.batches();
        drop(dropped);
        assert_eq!(round.len(), 2);
        assert_eq!(registry.list().iter().map(|info| info.name.as_str()).collect::<Vec<_>>(), ["kept"]);
        drop(kept);
        assert!(registry.list().is_empty());
    }
}
