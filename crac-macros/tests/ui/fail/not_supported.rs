extern crate self as crac;
#[path = "../stub.rs"]
#[allow(dead_code)]
pub mod __private;
#[allow(unused_imports)]
use crac_macros::main;

#[crac::main(flavor = "current_thread", start_paused = true, unhandled_panic = "ignore")]
async fn main() {}
