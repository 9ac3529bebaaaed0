extern crate self as crac;
#[path = "../stub.rs"]
#[allow(dead_code)]
pub mod __private;
#[allow(unused_imports)]
use crac_macros::main;

struct Service;

impl Service {
    #[crac::main]
    async fn run(&self) {}
}

fn main() {
    Service.run();
}
