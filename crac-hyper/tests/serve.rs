//! The server over real connections on the loopback interface.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Extension, Router, routing::get};
use bytes::Bytes;
use crac_core::{
    BoxError, CheckpointContext, CheckpointRequest, Completed, Context, Deadlines, Mode, Phase, Resource, ResourceOptions,
    SimEngine, async_trait,
};
use crac_hyper::{Accept, ConnectionInfo, Draining, serve, serve_in};
use futures_util::FutureExt;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Channel, Empty, Full, channel::Sender};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

fn context() -> Context {
    context_with(Deadlines::default())
}

fn context_with(deadlines: Deadlines) -> Context {
    Context::builder("serve", Arc::new(SimEngine::new())).deadlines(deadlines).build().unwrap()
}

/// Drains give up soon.
fn impatient() -> Deadlines {
    let mut deadlines = Deadlines::default();
    deadlines.drain = Duration::from_secs(1);
    deadlines
}

/// Stops a round in a phase, with the door shut.
struct Pause {
    reached: mpsc::UnboundedSender<oneshot::Sender<()>>,
}

#[async_trait]
impl Resource for Pause {
    async fn before_checkpoint(&self, _context: &CheckpointContext) -> Result<(), BoxError> {
        let (go_on, gone_on) = oneshot::channel();
        self.reached.send(go_on)?;
        Ok(gone_on.await?)
    }
}

fn pause(context: &Context, phase: Phase) -> mpsc::UnboundedReceiver<oneshot::Sender<()>> {
    let (reached, pauses) = mpsc::unbounded_channel();
    context.register(ResourceOptions::new("pause").phase(phase), Pause { reached }).forever();
    pauses
}

fn round(context: &Context, mode: Mode) -> JoinHandle<Result<Completed, crac_core::CheckpointError>> {
    let context = context.clone();
    tokio::spawn(async move { context.checkpoint(CheckpointRequest::new(mode)).await })
}

/// A server in `context`, whose `/slow` hands its body out to the test.
async fn server(context: &Context) -> (SocketAddr, mpsc::UnboundedReceiver<Sender<Bytes>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (app, bodies) = app();
    tokio::spawn(serve_in(context, listener, app).into_future());
    (address, bodies)
}

fn app() -> (Router, mpsc::UnboundedReceiver<Sender<Bytes>>) {
    let (bodies, made) = mpsc::unbounded_channel();
    let slow = move || async move {
        let (sender, body) = Channel::<Bytes, Infallible>::new(1);
        bodies.send(sender).unwrap();
        Response::new(axum::body::Body::new(body))
    };
    let info = |Extension(info): Extension<ConnectionInfo>| async move { format!("{} {}", info.peer_addr, info.local_addr) };
    (Router::new().route("/", get(async || "hello")).route("/slow", get(slow)).route("/info", get(info)), made)
}

async fn ask(stream: &mut TcpStream, path: &str) {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).await.unwrap();
}

/// The head of a response, and its body if it has a length.
async fn head(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    loop {
        let so_far = String::from_utf8_lossy(&text).to_lowercase();
        if let Some(end) = so_far.find("\r\n\r\n") {
            let length = so_far[..end].split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
            let length: usize = length.map_or(0, |length| length.parse().unwrap());
            if text.len() >= end + 4 + length {
                return so_far;
            }
        }
        assert_ne!(stream.read_buf(&mut text).await.unwrap(), 0, "the connection ended too early: {so_far}");
    }
}

/// Everything up to the end, which is a clean one.
async fn rest(mut stream: TcpStream) -> io::Result<String> {
    let mut text = Vec::new();
    stream.read_to_end(&mut text).await?;
    Ok(String::from_utf8(text).unwrap().to_lowercase())
}

