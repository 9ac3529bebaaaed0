//! What the tests need beside the toolchain, installed where that is possible: Debian's packages, as root.

use std::{path::Path, time::Duration};

use anyhow::Result;

use crate::{shell, test};

/// Downloading and unpacking a few packages.
const DEADLINE: Duration = Duration::from_secs(10 * 60);

/// A program that tests use, and the Debian package it comes in.
struct Tool {
    program: &'static str,
    package: &'static str,
    is_there: fn(&str) -> bool,
}

const TOOLS: [Tool; 6] = [
    Tool { program: "cc", package: "gcc", is_there: shell::is_installed },
    Tool { program: "c++", package: "g++", is_there: shell::is_installed },
    Tool { program: "gdb", package: "gdb", is_there: shell::is_installed },
    Tool { program: "setpriv", package: "util-linux", is_there: shell::is_installed },
    Tool { program: "qemu-system-x86_64", package: "qemu-system-x86", is_there: shell::is_installed },
    Tool { program: "initdb", package: "postgresql", is_there: is_postgres_there },
];

/// Installs what is missing.
///
/// # Errors
///
/// Something cannot be had and nothing may be skipped here.
pub(crate) fn run() -> Result<()> {
    let missing: Vec<&Tool> = TOOLS.iter().filter(|tool| !(tool.is_there)(tool.program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    let is_root = shell::output(&mut shell::command("id", ["-u"]))?.trim() == "0";
    if is_root && shell::is_installed("apt-get") {
        let apt = |args: &[&str]| {
            let mut command = shell::command("apt-get", ["--quiet", "--yes"]);
            shell::run(command.args(args).env("DEBIAN_FRONTEND", "noninteractive"), DEADLINE)
        };
        let install = [&["install", "--no-install-recommends"][..], &packages].concat();
        if let Err(error) = apt(&["update"]).and_then(|()| apt(&install)) {
            eprintln!("error: {error:#}");
        }
    }
    for tool in missing.iter().filter(|tool| !(tool.is_there)(tool.program)) {
        test::skip(&format!("tests that need {}", tool.program), &format!("install the package `{}`", tool.package))?;
    }
    Ok(())
}

/// PostgreSQL's own programs are not on the search path in Debian.
fn is_postgres_there(program: &str) -> bool {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    shell::is_installed(program) || versions.map(|version| version.path()).any(|version| has(&version, program))
}

fn has(version: &Path, program: &str) -> bool {
    version.join("bin").join(program).is_file()
}
