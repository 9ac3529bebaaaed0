//! The exit status of every verb, in one place.

use std::process::ExitCode;

/// How a verb ended. The numbers are part of the interface: supervisors decide upon them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Exit {
    /// What was asked for was done.
    Done = 0,
    /// It could not be done, for a reason none of the others names.
    Failed = 1,
    /// The command line was not understood.
    Usage = 2,
    /// No service answers to that name or process id.
    NoService = 3,
    /// The service refused, or something in it stood in the way; it serves as before.
    Refused = 4,
    /// It took longer than allowed.
    TimedOut = 5,
    /// The image does not fit this host, user or build: start the service cold.
    StartCold = 20,
    /// The image is damaged, or its file cannot be trusted.
    Untrusted = 21,
    /// The restore failed after the point of no return.
    RestoreFailed = 22,
    /// The restored life did not come back whole: start the service cold.
    NotWhole = 23,
    /// A bug in crac.
    Bug = 70,
}

impl Exit {
    /// Every status with its meaning, as `crac --help` shows them.
    pub(crate) const ALL: &'static [(Exit, &'static str)] = &[
        (Exit::Done, "done"),
        (Exit::Failed, "failed, for a reason none of the others names"),
        (Exit::Usage, "the command line was not understood"),
        (Exit::NoService, "no service answers to that name or process id"),
        (Exit::Refused, "refused by the service, or something in it stood in the way; it serves as before"),
        (Exit::TimedOut, "took longer than allowed"),
        (Exit::StartCold, "the image does not fit this host, user or build: start cold"),
        (Exit::Untrusted, "the image is damaged, or its file cannot be trusted"),
        (Exit::RestoreFailed, "the restore failed after the point of no return"),
        (Exit::NotWhole, "the restored life did not come back whole: start cold"),
        (Exit::Bug, "a bug in crac"),
    ];
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

// The restorer inside the image and the restored service exit by themselves, with the same numbers.
const _: () = assert!(Exit::NotWhole as i32 == crac_core::EXIT_RESTORE_FAILED);
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
const _: () = {
    use crac_native::layout;
    assert!(Exit::StartCold as i32 == layout::EXIT_START_COLD);
    assert!(Exit::Untrusted as i32 == layout::EXIT_UNTRUSTED);
    assert!(Exit::RestoreFailed as i32 == layout::EXIT_FAILED);
    assert!(Exit::Bug as i32 == layout::EXIT_BUG);
};
