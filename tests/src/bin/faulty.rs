//! A service that misbehaves on demand, so that tests can see what becomes of a checkpoint and of the service.

use std::{
    net::{SocketAddr, TcpStream},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, extract::State, routing::get};
use clap::Parser;
use crac::{BoxError, CheckpointContext, Resource, ResourceOptions, RestoreContext, async_trait};

#[derive(Parser, Clone)]
struct Args {
    #[arg(long)]
    listen: SocketAddr,
    /// What the resource `moody` does before a checkpoint.
    #[arg(long, value_enum, default_value = "well")]
    before: Mood,
    /// What it does after a restore, an abort, or when the process goes on.
    #[arg(long, value_enum, default_value = "well")]
    after: Mood,
    /// Does so only in a restored life.
    #[arg(long)]
    only_restored: bool,
    /// Keeps a connection to this address that nobody closes.
    #[arg(long)]
    connect: Option<SocketAddr>,
    /// Keeps a file open for writing.
    #[arg(long)]
    write: Option<std::path::PathBuf>,
    /// Starts a child process that outlives the checkpoint.
    #[arg(long)]
    child: bool,
    /// Says that it is ready once this many seconds have passed.
    #[arg(long)]
    ready_after_ms: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Mood {
    Well,
    Fail,
    Panic,
    Hang,
    Block,
}

impl Mood {
    async fn act(self) -> Result<(), BoxError> {
        match self {
            Mood::Well => Ok(()),
            Mood::Fail => Err("the moody resource does not feel like it".into()),
            Mood::Panic => panic!("the moody resource panics"),
            Mood::Hang => std::future::pending().await,
            Mood::Block => loop {
                std::thread::park();
            },
        }
    }
}

struct Moody(Args);

#[async_trait]
impl Resource for Moody {
    async fn before_checkpoint(&self, _context: &CheckpointContext) -> Result<(), BoxError> {
        self.0.before.act().await
    }

    async fn after_restore(&self, context: &RestoreContext) -> Result<(), BoxError> {
        if self.0.only_restored && !context.is_restored() {
            return Ok(());
        }
        self.0.after.act().await
    }
}

/// Keeps a worker thread busy for as long as the flag is set.
async fn stick(State(stuck): State<Arc<AtomicBool>>) -> &'static str {
    stuck.store(true, Ordering::SeqCst);
    tokio::spawn(async move {
        while stuck.load(Ordering::SeqCst) {
            std::hint::spin_loop();
        }
    });
    "stuck"
}

async fn unstick(State(stuck): State<Arc<AtomicBool>>) -> &'static str {
    stuck.store(false, Ordering::SeqCst);
    "free"
}

#[crac::main(name = "faulty", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    crac::register(ResourceOptions::new("moody"), Moody(args.clone())).forever();
    let _connection = args.connect.map(TcpStream::connect).transpose()?;
    let _file = args.write.as_ref().map(std::fs::File::create).transpose()?;
    let _child = args.child.then(|| Command::new("sleep").arg("600").spawn()).transpose()?;
    if let Some(ms) = args.ready_after_ms {
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            crac::ready();
        });
    }
    let app = Router::new()
        .route("/", get(|| async { "serving" }))
        .route("/backtrace", get(|| async { std::backtrace::Backtrace::force_capture().to_string() }))
        .route("/rand09", get(|| async { rand09::random::<u64>().to_string() }))
        .route("/stick", get(stick))
        .route("/unstick", get(unstick))
        .with_state(Arc::new(AtomicBool::new(false)));
    let listener = crac::net::TcpListener::bind(args.listen)
        .await?
        .on_restore(|life| Args::try_parse_from(life.args()).ok().map(|args| args.listen));
    crac::http::serve(listener, app).await?;
    Ok(())
}
