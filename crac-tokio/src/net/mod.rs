//! Listeners and sockets that come back in a restored life.
//!
//! | type | at the checkpoint | in a restored life |
//! |---|---|---|
//! | [`TcpListener`] | stops accepting; before the process ends it hands over what has queued up, then closes | binds again, where `on_restore` says |
//!
//! UDP and Unix datagram sockets of tokio need no wrapper: engines that save one process bring them back as they are, under the
//! same descriptor. [`UdpSocket`] is for those that are to come back at another address.

mod connection;
mod listener;
mod socket;

pub use connection::Connection;
pub use listener::TcpListener;
