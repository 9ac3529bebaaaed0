//! Many tasks on one socket.

use std::{
    sync::{Arc, Mutex},
    task::{Wake, Waker},
};

use crate::lock;

/// The tasks that wait for one socket. tokio keeps one waker for each direction of a socket, so all of them share this one.
#[derive(Default)]
pub(super) struct Waiters {
    list: Mutex<Vec<Waker>>,
}

impl Waiters {
    /// The waker to hand to the socket.
    pub(super) fn waker(self: &Arc<Self>) -> Waker {
        Waker::from(self.clone())
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.list).is_empty()
    }

    /// Wakes `waker` at the next event. Called before the socket is looked at, so that no event is lost.
    pub(super) fn add(&self, waker: &Waker) {
        let mut list = lock(&self.list);
        if !list.iter().any(|other| other.will_wake(waker)) {
            list.push(waker.clone());
        }
    }

    pub(super) fn wake_all(&self) {
        let list = std::mem::take(&mut *lock(&self.list));
        list.into_iter().for_each(Waker::wake);
    }
}

impl Wake for Waiters {
    fn wake(self: Arc<Self>) {
        self.wake_all();
    }
}
