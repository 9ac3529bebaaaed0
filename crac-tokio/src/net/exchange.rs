//! Where an HTTP/1 connection stands between request and response, read off the bytes that pass. Pure.
//!
//! Enough of RFC 9112 to find the end of each response that a server writes: status, `Content-Length`, `Transfer-Encoding: chunked`,
//! and the request methods that change their meaning. Whatever is not understood counts as busy for good, so that nothing is cut
//! off. A client that sends its next request before it has the response (pipelining) is not told from one that sends a body: in that
//! rare case the connection may count as idle while the second request is answered.

/// The exchange a connection is in.
#[derive(Debug, Default)]
pub(super) enum Exchange {
    /// No request has begun since the last response ended.
    #[default]
    Idle,
    /// A request has begun; its response has not ended.
    Busy { method: Method, response: Response },
    /// Not understood, or no HTTP/1 any more.
    Opaque,
}

/// The first bytes of the request.
#[derive(Debug, Default)]
pub(super) struct Method {
    bytes: [u8; 5],
    len: usize,
}

/// How much of a response has been written.
#[derive(Debug)]
pub(super) enum Response {
    Head(Vec<u8>),
    Length(u64),
    Chunked(Chunked),
    /// It ends with the connection.
    UntilClose,
}

/// Where in a chunked body the last byte was.
#[derive(Debug)]
pub(super) enum Chunked {
    Size {
        size: u64,
        digits: bool,
    },
    /// This many bytes and a line end.
    Data(u64),
    /// A line of the trailer; whether it is empty so far.
    Trailer {
        empty: bool,
    },
}

/// The longest head that is looked at. hyper writes none that long.
const HEAD_MAX: usize = 256 * 1024;

impl Exchange {
    /// Whether the connection can be closed without cutting anything off.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self, Self::Idle)
    }

    /// Notes what the client has sent.
    pub(super) fn read(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if self.is_idle() {
            *self = Self::Busy { method: Method::default(), response: Response::Head(Vec::new()) };
        }
        if let Self::Busy { method, .. } = self {
            method.read(bytes);
            if method.is(b"PRI *") {
                *self = Self::Opaque;
            }
        }
    }

    /// Notes what the server has written.
    pub(super) fn written(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let Self::Busy { method, response } = self else { return };
            let (next, rest) = response.written(method, bytes);
            bytes = rest;
            match next {
                Next::More => {}
                Next::Done => *self = Self::Idle,
                Next::NotUnderstood => *self = Self::Opaque,
            }
        }
    }
}

impl Method {
    fn read(&mut self, bytes: &[u8]) {
        for (place, byte) in self.bytes.iter_mut().skip(self.len).zip(bytes) {
            *place = *byte;
            self.len += 1;
        }
    }

    fn is(&self, word: &[u8]) -> bool {
        self.bytes.get(..self.len).unwrap_or_default().starts_with(word)
    }
}

/// What is to come of a response.
enum Next {
    More,
    Done,
    NotUnderstood,
}

impl Response {
    /// Takes what it understands at once of `bytes`; the rest comes back.
    fn written<'b>(&mut self, method: &Method, bytes: &'b [u8]) -> (Next, &'b [u8]) {
        match self {
            Self::Head(head) => {
                let before = head.len();
                head.extend_from_slice(bytes);
                let from = before.saturating_sub(3);
                let end = head.get(from..).and_then(|tail| tail.windows(4).position(|four| four == b"\r\n\r\n"));
                let Some(end) = end.map(|end| from + end + 4) else {
                    return (if head.len() > HEAD_MAX { Next::NotUnderstood } else { Next::More }, &[]);
                };
                let rest = bytes.get(end - before..).unwrap_or_default();
                head.truncate(end);
                match body(method, head) {
                    Some(Body::None) => (Next::Done, rest),
                    Some(Body::Another) => {
                        head.clear();
                        (Next::More, rest)
                    }
                    Some(Body::Of(response)) => {
                        *self = response;
                        (Next::More, rest)
                    }
                    None => (Next::NotUnderstood, &[]),
                }
            }
            Self::Length(left) => {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= taken as u64;
                (if *left == 0 { Next::Done } else { Next::More }, bytes.get(taken..).unwrap_or_default())
            }
            Self::Chunked(chunked) => {
                for (at, byte) in bytes.iter().enumerate() {
                    match chunked.byte(*byte) {
                        Next::More => {}
                        other => return (other, bytes.get(at + 1..).unwrap_or_default()),
                    }
                }
                (Next::More, &[])
            }
            Self::UntilClose => (Next::More, &[]),
        }
    }
}

