//! fapolicyd, which lets nobody execute what it does not know: Debian's, unpacked beside the build. It is never installed, as it
//! would begin to rule this machine; the tests that use it start it in namespaces of their own.

use std::{ffi::OsString, fs, os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Result, bail};

use crate::{
    debian::{self, Suite},
    shell, test, workspace,
};

/// Where it is for the tests: a directory with the program `fapolicyd` and what it brings along in `root`.
const VARIABLE: &str = "CRAC_TEST_FAPOLICYD";

const SUITE: &str = "bookworm";

/// Fetches it unless it is there, and gives the environment in which tests use it.
///
/// # Errors
///
/// It cannot be had and nothing may be skipped here.
pub(crate) fn environment() -> Result<Option<(String, OsString)>> {
    let prefix = workspace::metadata()?.target_directory.join("fapolicyd");
    match set_up(&prefix) {
        Ok(()) => Ok(Some((VARIABLE.to_owned(), prefix.into()))),
        Err(reason) => test::skip("tests that need fapolicyd", &format!("{reason:#}")).map(|()| None),
    }
}

fn set_up(prefix: &Path) -> Result<()> {
    if shell::output(&mut shell::command("id", ["-u"]))?.trim() != "0" {
        bail!("fapolicyd needs root");
    }
    let wrapper = prefix.join("fapolicyd");
    if wrapper.is_file() {
        return Ok(());
    }
    let packages = Suite::new(SUITE, prefix)?;
    packages.fetch_closure("fapolicyd")?;
    let root = packages.unpack()?;
    packages.tidy_up()?;
    // `lib64` leads to the loader of the machine.
    let libraries = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];
    let script = debian::wrapper(&root, "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", &libraries, "usr/sbin/fapolicyd");
    // The last thing: what is there is whole.
    fs::write(prefix.join("new"), script)?;
    fs::set_permissions(prefix.join("new"), fs::Permissions::from_mode(0o755))?;
    fs::rename(prefix.join("new"), wrapper)?;
    Ok(())
}
