extern crate self as crac;
#[path = "../stub.rs"]
#[allow(dead_code)]
pub mod __private;
#[allow(unused_imports)]
use crac_macros::main;

// The words of the expansion, taken by the program.
#[allow(dead_code)]
mod core {}
#[allow(dead_code)]
mod std {}

fn config() -> u32 {
    1
}

fn body() -> u32 {
    2
}

#[crac::main]
async fn run(argument0: u32) -> u32 {
    #![allow(unused_mut)]
    let mut sum = argument0;
    sum + config() + body()
}

fn main() {
    assert_eq!(run(4), 7);
}
