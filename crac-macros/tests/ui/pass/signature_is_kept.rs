#![deny(warnings)]

extern crate self as crac;
#[path = "../stub.rs"]
#[allow(dead_code)]
pub mod __private;
#[allow(unused_imports)]
use crac_macros::main;

mod service {
    /// Documented, public, and with arguments whose patterns only the body sees.
    #[crac::main(name = "pair")]
    #[must_use]
    #[inline(never)]
    pub async fn run((left, mut right): (u32, u32), text: &str, show: impl Fn(u32) -> String) -> String {
        right += 1;
        format!("{text}{}", show(left + right))
    }

    #[crac::main]
    pub(super) async unsafe fn dangerous(pointer: *const u32) -> u32 {
        // SAFETY: the caller passes a pointer to a live `u32`.
        unsafe { *pointer }
    }
}

fn main() {
    let run: String = service::run((1, 2), "sum ", |sum| sum.to_string());
    assert_eq!(run, "sum 4");
    // SAFETY: the reference lives through the call.
    assert_eq!(unsafe { service::dangerous(&7) }, 7);
}
