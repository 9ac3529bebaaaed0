//! Generation after generation with the C library's allocator.

#![allow(clippy::unwrap_used, reason = "a step that fails is the failure of the test")]

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod allocators;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() {
    // Memory is given back soon, so that a short test sees it.
    allocators::main(&[("MALLOC_ARENA_MAX", "8"), ("MALLOC_TRIM_THRESHOLD_", "65536")]);
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn main() {
    println!("skipped: the native engine exists for x86_64 Linux only");
}
