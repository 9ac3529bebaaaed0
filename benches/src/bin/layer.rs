//! What taking part in checkpoints costs while none runs: each request behind `CheckpointLayer`, and a whole server with and without.
//!
//! Prints one line of JSON: nanoseconds a request, and requests a second, one number for each round. What is compared is done in turn.

use std::{
    convert::Infallible,
    error::Error,
    hint::black_box,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use axum::{Router, routing::get};
use bytes::Bytes;
use clap::Parser;
use crac_core::{Context, SimEngine};
use crac_hyper::CheckpointLayer;
use http::{Request, Response};
use http_body_util::Empty;
use tokio::net::TcpListener;
use tower::{Layer, Service, ServiceExt, service_fn};

/// Calls of a round without a network.
const CALLS: u32 = 200_000;
/// What a client says.
const ASK: &[u8] = b"GET / HTTP/1.1\r\nhost: bench\r\n\r\n";
/// No answer takes longer.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Parser)]
struct Args {
    /// Counted rounds of each thing, after one that is not counted.
    #[arg(long)]
    rounds: usize,
    /// Connections at a time, each with a thread of its own that asks again as soon as it is answered.
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Requests of one connection in one round.
    #[arg(long)]
    requests: usize,
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let context = Context::builder("layer", Arc::new(SimEngine::new())).build()?;
    let layer = CheckpointLayer::in_context(&context);

    let (mut alone, mut behind) = (Vec::new(), Vec::new());
    for round in 0..=args.rounds {
        let took = (calls(service_fn(answer)).await, calls(layer.layer(service_fn(answer))).await);
        if round > 0 {
            alone.push(took.0);
            behind.push(took.1);
        }
    }

    let router = || Router::new().route("/", get(|| async { "ok\n" }));
    let plain = bind().await?;
    let layered = bind().await?;
    let served = bind().await?;
    let addrs = [plain.local_addr()?, layered.local_addr()?, served.local_addr()?];
    tokio::spawn(axum::serve(plain, router()).into_future());
    tokio::spawn(axum::serve(layered, router().layer(layer)).into_future());
    let serve = crac_hyper::serve_in(&context, served, router());
    tokio::spawn(async move { serve.await.map_err(|error| eprintln!("{error}")) });
    let mut throughput = [Vec::new(), Vec::new(), Vec::new()];
    for round in 0..=args.rounds {
        for (addr, counted) in addrs.into_iter().zip(&mut throughput) {
            let (connections, requests) = (args.connections, args.requests);
            let rate = tokio::task::spawn_blocking(move || load(addr, connections, requests)).await??;
            if round > 0 {
                counted.push(rate);
            }
        }
    }
    let [plain, layered, served] = throughput;
    let said = serde_json::json!({
        "alone_ns": alone, "behind_ns": behind, "plain_rps": plain, "layered_rps": layered, "served_rps": served,
    });
    println!("{said}");
    Ok(())
}

async fn bind() -> std::io::Result<TcpListener> {
    TcpListener::bind(("127.0.0.1", 0)).await
}

async fn answer(_: Request<Empty<Bytes>>) -> Result<Response<Empty<Bytes>>, Infallible> {
    Ok(Response::new(Empty::new()))
}

/// Nanoseconds a call of `service`.
async fn calls<S>(service: S) -> f64
where
    S: Service<Request<Empty<Bytes>>, Error = Infallible> + Clone,
{
    let begun = Instant::now();
    for _ in 0..CALLS {
        // An answer is dropped, and so its body ends: it is no longer in flight.
        drop(black_box(service.clone().oneshot(black_box(Request::new(Empty::new()))).await));
    }
    begun.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS)
}

/// Requests a second.
fn load(addr: SocketAddr, connections: usize, requests: usize) -> Result<f64, String> {
    let begun = Instant::now();
    let clients: Vec<_> = (0..connections).map(|_| thread::spawn(move || client(addr, requests))).collect();
    for client in clients {
        client.join().map_err(|_| "a client panicked".to_owned())?.map_err(|error| format!("a request failed: {error}"))?;
    }
    Ok((connections * requests) as f64 / begun.elapsed().as_secs_f64())
}

fn client(addr: SocketAddr, requests: usize) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = [0; 4096];
    for _ in 0..requests {
        stream.write_all(ASK)?;
        let mut filled = 0;
        // Every answer is the same and short, and ends with its body.
        while !answer[..filled].ends_with(b"\r\n\r\nok\n") {
            match stream.read(&mut answer[filled..])? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                read => filled += read,
            }
        }
        if !answer.starts_with(b"HTTP/1.1 200 ") {
            return Err(std::io::Error::other(String::from_utf8_lossy(&answer[..filled]).into_owned()));
        }
    }
    Ok(())
}
