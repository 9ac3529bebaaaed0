//! Sockets that a supervisor keeps open across the lives of a service.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
};

use crate::lock;

/// Listening sockets handed over by a supervisor, systemd's socket activation for one (`LISTEN_FDS`, sd_listen_fds(3)). Each can be
/// taken once; all clones share them.
#[derive(Debug, Clone, Default)]
pub struct Listeners(Arc<Mutex<Vec<OwnedFd>>>);

impl Listeners {
    /// Takes the TCP socket that listens at `addr`, if there is one.
    pub(crate) fn take(&self, addr: SocketAddr) -> io::Result<Option<TcpListener>> {
        let mut left = lock(&self.0);
        for at in 0..left.len() {
            let listener = TcpListener::from(left[at].try_clone()?);
            // One of another family is not asked for by a TCP address.
            if listener.local_addr().is_ok_and(|bound| bound == addr) {
                drop(left.swap_remove(at));
                return Ok(Some(listener));
            }
        }
        Ok(None)
    }

    /// Closes those that nobody has taken.
    pub(crate) fn close(&self) {
        lock(&self.0).clear();
    }
}

impl From<Vec<OwnedFd>> for Listeners {
    fn from(descriptors: Vec<OwnedFd>) -> Self {
        Self(Arc::new(Mutex::new(descriptors)))
    }
}

/// Whether they are the same sockets.
impl PartialEq for Listeners {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || (lock(&self.0).is_empty() && lock(&other.0).is_empty())
    }
}

impl Eq for Listeners {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_taken_once_and_by_its_address() {
        let (one, other) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let (addr, other_addr) = (one.local_addr().unwrap(), other.local_addr().unwrap());
        let listeners = Listeners::from(vec![OwnedFd::from(one), OwnedFd::from(other)]);
        assert_eq!(listeners.take(other_addr).unwrap().unwrap().local_addr().unwrap(), other_addr);
        assert!(listeners.take(other_addr).unwrap().is_none(), "it has been taken");
        listeners.clone().close();
        assert!(listeners.take(addr).unwrap().is_none(), "it is closed");
        TcpListener::bind(addr).expect("nobody listens there any more");
    }
}
