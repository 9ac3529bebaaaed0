//! The listener through aborted, continued and restored rounds.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use crac_core::{
    BoxError, CheckpointContext, CheckpointError, CheckpointRequest, Completed, Context, EngineError, Mode, Phase, Resource,
    ResourceOptions, SimEngine, SimScript, async_trait,
};
use crac_tokio::{TokioSpawner, net::TcpListener};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::Handle,
};

const LONG: Duration = Duration::from_secs(20);

fn context() -> (Context, Arc<SimEngine>) {
    let engine = Arc::new(SimEngine::new());
    let spawner = Arc::new(TokioSpawner::new(Handle::current()));
    (Context::builder("test", engine.clone()).spawner(spawner).build().unwrap(), engine)
}

/// Says one word to everybody and closes: `last` to those of the last call.
async fn serve(listener: TcpListener) {
    loop {
        let (mut connection, _) = listener.accept().await.unwrap();
        let word = if connection.is_last_call() { "last" } else { "well" };
        tokio::spawn(async move {
            connection.write_all(word.as_bytes()).await.unwrap();
            connection.shutdown().await.unwrap();
            let mut rest = Vec::new();
            let _ = connection.read_to_end(&mut rest).await;
        });
    }
}

async fn hear(mut client: TcpStream) -> String {
    let mut word = String::new();
    tokio::time::timeout(LONG, client.read_to_string(&mut word)).await.expect("an answer").unwrap();
    word
}

async fn ask(addr: SocketAddr) -> String {
    hear(TcpStream::connect(addr).await.unwrap()).await
}

/// Connects while the round is under way, and keeps the connection.
struct Latecomer {
    addr: SocketAddr,
    client: Arc<Mutex<Option<TcpStream>>>,
}

impl Latecomer {
    fn register(context: &Context, addr: SocketAddr) -> Arc<Mutex<Option<TcpStream>>> {
        let client = Arc::<Mutex<_>>::default();
        let latecomer = Latecomer { addr, client: client.clone() };
        context.register(ResourceOptions::new("latecomer").phase(Phase::Service), latecomer).forever();
        client
    }
}

#[async_trait]
impl Resource for Latecomer {
    async fn before_checkpoint(&self, _context: &CheckpointContext) -> Result<(), BoxError> {
        let client = TcpStream::connect(self.addr).await?;
        let mut byte = [0];
        if let Ok(read) = tokio::time::timeout(Duration::from_millis(50), client.peek(&mut byte)).await {
            return Err(format!("answered while the listener should be paused: {read:?}").into());
        }
        *self.client.lock().unwrap() = Some(client);
        Ok(())
    }
}

