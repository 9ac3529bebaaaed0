extern crate self as crac;
#[path = "../stub.rs"]
#[allow(dead_code)]
pub mod __private;
#[allow(unused_imports)]
use crac_macros::main;

#[crac::main]
async fn main() {
    let config = crac::__private::arrived();
    let nothing = crac::__private::MainConfig { package: config.package, version: config.version, ..Default::default() };
    assert_eq!(config, nothing);
}
