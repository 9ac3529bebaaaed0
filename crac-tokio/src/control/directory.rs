//! Where control sockets are, and who may be there.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use crac_core::{RestoreContext, control::run_dir};
use rustix::process::{Pid, geteuid, test_kill_process};

/// The directory that the environment of `life` says.
pub(super) fn from_environment(life: &RestoreContext) -> PathBuf {
    // A life that was started, or one whose engine tells nothing, has the environment of the process.
    let var = |name: &str| if life.env().is_empty() { std::env::var_os(name) } else { life.var(name).map(ToOwned::to_owned) };
    let temporary = var("TMPDIR").filter(|dir| !dir.is_empty()).map_or_else(|| PathBuf::from("/tmp"), PathBuf::from);
    run_dir(var("CRAC_RUN_DIR").as_deref(), var("XDG_RUNTIME_DIR").as_deref(), &temporary, geteuid().as_raw())
}

/// Makes `directory` if it is missing, and refuses one in which others could put sockets of their own.
///
/// # Errors
///
/// As the system says, or [`io::ErrorKind::PermissionDenied`] with what to do.
pub(super) fn prepare(directory: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(io::Error::new(error.kind(), format!("cannot make {}: {error}; set CRAC_RUN_DIR", directory.display())));
        }
        _ => {}
    }
    // Not through a link: it may point anywhere.
    let found = fs::symlink_metadata(directory)?;
    let refuse = |what: &str| {
        let what = format!("{} {what}; set CRAC_RUN_DIR to a directory of your own with mode 0700", directory.display());
        Err(io::Error::new(io::ErrorKind::PermissionDenied, what))
    };
    match () {
        () if !found.is_dir() => refuse("is no directory"),
        () if found.uid() != geteuid().as_raw() => refuse(&format!("belongs to user {}", found.uid())),
        () if found.mode() & 0o077 != 0 => refuse("is open to other users"),
        () => Ok(()),
    }
}

/// Removes sockets whose process is gone: killed services cannot do it themselves.
pub(super) fn sweep(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.strip_suffix(".sock")?.parse().ok()).and_then(Pid::from_raw);
        if pid.is_some_and(|pid| test_kill_process(pid) == Err(rustix::io::Errno::SRCH)) {
            // Another service may sweep at the same time.
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt, sync::Arc, time::Duration};

    use crac_core::{CheckpointRequest, Context, Mode, SimEngine, SimScript};

    use super::*;

    #[test]
    fn a_restored_life_has_the_directory_of_its_own_environment() {
        let engine = Arc::new(SimEngine::new());
        let context = Context::builder("test", engine.clone()).build().unwrap();
        let env = vec![("XDG_RUNTIME_DIR".into(), "/elsewhere".into())];
        engine.then(SimScript::Restored { asleep: Duration::ZERO, args: Vec::new(), env });
        assert_ne!(from_environment(&context.life()), Path::new("/elsewhere/crac"));
        context.request(CheckpointRequest::new(Mode::Exit)).wait(Duration::from_secs(20)).unwrap().unwrap();
        assert_eq!(from_environment(&context.life()), Path::new("/elsewhere/crac"));
    }

    #[test]
    fn a_directory_open_to_others_is_refused_and_one_that_is_missing_is_made_private() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        prepare(&run).unwrap();
        assert_eq!(run.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        fs::set_permissions(&run, fs::Permissions::from_mode(0o750)).unwrap();
        assert!(prepare(&run).unwrap_err().to_string().contains("open to other users"));
        std::os::unix::fs::symlink("run", dir.path().join("link")).unwrap();
        assert!(prepare(&dir.path().join("link")).unwrap_err().to_string().contains("is no directory"));
    }

    #[test]
    fn sockets_of_the_dead_are_removed_and_those_of_the_living_stay() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let dead = dir.path().join(format!("{}.sock", child.id()));
        child.wait().unwrap();
        let living = dir.path().join(format!("{}.sock", std::process::id()));
        for path in [&dead, &living] {
            fs::write(path, "").unwrap();
        }
        sweep(dir.path());
        assert!(!dead.exists() && living.exists());
    }
}