#[tokio::test]
async fn a_slow_response_completes_and_idle_connections_end_cleanly() {
    let context = context();
    let (address, mut bodies) = server(&context).await;
    let mut idle = TcpStream::connect(address).await.unwrap();
    ask(&mut idle, "/").await;
    assert!(head(&mut idle).await.starts_with("http/1.1 200"));
    let mut slow = TcpStream::connect(address).await.unwrap();
    ask(&mut slow, "/slow").await;
    let mut body = bodies.recv().await.unwrap();
    assert!(!head(&mut slow).await.contains("connection: close"));

    let round = round(&context, Mode::Exit);
    assert_eq!(rest(idle).await.unwrap(), "", "end of file, and not a reset");
    for chunk in ["one", "two", "three"] {
        body.send_data(Bytes::from(chunk)).await.unwrap();
    }
    assert!(!round.is_finished(), "the body is not over");
    drop(body);
    let text = rest(slow).await.unwrap();
    assert!(text.contains("one") && text.contains("three") && text.ends_with("0\r\n\r\n"), "{text}");
    assert!(matches!(round.await.unwrap(), Ok(Completed::Restored(..))));

    let mut again = TcpStream::connect(address).await.unwrap();
    ask(&mut again, "/").await;
    assert!(head(&mut again).await.starts_with("http/1.1 200"));
}

#[tokio::test]
async fn who_has_just_connected_is_answered_though_the_door_shuts() {
    let context = context();
    let mut pauses = pause(&context, Phase::Ingress);
    let (address, _bodies) = server(&context).await;
    for _ in 0..50 {
        let (mut fresh, connected) = (TcpStream::connect(address).await.unwrap(), Instant::now());
        // It was accepted when a later one is answered.
        let mut later = TcpStream::connect(address).await.unwrap();
        ask(&mut later, "/").await;
        head(&mut later).await;
        let round = round(&context, Mode::Continue);
        let go_on = pauses.recv().await.unwrap();
        ask(&mut fresh, "/").await;
        let is_late = connected.elapsed() > Duration::from_millis(150);
        let answer = rest(fresh).await;
        go_on.send(()).unwrap();
        assert!(matches!(round.await.unwrap(), Ok(Completed::Continued(_))));
        if !is_late {
            let text = answer.unwrap();
            assert!(text.starts_with("http/1.1 503") && text.contains("connection: close"), "{text}");
            return;
        }
    }
    panic!("this machine is too busy for a request to follow its connection within 150 ms");
}

#[tokio::test]
async fn a_response_that_begins_while_the_door_is_shut_says_close() {
    let context = context();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (reached, mut waiting) = mpsc::unbounded_channel();
    let late = move || async move {
        let (answer, answered) = oneshot::channel();
        reached.send(answer).unwrap();
        answered.await.unwrap()
    };
    tokio::spawn(serve_in(&context, listener, Router::new().route("/late", get(late))).into_future());
    let mut pauses = pause(&context, Phase::Ingress);
    let mut late = TcpStream::connect(address).await.unwrap();
    ask(&mut late, "/late").await;
    let answer: oneshot::Sender<&str> = waiting.recv().await.unwrap();
    let round = round(&context, Mode::Continue);
    pauses.recv().await.unwrap().send(()).unwrap();
    answer.send("late").unwrap();
    let text = rest(late).await.unwrap();
    assert!(text.starts_with("http/1.1 200") && text.contains("connection: close") && text.ends_with("late"), "{text}");
    assert!(matches!(round.await.unwrap(), Ok(Completed::Continued(_))));
}

#[tokio::test]
async fn what_the_client_sends_on_does_not_cut_its_response_off() {
    const SIZE: usize = 1 << 20;
    let context = context();
    // The whole response fits into the server's kernel and next to nothing into the client's: when the server is done, it is still
    // under way, and a plain close with unread bytes would throw it away.
    let listener = TcpSocket::new_v4().unwrap();
    listener.set_send_buffer_size(2 << 20).unwrap();
    listener.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = listener.listen(8).unwrap();
    let client = TcpSocket::new_v4().unwrap();
    client.set_recv_buffer_size(4096).unwrap();
    let address = listener.local_addr().unwrap();
    let (app, mut bodies) = app();
    tokio::spawn(serve_in(&context, listener, app).into_future());
    let mut client = client.connect(address).await.unwrap();
    ask(&mut client, "/slow").await;
    let mut body = bodies.recv().await.unwrap();
    let mut pauses = pause(&context, Phase::Ingress);
    let round = round(&context, Mode::Exit);
    pauses.recv().await.unwrap().send(()).unwrap();
    // Sent on until nobody takes it any more; hyper reads ahead less than that.
    let more = [b'x'; 64 * 1024];
    while client.write_all(&more).now_or_never().is_some_and(|written| written.is_ok()) {
        tokio::task::yield_now().await;
    }
    body.send_data(Bytes::from(vec![b'y'; SIZE])).await.unwrap();
    drop(body);
    let text = rest(client).await.unwrap();
    assert_eq!(text.matches('y').count(), SIZE);
    assert!(text.ends_with("\r\n0\r\n\r\n"));
    assert!(matches!(round.await.unwrap(), Ok(Completed::Restored(..))));
}

