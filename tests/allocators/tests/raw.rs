//! Generation after generation with an allocator that gives memory back past the C library's `madvise`: by the number of the system
//! call, through `syscall(3)`. What it has given back it hands out again as zeroed.

#![allow(clippy::unwrap_used, reason = "a step that fails is the failure of the test")]

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod allocators;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "raw/pages.rs"]
mod pages;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[global_allocator]
static ALLOCATOR: pages::Pages = pages::Pages::new();

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() {
    allocators::main(&[]);
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn main() {
    println!("skipped: the native engine exists for x86_64 Linux only");
}
