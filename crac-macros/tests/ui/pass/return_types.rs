#![deny(warnings)]

extern crate self as crac;
#[path = "../stub.rs"]
#[allow(dead_code)]
pub mod __private;
#[allow(unused_imports)]
use crac_macros::main;

use std::process::{ExitCode, Termination};

#[crac::main]
async fn fallible(fail: bool) -> Result<u32, std::num::ParseIntError> {
    let number: u32 = if fail { "x" } else { "7" }.parse()?;
    Ok(number)
}

#[crac::main]
async fn opaque() -> impl Iterator<Item = u32> {
    0..3
}

#[crac::main]
async fn code() -> impl Termination {
    ExitCode::SUCCESS
}

#[crac::main]
async fn never() -> ! {
    std::process::exit(0)
}

#[crac::main]
async fn endless() {
    loop {
        std::process::exit(0);
    }
}

fn main() {
    assert_eq!(fallible(false).unwrap(), 7);
    assert!(fallible(true).is_err());
    assert_eq!(opaque().sum::<u32>(), 3);
    assert_eq!(code().report(), ExitCode::SUCCESS);
    if std::env::args().count() > 1 {
        endless();
    }
    never();
}