/// A listener that hands on connections while the door is shut.
struct HandsOn(TcpListener);

impl Accept for HandsOn {
    type Io = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, ConnectionInfo)> {
        Accept::accept(&mut self.0).await
    }

    fn drains(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn a_connection_handed_over_while_shut_gets_503_and_one_that_is_not_waits() {
    let context = context();
    let mut pauses = pause(&context, Phase::Work);
    let handing = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let handed = handing.local_addr().unwrap();
    tokio::spawn(serve_in(&context, HandsOn(handing), app().0).retry_after(Duration::from_secs(7)).into_future());
    let (plain, _bodies) = server(&context).await;
    // Served once, so that both servers are known to run.
    for address in [handed, plain] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        ask(&mut stream, "/").await;
        head(&mut stream).await;
    }
    let round = round(&context, Mode::Continue);
    let go_on = pauses.recv().await.unwrap();
    let mut stream = TcpStream::connect(handed).await.unwrap();
    ask(&mut stream, "/").await;
    let text = rest(stream).await.unwrap();
    assert!(text.starts_with("http/1.1 503") && text.contains("retry-after: 7") && text.contains("connection: close"), "{text}");
    let mut stream = TcpStream::connect(plain).await.unwrap();
    ask(&mut stream, "/").await;
    go_on.send(()).unwrap();
    assert!(matches!(round.await.unwrap(), Ok(Completed::Continued(_))));
    assert!(head(&mut stream).await.starts_with("http/1.1 200"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_listener_that_drains_who_waited_is_told_to_come_again_and_is_served_in_the_next_life() {
    let context = context();
    let mut pauses = pause(&context, Phase::Service);
    let listener = crac_tokio::net::TcpListener::bind_in(&context, "127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve_in(&context, listener, app().0).into_future());
    let mut stream = TcpStream::connect(address).await.unwrap();
    ask(&mut stream, "/").await;
    head(&mut stream).await;
    for (mode, answer) in [(Mode::Continue, "http/1.1 200"), (Mode::Exit, "http/1.1 503"), (Mode::Become, "http/1.1 503")] {
        let round = round(&context, mode);
        let go_on = pauses.recv().await.unwrap();
        let mut queued = TcpStream::connect(address).await.unwrap();
        ask(&mut queued, "/").await;
        let mut silent = TcpStream::connect(address).await.unwrap();
        go_on.send(()).unwrap();
        let text = head(&mut queued).await;
        assert!(text.starts_with(answer), "{mode}: {text}");
        drop(queued);
        if mode.ends_original() {
            assert_eq!(silent.read(&mut [0]).await.unwrap(), 0, "end of file, and not a reset");
        }
        round.await.unwrap().unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        ask(&mut stream, "/").await;
        assert!(head(&mut stream).await.starts_with("http/1.1 200"));
    }
}

#[tokio::test]
async fn http_2_is_told_to_go_away_and_finishes_its_streams() {
    let context = context();
    let (address, mut bodies) = server(&context).await;
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = || Request::builder().uri(format!("http://{address}/slow")).body(Empty::<Bytes>::new()).unwrap();
    let response = client.send_request(request()).await.unwrap();
    let mut body = bodies.recv().await.unwrap();
    let round = round(&context, Mode::Exit);
    body.send_data(Bytes::from_static(b"all ")).await.unwrap();
    body.send_data(Bytes::from_static(b"of it")).await.unwrap();
    drop(body);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "all of it");
    connection.await.unwrap().expect("GOAWAY without an error");
    assert!(client.send_request(request()).await.is_err(), "the connection is over");
    assert!(matches!(round.await.unwrap(), Ok(Completed::Restored(..))));
}

/// Answers an upgrade and echoes one byte after the other, until the client ends it or, if `polite`, the server drains.
async fn echo(mut request: Request<hyper::body::Incoming>, polite: bool) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut draining = request.extensions().get::<Draining>().unwrap().clone();
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut io = TokioIo::new(upgrade.await.unwrap());
        loop {
            tokio::select! {
                () = draining.begun(), if polite => return,
                byte = io.read_u8() => match byte {
                    Ok(byte) => io.write_u8(byte).await.unwrap(),
                    Err(_) => return,
                }
            }
        }
    });
    let response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
    let response = response.header(header::CONNECTION, "upgrade").header(header::UPGRADE, "echo");
    Ok(response.body(Full::default()).unwrap())
}

