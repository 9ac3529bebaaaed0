//! Debian's packages beside the build: downloaded and unpacked, never installed. The state of the machine's own package manager is
//! left alone.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::shell;

/// Downloading and unpacking some ten megabytes.
const DEADLINE: Duration = Duration::from_secs(5 * 60);

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The packages of one suite, with everything that `apt` writes in a directory of its own.
pub(crate) struct Suite {
    prefix: PathBuf,
}

impl Suite {
    /// Empties `prefix` and fetches the list of packages.
    ///
    /// # Errors
    ///
    /// This is no Debian, or the mirror it is configured with does not answer.
    pub(crate) fn new(suite: &str, prefix: &Path) -> Result<Self> {
        for program in ["apt-get", "dpkg"] {
            if !shell::is_installed(program) {
                bail!("there is no {program} to fetch it with");
            }
        }
        let mirror = mirror().context("no mirror of Debian is configured in /etc/apt")?;
        // What an earlier attempt has left may be half.
        let _ = fs::remove_dir_all(prefix);
        for directory in ["lists/partial", "cache/archives/partial", "state", "root"] {
            fs::create_dir_all(prefix.join(directory))?;
        }
        fs::write(prefix.join("status"), "")?;
        fs::write(prefix.join("sources.list"), format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n"))?;
        fs::write(prefix.join("apt.conf"), apt_configuration(prefix))?;
        let suite = Self { prefix: prefix.to_owned() };
        suite.apt(&["update"])?;
        Ok(suite)
    }

    /// Downloads `package` and everything it needs, down to the C library: nothing counts as installed.
    pub(crate) fn fetch_closure(&self, package: &str) -> Result<()> {
        self.apt(&["install", "--download-only", package])
    }

    /// Downloads `package` alone.
    pub(crate) fn fetch(&self, package: &str) -> Result<()> {
        let mut command = shell::command("apt-get", ["--quiet", "download", package]);
        command.current_dir(self.prefix.join("cache/archives")).env("APT_CONFIG", self.prefix.join("apt.conf"));
        shell::run(&mut command, DEADLINE)
    }

    /// The first package that `package` depends on and whose name begins with `start`.
    pub(crate) fn dependency(&self, package: &str, start: &str) -> Result<Option<String>> {
        let mut command = shell::command("apt-cache", ["depends", package]);
        let said = shell::output(command.env("APT_CONFIG", self.prefix.join("apt.conf")))?;
        Ok(dependency_in(&said, start))
    }

    /// Unpacks all that was downloaded, and gives the directory it is in.
    pub(crate) fn unpack(&self) -> Result<PathBuf> {
        let root = self.prefix.join("root");
        for entry in fs::read_dir(self.prefix.join("cache/archives"))? {
            let package = entry?.path();
            if package.extension().is_some_and(|extension| extension == "deb") {
                let mut unpack = shell::command("dpkg", ["--extract"]);
                if !shell::succeeds(unpack.arg(&package).arg(&root)) {
                    bail!("dpkg cannot unpack {}", package.display());
                }
            }
        }
        Ok(root)
    }

    /// Removes what was only needed to fetch and unpack.
    pub(crate) fn tidy_up(&self) -> Result<()> {
        for directory in ["lists", "cache"] {
            fs::remove_dir_all(self.prefix.join(directory))?;
        }
        Ok(())
    }

    fn apt(&self, args: &[&str]) -> Result<()> {
        let mut command = shell::command("apt-get", ["--quiet", "--yes"]);
        command.env("APT_CONFIG", self.prefix.join("apt.conf")).env("DEBIAN_FRONTEND", "noninteractive");
        shell::run(command.args(args), DEADLINE)
    }
}

/// A script that starts `program` of an unpacked suite with the loader and the libraries it came with; all paths below `root`.
pub(crate) fn wrapper(root: &Path, loader: &str, libraries: &[&str], program: &str) -> String {
    let below = |path: &str| root.join(path).display().to_string();
    let libraries: Vec<String> = libraries.iter().map(|path| below(path)).collect();
    format!("#!/bin/sh\nexec '{}' --library-path '{}' '{}' \"$@\"\n", below(loader), libraries.join(":"), below(program))
}

/// Everything of apt's in `prefix`.
fn apt_configuration(prefix: &Path) -> String {
    let prefix = prefix.display();
    format!(
        "Dir::Etc::sourcelist \"{prefix}/sources.list\";\nDir::Etc::sourceparts \"/dev/null\";\nDir::State \"{prefix}/state\";\n\
         Dir::State::Lists \"{prefix}/lists\";\nDir::State::status \"{prefix}/status\";\nDir::Cache \"{prefix}/cache\";\n\
         APT::Install-Recommends \"false\";\nAPT::Sandbox::User \"root\";\nAcquire::Languages \"none\";\n"
    )
}

/// The first name behind `Depends:` that begins with `start` in what `apt-cache depends` says.
fn dependency_in(said: &str, start: &str) -> Option<String> {
    let mut names = said.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.find(|name| name.starts_with(start)).map(str::to_owned)
}

/// The first mirror that the machine is configured with.
fn mirror() -> Option<String> {
    let directory = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|entry| entry.path());
    let files = directory.chain([PathBuf::from("/etc/apt/sources.list")]);
    files.filter_map(|file| fs::read_to_string(file).ok()).find_map(|text| mirror_in(&text))
}

/// The mirror of Debian in a list of sources, of either form.
fn mirror_in(text: &str) -> Option<String> {
    let addresses = text.lines().filter_map(|line| {
        let line = line.trim();
        let rest = line.strip_prefix("URIs:").or_else(|| line.strip_prefix("deb "))?;
        rest.split_whitespace().find(|word| word.contains("://"))
    });
    addresses.map(|address| address.trim_end_matches('/')).find(|address| address.ends_with("/debian")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_found_in_both_forms() {
        let new = "Types: deb\n# URIs: http://old.example/debian\nURIs: http://mirror.example/debian\nSuites: bookworm\n";
        assert_eq!(mirror_in(new).as_deref(), Some("http://mirror.example/debian"));
        let old = "deb [signed-by=/x] https://mirror.example/debian/ bookworm main\n";
        assert_eq!(mirror_in(old).as_deref(), Some("https://mirror.example/debian"));
        assert_eq!(mirror_in("URIs: http://mirror.example/ubuntu\n"), None);
        assert_eq!(mirror_in("#deb http://mirror.example/debian x main\n"), None);
    }

    #[test]
    fn the_package_of_the_kernel_is_found_behind_the_one_that_is_always_the_newest() {
        let said =
            "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-50-cloud-amd64\n  Suggests: linux-doc\n  Depends: kmod\n";
        assert_eq!(dependency_in(said, "linux-image-").as_deref(), Some("linux-image-6.1.0-50-cloud-amd64"));
        assert_eq!(dependency_in(said, "linux-binary-"), None);
    }
}
