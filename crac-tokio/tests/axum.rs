//! A plain `axum::serve` drains and comes back.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Router, body::Body, routing::get};
use crac_core::{
    BoxError, CheckpointContext, CheckpointError, CheckpointRequest, Completed, Context, Mode, Resource, ResourceOptions,
    SimEngine, async_trait,
};
use crac_tokio::{TokioSpawner, net::TcpListener};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::Handle,
    sync::Notify,
};

const LONG: Duration = Duration::from_secs(20);

struct Service {
    context: Context,
    addr: SocketAddr,
    /// Told when a slow request has begun.
    begun: Arc<Notify>,
    /// Lets a slow request end.
    go_on: Arc<Notify>,
}

async fn service() -> Service {
    service_with(LONG).await
}

async fn service_with(drain: Duration) -> Service {
    let spawner = Arc::new(TokioSpawner::new(Handle::current()));
    let deadlines = {
        let mut deadlines = crac_core::Deadlines::default();
        deadlines.drain = drain;
        deadlines
    };
    let context = Context::builder("test", Arc::new(SimEngine::new())).spawner(spawner).deadlines(deadlines).build().unwrap();
    let listener = TcpListener::bind_in(&context, "127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (begun, go_on) = (Arc::<Notify>::default(), Arc::<Notify>::default());
    let (tell, wait) = (begun.clone(), go_on.clone());
    let slow = move || async move {
        // The second half of the body comes only when the test says so.
        let (near, mut far) = tokio::io::duplex(64);
        tokio::spawn(async move {
            far.write_all(b"first half, ").await.unwrap();
            tell.notify_one();
            wait.notified().await;
            far.write_all(b"second half").await.unwrap();
        });
        Body::new(axum_body(near))
    };
    let app = Router::new().route("/", get(|| async { "hello" })).route("/slow", get(slow));
    tokio::spawn(async move { axum::serve(listener, app).await });
    Service { context, addr, begun, go_on }
}

/// A body that reads from `near` until its end.
fn axum_body(mut near: tokio::io::DuplexStream) -> Body {
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Vec<u8>, std::io::Error>>(1);
    tokio::spawn(async move {
        let mut buffer = [0; 64];
        while let Ok(length @ 1..) = near.read(&mut buffer).await {
            if sender.send(Ok(buffer[..length].to_vec())).await.is_err() {
                return;
            }
        }
    });
    Body::from_stream(Received(receiver))
}

struct Received(tokio::sync::mpsc::Receiver<Result<Vec<u8>, std::io::Error>>);

impl futures_core::Stream for Received {
    type Item = Result<Vec<u8>, std::io::Error>;

    fn poll_next(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

async fn send(stream: &mut TcpStream, path: &str) {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).await.unwrap();
}

/// Reads until `end` has come.
async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = String::new();
    let mut buffer = [0; 1024];
    while !text.contains(end) {
        let length = tokio::time::timeout(LONG, stream.read(&mut buffer)).await.expect("more bytes").unwrap();
        assert_ne!(length, 0, "the connection ended after {text:?}");
        text.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
    }
    text
}

async fn end_of_file(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    tokio::time::timeout(LONG, stream.read_to_end(&mut rest)).await.expect("the end of the file").unwrap();
    assert!(rest.is_empty(), "{:?}", String::from_utf8_lossy(&rest));
}

async fn hello(addr: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    send(&mut stream, "/").await;
    assert!(read_until(&mut stream, "hello").await.starts_with("HTTP/1.1 200"));
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_end_and_the_service_comes_back() {
    let service = service().await;
    let mut kept_alive = hello(service.addr).await;
    let mut fresh = TcpStream::connect(service.addr).await.unwrap();
    // The server has accepted it when a later connection is answered.
    drop(hello(service.addr).await);
    for mode in [Mode::Exit, Mode::Continue] {
        let answer = service.context.checkpoint(CheckpointRequest::new(mode)).await;
        assert!(answer.as_ref().is_ok_and(|completed| completed.report().failures.is_empty()), "{answer:?}");
        drop(hello(service.addr).await);
    }
    end_of_file(&mut kept_alive).await;
    end_of_file(&mut fresh).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_just_connected_is_answered_though_the_door_shuts() {
    let service = service().await;
    for _ in 0..50 {
        let (mut fresh, connected) = (TcpStream::connect(service.addr).await.unwrap(), Instant::now());
        let mut kept_alive = hello(service.addr).await;
        let ticket = service.context.request(CheckpointRequest::new(Mode::Exit));
        // So the door has shut, and connections have seen that.
        end_of_file(&mut kept_alive).await;
        send(&mut fresh, "/").await;
        let is_late = connected.elapsed() > Duration::from_millis(150);
        if !is_late {
            assert!(read_until(&mut fresh, "hello").await.starts_with("HTTP/1.1 200"));
            end_of_file(&mut fresh).await;
        }
        let answer = ticket.await;
        assert!(matches!(answer, Ok(Completed::Restored(..))), "{answer:?}");
        if !is_late {
            return;
        }
    }
    panic!("this machine is too busy for a request to follow its connection within 150 ms");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_that_is_being_written_ends_whole() {
    let service = service().await;
    let mut client = TcpStream::connect(service.addr).await.unwrap();
    send(&mut client, "/slow").await;
    service.begun.notified().await;
    read_until(&mut client, "first half").await;
    let ticket = service.context.request(CheckpointRequest::new(Mode::Exit));
    // A second connection, idle, ends: so the round has reached the connections while the response is half written.
    tokio::time::timeout(LONG, async {
        while service.context.status().state != "down" {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the round begins");
    service.go_on.notify_one();
    let rest = read_until(&mut client, "0\r\n\r\n").await;
    assert!(rest.contains("second half"), "{rest:?}");
    end_of_file(&mut client).await;
    let answer = ticket.await;
    assert!(matches!(answer, Ok(Completed::Restored(..))), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_that_never_ends_aborts_the_round_by_name_and_is_not_cut_off() {
    let service = service_with(Duration::from_millis(300)).await;
    let mut client = TcpStream::connect(service.addr).await.unwrap();
    send(&mut client, "/slow").await;
    service.begun.notified().await;
    read_until(&mut client, "first half").await;
    let answer = service.context.checkpoint(CheckpointRequest::new(Mode::Exit)).await;
    let Err(CheckpointError::Aborted(report)) = answer else { panic!("{answer:?}") };
    let named = format!("1 connections at {} still in flight", service.addr);
    assert!(report.failures.iter().any(|failure| failure.what.contains(&named)), "{report}");
    service.go_on.notify_one();
    assert!(read_until(&mut client, "0\r\n\r\n").await.contains("second half"));
    drop(hello(service.addr).await);
}

/// Sends a request while the listener is paused.
struct Latecomer {
    addr: SocketAddr,
    client: Arc<std::sync::Mutex<Option<TcpStream>>>,
}

#[async_trait]
impl Resource for Latecomer {
    async fn before_checkpoint(&self, _context: &CheckpointContext) -> Result<(), BoxError> {
        let mut client = TcpStream::connect(self.addr).await?;
        send(&mut client, "/").await;
        *self.client.lock().unwrap() = Some(client);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_had_queued_up_is_told_to_come_again() {
    let service = service().await;
    drop(hello(service.addr).await);
    let client = Arc::<std::sync::Mutex<_>>::default();
    let latecomer = Latecomer { addr: service.addr, client: client.clone() };
    service.context.register(ResourceOptions::new("latecomer"), latecomer).forever();
    let answer = service.context.checkpoint(CheckpointRequest::new(Mode::Exit)).await;
    assert!(matches!(answer, Ok(Completed::Restored(..))), "{answer:?}");
    let mut client = client.lock().unwrap().take().expect("a client");
    let answer = read_until(&mut client, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after: 1"), "{answer}");
    end_of_file(&mut client).await;
}