/// Which socket is behind a descriptor that listens at `addr`, by the kernel's table.
fn inode_of(addr: SocketAddr) -> Option<String> {
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let port = format!(":{:04X}", addr.port());
    let line = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut listening = line.filter(|fields| fields.len() > 9 && fields[1].ends_with(&port) && fields[3] == "0A");
    listening.next().map(|fields| fields[9].to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_round_that_goes_on_keeps_the_socket_and_serves_who_waited() {
    let (context, engine) = context();
    let listener = TcpListener::bind_in(&context, "127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(serve(listener));
    assert_eq!(ask(addr).await, "well");
    let waited = Latecomer::register(&context, addr);
    let socket = inode_of(addr).expect("a listening socket");
    for (mode, script) in [
        (Mode::Continue, None),
        (Mode::Rehearse, None),
        (Mode::Continue, Some(SimScript::Fail(EngineError::Refused(Vec::new())))),
    ] {
        script.into_iter().for_each(|script| engine.then(script));
        let answer = context.checkpoint(CheckpointRequest::new(mode)).await;
        if let Ok(completed) = &answer {
            assert!(completed.report().failures.is_empty(), "{}", completed.report());
        }
        let client = waited.lock().unwrap().take().expect("a client that waited");
        assert_eq!(hear(client).await, "well");
        assert_eq!(inode_of(addr), Some(socket.clone()), "{mode}: the socket is another one");
        assert_eq!(ask(addr).await, "well");
    }
}

/// An address that is free and stays so: nobody connects from that host.
fn spare() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.2:0").unwrap().local_addr().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_life_listens_where_it_is_told() {
    let (context, engine) = context();
    let spare = spare();
    let listener = TcpListener::bind_in(&context, "127.0.0.1:0")
        .await
        .unwrap()
        .on_restore(|life| life.args().get(1).and_then(|arg| arg.to_str()?.parse::<SocketAddr>().ok()));
    let first = listener.local_addr().unwrap();
    tokio::spawn(serve(listener));
    assert_eq!(ask(first).await, "well");
    let waited = Latecomer::register(&context, first);
    let args = vec!["test".into(), spare.to_string().into()];
    engine.then(SimScript::Restored { asleep: Duration::ZERO, args, env: Vec::new() });
    let answer = context.checkpoint(CheckpointRequest::new(Mode::Exit)).await;
    let Ok(Completed::Restored(_, report)) = answer else { panic!("{answer:?}") };
    assert!(report.failures.is_empty(), "{report}");
    let client = waited.lock().unwrap().take().expect("a client that waited");
    assert_eq!(hear(client).await, "last", "who had queued up is told before the process ends");
    assert_eq!(ask(spare).await, "well");
    assert!(TcpStream::connect(first).await.is_err(), "the old address is free");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_life_from_the_image_of_a_process_that_goes_on_leaves_its_socket_alone() {
    let (context, engine) = context();
    let spare = spare();
    let listener = TcpListener::bind_in(&context, "127.0.0.1:0").await.unwrap().on_restore(move |_| spare);
    let first = listener.local_addr().unwrap();
    tokio::spawn(serve(listener));
    assert_eq!(ask(first).await, "well");
    let socket = inode_of(first).expect("a listening socket");
    engine.then(SimScript::Restored { asleep: Duration::ZERO, args: Vec::new(), env: Vec::new() });
    let answer = context.checkpoint(CheckpointRequest::new(Mode::Continue)).await;
    let Ok(Completed::Restored(_, report)) = answer else { panic!("{answer:?}") };
    assert!(report.failures.is_empty(), "{report}");
    assert_eq!(ask(spare).await, "well");
    // The descriptor of that number, whoever has it in a restored life, is neither closed nor used.
    assert_eq!(inode_of(first), Some(socket));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abort_after_the_last_call_listens_at_the_same_address() {
    let (context, engine) = context();
    let listener = TcpListener::bind_in(&context, "127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(serve(listener));
    assert_eq!(ask(addr).await, "well");
    engine.then(SimScript::Fail(EngineError::Refused(Vec::new())));
    let answer = context.checkpoint(CheckpointRequest::new(Mode::Exit)).await;
    assert!(matches!(answer, Err(CheckpointError::Aborted(_))), "{answer:?}");
    assert_eq!(ask(addr).await, "well");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_is_taken_is_named() {
    let engine = Arc::new(SimEngine::new());
    let context = Context::builder("test", engine.clone())
        .spawner(Arc::new(TokioSpawner::new(Handle::current())))
        .on_restore_failure(crac_core::RestoreFailure::StayShut)
        .build()
        .unwrap();
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap();
    let _listener = TcpListener::bind_in(&context, "127.0.0.1:0").await.unwrap().on_restore(move |_| taken);
    let answer = context.checkpoint(CheckpointRequest::new(Mode::Exit)).await;
    let Ok(Completed::Restored(_, report)) = answer else { panic!("{answer:?}") };
    assert!(report.failures.iter().any(|failure| failure.what.contains(&taken.to_string())), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_context_it_is_a_plain_listener() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server = tokio::spawn(serve(listener));
    assert_eq!(ask(addr).await, "well");
    server.abort();
    assert!(server.await.unwrap_err().is_cancelled());
    assert!(TcpStream::connect(addr).await.is_err(), "a dropped listener is closed");
}
