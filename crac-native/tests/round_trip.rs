//! Whole round trips: a program captures itself, is gone, and its image runs.
//!
//! Without the harness, because the test program is this very file: started again with `CRAC_TEST_PROGRAM` set it plays its part.

#![allow(clippy::unwrap_used, reason = "a step that fails is the failure of the test")]
#![allow(clippy::multiple_unsafe_ops_per_block, reason = "the programs do what other people's code does")]

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod programs;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod rounds;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() {
    match std::env::var("CRAC_TEST_PROGRAM") {
        Ok(name) => programs::run(&name),
        Err(_) => rounds::main(),
    }
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn main() {
    println!("skipped: the native engine exists for x86_64 Linux only");
}
