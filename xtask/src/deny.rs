//! Licences, bans and sources of all dependencies, by cargo-deny.
//!
//! Advisories are left out: they need a database from the network and change without a change here.

use crate::{shell, test, workspace};
use anyhow::Result;
use std::time::Duration;

const VERSION: &str = "0.20.2";

/// Building it takes three minutes on two cores, once.
const DEADLINE: Duration = Duration::from_secs(15 * 60);

/// Checks `deny.toml` against the dependency graph, after installing cargo-deny below the target directory.
///
/// # Errors
///
/// Something is denied. That cargo-deny cannot be had is not an error but a skip.
pub(crate) fn run() -> Result<()> {
    let target = workspace::metadata()?.target_directory;
    let tools = target.join("tools");
    let program = tools.join("bin/cargo-deny");
    if !shell::succeeds(&mut shell::command(&program, ["--version"])) {
        let mut install = shell::cargo(["install", "cargo-deny", "--locked", "--debug", "--no-default-features", "--quiet"]);
        install.args(["--version", VERSION, "--root"]).arg(&tools).arg("--target-dir").arg(tools.join("build"));
        install.env("CARGO_PROFILE_DEV_DEBUG", "0");
        if let Err(error) = shell::run(&mut install, DEADLINE) {
            return test::skip("cargo-deny", &format!("{error:#}"));
        }
        // Gigabytes that nobody needs again; should it fail, they are only in the way.
        let _ = std::fs::remove_dir_all(tools.join("build"));
    }
    let mut check = shell::command(program, ["--workspace", "--all-features", "check", "licenses", "bans", "sources"]);
    shell::run(&mut check, DEADLINE)
}
