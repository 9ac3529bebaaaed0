//! A restored life on one processor, until it serves.
//!
//! What a restored life does first is done by many threads in turn, each of which wakes the next and writes to pages that are still
//! those of the image. On several processors every such wake-up, and every page that is copied while another thread runs, is an
//! interrupt of another processor, which in a virtual machine takes longer than the work itself. So the stub binds the process to
//! the processor it is on, and [`spread`] lets its threads go. Meanwhile `sched_getaffinity(2)` by name - and with it
//! `std::thread::available_parallelism` - tells what the process may use, rather than what it uses just then.
#![allow(unsafe_code, reason = "replaces a function of the C library")]

use std::{
    fs, io,
    sync::atomic::{AtomicI32, AtomicU64, Ordering},
};

use crac_sys::{
    Errno,
    process::{self, Processors},
};

use crate::layout::Handover;

/// The process whose threads may be bound, or none (0): a copy that `fork` makes of it is another one.
static WHO: AtomicI32 = AtomicI32::new(0);
/// To what they are bound, and to what they would be otherwise.
static BOUND_TO: Words = [const { AtomicU64::new(0) }; 16];
static ALLOWED: Words = [const { AtomicU64::new(0) }; 16];

type Words = [AtomicU64; 16];

/// How often the threads are listed at most: one that is bound makes threads that are bound.
const ROUNDS_MAX: usize = 16;

/// At the beginning of a restored life, before other threads go on. What the process may use, if that is more than it uses.
pub(crate) fn begin(handover: &Handover) -> Option<Processors> {
    let bound_to = process::affinity(0).unwrap_or_default();
    let is_on = handover.processors != Processors::default();
    store(&BOUND_TO, &bound_to);
    store(&ALLOWED, &handover.processors);
    WHO.store(if is_on { process::pid() } else { 0 }, Ordering::Release);
    is_on.then_some(handover.processors)
}

fn is_on() -> bool {
    WHO.load(Ordering::Acquire) == process::pid()
}

/// Lets every thread, and every child process that was started meanwhile, use what the process may use. Those that were bound to
/// something else on purpose stay so.
///
/// Where threads cannot be listed this is said, and tried again the next time.
pub(crate) fn spread() {
    if !is_on() {
        return;
    }
    let (bound_to, allowed) = (load(&BOUND_TO), load(&ALLOWED));
    // Of those that have gone, and those that are not ours, nothing is known.
    let spread =
        |id: i32| process::affinity(id).is_ok_and(|found| found == bound_to) && process::set_affinity(id, &allowed).is_ok();
    for _ in 0..ROUNDS_MAX {
        let mut has_changed = false;
        let threads = match threads() {
            Ok(threads) => threads,
            Err(error) => {
                // Those that can be named without a list.
                [0, process::pid()].into_iter().for_each(|tid| _ = spread(tid));
                tracing::warn!(%error, "the threads of this process cannot be listed, and stay on the processor of the restore until the next checkpoint; is `/proc` there, and RLIMIT_NOFILE larger than the number of open files?");
                return;
            }
        };
        for tid in threads {
            has_changed |= spread(tid);
            for child in children(tid) {
                has_changed |= spread(child);
            }
        }
        if !has_changed {
            break;
        }
    }
    WHO.store(0, Ordering::Release);
}

fn threads() -> io::Result<Vec<i32>> {
    let names = fs::read_dir("/proc/self/task")?.flatten().map(|entry| entry.file_name());
    Ok(names.filter_map(|name| name.to_str()?.parse().ok()).collect())
}

