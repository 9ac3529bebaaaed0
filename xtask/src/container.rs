//! A service in a real container, with Docker's own default seccomp profile: Debian's Docker, unpacked beside the build.
//!
//! What the profile forbids is tested everywhere, with the list of it as a filter (`tests/tests/confined.rs`); this is the whole,
//! where a container can be started: as root, in mount and network namespaces of its own.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, bail};

use crate::{debian::Suite, kernels::initramfs, shell, test, workspace};

/// The suite whose Docker is taken: its programs run with the libraries of the machine, which therefore has to be this or a later
/// one.
const SUITE: &str = "bookworm";

const DEADLINE: Duration = Duration::from_secs(5 * 60);

/// Sets everything up and runs it.
///
/// # Errors
///
/// A checkpoint or restore failed in a container; or there are no containers here, and nothing may be skipped.
pub(crate) fn run() -> Result<()> {
    let name = "a service in a container";
    let directory = workspace::metadata()?.target_directory.join("docker");
    if let Err(reason) = set_up(&directory) {
        return test::skip(name, &format!("{reason:#}"));
    }
    let built = workspace::metadata()?.target_directory.join("debug");
    let rootfs = directory.join("rootfs");
    // What an earlier build has left may be old.
    let _ = fs::remove_dir_all(&rootfs);
    fill(&rootfs, &built).context("packing the container's file system")?;
    let mut pack = shell::command("tar", ["--create", "--file"]);
    shell::run(pack.arg(directory.join("rootfs.tar")).arg("--directory").arg(&rootfs).arg("."), DEADLINE)?;
    let script = directory.join("container.sh");
    fs::write(&script, include_str!("container.sh"))?;
    let mut command = shell::command("unshare", ["--mount", "--net", "--propagation", "private", "sh"]);
    let (said, result) = shell::tee(command.arg(script).arg(&directory), DEADLINE)?;
    result?;
    match said.lines().find_map(|line| line.strip_prefix("container: not here: ")) {
        Some(reason) => test::skip(name, reason),
        None if said.lines().any(|line| line == "container: ok") => Ok(()),
        None => bail!("the containers ended without a verdict"),
    }
}

/// Fetches Docker once.
fn set_up(directory: &Path) -> Result<()> {
    if shell::output(&mut shell::command("id", ["-u"]))?.trim() != "0" {
        bail!("dockerd needs root");
    }
    let root = directory.join("root");
    if !root.is_dir() {
        let packages = Suite::new(SUITE, &directory.join("packages"))?;
        for package in ["docker.io", "containerd", "runc"] {
            packages.fetch(package)?;
        }
        let unpacked = packages.unpack()?;
        fs::rename(unpacked, &root)?;
        fs::remove_dir_all(directory.join("packages"))?;
    }
    for program in ["usr/sbin/dockerd", "usr/bin/containerd", "usr/bin/containerd-shim-runc-v2", "usr/bin/docker"] {
        let program = root.join(program);
        // Go programs say their version, or that a library is missing.
        if !shell::succeeds(shell::command(&program, []).arg("-v")) {
            bail!("{} does not run with the libraries of this machine", program.display());
        }
    }
    Ok(())
}

/// The programs and the libraries they need.
fn fill(rootfs: &Path, built: &Path) -> Result<()> {
    let add = |to: &str, from: &Path| -> Result<()> {
        let to = rootfs.join(to.trim_start_matches('/'));
        fs::create_dir_all(to.parent().context("a file is in a directory")?)?;
        fs::copy(from, &to).map(drop).with_context(|| format!("copying {}", from.display()))
    };
    for (name, program) in
        [("/bin/crac", built.join("crac")), ("/bin/web-server", built.join("web-server")), ("/bin/true", "/bin/true".into())]
    {
        add(name, &program)?;
        for library in initramfs::libraries(&program)? {
            add(&library, Path::new(&library))?;
        }
    }
    let tmp = rootfs.join("tmp");
    fs::create_dir_all(&tmp)?;
    fs::set_permissions(tmp, std::os::unix::fs::PermissionsExt::from_mode(0o1777))?;
    Ok(())
}
