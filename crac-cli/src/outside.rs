//! `crac checkpoint --outside`: the service prepares itself and stands still, and this command has CRIU save it.
//!
//! Whatever becomes of this command, the service goes on: it hears that CRIU has failed, that the connection has ended, or nothing in
//! time.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use crac_core::{
    Mode, Ready, Word,
    control::{ControlReply, ControlRequest},
};
use crac_criu::{
    CriuError,
    outside::{Candidate, Prepared, Taken},
};

use crate::{
    checkpoint::{Account, follow_on},
    conversation::{Conversation, TalkError},
    exit::Exit,
    failure::Failure,
    image,
    services::{Endpoint, unanswered},
};

/// Saves the service at `endpoint` into `image`.
pub(crate) fn checkpoint(endpoint: &Endpoint, mode: Mode, image: &Path, deadline: Instant) -> Result<Account, Failure> {
    // What takes time is done before the service lets go of anything, and before it listens: it does not listen for long.
    let mut prepared = Some(look(endpoint, deadline)?.prepare(image).map_err(refused)?);
    let (mut talk, _) = connect(endpoint, deadline)?;
    let limit_ms = left(deadline).as_millis() as u64;
    let request = ControlRequest::Prepare { mode, image: Some(image.to_owned()), limit_ms };
    talk.tell(&request).map_err(|error| unanswered(endpoint, &error))?;
    follow_on(endpoint, talk, |reply, talk, account| {
        let ControlReply::Ready(ready) = reply else { return };
        let Some(prepared) = prepared.take() else { return };
        match capture(prepared, ready, mode, deadline, talk) {
            Ok(taken) => account.durable(taken.bytes, taken.elapsed, taken.frozen),
            Err(error) => {
                let (what, hint) = split(&error);
                // It may have ended or gone on; what it says next is followed anyway.
                let _ = talk.tell(&Word::Failed { what, hint: format!("hint: {hint}") });
            }
        }
    })
    .map_err(|failure| match failure.exit {
        Exit::TimedOut => failure.hint("it goes on without an image; give it a longer --timeout"),
        _ => failure,
    })
}

/// Does everything but that.
pub(crate) fn rehearse(endpoint: &Endpoint, deadline: Instant) -> Result<Account, Failure> {
    look(endpoint, deadline)?;
    let (mut talk, _) = connect(endpoint, deadline)?;
    let request = ControlRequest::Prepare { mode: Mode::Rehearse, image: None, limit_ms: left(deadline).as_millis() as u64 };
    talk.tell(&request).map_err(|error| unanswered(endpoint, &error))?;
    follow_on(endpoint, talk, |_, _, _| {})
}

/// Looks whether the service can be saved from here.
fn look(endpoint: &Endpoint, deadline: Instant) -> Result<Candidate, Failure> {
    let (_, user) = connect(endpoint, deadline)?;
    let criu = image::criu::program().map_err(refused)?;
    Candidate::look(criu, endpoint.pid, user).map_err(refused)
}

/// A connection to the service, and the user it runs as.
fn connect(endpoint: &Endpoint, deadline: Instant) -> Result<(Conversation, u32), Failure> {
    let talk = Conversation::connect(&endpoint.socket, deadline).map_err(|error| unanswered(endpoint, &error))?;
    let (pid, user) = talk.peer().map_err(|error| unanswered(endpoint, &TalkError::Io(error)))?;
    // A socket may have any name; a process that is not asked is not to be captured.
    if pid != endpoint.pid {
        let what = format!("{} is served by process {pid}, not by {}", endpoint.socket.display(), endpoint.pid);
        return Err(Failure::new(Exit::Refused, what).hint("run crac in the process id namespace of the service"));
    }
    Ok((talk, user))
}

/// Has CRIU capture the service, which stands still.
fn capture(
    prepared: Prepared,
    ready: &Ready,
    mode: Mode,
    deadline: Instant,
    talk: &mut Conversation,
) -> Result<Taken, CriuError> {
    // A tenth is left to hear how the service goes on when CRIU takes all of its time.
    let limit = left(deadline).min(Duration::from_millis(ready.limit_ms)) * 9 / 10;
    let dumped = prepared.dump(ready, mode.ends_original(), limit, talk.descriptor())?;
    if !mode.ends_original() {
        // One that has ended cannot be told, and its image is as good.
        let _ = talk.tell(&Word::Captured);
    }
    let taken = dumped.publish()?;
    if !mode.ends_original() {
        let _ = talk.tell(&Word::Durable { bytes: Some(taken.bytes) });
    }
    Ok(taken)
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// What was found, and what to do.
fn split(error: &CriuError) -> (String, String) {
    let text = error.to_string();
    let (what, hint) = text.rsplit_once("; hint: ").unwrap_or((&text, "see what the system said"));
    (what.to_owned(), hint.to_owned())
}

fn refused(error: CriuError) -> Failure {
    let (what, hint) = split(&error);
    Failure::new(Exit::Refused, what).hint(hint)
}