fn children(tid: i32) -> Vec<i32> {
    // Not told by kernels without CONFIG_PROC_CHILDREN.
    let text = fs::read_to_string(format!("/proc/self/task/{tid}/children")).unwrap_or_default();
    text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn store(words: &Words, values: &Processors) {
    words.iter().zip(values).for_each(|(word, value)| word.store(*value, Ordering::Relaxed));
}

fn load(words: &Words) -> Processors {
    std::array::from_fn(|at| words.get(at).map_or(0, |word| word.load(Ordering::Relaxed)))
}

/// `sched_getaffinity(2)`.
///
/// # Safety
///
/// As of the system call: `mask` has room for `bytes`.
#[cfg(not(target_feature = "crt-static"))]
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn sched_getaffinity(pid: libc::pid_t, bytes: usize, mask: *mut libc::cpu_set_t) -> i32 {
    if mask.is_null() {
        return crate::madvise::answer(Err(Errno::new(libc::EFAULT)));
    }
    // SAFETY: the caller's promise.
    let room = unsafe { std::slice::from_raw_parts_mut(mask.cast::<u8>(), bytes) };
    let filled = match process::affinity_into(pid, room) {
        Ok(filled) => filled,
        Err(errno) => return crate::madvise::answer(Err(errno)),
    };
    let is_own = [0, process::pid(), process::tid()].contains(&pid);
    if is_own && is_on() && is_mask(&room[..filled], &load(&BOUND_TO)) {
        let allowed = load(&ALLOWED);
        let allowed = allowed.iter().flat_map(|word| word.to_ne_bytes());
        room.iter_mut().take(filled).zip(allowed).for_each(|(byte, allowed)| *byte = allowed);
    }
    // The kernel writes as much as it has; the C library promises all of it.
    room.iter_mut().skip(filled).for_each(|byte| *byte = 0);
    0
}

/// Whether the bytes are those of a mask, and zeros.
fn is_mask(bytes: &[u8], mask: &Processors) -> bool {
    let mask = mask.iter().flat_map(|word| word.to_ne_bytes()).chain(std::iter::repeat(0));
    bytes.iter().zip(mask).all(|(byte, own)| *byte == own)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;

    /// One test for all: they are about the one process.
    #[test]
    fn threads_are_let_go_and_those_bound_on_purpose_are_not() {
        let allowed = process::affinity(0).unwrap();
        let processors: Vec<usize> = (0..1024).filter(|at| allowed[at / 64] >> (at % 64) & 1 == 1).collect();
        let [first, second, ..] = processors[..] else {
            println!("skipped: threads_are_let_go_and_those_bound_on_purpose_are_not: there is one processor only");
            return;
        };
        let only = |at: usize| std::array::from_fn(|word| if word == at / 64 { 1 << (at % 64) } else { 0 });
        let (first, second): (Processors, Processors) = (only(first), only(second));
        let all = thread::available_parallelism().unwrap();

        process::set_affinity(0, &first).unwrap();
        assert_eq!(thread::available_parallelism().unwrap().get(), 1, "nobody has begun a life here");
        assert_eq!(begin(&Handover { processors: allowed, ..Handover::default() }), Some(allowed));
        assert_eq!(thread::available_parallelism().unwrap(), all);
        assert_eq!(process::affinity(0).unwrap(), first);

        let (tell, go) = mpsc::channel::<()>();
        let (ready, is_ready) = mpsc::channel();
        let on_purpose = thread::spawn({
            let ready = ready.clone();
            move || {
                process::set_affinity(0, &second).unwrap();
                ready.send(()).unwrap();
                let _ = go.recv();
                process::affinity(0).unwrap()
            }
        });
        let (tell_inheritor, go) = mpsc::channel::<()>();
        let inheritor = thread::spawn(move || {
            ready.send(()).unwrap();
            let _ = go.recv();
            process::affinity(0).unwrap()
        });
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        is_ready.recv().unwrap();
        is_ready.recv().unwrap();
        spread();
        drop((tell, tell_inheritor));
        let of_child = process::affinity(i32::try_from(child.id()).unwrap()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(process::affinity(0).unwrap(), allowed);
        assert_eq!(inheritor.join().unwrap(), allowed);
        assert_eq!(on_purpose.join().unwrap(), second);
        assert_eq!(of_child, allowed);
        // It is over: what is told is what is.
        process::set_affinity(0, &first).unwrap();
        assert_eq!(thread::available_parallelism().unwrap().get(), 1);
        assert_eq!(begin(&Handover::default()), None);
        process::set_affinity(0, &allowed).unwrap();
    }
}