async fn upgraded(context: &Context, polite: bool) -> (SocketAddr, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = hyper::service::service_fn(move |request| echo(request, polite));
    tokio::spawn(serve_in(context, listener, service).into_future());
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n").await.unwrap();
    assert!(head(&mut stream).await.starts_with("http/1.1 101"));
    stream.write_u8(7).await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), 7);
    (address, stream)
}

#[tokio::test]
async fn an_upgraded_connection_that_stays_aborts_the_round_by_name_and_lives_on() {
    let context = context_with(impatient());
    let (_, mut stream) = upgraded(&context, false).await;
    let error = round(&context, Mode::Exit).await.unwrap().unwrap_err().to_string();
    assert!(error.contains("1 upgraded connections still in flight"), "{error}");
    assert!(!error.contains("http connections still in flight"), "{error}");
    stream.write_u8(8).await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), 8);
    drop(stream);
    let again = round(&context, Mode::Exit).await.unwrap();
    assert!(matches!(again, Ok(Completed::Restored(..))), "{}", again.unwrap_err());
}

#[tokio::test]
async fn an_upgraded_connection_hears_that_the_server_drains() {
    let context = context();
    let (_, stream) = upgraded(&context, true).await;
    let round = round(&context, Mode::Exit);
    assert_eq!(rest(stream).await.unwrap(), "");
    assert!(matches!(round.await.unwrap(), Ok(Completed::Restored(..))));
}

#[tokio::test]
async fn after_an_abort_it_serves_on_the_same_socket() {
    let context = context_with(impatient());
    let (address, mut bodies) = server(&context).await;
    let mut stuck = TcpStream::connect(address).await.unwrap();
    ask(&mut stuck, "/slow").await;
    let mut body = bodies.recv().await.unwrap();
    let error = round(&context, Mode::Exit).await.unwrap().unwrap_err().to_string();
    assert!(error.contains("1 http requests still in flight") && error.contains("1 http connections still in flight"), "{error}");
    let mut other = TcpStream::connect(address).await.unwrap();
    ask(&mut other, "/").await;
    assert!(head(&mut other).await.starts_with("http/1.1 200"));
    body.send_data(Bytes::from_static(b"late")).await.unwrap();
    drop(body);
    assert!(rest(stuck).await.unwrap().ends_with("4\r\nlate\r\n0\r\n\r\n"));
}

#[tokio::test]
async fn a_client_that_went_quiet_in_a_head_does_not_hold_up_the_round() {
    let context = context();
    let (address, _bodies) = server(&context).await;
    let mut quiet = TcpStream::connect(address).await.unwrap();
    ask(&mut quiet, "/").await;
    head(&mut quiet).await;
    quiet.write_all(b"GET / HTTP/1.1\r\nhost").await.unwrap();
    let mut never = TcpStream::connect(address).await.unwrap();
    never.write_all(b"GE").await.unwrap();
    assert!(matches!(round(&context, Mode::Exit).await.unwrap(), Ok(Completed::Restored(..))));
}

#[tokio::test]
async fn without_a_context_it_serves_and_shuts_down_gracefully() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let (app, mut bodies) = app();
    let server = serve(listener, app).with_graceful_shutdown(async move { stopped.await.unwrap() });
    let server = tokio::spawn(server.into_future());
    let mut stream = TcpStream::connect(address).await.unwrap();
    let own = stream.local_addr().unwrap();
    ask(&mut stream, "/info").await;
    assert!(head(&mut stream).await.ends_with(&format!("{own} {address}")));
    ask(&mut stream, "/slow").await;
    let mut body = bodies.recv().await.unwrap();
    stop.send(()).unwrap();
    body.send_data(Bytes::from_static(b"to the end")).await.unwrap();
    drop(body);
    assert!(rest(stream).await.unwrap().ends_with("a\r\nto the end\r\n0\r\n\r\n"));
    server.await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}
