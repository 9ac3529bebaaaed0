//! The suite of programs in executables that are linked in other ways than cargo's usual one.
//!
//! | | flags | what is different |
//! |---|---|---|
//! | at fixed addresses | `relocation-model=static` | the program lies where the linker has put it, at 2 MiB or 4 MiB |
//! | static | `target-feature=+crt-static` | no dynamic loader, the C library is part of the program |
//!
//! The test programs are their own harnesses, so what is built is run as it is.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{shell, skips, test, workspace};

/// Building the few crates below the suite, or running it once.
const DEADLINE: Duration = Duration::from_secs(20 * 60);

/// An executable, and which of its tests are run.
struct Linked {
    name: &'static str,
    program: PathBuf,
    tests: &'static [&'static str],
}

/// Builds all of them, and runs each as the user that the words of `prefix` make of it.
///
/// # Errors
///
/// One cannot be built. How the tests ended is said for each executable.
pub(crate) fn run(target: &Path, prefix: &[String]) -> Result<Vec<(String, Result<()>)>> {
    const FIXED: [&str; 2] = ["-C", "relocation-model=static"];
    let fixed = |base: &str| {
        let mut command = shell::cargo(["rustc", "--package", "crac-programs", "--test", "suite"]);
        command.args(MESSAGES).arg("--").args(FIXED).args(["-C", &format!("link-arg=-Wl,--image-base={base}")]);
        built(&mut command, "suite")
    };
    let host = host()?;
    let fully = |name: &str| {
        // Both at once, with the same dependencies.
        let mut command = shell::cargo(["test", "--no-run", "--package", "crac-programs", "--package", "crac-native"]);
        command.args(["--test", "suite", "--test", "round_trip"]);
        // A target of its own, so that what runs while it is built, such as macros, is linked as usual.
        command.args(["--target", &host, "--target-dir"]).arg(target.join("static")).args(MESSAGES);
        built(command.env("RUSTFLAGS", "-C target-feature=+crt-static"), name)
    };
    let all = [
        Linked { name: "programs at 2 MiB", program: fixed("0x200000")?, tests: &["memory::"] },
        Linked { name: "programs at 4 MiB", program: fixed("0x400000")?, tests: &["memory::", "threads::"] },
        Linked { name: "static programs", program: fully("suite")?, tests: &["memory::", "threads::", "process::"] },
        Linked { name: "clocks of static programs", program: fully("round_trip")?, tests: &["waits", "clock", "uptime"] },
    ];
    Ok(all.iter().map(|linked| (linked.name.to_owned(), linked.run(prefix))).collect())
}

/// Runs all of them as whoever asks.
///
/// # Errors
///
/// One cannot be built, or its tests failed.
pub(crate) fn tell() -> Result<()> {
    let target = workspace::metadata()?.target_directory;
    let failed: Vec<String> =
        run(&target, &[])?.into_iter().filter_map(|(name, result)| Some(format!("{name}: {:#}", result.err()?))).collect();
    if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join("; ")) }
}

const MESSAGES: [&str; 2] = ["--message-format", "json-render-diagnostics"];

impl Linked {
    fn run(&self, prefix: &[String]) -> Result<()> {
        for tests in self.tests {
            let mut command = Command::new(&self.program);
            command.args(["--skip", "criu::", tests]).current_dir(workspace::root());
            let (output, result) = shell::tee(&mut shell::behind(prefix, command), DEADLINE)?;
            test::remember_all(self.name, &skips::find(&output));
            result?;
            if output.contains("running 0 tests") {
                bail!("there is no test called like `{tests}` in {}", self.program.display());
            }
        }
        Ok(())
    }
}

/// Runs cargo, and finds the executable of the target `name` in what it says.
fn built(command: &mut Command, name: &str) -> Result<PathBuf> {
    executable(&shell::output(command)?, name).with_context(|| format!("cargo does not say where it has put `{name}`"))
}

fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut found = messages.filter(|message| message["target"]["name"] == name).filter_map(|message| {
        let path = message["executable"].as_str()?;
        Some(PathBuf::from(path))
    });
    found.next()
}

/// The triple of this machine.
fn host() -> Result<String> {
    let version = shell::output(&mut shell::command("rustc", ["-vV"]))?;
    version.lines().find_map(|line| line.strip_prefix("host: ")).map(str::to_owned).context("rustc names no host")
}

#[cfg(test)]
mod tests {
    use super::executable;

    #[test]
    fn the_executable_is_the_one_of_the_wanted_target() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"suite"},"executable":null}
not json
{"reason":"compiler-artifact","target":{"name":"suite"},"executable":"/target/debug/deps/suite-1"}
{"reason":"compiler-artifact","target":{"name":"other"},"executable":"/target/debug/deps/other-2"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages, "suite").unwrap().to_str(), Some("/target/debug/deps/suite-1"));
        assert_eq!(executable(messages, "third"), None);
    }
}
