//! Which threads of this process stand still just now, whoever holds them: one list for all runtimes and contexts.
//!
//! Thread ids are those of the moment a thread came to a stop. A restored life gives its threads other ids, so nothing in here
//! outlives a hold.

use std::{
    collections::HashSet,
    sync::{LazyLock, Mutex},
};

use tokio::runtime;

use crate::{lock, threads::Tid};

static BOARD: LazyLock<Mutex<Board>> = LazyLock::new(Mutex::default);

#[derive(Default)]
struct Board {
    standing: HashSet<Tid>,
    runtimes: HashSet<runtime::Id>,
    claimed: HashSet<Tid>,
}

/// Notes that the thread `tid` stands.
pub(crate) fn stands(tid: Tid) {
    lock(&BOARD).standing.insert(tid);
}

/// Notes that the thread that came to a stop as `tid` goes on.
pub(crate) fn goes_on(tid: Tid) {
    lock(&BOARD).standing.remove(&tid);
}

/// Whether a thread stands that was `tid` when it stopped.
pub(crate) fn is_standing(tid: Tid) -> bool {
    lock(&BOARD).standing.contains(&tid)
}

/// Keeps a runtime on the list of those that are held.
pub(crate) struct HeldRuntime(runtime::Id);

/// Notes that `id` is being held; `None` if it is already.
pub(crate) fn hold(id: runtime::Id) -> Option<HeldRuntime> {
    let is_new = lock(&BOARD).runtimes.insert(id);
    is_new.then(|| HeldRuntime(id))
}

impl Drop for HeldRuntime {
    fn drop(&mut self) {
        let mut board = lock(&BOARD);
        board.runtimes.remove(&self.0);
        if board.runtimes.is_empty() {
            board.claimed.clear();
        }
    }
}

/// Whether no one has reported the thread `tid` in this hold yet; from now on somebody has.
pub(crate) fn claim(tid: Tid) -> bool {
    lock(&BOARD).claimed.insert(tid)
}
