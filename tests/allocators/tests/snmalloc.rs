//! Generation after generation with snmalloc.

#![allow(clippy::unwrap_used, reason = "a step that fails is the failure of the test")]

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod allocators;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[global_allocator]
static ALLOCATOR: snmalloc_rs::SnMalloc = snmalloc_rs::SnMalloc;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() {
    allocators::main(&[]);
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn main() {
    println!("skipped: the native engine exists for x86_64 Linux only");
}
