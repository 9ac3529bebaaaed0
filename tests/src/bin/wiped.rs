//! A service with a page that must not survive a fork, as libraries have for the state of their generators.
#![expect(unsafe_code, reason = "maps and marks a page")]

use std::{
    net::SocketAddr,
    ptr,
    sync::atomic::{AtomicU8, Ordering},
};

use axum::{Router, routing::get};
use clap::Parser;

#[derive(Parser)]
struct Args {
    #[arg(long)]
    listen: SocketAddr,
}

const PAGE: usize = 4096;

/// A page that is marked, in use from now on.
fn page() -> std::io::Result<&'static AtomicU8> {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping at an address of the kernel's choice.
    let page = unsafe { libc::mmap(ptr::null_mut(), PAGE, protection, flags, -1, 0) };
    if page == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the page was mapped above.
    if unsafe { libc::madvise(page, PAGE, libc::MADV_WIPEONFORK) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: mapped, aligned, never unmapped, and used through this type alone.
    let cell = unsafe { AtomicU8::from_ptr(page.cast()) };
    cell.store(1, Ordering::SeqCst);
    Ok(cell)
}

#[crac::main(name = "wiped", worker_threads = 1)]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let cell = page()?;
    let app = Router::new()
        .route("/", get(|| async { "serving" }))
        .route("/page", get(move || async move { if cell.load(Ordering::SeqCst) == 0 { "wiped" } else { "kept" } }));
    let listener = crac::net::TcpListener::bind(args.listen)
        .await?
        .on_restore(|life| Args::try_parse_from(life.args()).ok().map(|args| args.listen));
    crac::http::serve(listener, app).await?;
    Ok(())
}
