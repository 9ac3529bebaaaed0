//! Snapshots that somebody outside takes: a privileged command, later a container runtime or a virtual machine monitor.
//!
//! ```text
//!  outside                            this process
//!   prepare ─────────────────────────► shut, drain, let go, hold, audit
//!           ◄─────────────── ready ─── stands still, inside the engine's capture
//!   takes the snapshot
//!   captured, durable or failed ─────► goes on, or ends; so it does when the outside is gone
//!           ◄─────────── withdrawn ─── nobody said anything in time: goes on, and what is captured from now on is worth nothing
//! ```
//!
//! Who stands still has a deadline. It takes its word back before it moves: a snapshot of a process that has not taken it back shows
//! it standing still. The words are those of the [control socket](crate::control).

use std::{
    fmt, io,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::engine::{EngineError, ImageMetadata};

/// Somebody outside of this process who takes the snapshot that the engine does not take.
///
/// # What an implementor owes
///
/// All calls come on the coordinator's thread, while the runtimes are held. In a restored life, [`hear`](Outside::hear) may be under
/// way, on a connection that is dead there; it returns then, and nothing else is called.
pub trait Outside: Send + Sync {
    /// How long the process shall stand still at most.
    fn limit(&self) -> Duration;

    /// Says that the process stands still and may be captured from now on.
    ///
    /// # Errors
    ///
    /// If the outside is gone.
    fn ready(&self, ready: &Ready) -> io::Result<()>;

    /// What the outside says next; waits until `deadline`, and a look behind that is made also if it has passed.
    fn hear(&self, deadline: Instant) -> Heard;

    /// Takes [`ready`](Outside::ready) back. What is captured after it is worth nothing.
    fn withdraw(&self);
}

impl fmt::Debug for dyn Outside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Outside")
    }
}

/// What a process that stands still says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Ready {
    /// How long it stands still from now on, in milliseconds.
    pub limit_ms: u64,
    /// What goes into the image's metadata.
    pub service: ImageMetadata,
    /// What the engine wants its other half to know, in words that the two agree upon.
    pub particulars: String,
}

impl Ready {
    /// A process of `service` that stands still for `limit`, with the engine's `particulars`.
    pub fn new(limit: Duration, service: ImageMetadata, particulars: String) -> Self {
        Self { limit_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX), service, particulars }
    }
}

/// What the outside says to a process that stands still: one JSON object a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Word {
    /// Everything that is saved was read: a process that goes on need not stand still any longer.
    Captured,
    /// The image is complete and durable under its name: a process that ends with its image ends now.
    Durable {
        /// Bytes the image takes on disk, if that is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bytes: Option<u64>,
    },
    /// There is no image.
    Failed {
        /// What was attempted and what was found.
        what: String,
        /// What to do.
        hint: String,
    },
}

/// What there was to hear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// This.
    Said(Word),
    /// Nothing in time.
    Nothing,
    /// The end: the outside is gone, or says what nobody understands.
    Gone,
}

impl Heard {
    /// The good word, or why the capture has failed. Who has heard nothing in time, `limit`, takes its own word back, and then
    /// listens once more: a process that was stopped between the two finds what was said before it went on.
    ///
    /// # Errors
    ///
    /// [`EngineError::Failed`] in the words of the outside, or about its silence.
    pub fn good(self, outside: &dyn Outside, limit: Duration) -> Result<Word, EngineError> {
        let heard = match self {
            Heard::Nothing => {
                outside.withdraw();
                outside.hear(Instant::now())
            }
            heard => heard,
        };
        let (what, hint) = match heard {
            Heard::Said(Word::Failed { what, hint }) => (what, hint),
            Heard::Said(word) => return Ok(word),
            Heard::Nothing => {
                let what = format!("whoever was to take the image from outside did not finish within {} s", limit.as_secs_f32());
                (what, "hint: look what it waits for, or give it longer".into())
            }
            Heard::Gone => (
                "whoever was to take the image from outside has gone before its end".into(),
                "hint: see what it said last; if it was ended behind the capture itself, look whether there is an image".into(),
            ),
        };
        Err(EngineError::Failed { what, hint })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_read_as_documented() {
        for (text, word) in [
            (r#"{"say":"captured"}"#, Word::Captured),
            (r#"{"say":"durable"}"#, Word::Durable { bytes: None }),
            (r#"{"say":"durable","bytes":7}"#, Word::Durable { bytes: Some(7) }),
            (r#"{"say":"failed","what":"a","hint":"b"}"#, Word::Failed { what: "a".into(), hint: "b".into() }),
        ] {
            assert_eq!(serde_json::to_string(&word).unwrap(), text);
            assert_eq!(serde_json::from_str::<Word>(text).unwrap(), word);
        }
    }
}
