//! Fifty generations of one process, on a disk and on tmpfs: an image is as large as what is really there.
//!
//! Without the harness, because the test program is this very file: started again with `CRAC_TEST_PROGRAM` set it plays its part.

#![allow(clippy::unwrap_used, reason = "a step that fails is the failure of the test")]

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "generations/driver.rs"]
mod driver;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() {
    driver::main();
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn main() {
    println!("skipped: the native engine exists for x86_64 Linux only");
}
