//! The end-to-end load test for as many rounds as one likes.

use std::time::Duration;

use anyhow::Result;

use crate::{built, shell, workspace};

/// A round takes well under a second, on the slowest machine a few.
const ROUND_DEADLINE: Duration = Duration::from_secs(5);

/// Checkpoint, exit and restore under load, `rounds` times.
///
/// # Errors
///
/// The first round that loses, doubles or breaks anything.
pub(crate) fn run(rounds: u32) -> Result<()> {
    let tests = built::all()?;
    let mut test = shell::command(built::find(&tests, "tests", "load")?, ["--nocapture", "many_rounds"]);
    test.current_dir(workspace::root()).env("CRAC_TEST_ROUNDS", rounds.to_string());
    shell::run(&mut test, ROUND_DEADLINE * rounds + Duration::from_secs(300))
}
