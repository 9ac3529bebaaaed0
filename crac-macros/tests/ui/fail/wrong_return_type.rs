extern crate self as crac;
#[path = "../stub.rs"]
#[allow(dead_code)]
pub mod __private;
#[allow(unused_imports)]
use crac_macros::main;

#[crac::main]
async fn main() -> Result<(), String> {
    if std::env::args().count() > 1 {
        return Err(7);
    }
    Ok(())
}
