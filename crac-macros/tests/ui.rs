//! What people see: programs that must be refused, with the compiler's words, and programs that must run.
//!
//! The programs need no facade: each one is its own `crac`, with `ui/stub.rs` as its `__private`. Messages of the compiler
//! itself differ between releases; regenerate with `TRYBUILD=overwrite cargo test -p crac-macros --test ui`.

#[test]
fn mistakes_are_reported_on_their_own_token() {
    trybuild::TestCases::new().compile_fail("tests/ui/fail/*.rs");
}

#[test]
fn services_compile_and_run() {
    trybuild::TestCases::new().pass("tests/ui/pass/*.rs");
}
