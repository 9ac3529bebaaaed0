//! The words spoken over the control socket: one JSON object a line, one request a connection, replies until the end of file.
//!
//! ```text
//! crac checkpoint ──► {"do":"checkpoint","mode":"exit","image":"/srv/orders.crac"}
//!                 ◄── {"is":"progress","at":"shut"} ... {"is":"written","bytes":1048576} ...
//!                 ◄── {"is":"durable","bytes":..,"elapsed_us":..,"frozen_us":..}      the process is gone, or another life, next
//!                 ◄── {"is":"report",...}                                             or it goes on
//! ```
//!
//! Whoever takes the snapshot itself ([`Outside`](crate::Outside)) asks the service to prepare, and says how it ended:
//!
//! ```text
//! crac checkpoint ──► {"do":"prepare","mode":"exit","image":"/srv/orders.crac","limit_ms":600000}
//!   --outside     ◄── {"is":"progress","at":"shut"} ...
//!                 ◄── {"is":"ready","limit_ms":600000,"service":{..},"particulars":".."}   it stands still
//!                 ──► {"say":"captured"}, {"say":"durable",..} or {"say":"failed",..}, or the connection ends
//!                 ◄── {"is":"report",...}                                             unless it has ended with its image
//! ```
//!
//! In `exit` and `become` mode the `durable` line is the last, written while every thread stands still; without it there is no
//! image. In `continue` mode it comes some time after the door has opened again, and the report follows it. The socket is `PID.sock` in the [run directory](run_dir).

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{context::Status, engine::Mode, outside::Ready, report::Report, request::Denial, seams::RoundProgress};

/// What a client may ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ControlRequest {
    /// A checkpoint, or with [`Mode::Rehearse`] a check.
    Checkpoint {
        /// What becomes of the process.
        mode: Mode,
        /// Where the image goes; absolute. Without it, where the service was told to put images.
        image: Option<PathBuf>,
        /// Whether the image is to hold data alone.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        data_only: bool,
    },
    /// Everything up to the capture; then the service stands still until the client, who captures it, has said how it ended. With
    /// [`Mode::Rehearse`] a check.
    Prepare {
        /// What becomes of the process.
        mode: Mode,
        /// Where the image goes; absolute. Without it, where the service was told to put images.
        image: Option<PathBuf>,
        /// How long the service shall stand still at most, in milliseconds. It has a limit of its own.
        limit_ms: u64,
    },
    /// What the service is doing.
    Status,
}

/// What the service answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ControlReply {
    /// The round has come this far.
    Progress(RoundProgress),
    /// The capture has stopped this many threads.
    Frozen {
        /// Threads.
        threads: u64,
    },
    /// The capture will write this many bytes of page data.
    Planned {
        /// Bytes.
        bytes: u64,
    },
    /// The capture has written this many bytes.
    Written {
        /// Bytes.
        bytes: u64,
    },
    /// The image is complete and durable under its name.
    Durable {
        /// Bytes the image takes on disk.
        bytes: u64,
        /// Microseconds since the capture began.
        elapsed_us: u64,
        /// Microseconds during which all threads stood still.
        frozen_us: u64,
    },
    /// The service stands still and waits for the client's [`Word`](crate::Word).
    Ready(Ready),
    /// The service stands still no longer: nobody has said anything in time. What was captured since then is worth nothing.
    Withdrawn,
    /// The round has ended, well or not, and the service goes on.
    Report(Box<Report>),
    /// The request was not admitted.
    Denied {
        /// Why.
        reason: Denial,
        /// The same in words.
        what: String,
    },
    /// The answer to [`ControlRequest::Status`].
    Status(Box<Status>),
    /// The request was not understood or could not be served.
    Error {
        /// What was wrong and what to do.
        what: String,
    },
}

/// The longest request line a server reads, in bytes.
pub const REQUEST_BYTES_MAX: usize = 16 * 1024;

/// Where control sockets are: `$CRAC_RUN_DIR`, else `$XDG_RUNTIME_DIR/crac`, else `crac-UID` in the temporary directory.
///
/// The last two are made by the service, mode 0700, and refused if they belong to somebody else.
pub fn run_dir(crac_run_dir: Option<&OsStr>, xdg_runtime_dir: Option<&OsStr>, temporary: &Path, uid: u32) -> PathBuf {
    let given = |value: Option<&OsStr>| value.filter(|value| !value.is_empty()).map(PathBuf::from);
    given(crac_run_dir)
        .or_else(|| given(xdg_runtime_dir).map(|dir| dir.join("crac")))
        .unwrap_or_else(|| temporary.join(format!("crac-{uid}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_read_as_documented() {
        let text = r#"{"do":"checkpoint","mode":"exit","image":"/srv/orders.crac"}"#;
        let request: ControlRequest = serde_json::from_str(text).unwrap();
        assert_eq!(
            request,
            ControlRequest::Checkpoint { mode: Mode::Exit, image: Some("/srv/orders.crac".into()), data_only: false }
        );
        assert_eq!(serde_json::to_string(&request).unwrap(), text);
        assert!(serde_json::from_str::<ControlRequest>(r#"{"do":"reboot"}"#).is_err());
    }

    #[test]
    fn replies_read_as_documented() {
        let text = serde_json::to_string(&ControlReply::Progress(RoundProgress::Shut)).unwrap();
        assert_eq!(text, r#"{"is":"progress","at":"shut"}"#);
        assert!(matches!(serde_json::from_str(&text).unwrap(), ControlReply::Progress(RoundProgress::Shut)));
    }

    #[test]
    fn the_run_directory_follows_the_environment() {
        let (a, b, tmp) = (OsStr::new("/a"), OsStr::new("/b"), Path::new("/tmp"));
        assert_eq!(run_dir(Some(a), Some(b), tmp, 7), Path::new("/a"));
        assert_eq!(run_dir(None, Some(b), tmp, 7), Path::new("/b/crac"));
        assert_eq!(run_dir(Some(OsStr::new("")), None, tmp, 7), Path::new("/tmp/crac-7"));
    }
}
