//! Micro-benchmarks of crac: `cargo bench -p crac-benches`. What is measured as whole programs is in `cargo xtask bench`, whose
//! floor is `static/floor.rs`, whose clock starts in `static/begin.rs`, and whose services are in `bin`.
