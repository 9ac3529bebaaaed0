extern crate self as crac;
#[path = "../stub.rs"]
#[allow(dead_code)]
pub mod __private;
#[allow(unused_imports)]
use crac_macros::main;

#[crac::main(
    hook_deadline = 10,
    drain_deadline = "10",
    hold_deadline = "1.5s",
    checkpoint_deadline = "2 minutes",
    restore_deadline = "0s",
)]
async fn main() {}
