//! An accepted connection.

use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use crac_core::Pass;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// A TCP connection that was accepted by a [`TcpListener`](super::TcpListener).
///
/// Reads and writes like the `tokio::net::TcpStream` it is around. It exists because a listener that is about to close waits for
/// the connections it has just handed over.
pub struct Connection {
    stream: TcpStream,
    /// Held by connections that were still in the queue when the listener was about to close.
    last_call: Option<Pass>,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, last_call: Option<Pass>) -> Self {
        Self { stream, last_call }
    }

    /// The client's end.
    ///
    /// # Errors
    ///
    /// If the connection is gone.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.stream.peer_addr()
    }

    /// The server's end.
    ///
    /// # Errors
    ///
    /// If the connection is gone.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    /// The stream itself, for its other methods.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Whether the connection was still in the queue when its listener was about to close for a checkpoint: answer what it asks,
    /// best with "try again", and close it.
    pub fn is_last_call(&self) -> bool {
        self.last_call.is_some()
    }

    /// Takes the stream out. The listener no longer waits for it.
    pub fn into_stream(self) -> TcpStream {
        self.stream
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("stream", &self.stream).field("last_call", &self.last_call.is_some()).finish()
    }
}
