//! The reference service of crac: axum over hyper, an sqlx pool and a warmed-up cache, drained, saved and restored whole.
//!
//! ```text
//! web-server --listen 127.0.0.1:8080                              start: open the database, warm the cache, serve
//! crac checkpoint web-server                                      drain, save, exit
//! ./web-server.crac -- --listen 127.0.0.1:8081                    another life, warm at once
//! ```

mod args;
mod orders;
mod routes;
mod ticks;
mod warm;

use std::sync::Arc;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use crate::{args::Args, orders::Orders, routes::Shop, ticks::Ticks, warm::Warm};

#[crac::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    crac::set_name(&args.name);

    let orders = Orders::open(&args.database).await?;
    let warm = Warm::build(args.warm_mib);
    let shop = Shop { orders, warm, ticks: Ticks::start(), counter: Arc::default() };

    let listener = crac::net::TcpListener::bind(args.listen)
        .await?
        .on_restore(|life| args::listen_again(life.args()).unwrap_or_else(|error| error.exit()));
    tracing::info!(listen = %args.listen, name = args.name, warm_mib = args.warm_mib, "serving");
    crac::http::serve(listener, routes::router(shop)).with_graceful_shutdown(told_to_stop()).await?;
    Ok(())
}

/// Waits for SIGTERM or SIGINT: as process 1 of a container, neither ends a process by itself.
async fn told_to_stop() {
    let terminate = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => signal.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = terminate => {}
        // An error means that the signal cannot be waited for; the other one still works.
        Ok(()) = tokio::signal::ctrl_c() => {}
        else => std::future::pending().await,
    }
    tracing::info!("told to stop");
}
