//! Where images are put while they are measured: on a disk, and nothing of it stays, however the measurement ends.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use crac_testing::lab::Lab;
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};
use tempfile::TempDir;

use crate::workspace;

/// `statfs(2)`: the file system whose files are in memory.
const TMPFS_MAGIC: i64 = 0x0102_1994;
/// What is told to end may take so long.
const GRACE: Duration = Duration::from_millis(500);

/// A directory that is removed in the end, also by Ctrl-C.
#[derive(Debug)]
pub(super) struct Scratch(TempDir);

impl Scratch {
    /// Among temporary files, if they are on a disk; else beside the build.
    pub(super) fn new() -> Result<Self> {
        let place = place()?;
        let directory = tempfile::Builder::new().prefix("crac-bench-").tempdir_in(&place);
        let directory = directory.with_context(|| format!("cannot make a directory in {}", place.display()))?;
        // A database server that runs as nobody passes through it.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o711))?;
        clean_up_when_told_to_end(directory.path().to_owned())?;
        Ok(Self(directory))
    }

    /// A lab in it.
    pub(super) fn lab(&self) -> Lab {
        Lab::new_in(self.path())
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Bytes that may still be written to it.
    pub(super) fn free(&self) -> Result<u64> {
        let facts = rustix::fs::statvfs(self.path()).context("cannot ask how much space is free")?;
        Ok(facts.f_bavail * facts.f_frsize)
    }

    /// The kind of file system, as the kernel calls it.
    pub(super) fn file_system(&self) -> String {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let path = self.path().canonicalize().unwrap_or_else(|_| self.path().to_owned());
        file_system_of(&path, &mounts).unwrap_or("an unknown file system").to_owned()
    }
}

fn place() -> Result<PathBuf> {
    let usual = std::env::temp_dir();
    if !is_in_memory(&usual) {
        return Ok(usual);
    }
    let beside = workspace::metadata()?.target_directory.join("bench");
    fs::create_dir_all(&beside)?;
    Ok(beside)
}

/// Whether files in `directory` are on no disk.
pub(super) fn is_in_memory(directory: &Path) -> bool {
    rustix::fs::statfs(directory).is_ok_and(|facts| facts.f_type == TMPFS_MAGIC)
}

/// The kind of the last mount of the longest mount point above `path`, in the text of `/proc/self/mountinfo`.
fn file_system_of<'a>(path: &Path, mounts: &'a str) -> Option<&'a str> {
    let mounts = mounts.lines().filter_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        Some((mount.split(' ').nth(4)?, kind.split(' ').next()?))
    });
    mounts.filter(|(point, _)| path.starts_with(point)).max_by_key(|(point, _)| point.len()).map(|(_, kind)| kind)
}

/// The children of this process are services in process groups of their own: Ctrl-C does not reach them, and several gigabytes would
/// stay as well.
fn clean_up_when_told_to_end(directory: PathBuf) -> Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).context("cannot wait for signals")?;
    std::thread::spawn(move || {
        let Some(signal) = signals.forever().next() else { return };
        tell_children(Signal::TERM);
        std::thread::sleep(GRACE);
        tell_children(Signal::KILL);
        // It may be gone already; there is nobody left to tell that it is not.
        let _ = fs::remove_dir_all(&directory);
        std::process::exit(128 + signal);
    });
    Ok(())
}

fn tell_children(signal: Signal) {
    let own = std::process::id().to_string();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // Behind the name, which may hold anything: state, parent.
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1));
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid.filter(|_| parent == Some(own.as_str())) {
            // It may have ended meanwhile.
            let _ = kill_process(pid, signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_mount_says_which_file_system_it_is() {
        let mounts = "1 0 254:0 / / rw,relatime - ext4 /dev/a rw\n2 1 0:5 / /tmp rw shared:3 - tmpfs tmpfs rw\n\
             3 1 254:1 / /tmp/big rw - xfs /dev/b rw\n";
        let kind = |path: &str| file_system_of(Path::new(path), mounts);
        assert_eq!(kind("/var/x"), Some("ext4"));
        assert_eq!(kind("/tmp/x"), Some("tmpfs"));
        assert_eq!(kind("/tmp/big/x"), Some("xfs"));
        assert_eq!(kind("/tmp/bigger"), Some("tmpfs"));
    }

    #[test]
    fn the_directory_is_removed() {
        let scratch = Scratch::new().unwrap();
        let (path, lab) = (scratch.path().to_owned(), scratch.lab());
        assert!(lab.path().starts_with(&path) && scratch.free().unwrap() > 0);
        drop((lab, scratch));
        assert!(!path.exists());
    }
}
