//! What the continuous integration runs, step by step, on any machine.

use crate::workspace::{self, Package};
use crate::{deny, fuzz, msrv, shell, soak, test, tidy};
use anyhow::{Result, anyhow, bail};
use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// A step has a name to be called by, and does its work.
type Step = (&'static str, fn() -> Result<()>);

/// The quick ones first; the tests last, so that their closing lines are the last thing to be read.
const STEPS: [Step; 13] = [
    ("fmt", fmt),
    ("tidy", || tidy::run(tidy::Drawn::Check)),
    ("clippy", clippy),
    ("doc", doc),
    ("features", features),
    ("foreign", foreign),
    ("msrv", msrv::run),
    ("deny", deny::run),
    ("loom", loom),
    ("package", package),
    ("fuzz", || fuzz::run(60)),
    ("soak", || soak::run(100)),
    ("test", test::run),
];

/// No single command takes longer on two cores.
const DEADLINE: Duration = Duration::from_secs(20 * 60);

/// The target on which everything must at least compile, with the native engine answering `Unsupported`.
const FOREIGN: &str = "aarch64-unknown-linux-gnu";

/// Runs the steps named in `wanted`, or all, and says how long each took.
///
/// # Errors
///
/// A step failed (the others were run all the same), or there is no step of a wanted name.
pub(crate) fn run(wanted: &[&str]) -> Result<()> {
    if let Some(unknown) = wanted.iter().find(|name| !STEPS.iter().any(|(step, _)| step == *name)) {
        bail!("no step `{unknown}`; there are {}", STEPS.map(|(name, _)| name).join(", "));
    }
    let mut lines = Vec::new();
    let mut failed = Vec::new();
    for (name, work) in STEPS.iter().filter(|(name, _)| wanted.is_empty() || wanted.contains(name)) {
        eprintln!("\n==> {name}");
        let start = Instant::now();
        let result = work();
        let verdict = match &result {
            Ok(()) => "ok".to_owned(),
            Err(error) => format!("FAILED: {error:#}"),
        };
        eprintln!("==> {name} {verdict}");
        lines.push(format!("{name:10} {:6.1} s  {verdict}", start.elapsed().as_secs_f64()));
        if result.is_err() {
            failed.push(*name);
        }
    }
    println!("\n{}", lines.join("\n"));
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn fmt() -> Result<()> {
    shell::run(&mut shell::cargo(["fmt", "--all", "--check"]), DEADLINE)
}

fn clippy() -> Result<()> {
    shell::run(&mut shell::cargo(["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"]), DEADLINE)
}

fn doc() -> Result<()> {
    let mut command = shell::cargo(["doc", "--workspace", "--lib", "--no-deps", "--all-features"]);
    shell::run(command.env("RUSTDOCFLAGS", "-D warnings"), DEADLINE)
}

/// The facade without any feature, and the adapter below it: what is off must not be missed.
fn features() -> Result<()> {
    for package in ["crac", "crac-tokio", "crac-sqlx"] {
        shell::run(&mut shell::cargo(["check", "--no-default-features", "--lib", "--package", package]), DEADLINE)?;
    }
    Ok(())
}

fn foreign() -> Result<()> {
    let installed = |list: String| list.lines().any(|target| target == FOREIGN);
    let list = || shell::output(&mut shell::command("rustup", ["target", "list", "--installed"]));
    let mut is_there = list().is_ok_and(installed);
    if !is_there {
        let download = shell::run(&mut shell::command("rustup", ["target", "add", FOREIGN]), DEADLINE);
        is_there = download.is_ok() && list().is_ok_and(installed);
    }
    if !is_there {
        test::skip("check for another target", &format!("rustup cannot install {FOREIGN}"))?;
        // Elsewhere the target may be out of reach; a continuous integration without it would check less than it says.
        return if shell::is_ci() { Err(anyhow!("{FOREIGN} must be there in continuous integration")) } else { Ok(()) };
    }
    // `crac-sqlx` is left out: SQLite is C and would need a C compiler for the target.
    let packages =
        ["crac-core", "crac-sys", "crac-audit", "crac-criu", "crac-native", "crac-tokio", "crac-hyper", "crac-macros", "crac"];
    let mut command = shell::cargo(["check", "--target", FOREIGN]);
    command.args(packages.iter().flat_map(|package| ["--package", package]));
    shell::run(&mut command, DEADLINE)
}

/// The gate under every order of its threads. Other flags, so another target directory, or all would be built twice.
fn loom() -> Result<()> {
    let target = workspace::metadata()?.target_directory.join("loom");
    let mut command = shell::cargo(["test", "--package", "crac-core", "--release", "--lib", "gate"]);
    shell::run(command.env("RUSTFLAGS", "--cfg crac_loom").env("CARGO_TARGET_DIR", target), DEADLINE)
}

/// Builds each published crate from nothing but its package.
fn package() -> Result<()> {
    let metadata = workspace::metadata()?;
    let packages = metadata.packages;
    forget_packaged(&packages, &metadata.target_directory);
    let mut command = shell::cargo(["package", "--workspace", "--allow-dirty", "--quiet"]);
    let unpublished = packages.iter().filter(|package| !Package::is_published(package));
    command.args(unpublished.flat_map(|package| ["--exclude", &package.name]));
    shell::run(&mut command, DEADLINE)
}

/// Removes what cargo has unpacked of earlier packages, and what it has built of that. While it verifies one, the others come from a
/// registry of its own below the target directory; and what it has once taken from there, it takes again for the same version.
fn forget_packaged(packages: &[Package], target: &Path) {
    let is_ours = |name: &OsStr| {
        let name = name.to_str().unwrap_or_default();
        packages.iter().any(|package| name.starts_with(&format!("{}-", package.name)))
    };
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(std::env::home_dir()?.join(".cargo")));
    let kinds = home.iter().flat_map(|home| ["src", "cache"].map(|kind| home.join("registry").join(kind)));
    let registries = kinds.filter_map(|kind| std::fs::read_dir(kind).ok()).flatten().flatten();
    // Those without a host are directories.
    let local = registries.filter(|registry| registry.file_name().as_encoded_bytes().starts_with(b"-"));
    let built = std::fs::read_dir(target.join("debug/.fingerprint")).ok();
    let unpacked = local.filter_map(|registry| std::fs::read_dir(registry.path()).ok());
    for entry in unpacked.chain(built).flatten().flatten().filter(|entry| is_ours(&entry.file_name())) {
        // One of the two fails; should both, the verification says what is wrong.
        let _ = std::fs::remove_dir_all(entry.path());
        let _ = std::fs::remove_file(entry.path());
    }
}

#[cfg(test)]
mod tests {
    use super::{STEPS, run};

    #[test]
    fn an_unknown_step_is_answered_with_the_known_ones() {
        let error = run(&["clippy", "lint"]).unwrap_err().to_string();
        assert!(error.starts_with("no step `lint`; there are fmt, tidy"), "{error}");
    }

    #[test]
    fn the_tests_close_the_run() {
        assert_eq!(STEPS.last().map(|(name, _)| *name), Some("test"));
    }
}
