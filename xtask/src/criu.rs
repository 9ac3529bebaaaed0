//! A CRIU that works here: the one that is installed, else Debian's newest, unpacked beside the build.
//!
//! Whether one works is found out by trial: `crac doctor` saves a process with it and restores it. `criu check` is not asked,
//! because it is content with versions that cannot save a process with a socket.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{
    debian::{self, Suite},
    shell, test, workspace,
};

/// Where a CRIU that works is, for the tests; see `crac_testing::criu`.
const VARIABLE: &str = "CRAC_TEST_CRIU";

/// Building the command.
const BUILD_DEADLINE: Duration = Duration::from_secs(20 * 60);

/// The suite of Debian whose CRIU is new enough.
const SUITE: &str = "sid";

/// Finds or fetches a CRIU, and gives the environment in which tests use it. The `crac` command is built.
///
/// # Errors
///
/// There is none and nothing may be skipped here.
pub(crate) fn environment() -> Result<Vec<(String, std::ffi::OsString)>> {
    match set_up(&built()?) {
        Ok(path) => {
            eprintln!("CRIU: {}", path.display());
            Ok(vec![(VARIABLE.to_owned(), path.into_os_string())])
        }
        Err(reason) => {
            test::skip("tests that need CRIU", &format!("{reason:#}"))?;
            Ok(Vec::new())
        }
    }
}

/// Prints the path of a CRIU that works.
///
/// # Errors
///
/// There is none, or `crac` cannot be built.
pub(crate) fn tell() -> Result<()> {
    shell::run(&mut shell::cargo(["build", "--package", "crac-cli"]), BUILD_DEADLINE)?;
    println!("{}", set_up(&built()?)?.display());
    Ok(())
}

/// The path of a CRIU with which the command at `crac` has saved and restored a process here.
///
/// # Errors
///
/// Why there is none.
pub(crate) fn set_up(crac: &Path) -> Result<PathBuf> {
    let target = workspace::metadata()?.target_directory;
    if shell::output(&mut shell::command("id", ["-u"]))?.trim() != "0" {
        bail!("CRIU needs root");
    }
    let given = std::env::var_os("CRAC_CRIU_PATH").map(PathBuf::from);
    let prefix = target.join("criu");
    let wrapper = prefix.join("bin/criu");
    let mut reasons = Vec::new();
    for candidate in given.into_iter().chain(installed()).chain([wrapper.clone()]).filter(|path| path.is_file()) {
        match try_out(&target, crac, &candidate) {
            Ok(()) => return Ok(candidate),
            Err(reason) => reasons.push(format!("{}: {reason:#}", candidate.display())),
        }
    }
    let fetched = fetch(&prefix, &wrapper).and_then(|()| try_out(&target, crac, &wrapper));
    match fetched {
        Ok(()) => Ok(wrapper),
        Err(reason) => {
            reasons.push(format!("Debian's: {reason:#}"));
            bail!("no CRIU works here: {}", reasons.join("; "))
        }
    }
}

/// The command as the tests use it.
fn built() -> Result<PathBuf> {
    Ok(workspace::metadata()?.target_directory.join("debug/crac"))
}

/// The CRIU on the search path.
fn installed() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|directory| directory.join("criu")).find(|path| path.is_file())
}

/// Saves and restores a process with the CRIU at `criu`.
fn try_out(target: &Path, crac: &Path, criu: &Path) -> Result<()> {
    let directory = target.join("criu-trial");
    fs::create_dir_all(&directory)?;
    let mut command = std::process::Command::new(crac);
    command.args(["doctor", "--json", "--dir"]).arg(&directory).env("CRAC_CRIU_PATH", criu);
    // It fails where the native engine does not work, which is no matter here.
    let said = command.output().context("cannot run `crac doctor`")?.stdout;
    let said: serde_json::Value = serde_json::from_slice(&said).context("`crac doctor` said something strange")?;
    verdict(&said)
}

/// What `crac doctor` says about CRIU.
fn verdict(said: &serde_json::Value) -> Result<()> {
    let checks = said["checks"].as_array().map(Vec::as_slice).unwrap_or_default();
    let about = |id: &str| checks.iter().find(|check| check["id"] == id).with_context(|| format!("no check `{id}`"));
    for id in ["criu", "criu-privileges", "criu-trial"] {
        let check = about(id)?;
        if check["found"] != true {
            bail!("{}", check["detail"].as_str().unwrap_or("no reason"));
        }
    }
    Ok(())
}

/// Downloads Debian's CRIU with the libraries it is built for, and unpacks them into `prefix`; nothing is installed.
fn fetch(prefix: &Path, wrapper: &Path) -> Result<()> {
    let packages = Suite::new(SUITE, prefix)?;
    packages.fetch_closure("criu")?;
    let root = packages.unpack()?;
    packages.tidy_up()?;
    fs::create_dir_all(prefix.join("bin"))?;
    let script = debian::wrapper(&root, "usr/lib64/ld-linux-x86-64.so.2", &["usr/lib/x86_64-linux-gnu"], "usr/sbin/criu");
    fs::write(wrapper, script)?;
    fs::set_permissions(wrapper, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trial_decides_and_says_why() {
        let said = |trial: bool| {
            serde_json::json!({ "checks": [
                { "id": "criu", "found": true, "detail": "" },
                { "id": "criu-privileges", "found": true, "detail": "" },
                { "id": "criu-trial", "found": trial, "detail": "it did not work" },
            ] })
        };
        assert!(verdict(&said(true)).is_ok());
        assert_eq!(verdict(&said(false)).unwrap_err().to_string(), "it did not work");
        assert!(verdict(&serde_json::json!({})).is_err());
    }
}
