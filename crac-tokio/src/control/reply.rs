//! The far end of one request: progress and answer as lines.
//!
//! While the engine has stopped every thread, nothing may allocate, lock, log or panic: those lines are formatted on the
//! stack and sent by one system call each.

use std::{
    fmt::{self, Write as _},
    io::Write,
    os::{
        fd::{AsRawFd, IntoRawFd},
        unix::net::UnixStream,
    },
    sync::{Mutex, TryLockError},
};

use crac_core::{
    CaptureProgress, CaptureWatch, CheckpointError, Completed, Context, RoundProgress, RoundWatch, control::ControlReply,
};
use rustix::net::SendFlags;

use crate::lock;

/// Writes what becomes of a request to the connection it came by.
pub(super) struct Reply {
    stream: Mutex<Option<UnixStream>>,
    context: Context,
    /// The life that the connection belongs to. In a restored one its number may be anybody's.
    generation: u64,
}

impl Reply {
    pub(super) fn new(stream: UnixStream, context: Context) -> Self {
        let generation = context.generation();
        Self { stream: Mutex::new(Some(stream)), context, generation }
    }

    /// The connection's descriptor.
    pub(super) fn descriptor(&self) -> i32 {
        lock(&self.stream).as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    /// Does `work` with the connection, if it is open.
    pub(super) fn with<T>(&self, work: impl FnOnce(&UnixStream) -> T) -> Option<T> {
        lock(&self.stream).as_ref().map(work)
    }

    /// Sends one reply, in this life.
    pub(super) fn send(&self, reply: &ControlReply) {
        let mut stream = lock(&self.stream);
        if self.context.generation() != self.generation {
            forget(stream.take());
            return;
        }
        let Some(open) = stream.as_mut() else { return };
        if let Err(error) = write_line(open, reply) {
            tracing::debug!(%error, "the client of the control socket has gone");
            *stream = None;
        }
    }
}

/// Writes `reply` as one line. Blocks at most for the connection's write timeout.
pub(super) fn write_line(stream: &mut UnixStream, reply: &ControlReply) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Lets go of a descriptor number that belongs to another life, without closing whatever has it now.
fn forget(stream: Option<UnixStream>) {
    if let Some(stream) = stream {
        let _number = stream.into_raw_fd();
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        let stream = lock(&self.stream).take();
        if self.context.generation() != self.generation {
            forget(stream);
        }
    }
}

impl CaptureWatch for Reply {
    fn reached(&self, progress: CaptureProgress) {
        // Nobody else holds the lock: the coordinator is the only one to send while it captures.
        let stream = match self.stream.try_lock() {
            Ok(stream) => stream,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let Some(open) = stream.as_ref() else { return };
        let mut line = Line::default();
        let micros = |time: std::time::Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let formatted = match progress {
            CaptureProgress::Frozen { threads } => writeln!(line, r#"{{"is":"frozen","threads":{threads}}}"#),
            CaptureProgress::Planned { bytes } => writeln!(line, r#"{{"is":"planned","bytes":{bytes}}}"#),
            CaptureProgress::Written { bytes } => writeln!(line, r#"{{"is":"written","bytes":{bytes}}}"#),
            CaptureProgress::Durable { bytes, elapsed, frozen } => writeln!(
                line,
                r#"{{"is":"durable","bytes":{bytes},"elapsed_us":{},"frozen_us":{}}}"#,
                micros(elapsed),
                micros(frozen)
            ),
            // A later stage that this server does not know is not told.
            _ => return,
        };
        if formatted.is_err() {
            return;
        }
        // The last word has to arrive: it waits for the write timeout. The others are dropped when the client is slow.
        let flags = match progress {
            CaptureProgress::Durable { .. } => SendFlags::NOSIGNAL,
            _ => SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
        };
        // A client that has gone cannot be told anything.
        let _ = rustix::net::send(open, line.bytes(), flags);
    }
}

impl RoundWatch for Reply {
    fn advanced(&self, progress: &RoundProgress) {
        self.send(&ControlReply::Progress(progress.clone()));
    }

    fn ended(&self, answer: &Result<Completed, CheckpointError>) {
        self.send(&match answer {
            Ok(completed) => ControlReply::Report(Box::new((**completed.report()).clone())),
            Err(CheckpointError::Aborted(report)) => ControlReply::Report(Box::new((**report).clone())),
            Err(CheckpointError::Denied(reason)) => ControlReply::Denied { reason: *reason, what: reason.to_string() },
            Err(other) => ControlReply::Error { what: other.to_string() },
        });
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").field("generation", &self.generation).finish_non_exhaustive()
    }
}

/// A line on the stack.
struct Line {
    bytes: [u8; 160],
    len: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self { bytes: [0; 160], len: 0 }
    }
}

impl Line {
    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.get_mut(self.len..self.len + text.len()).ok_or(fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.len += text.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        sync::Arc,
        time::Duration,
    };

    use crac_core::{Mode, SimEngine};

    use super::*;

    #[test]
    fn every_stage_of_a_capture_is_a_line_that_the_protocol_reads() {
        let context = Context::builder("test", Arc::new(SimEngine::new())).build().unwrap();
        let (near, far) = UnixStream::pair().unwrap();
        let reply = Reply::new(near, context);
        let longest = Duration::from_micros(u64::MAX);
        for progress in [
            CaptureProgress::Frozen { threads: usize::MAX },
            CaptureProgress::Planned { bytes: u64::MAX },
            CaptureProgress::Written { bytes: u64::MAX },
            CaptureProgress::Durable { bytes: u64::MAX, elapsed: longest, frozen: longest },
        ] {
            reply.reached(progress);
        }
        drop(reply);
        let lines: Vec<_> = BufReader::new(far).lines().map(Result::unwrap).collect();
        assert_eq!(lines.len(), 4);
        for line in &lines {
            serde_json::from_str::<ControlReply>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        }
        assert!(matches!(serde_json::from_str(&lines[3]).unwrap(), ControlReply::Durable { bytes: u64::MAX, .. }));
    }

    #[test]
    fn a_restored_life_neither_writes_to_nor_closes_the_number_of_the_old_one() {
        let context = Context::builder("test", Arc::new(SimEngine::new())).build().unwrap();
        let (near, far) = UnixStream::pair().unwrap();
        let reply = Arc::new(Reply::new(near, context.clone()));
        let number = reply.descriptor();
        let request = crac_core::CheckpointRequest::new(Mode::Exit).watch(reply.clone());
        assert!(context.request(request).wait(Duration::from_secs(20)).unwrap().is_ok());
        drop(reply);
        drop(context);
        // Still open: whoever has the number now keeps it.
        assert!(std::path::Path::new(&format!("/proc/self/fd/{number}")).exists());
        far.set_nonblocking(true).unwrap();
        let lines: Vec<_> = BufReader::new(far).lines().map_while(Result::ok).collect();
        assert!(lines.iter().all(|line| !line.contains("restored")), "{lines:?}");
    }
}
