//! CRIU, for the tests that need a real one.

use std::path::PathBuf;

use crate::skip::skip;

/// The CRIU that `cargo xtask test` has found to work (`CRAC_TEST_CRIU`). Without it the test called `name` is skipped.
///
/// Nobody may not use CRIU: what only root can do is left to the run of the suite as root.
pub fn criu(name: &str) -> Option<PathBuf> {
    match (std::env::var_os("CRAC_TEST_CRIU"), rustix::process::geteuid().as_raw()) {
        (_, 65534) => None,
        (Some(path), 0) => Some(path.into()),
        (_, 0) => {
            skip(name, "no CRIU was found to work; `cargo xtask test` sets one up");
            None
        }
        _ => {
            skip(name, "CRIU needs root");
            None
        }
    }
}
