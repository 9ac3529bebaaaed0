//! CRIU itself: where it is, which version, and what can go wrong with it.

use std::{
    env, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    VERSION_MIN, log,
    rpc::{Kind, Request, Version},
    worker::{Conversation, Worker},
};

/// How long CRIU may take to say its version.
const GREETING_MAX: Duration = Duration::from_secs(10);

/// A CRIU that can be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Criu {
    path: PathBuf,
}

/// Why CRIU did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CriuError {
    /// There is none.
    #[error("there is no CRIU: {0}; hint: install CRIU {min}, or say where it is with CRAC_CRIU_PATH", min = version_min())]
    Missing(String),
    /// It is too old.
    #[error("{path} is CRIU {found}, which is too old; hint: install CRIU {min}, or say where it is with CRAC_CRIU_PATH", path = path.display(), min = version_min())]
    TooOld {
        /// Where it is.
        path: PathBuf,
        /// Its version.
        found: String,
    },
    /// It cannot be started.
    #[error("cannot start {path}: {source}; hint: is it a program for this machine?", path = path.display())]
    Start {
        /// Where it is.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It did not answer in time, and was killed.
    #[error("{path} did not {what} within {} s and was killed; hint: look whether its directory or a mount hangs, or give it longer", limit.as_secs_f32(), path = path.display())]
    Late {
        /// Where it is.
        path: PathBuf,
        /// What it was asked for.
        what: &'static str,
        /// How long it had.
        limit: Duration,
    },
    /// It ended, or said what nobody understands.
    #[error("{path} {what}; hint: is it CRIU?", path = path.display())]
    Nonsense {
        /// Where it is.
        path: PathBuf,
        /// What it did.
        what: String,
    },
    /// It could not do what was asked.
    #[error("CRIU could not {what}:{}; hint: {hint}", quote(lines))]
    Failed {
        /// What it was asked for.
        what: &'static str,
        /// The decisive lines of its log.
        lines: Vec<String>,
        /// What to do.
        hint: &'static str,
    },
    /// It cannot be done for that process from here.
    #[error("{what}; hint: {hint}")]
    Refused {
        /// What was found.
        what: String,
        /// What to do.
        hint: String,
    },
    /// Something else stood in the way.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was attempted.
        what: String,
        /// What the system said.
        source: io::Error,
    },
}

impl Criu {
    /// The CRIU at `given`, else the one on `PATH`.
    ///
    /// # Errors
    ///
    /// [`CriuError::Missing`].
    pub fn find(given: Option<&Path>) -> Result<Self, CriuError> {
        let runs = |path: &Path| path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0);
        if let Some(path) = given {
            return if runs(path) {
                Ok(Self { path: path.to_owned() })
            } else {
                Err(CriuError::Missing(format!("{} is no program", path.display())))
            };
        }
        let path = env::var_os("PATH").unwrap_or_default();
        // Not on everybody's path, and where distributions put it.
        let usual = ["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from);
        let found = env::split_paths(&path).chain(usual).map(|dir| dir.join("criu")).find(|path| runs(path));
        found.map(|path| Self { path }).ok_or_else(|| CriuError::Missing(format!("no `criu` in {}", path.display())))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Asks for the version. Blocks for some milliseconds, at most ten seconds.
    ///
    /// # Errors
    ///
    /// If it does not answer, or is older than [`VERSION_MIN`].
    pub fn version(&self) -> Result<String, CriuError> {
        let mut worker = Worker::start(self, &[])?;
        self.greet(&mut worker.conversation)
    }

    /// Asks for the version; another request may follow.
    pub(crate) fn greet(&self, conversation: &mut Conversation) -> Result<String, CriuError> {
        self.greet_within(conversation, GREETING_MAX)
    }

    pub(crate) fn greet_within(&self, conversation: &mut Conversation, limit: Duration) -> Result<String, CriuError> {
        let mut request = Request::new(Kind::Version);
        request.keep_open = Some(true);
        let answer = conversation.ask(self, &request, "say its version", limit.min(GREETING_MAX))?;
        let version = answer.version.filter(|_| answer.success).ok_or_else(|| self.nonsense("does not say its version"))?;
        let text = text(&version);
        if is_enough(&version) { Ok(text) } else { Err(CriuError::TooOld { path: self.path.clone(), found: text }) }
    }

    pub(crate) fn nonsense(&self, what: impl Into<String>) -> CriuError {
        CriuError::Nonsense { path: self.path.clone(), what: what.into() }
    }

    /// What a log says about a failure to do `what`; `message` is what CRIU answered.
    pub(crate) fn failure(what: &'static str, log: &str, message: Option<&str>) -> CriuError {
        let mut lines = log::decisive(log);
        if lines.is_empty() {
            lines.extend(message.map(|message| message.trim().to_owned()));
        }
        CriuError::Failed { what, hint: log::advice(&lines), lines }
    }
}

fn is_enough(version: &Version) -> bool {
    (version.major, version.minor) >= VERSION_MIN
}

fn text(version: &Version) -> String {
    let sublevel = version.sublevel.filter(|sublevel| *sublevel > 0).map(|sublevel| format!(".{sublevel}")).unwrap_or_default();
    format!("{}.{}{sublevel}", version.major, version.minor)
}

fn version_min() -> String {
    format!("{}.{} or later", VERSION_MIN.0, VERSION_MIN.1)
}

fn quote(lines: &[String]) -> String {
    if lines.is_empty() {
        return " its log holds no error".to_owned();
    }
    lines.iter().map(|line| format!("\n  {line}")).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        let version = |major, minor| Version { major, minor, sublevel: None };
        assert!(is_enough(&version(4, 2)) && is_enough(&version(4, 10)) && is_enough(&version(5, 0)));
        assert!(!is_enough(&version(4, 1)) && !is_enough(&version(3, 17)));
        assert_eq!(text(&Version { major: 4, minor: 2, sublevel: Some(1) }), "4.2.1");
    }

    #[test]
    fn a_program_that_is_not_there_is_missing_and_the_remedy_is_named() {
        let error = Criu::find(Some(Path::new("/no/criu"))).unwrap_err().to_string();
        assert!(error.contains("/no/criu") && error.contains("CRAC_CRIU_PATH") && error.contains("4.2 or later"), "{error}");
    }

    #[test]
    fn a_program_that_is_something_else_says_nothing() {
        let error = Criu { path: "/bin/true".into() }.version().unwrap_err();
        assert!(error.to_string().starts_with("/bin/true ended"), "{error}");
    }

    #[test]
    fn a_failure_quotes_the_log_and_else_the_answer() {
        let error = Criu::failure("dump the process", "x Error (criu/a.c:1): Connected TCP socket\n", None).to_string();
        assert!(error.contains("\n  Error (criu/a.c:1): Connected TCP socket") && error.contains("sever"), "{error}");
        let error = Criu::failure("dump the process", "", Some("no luck")).to_string();
        assert!(error.contains("no luck"), "{error}");
    }
}
