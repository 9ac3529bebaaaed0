//! The half of a capture from outside that is inside: says what CRIU has to know, and stands still until it hears how it ended.
//!
//! The call goes on in two lives, as that of `capture.rs` does. Here the place of the handover is a pipe without a writer: whoever
//! captures has other directories than this process may write to.

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    sync::Arc,
    time::{Duration, Instant},
};

use crac_core::{CaptureReport, CaptureRequest, Captured, EngineError, Heard, Mode, Outside, Ready, Underway, Word};
use crac_sys::process;
use serde::{Deserialize, Serialize};

use crate::{
    CriuEngine,
    capture::{Clocks, PUBLISH_MAX, come_back, handed_over, look_for_wiped, report, stage},
    holdings::Holdings,
};

/// What CRIU has to be told about a process, in its words. Comes from the process itself, which may be anybody's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Particulars {
    pub(crate) external: Vec<String>,
    pub(crate) streams: [Option<String>; 3],
    pub(crate) severed: Vec<u64>,
    pub(crate) tcp_close: bool,
    pub(crate) handover: String,
}

impl Particulars {
    /// Reads them, and takes nothing but names of what this crate names: others could have a privileged CRIU leave things out
    /// of an image, or put some in, that are not the process's own.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let particulars: Self = serde_json::from_str(text).ok()?;
        let externals = particulars.external.iter().all(|name| is_numbered("unix", name) || is_terminal(name));
        (externals && is_numbered("pipe:", &particulars.handover)).then_some(particulars)
    }
}

/// `KIND[NUMBER]`
fn is_numbered(kind: &str, name: &str) -> bool {
    let number = name.strip_prefix(kind).and_then(|rest| rest.strip_prefix('[')?.strip_suffix(']'));
    number.is_some_and(|number| number.parse::<u64>().is_ok())
}

/// `tty[DEVICE:DEVICE]`
fn is_terminal(name: &str) -> bool {
    let numbers = name.strip_prefix("tty[").and_then(|rest| rest.strip_suffix(']')?.split_once(':'));
    numbers.is_some_and(|(one, two)| [one, two].iter().all(|number| u64::from_str_radix(number, 16).is_ok()))
}

/// Stands still. Goes on in two lives.
pub(crate) fn stand(
    engine: &CriuEngine,
    request: &CaptureRequest<'_>,
    holdings: Holdings,
    outside: &Arc<dyn Outside>,
    begun: Instant,
) -> Result<Captured, EngineError> {
    if request.mode == Mode::Rehearse {
        return Ok(Captured::Original(report(0, vec![stage("look", begun.elapsed())])));
    }
    let (place, key) = handover_place().map_err(|error| EngineError::Failed {
        what: format!("cannot capture: making a pipe: {error}"),
        hint: "hint: is the limit of open files reached?".into(),
    })?;
    let Holdings { external, streams, severed, tcp_close, obstacles: _ } = holdings;
    let particulars = Particulars { external, streams, severed, tcp_close, handover: key };
    let particulars = serde_json::to_string(&particulars).map_err(|error| EngineError::Failed {
        what: format!("cannot capture: {error}"),
        hint: "hint: this is a defect of crac".into(),
    })?;
    let limit = outside.limit().min(engine.deadline + PUBLISH_MAX);
    let ready = Ready::new(limit, request.metadata.clone(), particulars);
    let wiped = look_for_wiped()?;
    let clocks = Clocks::now();
    // Captured from here on, at any place until the last word.
    let deadline = Instant::now() + limit;
    let mut heard = match outside.ready(&ready) {
        Ok(()) => outside.hear(deadline),
        Err(_) => Heard::Gone,
    };
    let word = loop {
        let word = heard.good(outside.as_ref(), limit);
        if let Some(handover) = handed_over(&place) {
            // First of all: another thread may draw from it.
            wiped.wipe();
            return Ok(Captured::Restored(come_back(request, handover, &clocks)));
        }
        match word? {
            // Not durable yet, and this process ends with its image.
            Word::Captured if request.mode == Mode::Exit => heard = outside.hear(deadline),
            word => break word,
        }
    };
    match word {
        Word::Durable { .. } if request.mode == Mode::Exit => process::exit_group(0),
        Word::Durable { bytes } => Ok(Captured::Original(report(bytes.unwrap_or(0), Vec::new()))),
        _ => Ok(Captured::Underway(Box::new(Publishing { outside: Arc::clone(outside), deadline, limit }))),
    }
}

/// The reading end of a pipe that nobody writes to, and CRIU's name of it.
fn handover_place() -> io::Result<(File, String)> {
    let (place, _) = io::pipe()?;
    let place = File::from(OwnedFd::from(place));
    let key = format!("pipe:[{}]", place.metadata()?.ino());
    Ok((place, key))
}

/// Waits beside the process for the image to be durable.
struct Publishing {
    outside: Arc<dyn Outside>,
    deadline: Instant,
    limit: Duration,
}

impl Underway for Publishing {
    fn wait(&mut self, limit: Duration) -> Option<Result<CaptureReport, EngineError>> {
        let heard = self.outside.hear(self.deadline.min(Instant::now() + limit));
        match heard {
            Heard::Nothing if Instant::now() < self.deadline => None,
            Heard::Said(Word::Captured) => None,
            heard => Some(heard.good(self.outside.as_ref(), self.limit).map(|word| match word {
                Word::Durable { bytes } => report(bytes.unwrap_or(0), Vec::new()),
                _ => CaptureReport::default(),
            })),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_our_own_are_taken_from_a_process_that_may_be_anybodys() {
        let good = Particulars {
            external: vec!["unix[12]".into(), "tty[8803:18]".into()],
            streams: [None, Some("pipe:[1]".into()), None],
            severed: vec![12],
            tcp_close: true,
            handover: "pipe:[7]".into(),
        };
        let read = |particulars: &Particulars| Particulars::read(&serde_json::to_string(particulars).unwrap());
        assert_eq!(read(&good), Some(good.clone()));
        for external in ["file[1:2]", "mnt[/]:x", "unix[1", "unix[]", "tty[8803]", "tty[x:1]", "net[1]:eth"] {
            assert_eq!(read(&Particulars { external: vec![external.into()], ..good.clone() }), None, "{external}");
        }
        for handover in ["", "etc/passwd", "pipe:[x]", "pipe:7"] {
            assert_eq!(read(&Particulars { handover: handover.into(), ..good.clone() }), None, "{handover}");
        }
        assert_eq!(Particulars::read("rubbish"), None);
    }

    #[test]
    fn the_place_of_the_handover_is_empty_in_the_life_that_is_captured() {
        let (place, key) = handover_place().unwrap();
        assert!(is_numbered("pipe:", &key), "{key}");
        assert_eq!(handed_over(&place), None);
    }
}
