extern crate self as crac;
#[path = "../stub.rs"]
#[allow(dead_code)]
pub mod __private;
#[allow(unused_imports)]
use crac_macros::main;

use std::cell::Cell;
use std::rc::Rc;

async fn touch(count: &Rc<Cell<u32>>) {
    count.set(count.get() + 1);
}

#[crac::main(flavor = "local")]
async fn main() {
    let count = Rc::new(Cell::new(0));
    touch(&count).await;
    touch(&count).await;
    assert_eq!(count.get(), 2);
}
