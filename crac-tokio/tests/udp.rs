//! The UDP socket through rounds.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use crac_core::{CheckpointRequest, Completed, Context, Mode, SimEngine};
use crac_tokio::{TokioSpawner, net::UdpSocket};
use tokio::runtime::Handle;

const LONG: Duration = Duration::from_secs(20);

fn context() -> Context {
    let spawner = Arc::new(TokioSpawner::new(Handle::current()));
    Context::builder("test", Arc::new(SimEngine::new())).spawner(spawner).build().unwrap()
}

async fn serve(socket: UdpSocket) {
    let mut buffer = [0; 64];
    loop {
        let (length, peer) = socket.recv_from(&mut buffer).await.unwrap();
        socket.send_to(&buffer[..length], peer).await.unwrap();
    }
}

async fn echo(addr: SocketAddr) {
    let client = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.send_to(b"ping", addr).await.unwrap();
    let mut buffer = [0; 64];
    let length = tokio::time::timeout(LONG, client.recv(&mut buffer)).await.expect("an echo").unwrap();
    assert_eq!(&buffer[..length], b"ping");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_serves_again_after_every_kind_of_round() {
    let context = context();
    let socket = UdpSocket::bind_in(&context, "127.0.0.1:0").await.unwrap();
    let addr = socket.local_addr();
    tokio::spawn(serve(socket));
    for mode in [Mode::Continue, Mode::Rehearse, Mode::Exit] {
        echo(addr).await;
        context.checkpoint(CheckpointRequest::new(mode)).await.unwrap();
    }
    echo(addr).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_life_is_bound_where_it_is_told_and_the_old_address_is_free() {
    let context = context();
    // Free, and it stays so: nobody else sends from that host.
    let spare = std::net::UdpSocket::bind("127.0.0.2:0").unwrap().local_addr().unwrap();
    let socket = UdpSocket::bind_in(&context, "127.0.0.1:0").await.unwrap().on_restore(move |_| spare);
    let first = socket.local_addr();
    tokio::spawn(serve(socket));
    echo(first).await;
    let answer = context.checkpoint(CheckpointRequest::new(Mode::Exit)).await;
    assert!(matches!(answer, Ok(Completed::Restored(..))), "{answer:?}");
    echo(spare).await;
    std::net::UdpSocket::bind(first).expect("the old address is free");
}

#[tokio::test]
async fn without_a_context_it_is_a_plain_socket() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let addr = socket.local_addr();
    tokio::spawn(serve(socket));
    echo(addr).await;
}
