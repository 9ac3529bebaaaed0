//! Which threads probably did not come to a stop: the kernel's view of those that bear a worker's name.

use std::fs;

use crate::{
    board,
    threads::{self, Listed, Tid},
};

/// Threads that bear one of `names` (or, if nobody came, tokio's default one) and do not stand, the busiest first; `count` of
/// them, and those that look just as busy.
pub(crate) fn suspects(count: usize, names: &[&str]) -> Vec<String> {
    let wanted = |listed: &Listed| match names {
        [] => listed.name == DEFAULT_NAME,
        names => names.iter().any(|name| is_called(listed, name)),
    };
    let threads = threads::listed().into_iter().filter(|listed| wanted(listed) && !board::is_standing(listed.tid));
    let observed = threads.filter_map(|listed| observe(listed.tid).map(|doing| (doing, listed))).collect();
    select(observed, count).into_iter().map(|(doing, listed)| format!("{listed}, {}", doing.words())).collect()
}

/// Whether a thread called `name`, one of `born`, does not stand and does what a thread does whose task has just ended: it runs, or
/// waits on a futex.
pub(crate) fn may_become_idle(name: &str, born: &[Tid]) -> bool {
    let candidates = threads::listed()
        .into_iter()
        .filter(|listed| is_called(listed, name) && born.contains(&listed.tid) && !board::is_standing(listed.tid));
    candidates.filter_map(|listed| observe(listed.tid)).any(|doing| match doing {
        Doing::Runs | Doing::WaitsOnFutex => true,
        Doing::Waits { .. } => false,
    })
}

/// Whether the kernel, which cuts names off, lists a thread called `name`.
fn is_called(listed: &Listed, name: &str) -> bool {
    name.bytes().take(COMM_LEN).eq(listed.name.bytes())
}

/// tokio's name of a thread unless the builder says otherwise.
pub(crate) const DEFAULT_NAME: &str = "tokio-rt-worker";
/// Bytes of a thread's name that the kernel keeps.
const COMM_LEN: usize = 15;

/// What a thread does, in the order of how likely it is to be the one that did not stop.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Doing {
    /// It runs on a processor.
    Runs,
    /// It sleeps in the kernel, uninterruptibly or elsewhere than on a futex.
    Waits { state: char, place: String },
    /// It sleeps on a futex: a mutex, a condition variable - or it is an idle thread.
    WaitsOnFutex,
}

impl Doing {
    fn words(&self) -> String {
        match self {
            Doing::Runs => "running".to_owned(),
            Doing::Waits { state, place } => format!("in state {state}, waiting in {place}"),
            Doing::WaitsOnFutex => "waiting on a futex".to_owned(),
        }
    }
}

/// Reads what the thread `tid` does, by proc(5) `stat` and `wchan`; `None` if it has ended.
pub(crate) fn observe(tid: Tid) -> Option<Doing> {
    let read = |file: &str| fs::read_to_string(format!("/proc/self/task/{tid}/{file}"));
    let stat = read("stat").ok()?;
    Some(doing(&stat, &read("syscall").unwrap_or_default(), &read("wchan").unwrap_or_default()))
}

/// Decides what the texts of `stat`, `syscall` and `wchan` say.
fn doing(stat: &str, syscall: &str, wchan: &str) -> Doing {
    // The name is in parentheses and may hold anything, so the state is looked for from the end.
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next()).unwrap_or('?');
    if state == 'R' {
        return Doing::Runs;
    }
    let wchan = wchan.trim();
    let number = syscall.split_ascii_whitespace().next().unwrap_or_default();
    if wchan.starts_with("futex") || number == SYS_FUTEX {
        return Doing::WaitsOnFutex;
    }
    let place = match (wchan, number) {
        ("" | "0", "" | "running") => "the kernel".to_owned(),
        ("" | "0", number) => format!("system call {number}"),
        (wchan, _) => wchan.to_owned(),
    };
    Doing::Waits { state, place }
}

#[cfg(target_arch = "x86_64")]
const SYS_FUTEX: &str = "202";
#[cfg(not(target_arch = "x86_64"))]
const SYS_FUTEX: &str = "98";

/// The `count` likeliest, and all that are as likely as the last of these.
fn select(mut observed: Vec<(Doing, Listed)>, count: usize) -> Vec<(Doing, Listed)> {
    observed.sort_by(|(left, _), (right, _)| left.cmp(right));
    let rank = |doing: &Doing| match doing {
        Doing::Runs => 0,
        Doing::Waits { .. } => 1,
        Doing::WaitsOnFutex => 2,
    };
    let last = observed.get(count.saturating_sub(1)).or(observed.last()).map(|(doing, _)| rank(doing));
    observed.retain(|(doing, _)| Some(rank(doing)) <= last);
    observed
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLEEPS: &str = "17 (tokio-rt-worker) S 1 1 0";

    #[test]
    fn texts_of_the_kernel_are_understood() {
        assert_eq!(doing("17 (a) R) R 1 1", "running", "0"), Doing::Runs);
        assert_eq!(doing(SLEEPS, &format!("{SYS_FUTEX} 0x7f 0x80"), "0"), Doing::WaitsOnFutex);
        assert_eq!(doing(SLEEPS, "", "futex_wait_queue"), Doing::WaitsOnFutex);
        assert_eq!(doing(SLEEPS, "230 0x1", "0"), Doing::Waits { state: 'S', place: "system call 230".into() });
        assert_eq!(doing(SLEEPS, "230 0x1", "hrtimer_nanosleep"), Doing::Waits { state: 'S', place: "hrtimer_nanosleep".into() });
        assert_eq!(doing(SLEEPS, "", ""), Doing::Waits { state: 'S', place: "the kernel".into() });
    }

    #[test]
    fn idle_threads_are_no_suspects_if_others_explain_it() {
        let thread = |tid, doing| (doing, Listed { tid, name: "w".into() });
        let observed = vec![thread(1, Doing::WaitsOnFutex), thread(2, Doing::Runs), thread(3, Doing::WaitsOnFutex)];
        let tids = |count| select(observed.clone(), count).iter().map(|(_, listed)| listed.tid).collect::<Vec<_>>();
        assert_eq!(tids(1), [2]);
        assert_eq!(tids(2), [2, 1, 3]);
        assert!(select(Vec::new(), 1).is_empty());
    }
}
