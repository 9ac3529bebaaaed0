//! Every kind of descriptor through a whole round trip, as this user and, if that is root, as nobody.
//!
//! Without the harness, because the test program is this very file: started again with `CRAC_TEST_PROGRAM` set it plays its
//! part.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "kinds/driver.rs"]
mod driver;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "kinds/programs.rs"]
mod programs;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() {
    match std::env::var("CRAC_TEST_PROGRAM") {
        Ok(name) => programs::run(&name),
        Err(_) => driver::main(),
    }
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn main() {
    println!("skipped: the native engine exists for x86_64 Linux only");
}
