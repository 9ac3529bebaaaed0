extern crate self as crac;
#[path = "../stub.rs"]
#[allow(dead_code)]
pub mod __private;
#[allow(unused_imports)]
use crac_macros::main;

const NAME: &str = "orders";

#[crac::main(
    name = NAME,
    image = 7,
    flavor,
    worker_threads = "4",
    control = "on",
    policy("crac.toml"),
    crate = "not a path",
    engine = b"sim",
)]
async fn main() {}
