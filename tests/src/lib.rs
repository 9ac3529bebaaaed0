//! End-to-end tests of crac: programs under `src/bin`, tests under `tests`, what they share in `crac-testing`.
