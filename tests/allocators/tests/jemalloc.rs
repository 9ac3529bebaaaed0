//! Generation after generation with jemalloc, with its background thread.

#![allow(clippy::unwrap_used, reason = "a step that fails is the failure of the test")]

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod allocators;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() {
    // Memory is given back soon, so that a short test sees it.
    allocators::main(&[("_RJEM_MALLOC_CONF", "background_thread:true,dirty_decay_ms:20,muzzy_decay_ms:20")]);
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn main() {
    println!("skipped: the native engine exists for x86_64 Linux only");
}
