//! Whole round trips: a program captures itself, is gone, and its image runs.
//!
//! Without the harness, because the test program is this very file: started again with [`PROGRAM`] set it plays its part.

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
