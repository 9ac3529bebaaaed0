//! A service that handles secrets as it should, so that a test can look for them in its image.

use std::{alloc::System, net::SocketAddr};

use axum::{
    Router,
    extract::State,
    http::HeaderMap,
    routing::{get, post},
};
use clap::Parser;
use crac::{alloc::Zeroising, secret::Secret};

#[global_allocator]
static ALLOCATOR: Zeroising<System> = Zeroising(System);

#[derive(Parser)]
struct Args {
    #[arg(long)]
    listen: SocketAddr,
    /// Keeps the key in ordinary memory as well, as a careless service does.
    #[arg(long)]
    careless: bool,
}

#[derive(Clone)]
struct Secrets(std::sync::Arc<(Secret, Secret)>);

/// The lengths: whoever asks knows whether they are there, and nothing else.
async fn lengths(State(Secrets(secrets)): State<Secrets>) -> String {
    let [password, key] =
        [&secrets.0, &secrets.1].map(|secret| secret.expose(|bytes| bytes.iter().filter(|byte| **byte != 0).count()));
    format!("{password} {key}")
}

/// Takes a body and a header, uses them, and forgets them.
async fn take(headers: HeaderMap, body: String) -> String {
    let header = headers.get("authorization").map_or(0, |value| value.len());
    format!("{} {header}", body.len())
}

#[crac::main(name = "canaries", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let password = Secret::from_env("CANARY_PASSWORD")?.ok_or_else(|| anyhow::anyhow!("there is no password"))?;
    let file = std::env::var("CANARY_KEY_FILE")?;
    let key = Secret::new("key", std::fs::read(&file)?, move |_| Ok(std::fs::read(&file)?))?;
    let _kept = args.careless.then(|| key.expose(<[u8]>::to_vec));
    let app = Router::new()
        .route("/", get(|| async { "serving" }))
        .route("/lengths", get(lengths))
        .route("/take", post(take))
        .with_state(Secrets(std::sync::Arc::new((password, key))));
    let listener = crac::net::TcpListener::bind(args.listen)
        .await?
        .on_restore(|life| Args::try_parse_from(life.args()).ok().map(|args| args.listen));
    crac::http::serve(listener, app).await?;
    Ok(())
}
