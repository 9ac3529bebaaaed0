extern crate self as crac;
#[path = "../stub.rs"]
#[allow(dead_code)]
pub mod __private;
#[allow(unused_imports)]
use crac_macros::main;

#[crac::main(flavor = "multi", engine = "blcr", checkpoint_signal = "SIGKILL")]
async fn main() {}
