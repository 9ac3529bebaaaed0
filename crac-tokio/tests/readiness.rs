//! Open listeners count as ready. A program of its own: the count is for the whole process.

use std::sync::Arc;

use crac_core::{Context, SimEngine};
use crac_tokio::net::TcpListener;

#[tokio::test]
async fn a_service_is_ready_when_all_its_listeners_accept() {
    let context = Context::builder("test", Arc::new(SimEngine::new())).build().unwrap();
    let first = TcpListener::bind_in(&context, "127.0.0.1:0").await.unwrap();
    let second = TcpListener::bind_in(&context, "127.0.0.1:0").await.unwrap();
    let first = tokio::spawn(async move { first.accept().await.map(drop) });
    tokio::task::yield_now().await;
    assert!(!context.is_ready(), "one listener does not accept yet");
    let second = tokio::spawn(async move { second.accept().await.map(drop) });
    context.readied().await;
    first.abort();
    second.abort();
}
