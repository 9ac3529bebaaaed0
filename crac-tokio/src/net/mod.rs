//! Listeners and sockets that come back in a restored life.
//!
//! | type | at the checkpoint | in a restored life |
//! |---|---|---|
//! | [`TcpListener`] | stops accepting; before the process ends it hands over what has queued up, then closes | binds again, where `on_restore` says |
//! | [`UdpSocket`] | stops receiving; closes if `on_restore` was given | as it was, or bound where `on_restore` says |
//!
//! Plain UDP and Unix datagram sockets of tokio need no wrapper: engines that save one process bring them back as they are, at
//! their address and under their descriptor. [`UdpSocket`] is for those that are to come back at another address, which clones on
//! one machine need.

#[cfg(feature = "axum08")]
mod axum08;
mod connection;
#[cfg(feature = "axum08")]
mod exchange;
mod listener;
mod socket;
mod udp;
mod waiters;

#[cfg(feature = "axum08")]
pub use axum08::Served;
pub use connection::Connection;
pub use listener::TcpListener;
pub use udp::UdpSocket;
