extern crate self as crac;
#[path = "../stub.rs"]
#[allow(dead_code)]
pub mod __private;
#[allow(unused_imports)]
use crac_macros::main;

#[crac::main(name = "orders")]
async fn main() {
    let port: u16 = "8080";
    undefined(port).await;
}
