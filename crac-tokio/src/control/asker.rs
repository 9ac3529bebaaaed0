//! The client that captures the process itself: it is told when the process stands still, and says how it ended.

use std::{
    fmt, io,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use crac_core::{
    Heard, Outside, Ready, Word,
    control::{ControlReply, REQUEST_BYTES_MAX},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
};

use super::reply::Reply;
use crate::lock;

/// The other end of a connection, which the [`Reply`] of the same request owns.
pub(super) struct Asker {
    reply: Arc<Reply>,
    limit: Duration,
    /// What was read and not yet understood.
    pending: Mutex<Vec<u8>>,
}

impl Asker {
    pub(super) fn new(reply: Arc<Reply>, limit: Duration) -> Self {
        Self { reply, limit, pending: Mutex::default() }
    }

    /// Takes what has come; nothing if the connection has ended, or what came is no word.
    fn take(&self) -> Result<(), Errno> {
        let mut part = [0; 1024];
        let read = self.reply.with(|stream| recv(stream, &mut part[..], RecvFlags::DONTWAIT).map(|(read, _)| read));
        let read = read.unwrap_or(Ok(0))?;
        let mut pending = lock(&self.pending);
        pending.extend_from_slice(part.get(..read).unwrap_or_default());
        if read == 0 || pending.len() > REQUEST_BYTES_MAX { Err(Errno::CONNRESET) } else { Ok(()) }
    }

    /// The next word of what was taken.
    fn word(&self) -> Option<Heard> {
        let mut pending = lock(&self.pending);
        let end = pending.iter().position(|byte| *byte == b'\n')?;
        let line: Vec<u8> = pending.drain(..=end).collect();
        Some(serde_json::from_slice::<Word>(&line).map_or_else(
            |error| {
                tracing::warn!(%error, "what the client of the control socket said about its capture was not understood");
                Heard::Gone
            },
            Heard::Said,
        ))
    }

    /// Waits until there is something to take, at most for `limit`.
    fn wait(&self, limit: Duration) -> Result<bool, Errno> {
        let limit = Timespec::try_from(limit).map_err(|_| Errno::INVAL)?;
        let ready = self.reply.with(|stream| poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&limit)));
        ready.unwrap_or(Err(Errno::CONNRESET)).map(|ready| ready > 0)
    }

    /// Sends `reply` and keeps the connection whatever becomes of it: in a restored life it is another one.
    fn tell(&self, reply: &ControlReply) -> io::Result<()> {
        let mut line = serde_json::to_vec(reply)?;
        line.push(b'\n');
        let mut rest = &line[..];
        while !rest.is_empty() {
            // Waits for the write timeout of the connection.
            match self.reply.with(|stream| send(stream, rest, SendFlags::NOSIGNAL)) {
                Some(Ok(sent)) => rest = rest.get(sent..).unwrap_or_default(),
                Some(Err(Errno::INTR)) => {}
                Some(Err(errno)) => return Err(errno.into()),
                None => return Err(io::ErrorKind::NotConnected.into()),
            }
        }
        Ok(())
    }
}

impl Outside for Asker {
    fn limit(&self) -> Duration {
        self.limit
    }

    fn ready(&self, ready: &Ready) -> io::Result<()> {
        self.tell(&ControlReply::Ready(ready.clone()))
    }

    fn hear(&self, deadline: Instant) -> Heard {
        loop {
            if let Some(word) = self.word() {
                return word;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let heard = self.wait(left).and_then(|ready| if ready { self.take().map(|()| true) } else { Ok(false) });
            match heard {
                Ok(false) if left.is_zero() => return Heard::Nothing,
                Ok(_) | Err(Errno::INTR | Errno::AGAIN) => {}
                Err(_) => return Heard::Gone,
            }
        }
    }

    fn withdraw(&self) {
        // A client that has gone does not want to know.
        let _ = self.tell(&ControlReply::Withdrawn);
    }
}

impl fmt::Debug for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asker").field("limit", &self.limit).finish_non_exhaustive()
    }
}
