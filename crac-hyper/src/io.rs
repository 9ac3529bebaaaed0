//! The bytes of a connection, watched: who owns them, whether they move, and when they are given back.

use std::{
    io::{self, IoSlice},
    mem,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use crac_core::{Gate, Pass};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection's stream on its way through hyper and, after an upgrade, through whoever asked for it.
///
/// When it is dropped, the stream goes back to its [`Slot`].
#[derive(Debug)]
pub(crate) struct Tracked<Io> {
    // Only the drop takes it out.
    io: Option<Io>,
    slot: Arc<Slot<Io>>,
}

/// What is known of a connection, wherever its stream is.
#[derive(Debug)]
pub(crate) struct Slot<Io> {
    place: Mutex<Place<Io>>,
    read: AtomicU64,
    written: AtomicU64,
    /// The peer does not take what was written.
    blocked: AtomicBool,
}

/// Fields are dropped in this order: the descriptor is closed before the drain hears of it.
#[derive(Debug)]
struct Place<Io> {
    /// The stream, if it came back.
    returned: Option<Io>,
    pass: Pass,
}

/// How much has gone through a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub(crate) read: u64,
    pub(crate) written: u64,
}

impl<Io> Tracked<Io> {
    /// Watches `io`, which is counted by `pass` until it is closed.
    pub(crate) fn new(io: Io, pass: Pass) -> (Self, Arc<Slot<Io>>) {
        let slot = Arc::new(Slot {
            place: Mutex::new(Place { returned: None, pass }),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            blocked: AtomicBool::new(false),
        });
        (Self { io: Some(io), slot: slot.clone() }, slot)
    }

    fn io(&mut self) -> &mut Io {
        self.io.as_mut().expect("the stream is there until the drop")
    }
}

impl<Io> Drop for Tracked<Io> {
    fn drop(&mut self) {
        self.slot.place().returned = self.io.take();
    }
}

impl<Io> Slot<Io> {
    pub(crate) fn traffic(&self) -> Traffic {
        Traffic { read: self.read.load(Ordering::Relaxed), written: self.written.load(Ordering::Relaxed) }
    }

    pub(crate) fn blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed)
    }

    /// The stream, if hyper is done with it. Otherwise it was handed on in an upgrade: then it counts in `upgraded` from now on,
    /// until its new owner drops it.
    pub(crate) fn settle(&self, upgraded: &Gate) -> Option<Io> {
        let mut place = self.place();
        let returned = place.returned.take();
        let left = returned.is_none().then(|| mem::replace(&mut place.pass, upgraded.enter_anyway()));
        drop(place);
        // Outside the lock, because it wakes the drain.
        drop(left);
        returned
    }

    fn place(&self) -> MutexGuard<'_, Place<Io>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wrote(&self, written: &Poll<io::Result<usize>>) {
        self.blocked.store(written.is_pending(), Ordering::Relaxed);
        if let Poll::Ready(Ok(bytes)) = written {
            self.written.fetch_add(*bytes as u64, Ordering::Relaxed);
        }
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Tracked<Io> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(self.io()).poll_read(cx, buffer);
        self.slot.read.fetch_add((buffer.filled().len() - before) as u64, Ordering::Relaxed);
        polled
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Tracked<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(self.io()).poll_write(cx, bytes);
        self.slot.wrote(&polled);
        polled
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(self.io()).poll_write_vectored(cx, slices);
        self.slot.wrote(&polled);
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.io.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.io()).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.io()).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    #[test]
    fn a_stream_that_came_back_is_settled_and_still_counted() {
        let (connections, upgraded) = (Gate::new("http connections"), Gate::new("upgraded connections"));
        let (tracked, slot) = Tracked::new(duplex(1).0, connections.enter_anyway());
        drop(tracked);
        assert!(slot.settle(&upgraded).is_some());
        assert_eq!((connections.inside(), upgraded.inside()), (1, 0));
        drop(slot);
        assert_eq!(connections.inside(), 0);
    }

    #[test]
    fn a_stream_that_was_handed_on_counts_as_upgraded_until_its_end() {
        let (connections, upgraded) = (Gate::new("http connections"), Gate::new("upgraded connections"));
        let (tracked, slot) = Tracked::new(duplex(1).0, connections.enter_anyway());
        assert!(slot.settle(&upgraded).is_none());
        drop(slot);
        assert_eq!((connections.inside(), upgraded.inside()), (0, 1));
        drop(tracked);
        assert_eq!(upgraded.inside(), 0);
    }
}
