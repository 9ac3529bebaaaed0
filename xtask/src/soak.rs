//! The end-to-end load test for as many rounds as one likes.

use std::time::Duration;

use anyhow::Result;

use crate::shell;

/// A round takes well under a second, on the slowest machine a few.
const ROUND_DEADLINE: Duration = Duration::from_secs(5);

/// Checkpoint, exit and restore under load, `rounds` times.
///
/// # Errors
///
/// The first round that loses, doubles or breaks anything.
pub(crate) fn run(rounds: u32) -> Result<()> {
    shell::run(&mut shell::cargo(["build", "--workspace", "--bins"]), Duration::from_secs(20 * 60))?;
    let mut test = shell::cargo(["test", "--package", "crac-tests", "--test", "load", "--", "--nocapture", "many_rounds"]);
    shell::run(test.env("CRAC_TEST_ROUNDS", rounds.to_string()), ROUND_DEADLINE * rounds + Duration::from_secs(300))
}
