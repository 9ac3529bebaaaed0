//! Every published crate compiled with the oldest compiler that its manifest names.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Result, anyhow};

use crate::{shell, test, workspace};

/// Fetching a compiler, or compiling with it.
const DEADLINE: Duration = Duration::from_secs(15 * 60);

/// Checks the crates of each version with that version; fetches compilers with rustup.
///
/// # Errors
///
/// A crate does not compile with the compiler it names. Where that cannot be fetched and nothing may be skipped.
pub(crate) fn run() -> Result<()> {
    let mut crates: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let metadata = workspace::metadata()?;
    for package in metadata.packages.into_iter().filter(workspace::Package::is_published) {
        crates.entry(package.rust_version.unwrap_or_default()).or_default().push(package.name);
    }
    for (version, names) in crates {
        let is_there = || shell::succeeds(&mut shell::command("rustup", ["run", &version, "rustc", "--version"]));
        let fetch =
            || shell::run(&mut shell::command("rustup", ["toolchain", "install", &version, "--profile=minimal"]), DEADLINE);
        if !is_there() && !fetch().is_ok_and(|()| is_there()) {
            test::skip(&format!("check with Rust {version}"), "rustup cannot install it")?;
            // As with the other target: a continuous integration without it would check less than it says.
            if shell::is_ci() {
                return Err(anyhow!("Rust {version} must be there in continuous integration"));
            }
            continue;
        }
        // Another compiler would build everything anew in the usual place, back and forth.
        let target = metadata.target_directory.join("msrv").join(&version);
        let mut command = shell::command("rustup", ["run", &version, "cargo", "check", "--lib", "--bins"]);
        command.args(names.iter().flat_map(|name| ["--package", name]));
        // What the cargo that runs this task has set speaks of its own compiler.
        for variable in ["CARGO", "RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN"] {
            command.env_remove(variable);
        }
        shell::run(command.env("CARGO_TARGET_DIR", target), DEADLINE)?;
    }
    Ok(())
}
