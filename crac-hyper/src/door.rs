//! The door of an HTTP service: who may come in, and what the others are told.

use std::time::Duration;

use bytes::Bytes;
use crac_core::{Context, Gate, Pass, Shut};
use http::{
    HeaderMap, HeaderValue, Response, StatusCode, Version,
    header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER},
};

/// What requests that come in are counted as.
pub(crate) const REQUESTS: &str = "http requests";

const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);

/// A gate, and what is done with requests that find it shut.
#[derive(Debug, Clone)]
pub(crate) struct Door {
    gate: Gate,
    /// Counts the same requests for one connection.
    connection: Option<Gate>,
    retry_after: Duration,
    wait: bool,
    keeps_sockets: bool,
}

/// One request inside; leaving is dropping it.
#[derive(Debug)]
pub(crate) struct Inside {
    _request: Pass,
    _of_connection: Option<Pass>,
}

impl Door {
    /// The door of `context`; without one, a door that nobody shuts.
    pub(crate) fn new(context: Option<&Context>) -> Self {
        Self {
            gate: context.map_or_else(|| Gate::new(REQUESTS), |context| context.gate(REQUESTS)),
            connection: None,
            retry_after: RETRY_AFTER_DEFAULT,
            wait: false,
            keeps_sockets: context.is_some_and(|context| context.engine().needs().keeps_sockets),
        }
    }

    pub(crate) fn retry_after(self, retry_after: Duration) -> Self {
        Self { retry_after, ..self }
    }

    pub(crate) fn wait(self, wait: bool) -> Self {
        Self { wait, ..self }
    }

    /// The same door, whose requests count in `connection` too.
    pub(crate) fn of_connection(&self, connection: Gate) -> Self {
        Self { connection: Some(connection), ..self.clone() }
    }

    pub(crate) fn gate(&self) -> &Gate {
        &self.gate
    }

    pub(crate) fn enter(&self) -> Result<Inside, Shut> {
        let pass = self.gate.enter()?;
        Ok(Inside { _request: pass, _of_connection: self.connection.as_ref().map(Gate::enter_anyway) })
    }

    /// Whether requests wait in front of the shut door. Only a connection that lives on can be answered later.
    pub(crate) fn waits(&self) -> bool {
        self.wait && self.keeps_sockets
    }

    /// The answer to a request that finds the door shut: its head, and the text of its body.
    pub(crate) fn refusal(&self, version: Version) -> (Response<()>, Bytes) {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        let headers = response.headers_mut();
        headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(self.retry_after)));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        close(version, headers);
        (response, Bytes::from(format!("{Shut}\n")))
    }

    /// Marks a response that leaves through the shut door: its connection is not to be used again.
    pub(crate) fn leave<B>(&self, version: Version, response: &mut Response<B>) {
        let ends = self.gate.is_shut() && !self.waits() && response.status() != StatusCode::SWITCHING_PROTOCOLS;
        if ends {
            close(version, response.headers_mut());
        }
    }
}

/// HTTP/2 and later have no such header; they say it with a frame, and only the server can.
fn close(version: Version, headers: &mut HeaderMap) {
    if version <= Version::HTTP_11 {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
}

/// `Retry-After` knows whole seconds only; rounded up, because earlier is in vain.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_rounded_up() {
        assert_eq!(whole_seconds(Duration::from_millis(1)), 1);
        assert_eq!(whole_seconds(Duration::from_secs(3)), 3);
        assert_eq!(whole_seconds(Duration::from_millis(3001)), 4);
    }

    #[test]
    fn only_http_1_is_told_to_close() {
        let door = Door::new(None);
        let closes = |version| door.refusal(version).0.headers().contains_key(CONNECTION);
        assert_eq!((closes(Version::HTTP_10), closes(Version::HTTP_11), closes(Version::HTTP_2)), (true, true, false));
    }

    #[test]
    fn a_switch_of_protocols_keeps_its_connection_header() {
        let door = Door::new(None);
        door.gate().shut();
        let mut upgrade = Response::builder().status(101).header(CONNECTION, "upgrade").body(()).unwrap();
        door.leave(Version::HTTP_11, &mut upgrade);
        assert_eq!(upgrade.headers()[CONNECTION], "upgrade");
    }
}
