extern crate self as crac;
#[path = "../stub.rs"]
#[allow(dead_code)]
pub mod __private;
#[allow(unused_imports)]
use crac_macros::main;

#[crac::main(core_threads = 4, threaded_scheduler)]
async fn threaded() {}

#[crac::main(basic_scheduler)]
async fn basic() {}

#[crac::main(flavor = "threaded_scheduler")]
async fn renamed() {}

fn main() {}
