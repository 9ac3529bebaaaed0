//! A CRIU that does not do what it should: says nothing, or its version and then nothing.
#![expect(unsafe_code, reason = "takes the connection that it was started with, by its number")]

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::FromRawFd,
};

/// `criu_resp`: a version, success, 4.2.
const VERSION: [u8; 10] = [0x08, 10, 0x10, 1, 0x52, 4, 0x08, 4, 0x10, 2];

fn main() -> std::io::Result<()> {
    let number = std::env::args().nth(2).and_then(|number| number.parse().ok()).expect("started as `criu swrk FD`");
    // SAFETY: whoever starts a worker leaves it this descriptor, and nothing else in this program has it.
    let mut connection = unsafe { File::from_raw_fd(number) };
    if let Some(path) = std::env::var_os("ODD_CRIU_PID") {
        std::fs::write(path, std::process::id().to_string())?;
    }
    let mut request = [0; 4096];
    if std::env::var_os("ODD_CRIU_GREETS").is_some() {
        let _greeting = connection.read(&mut request)?;
        connection.write_all(&VERSION)?;
    }
    loop {
        std::thread::park();
    }
}
