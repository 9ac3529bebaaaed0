//! The service of `cargo xtask bench` where another than the example is needed: a heap of a given size and as many threads as one
//! likes, requests that write into the heap, and a bare fork on demand.
#![allow(unsafe_code, reason = "forks, to have something to compare with")]

use std::{
    net::SocketAddr,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, extract::State, routing::get};
use clap::Parser;
use crac_sys::process;

/// Words of a page.
const PAGE: usize = 512;

#[derive(Parser)]
struct Args {
    #[arg(long)]
    listen: SocketAddr,
    /// Size of the heap.
    #[arg(long)]
    mib: usize,
    /// Threads besides those of the runtime; they wait until the service ends.
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

/// The heap, and how many requests have written into it.
#[derive(Clone)]
struct Heap(Arc<[AtomicU64]>, Arc<AtomicUsize>);

/// Writes into some page, as a service that changes its state does: the first write to it after a fork copies it.
async fn touch(State(Heap(words, count)): State<Heap>) -> String {
    let at = count.fetch_add(1, Ordering::Relaxed).wrapping_mul(7919) % (words.len() / PAGE).max(1) * PAGE;
    words.get(at).map_or(0, |word| word.fetch_add(1, Ordering::Relaxed)).to_string()
}

/// Writes into every page: after a fork the next one would find them shared already and be faster.
async fn dirty(State(Heap(words, _)): State<Heap>) -> String {
    words.iter().step_by(PAGE).for_each(|word| word.store(word.load(Ordering::Relaxed) + 1, Ordering::Relaxed));
    words.len().to_string()
}

/// How long a bare fork of this process takes, in microseconds.
async fn fork() -> String {
    let took = tokio::task::spawn_blocking(|| {
        let begun = Instant::now();
        // SAFETY: the copy does nothing but end.
        let pid = unsafe { process::fork() };
        let took = begun.elapsed();
        if pid == Ok(0) {
            process::exit_group(0);
        }
        while pid.is_ok_and(|pid| process::reap(pid) == Ok(false)) {
            std::thread::sleep(Duration::from_millis(1));
        }
        took
    });
    took.await.map_or_else(|error| error.to_string(), |took| took.as_micros().to_string())
}

/// A thread that does nothing, in the way in which most threads of a service do nothing.
fn wait() {
    static NEVER: (Mutex<()>, Condvar) = (Mutex::new(()), Condvar::new());
    let mut guard = NEVER.0.lock();
    while let Ok(locked) = guard {
        guard = NEVER.1.wait(locked);
    }
}

#[crac::main(name = "pause", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = Args::parse();
    for number in 0..args.threads {
        std::thread::Builder::new().name(format!("idle-{number}")).spawn(wait)?;
    }
    let words = (0..(args.mib << 20) / 8).map(|word| AtomicU64::new(word as u64)).collect();
    let app = Router::new()
        .route("/", get(touch))
        .route("/dirty", get(dirty))
        .route("/fork", get(fork))
        .with_state(Heap(words, Arc::default()));
    let listener = crac::net::TcpListener::bind(args.listen)
        .await?
        .on_restore(|life| Args::try_parse_from(life.args()).ok().map(|args| args.listen));
    crac::http::serve(listener, app).await?;
    Ok(())
}
