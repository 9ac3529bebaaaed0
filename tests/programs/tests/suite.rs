//! One small program per feature of the kernel, through whole rounds of the native engine.
//!
//! Without the harness, because the test program is this very file: started again with `CRAC_TEST_PROGRAM` set it plays its
//! part. What each program stands for, and whether it comes back or is refused, is in the package's list.

#![allow(clippy::unwrap_used, reason = "a step that fails is the failure of the test")]

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "suite/descriptors.rs"]
mod descriptors;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "suite/driver.rs"]
mod driver;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "suite/kernel.rs"]
mod kernel;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "suite/lives.rs"]
mod lives;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "suite/locks.rs"]
mod locks;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "suite/memory.rs"]
mod memory;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "suite/objects.rs"]
mod objects;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "suite/process.rs"]
mod process;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "suite/sockets.rs"]
mod sockets;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "suite/threads.rs"]
mod threads;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() {
    match std::env::var("CRAC_TEST_PROGRAM") {
        Ok(name) if name == driver::RESTORE => driver::restore_by_criu(),
        Ok(name) => lives::run(&name),
        Err(_) => driver::main(),
    }
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn main() {
    println!("skipped: the native engine exists for x86_64 Linux only");
}
