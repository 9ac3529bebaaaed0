//! Where connections come from.

use std::{future::Future, io, net::SocketAddr};

use crac_tokio::net::Connection;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};

/// Something that connections come from: what [`serve`](crate::serve()) listens on.
///
/// # What an implementor owes
///
/// [`accept`](Self::accept) may be dropped at any time without losing a connection.
pub trait Accept: Send + 'static {
    /// A connection.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection, and who is at its ends.
    ///
    /// # Errors
    ///
    /// The server says so and goes on: at once after an error of one connection, after a second after any other.
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Io, ConnectionInfo)>> + Send;

    /// Whether the listener takes part in checkpoints by itself: then it is asked for connections during a round too, because it
    /// hands over what had queued up when it stopped. Any other listener is left alone until the door opens.
    fn drains(&self) -> bool {
        false
    }
}

/// Who is at the ends of a connection: an extension of each request.
///
/// Behind a proxy the peer is the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// The client's end.
    pub peer_addr: SocketAddr,
    /// The server's end.
    pub local_addr: SocketAddr,
}

impl ConnectionInfo {
    /// The connection between `peer_addr` and `local_addr`.
    pub fn new(peer_addr: SocketAddr, local_addr: SocketAddr) -> Self {
        Self { peer_addr, local_addr }
    }
}

/// Drains, hands over what has queued up, binds again in a restored life: see the type.
impl Accept for crac_tokio::net::TcpListener {
    type Io = Connection;

    async fn accept(&mut self) -> io::Result<(Connection, ConnectionInfo)> {
        let (connection, peer_addr) = crac_tokio::net::TcpListener::accept(self).await?;
        let local_addr = connection.local_addr()?;
        Ok((connection, ConnectionInfo::new(peer_addr, local_addr)))
    }

    fn drains(&self) -> bool {
        true
    }
}

/// Without promises for a checkpoint: nothing is accepted while the door is shut, and that is all. What has queued up in the
/// kernel by then is lost with the process, and whether the address is bound again in a restored life is up to the engine's policy.
/// [`crac_tokio::net::TcpListener`] does both.
impl Accept for TcpListener {
    type Io = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, ConnectionInfo)> {
        let (stream, peer_addr) = TcpListener::accept(self).await?;
        let local_addr = stream.local_addr()?;
        Ok((stream, ConnectionInfo::new(peer_addr, local_addr)))
    }
}
