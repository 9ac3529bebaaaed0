//! The threads of this process: those a runtime announces, and those the kernel lists.

use std::{
    collections::HashMap,
    fmt, fs,
    sync::{Arc, Mutex},
    thread::ThreadId,
};

use tokio::runtime::Builder;

use crate::lock;

/// A kernel thread id.
pub(crate) type Tid = i32;

/// Counts the threads of one runtime, workers and blocking threads alike, as they start and end.
///
/// With it a hold knows whether idle blocking threads are left. Without it, it finds that out by starting one thread more.
#[derive(Clone, Default)]
pub struct Threads {
    alive: Arc<Mutex<HashMap<ThreadId, String>>>,
}

impl Threads {
    /// Takes the builder's `on_thread_start` and `on_thread_stop`, of which a runtime has one each, and counts in them.
    pub fn watch(builder: &mut Builder) -> Self {
        let threads = Self::default();
        let (starting, stopping) = (threads.clone(), threads.clone());
        builder.on_thread_start(move || starting.started()).on_thread_stop(move || stopping.stopped());
        threads
    }

    /// Says that the calling thread is one of the runtime's, for programs that have an `on_thread_start` of their own.
    pub fn started(&self) {
        let thread = std::thread::current();
        lock(&self.alive).insert(thread.id(), thread.name().unwrap_or("unnamed").to_owned());
    }

    /// Says that the calling thread is about to end.
    pub fn stopped(&self) {
        lock(&self.alive).remove(&std::thread::current().id());
    }

    /// The threads alive now.
    pub(crate) fn alive(&self) -> Vec<ThreadId> {
        lock(&self.alive).keys().copied().collect()
    }
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(lock(&self.alive).values()).finish()
    }
}

/// A thread as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) tid: Tid,
    /// Its name, at most 15 bytes.
    pub(crate) name: String,
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (tid {})", self.name, self.tid)
    }
}

/// The calling thread.
#[cfg(target_os = "linux")]
pub(crate) fn own_tid() -> Tid {
    rustix::thread::gettid().as_raw_nonzero().get()
}

/// A number of the calling thread's own, where the system's is not known.
#[cfg(not(target_os = "linux"))]
pub(crate) fn own_tid() -> Tid {
    use std::sync::atomic::{AtomicI32, Ordering};
    static NEXT: AtomicI32 = AtomicI32::new(1);
    thread_local!(static OWN: Tid = NEXT.fetch_add(1, Ordering::Relaxed));
    OWN.with(|own| *own)
}

/// All threads of this process, by proc(5) `/proc/self/task`; none where that cannot be read.
pub(crate) fn listed() -> Vec<Listed> {
    let Ok(entries) = fs::read_dir("/proc/self/task") else { return Vec::new() };
    let listed = entries.flatten().filter_map(|entry| {
        let tid = entry.file_name().to_str()?.parse().ok()?;
        // A thread that has ended since is no thread any more.
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        Some(Listed { tid, name: name.trim_end().to_owned() })
    });
    listed.collect()
}

/// The ids of all threads of this process; `None` where they cannot be listed.
pub(crate) fn tids() -> Option<Vec<Tid>> {
    let entries = fs::read_dir("/proc/self/task").ok()?;
    Some(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn a_thread_finds_itself_in_the_list() {
        let (tid, listed) =
            std::thread::Builder::new().name("crac-listed".into()).spawn(|| (own_tid(), listed())).unwrap().join().unwrap();
        assert!(listed.contains(&Listed { tid, name: "crac-listed".into() }), "{listed:?}");
    }

    #[test]
    fn a_watched_runtime_announces_its_threads() {
        let mut builder = Builder::new_multi_thread();
        let threads = Threads::watch(&mut builder);
        let runtime = builder.worker_threads(2).build().unwrap();
        runtime.block_on(runtime.spawn_blocking(|| ())).unwrap();
        assert!(threads.alive().len() >= 2, "{threads:?}");
        drop(runtime);
        assert!(threads.alive().is_empty(), "{threads:?}");
    }
}
