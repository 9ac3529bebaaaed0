#[path = "../stub.rs"]
#[allow(dead_code)]
pub mod stub;

mod prelude {
    pub mod crac {
        pub use crate::stub as __private;
        pub use crac_macros::main;
    }
}

#[prelude::crac::main(crate = "prelude::crac", name = "orders")]
async fn main() {
    assert_eq!(stub::arrived().name, Some("orders"));
}