/// What follows a head.
enum Body {
    None,
    /// The head of the final response, after an interim one.
    Another,
    Of(Response),
}

/// Decides what follows `head`, which ends with an empty line; `None` if that is not understood.
fn body(method: &Method, head: &[u8]) -> Option<Body> {
    let head = std::str::from_utf8(head).ok()?;
    let mut lines = head.split("\r\n");
    let status: u16 = lines.next()?.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    if status == 101 || (method.is(b"CONNE") && (200..300).contains(&status)) {
        return None;
    }
    if status < 200 {
        return Some(Body::Another);
    }
    if method.is(b"HEAD ") || status == 204 || status == 304 {
        return Some(Body::None);
    }
    let mut length = None;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("transfer-encoding") {
            return value
                .trim()
                .eq_ignore_ascii_case("chunked")
                .then_some(Body::Of(Response::Chunked(Chunked::Size { size: 0, digits: true })));
        }
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(value.trim().parse().ok()?);
        }
    }
    Some(match length {
        Some(0) => Body::None,
        Some(length) => Body::Of(Response::Length(length)),
        None => Body::Of(Response::UntilClose),
    })
}

impl Chunked {
    fn byte(&mut self, byte: u8) -> Next {
        match self {
            Self::Size { size, digits } => match (char::from(byte).to_digit(16), byte) {
                (Some(digit), _) if *digits => match size.checked_mul(16) {
                    Some(shifted) => *size = shifted + u64::from(digit),
                    None => return Next::NotUnderstood,
                },
                (_, b'\n') if *size == 0 => *self = Self::Trailer { empty: true },
                (_, b'\n') => match size.checked_add(2) {
                    Some(with_line_end) => *self = Self::Data(with_line_end),
                    None => return Next::NotUnderstood,
                },
                // A line end or an extension.
                _ => *digits = false,
            },
            Self::Data(left) => {
                *left -= 1;
                if *left == 0 {
                    *self = Self::Size { size: 0, digits: true };
                }
            }
            Self::Trailer { empty } => match byte {
                b'\n' if *empty => return Next::Done,
                b'\n' => *empty = true,
                b'\r' => {}
                _ => *empty = false,
            },
        }
        Next::More
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the connection is idle after each byte of `response`, answered to `request`.
    fn idle_after(request: &str, response: &str) -> Vec<bool> {
        let mut exchange = Exchange::default();
        request.bytes().for_each(|byte| exchange.read(&[byte]));
        let each = response.bytes().map(|byte| {
            exchange.written(&[byte]);
            exchange.is_idle()
        });
        each.collect()
    }

    /// A response ends with its last byte and not before, in whatever pieces it is written.
    fn ends_exactly(request: &str, response: &str) {
        let idle = idle_after(request, response);
        assert_eq!(idle.iter().position(|idle| *idle), Some(response.len() - 1), "{response:?} to {request:?}");
        let mut at_once = Exchange::default();
        at_once.read(request.as_bytes());
        at_once.written(response.as_bytes());
        assert!(at_once.is_idle());
    }

    #[test]
    fn every_kind_of_response_ends_with_its_last_byte() {
        ends_exactly("GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello");
        ends_exactly("GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        ends_exactly("GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n");
        ends_exactly("HEAD / HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n");
        ends_exactly("POST / HTTP/1.1\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n!");
        ends_exactly(
            "GET / HTTP/1.1\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;x=a\r\nhello\r\n1A\r\n12345678901234567890123456\r\n0\r\nsum: 1\r\n\r\n",
        );
    }

    #[test]
    fn what_is_not_understood_is_never_idle() {
        for (request, response) in [
            ("GET /ws HTTP/1.1\r\n\r\n", "HTTP/1.1 101 Switching Protocols\r\n\r\nframes"),
            ("CONNECT a:1 HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "frames"),
            ("\x16\x03\x01", "HTTP/3 what\r\n\r\n"),
            ("GET / HTTP/1.0\r\n\r\n", "HTTP/1.0 200 OK\r\n\r\nuntil the end of the connection"),
            ("GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n"),
        ] {
            assert!(idle_after(request, response).iter().all(|idle| !idle), "{response:?}");
        }
    }

    #[test]
    fn the_next_request_makes_it_busy_again() {
        let mut exchange = Exchange::default();
        assert!(exchange.is_idle());
        for _ in 0..2 {
            exchange.read(b"GET / HTTP/1.1\r\n\r\n");
            assert!(!exchange.is_idle());
            exchange.written(b"HTTP/1.1 204 No Content\r\n\r\n");
            assert!(exchange.is_idle());
        }
    }
}
