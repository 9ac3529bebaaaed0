//! A client that sees everything: one HTTP/1.1 exchange over one connection, errors told apart.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
};

use crate::PATIENCE;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Header names in lower case and values.
    pub headers: Vec<(String, String)>,
    /// The whole body.
    pub body: String,
}

impl Answer {
    /// The value of the header `name`.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }
}

/// Why there was no answer.
#[derive(Debug)]
pub enum NoAnswer {
    /// The connection was refused or reset before the first byte of an answer: the request may safely be sent again.
    Refused(io::Error),
    /// The answer broke off after its first byte: never allowed.
    BrokenOff(io::Error, String),
}

impl NoAnswer {
    fn new(error: io::Error, so_far: &[u8]) -> Self {
        if so_far.is_empty() {
            Self::Refused(error)
        } else {
            Self::BrokenOff(error, String::from_utf8_lossy(so_far).into_owned())
        }
    }
}

/// One exchange over a connection of its own.
///
/// # Errors
///
/// [`NoAnswer`].
pub fn exchange(addr: SocketAddr, method: &str, path: &str, body: &str) -> Result<Answer, NoAnswer> {
    Connection::open(addr).map_err(NoAnswer::Refused)?.exchange(method, path, body, "close")
}

/// A `GET` that must be answered with 200.
///
/// # Panics
///
/// If it is not.
pub fn get(addr: SocketAddr, path: &str) -> Answer {
    let answer = exchange(addr, "GET", path, "").unwrap_or_else(|error| panic!("GET {path}: {error:?}"));
    assert_eq!(answer.status, 200, "GET {path}: {answer:?}");
    answer
}

/// A connection that is kept.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Connects to `addr`.
    ///
    /// # Errors
    ///
    /// As the system says.
    pub fn open(addr: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&addr, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// One exchange; `connection` is the value of that header: `close` or `keep-alive`.
    ///
    /// # Errors
    ///
    /// [`NoAnswer`].
    pub fn exchange(&mut self, method: &str, path: &str, body: &str, connection: &str) -> Result<Answer, NoAnswer> {
        self.send(method, path, body, connection).map_err(NoAnswer::Refused)?;
        self.receive()
    }

    /// Sends a request.
    ///
    /// # Errors
    ///
    /// As the system says.
    pub fn send(&mut self, method: &str, path: &str, body: &str, connection: &str) -> io::Result<()> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: {connection}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.get_mut().write_all(request.as_bytes())
    }

    /// Receives the answer to a request.
    ///
    /// # Errors
    ///
    /// [`NoAnswer`].
    pub fn receive(&mut self) -> Result<Answer, NoAnswer> {
        let mut seen = Vec::new();
        self.head_and_body(&mut seen).map_err(|error| NoAnswer::new(error, &seen))
    }

    /// Whether the peer has closed the connection cleanly; blocks until it does something.
    ///
    /// # Errors
    ///
    /// A reset.
    pub fn is_closed(&mut self) -> io::Result<bool> {
        Ok(self.stream.fill_buf()?.is_empty())
    }

    fn line(&mut self, seen: &mut Vec<u8>) -> io::Result<String> {
        let mut line = Vec::new();
        let read = self.stream.read_until(b'\n', &mut line);
        seen.extend_from_slice(&line);
        read?;
        if line.pop() != Some(b'\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    fn head_and_body(&mut self, seen: &mut Vec<u8>) -> io::Result<Answer> {
        let malformed = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let status_line = self.line(seen)?;
        let status = status_line.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(|| malformed(&status_line))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line(seen)?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or_else(|| malformed(&line))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut answer = Answer { status, headers, body: String::new() };
        let mut body = Vec::new();
        if answer.header("transfer-encoding") == Some("chunked") {
            loop {
                let size = self.line(seen)?;
                let size = usize::from_str_radix(&size, 16).map_err(|_| malformed(&size))?;
                let mut chunk = vec![0; size];
                self.stream.read_exact(&mut chunk)?;
                body.extend_from_slice(&chunk);
                self.line(seen)?;
                if size == 0 {
                    break;
                }
            }
        } else if let Some(length) = answer.header("content-length") {
            body = vec![0; length.parse().map_err(|_| malformed(length))?];
            self.stream.read_exact(&mut body)?;
        } else {
            self.stream.read_to_end(&mut body)?;
        }
        answer.body = String::from_utf8(body).map_err(|_| malformed("the body is no text"))?;
        Ok(answer)
    }
}
