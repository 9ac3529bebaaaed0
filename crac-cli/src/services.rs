//! Which services run here, and which of them is meant.

use std::{
    fmt,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    str::FromStr,
    time::{Duration, Instant},
};

use crac_core::{Status, control::run_dir};

use crate::{
    conversation::{Conversation, TalkError},
    env,
    exit::Exit,
    failure::Failure,
};

/// How long a service may take to say what it is doing.
const STATUS_MAX: Duration = Duration::from_secs(5);

/// How long a process that is there may take until it can be asked, and how often that is tried.
const ASKABLE_MAX: Duration = Duration::from_secs(1);
const ASKABLE_LOOK: Duration = Duration::from_millis(5);

/// Which service is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// By process id.
    Pid(u32),
    /// By name.
    Name(String),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "" => Err("a service has a name or a process id".into()),
            digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().map(Self::Pid).map_err(|_| format!("`{digits}` is too large for a process id"))
            }
            name => Ok(Self::Name(name.to_owned())),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pid(pid) => write!(f, "process id {pid}"),
            Self::Name(name) => write!(f, "the name {name}"),
        }
    }
}

/// A control socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) pid: u32,
    pub(crate) socket: PathBuf,
}

/// A service that somebody listens for.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) endpoint: Endpoint,
    pub(crate) status: Result<Status, TalkError>,
}

/// The one service that is meant by `target`. A process that is there and cannot be asked is waited for, for a second: a life that was
/// restored a moment ago serves before it opens its control socket.
///
/// # Errors
///
/// If there is none, more than one, or it does not answer.
pub(crate) fn find(target: &Target) -> Result<(Endpoint, Status), Failure> {
    let dirs = run_dirs();
    let deadline = Instant::now() + ASKABLE_MAX;
    loop {
        let mut endpoints = endpoints(&dirs);
        if let Target::Pid(pid) = target {
            endpoints.retain(|endpoint| endpoint.pid == *pid);
        }
        let found = ask_all(endpoints);
        let may_come = matches!(target, Target::Pid(pid) if found.is_empty() && Path::new(&format!("/proc/{pid}")).exists());
        if !may_come || Instant::now() >= deadline {
            return choose(target, found, &dirs);
        }
        std::thread::park_timeout(ASKABLE_LOOK);
    }
}

/// Every service here that listens, by process id.
pub(crate) fn all() -> Vec<Found> {
    ask_all(endpoints(&run_dirs()))
}

/// Picks what `target` means out of what was found in `dirs`.
fn choose(target: &Target, found: Vec<Found>, dirs: &[PathBuf]) -> Result<(Endpoint, Status), Failure> {
    let meant = |found: &Found| match (target, &found.status) {
        (Target::Pid(pid), _) => found.endpoint.pid == *pid,
        (Target::Name(name), Ok(status)) => status.name == *name,
        (Target::Name(_), Err(_)) => false,
    };
    let silent =
        found.iter().filter(|found| found.status.is_err()).map(|found| found.endpoint.pid.to_string()).collect::<Vec<_>>();
    let mut meant: Vec<Found> = found.into_iter().filter(meant).collect();
    match (meant.pop(), meant.as_slice()) {
        (Some(one), []) => match one.status {
            Ok(status) => Ok((one.endpoint, status)),
            Err(error) => Err(unanswered(&one.endpoint, &error)),
        },
        (Some(one), more) => {
            let pids: Vec<_> = more.iter().chain([&one]).map(|found| found.endpoint.pid.to_string()).collect();
            let what = format!("{target} is ambiguous: it means the processes {}", pids.join(", "));
            Err(Failure::new(Exit::Usage, what).hint("say which by its process id"))
        }
        (None, _) => {
            let dirs = dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ");
            let failure = Failure::new(Exit::NoService, format!("no service answers to {target} in {dirs}"));
            Err(match silent.as_slice() {
                [] => failure.hint(format!("`crac ps` lists services; the service and crac have to agree on {}", env::RUN_DIR)),
                pids => failure.hint(format!("these processes did not say who they are: {}", pids.join(", "))),
            })
        }
    }
}

/// What is said about a service that is there and does not answer.
pub(crate) fn unanswered(endpoint: &Endpoint, error: &TalkError) -> Failure {
    let exit = if matches!(error, TalkError::TimedOut) { Exit::TimedOut } else { Exit::Failed };
    Failure::new(exit, format!("cannot talk to process {} at {}: {error}", endpoint.pid, endpoint.socket.display()))
}

/// Asks all at once; those where nobody listens any more are left out.
fn ask_all(endpoints: Vec<Endpoint>) -> Vec<Found> {
    let deadline = Instant::now() + STATUS_MAX;
    let asked: Vec<_> = endpoints
        .into_iter()
        .map(|endpoint| std::thread::spawn(move || Found { status: Conversation::status(&endpoint.socket, deadline), endpoint }))
        .collect();
    let answered = asked.into_iter().filter_map(|thread| thread.join().ok());
    answered.filter(|found| !matches!(found.status, Err(TalkError::Nobody))).collect()
}

/// The sockets in `dirs`, by process id.
fn endpoints(dirs: &[PathBuf]) -> Vec<Endpoint> {
    let entries = dirs.iter().filter_map(|dir| std::fs::read_dir(dir).ok()).flatten().flatten();
    let mut found: Vec<_> = entries.filter_map(|entry| endpoint(&entry.path())).collect();
    found.sort_by_key(|endpoint| endpoint.pid);
    found
}

/// The endpoint at `path`, if it is called `PID.sock`.
fn endpoint(path: &Path) -> Option<Endpoint> {
    let pid = path.file_name()?.to_str()?.strip_suffix(".sock")?.parse().ok()?;
    Some(Endpoint { pid, socket: path.to_owned() })
}

/// Where services of this user have their sockets; root, who may ask everybody, looks at everybody's.
fn run_dirs() -> Vec<PathBuf> {
    let [given, xdg] = [env::RUN_DIR, env::XDG_RUNTIME_DIR].map(std::env::var_os);
    let me = rustix::process::geteuid();
    let temporary = std::env::temp_dir();
    let mut dirs = vec![run_dir(given.as_deref(), xdg.as_deref(), &temporary, me.as_raw())];
    if me.is_root() && given.is_none() {
        dirs.push(run_dir(None, None, &temporary, 0));
        dirs.extend(others(&temporary, |name, owner| name == format!("crac-{owner}")));
        dirs.extend(others(Path::new("/run/user"), |_, _| true).into_iter().map(|dir| dir.join("crac")));
        dirs.sort();
        dirs.dedup();
    }
    dirs
}

/// The directories in `parent` for which `wanted(name, owner)` holds.
fn others(parent: &Path, wanted: impl Fn(&str, u32) -> bool) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(parent) else { return Vec::new() };
    let dirs = entries.flatten().filter_map(|entry| {
        let found = entry.metadata().ok().filter(std::fs::Metadata::is_dir)?;
        wanted(entry.file_name().to_str()?, found.uid()).then(|| entry.path())
    });
    dirs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(pid: u32, name: Option<&str>) -> Found {
        let status = name.ok_or(TalkError::TimedOut).map(|name| {
            serde_json::from_value(serde_json::json!({
                "name": name, "engine": "native", "state": "open", "ready": true, "generation": 0,
                "instance_id": "00000000000000000000000000000001", "image": "x.crac", "resources": []
            }))
            .unwrap()
        });
        Found { endpoint: Endpoint { pid, socket: PathBuf::from(format!("{pid}.sock")) }, status }
    }

    fn chosen(target: &str, found: Vec<Found>) -> Result<u32, (Exit, String)> {
        let chosen = choose(&target.parse().unwrap(), found, &[PathBuf::from("/run/crac")]);
        chosen.map(|(endpoint, _)| endpoint.pid).map_err(|failure| (failure.exit, failure.to_string()))
    }

    #[test]
    fn digits_are_a_process_id_and_all_else_a_name() {
        assert_eq!("12".parse(), Ok(Target::Pid(12)));
        assert_eq!("12a".parse(), Ok(Target::Name("12a".into())));
        assert!("".parse::<Target>().is_err() && "99999999999".parse::<Target>().is_err());
    }

    #[test]
    fn a_service_is_found_by_its_name() {
        assert_eq!(chosen("orders", vec![found(1, Some("users")), found(2, Some("orders"))]), Ok(2));
    }

    #[test]
    fn an_ambiguous_name_lists_the_process_ids() {
        let (exit, what) = chosen("orders", vec![found(1, Some("orders")), found(2, Some("orders"))]).unwrap_err();
        assert_eq!(exit, Exit::Usage);
        assert!(what.contains("1, 2") && what.contains("hint"), "{what}");
    }

    #[test]
    fn nobody_of_that_name_names_the_directory_and_who_did_not_answer() {
        let (exit, what) = chosen("orders", vec![]).unwrap_err();
        assert_eq!(exit, Exit::NoService);
        assert!(what.contains("/run/crac") && what.contains("crac ps"), "{what}");
        let (_, what) = chosen("orders", vec![found(7, None)]).unwrap_err();
        assert!(what.contains("did not say who they are: 7"), "{what}");
    }

    #[test]
    fn a_service_that_is_meant_and_silent_has_timed_out() {
        assert_eq!(chosen("7", vec![found(7, None)]).unwrap_err().0, Exit::TimedOut);
    }

    #[test]
    fn only_numbered_sockets_are_endpoints() {
        assert_eq!(endpoint(Path::new("/run/12.sock")).map(|found| found.pid), Some(12));
        assert_eq!(endpoint(Path::new("/run/x.sock")), None);
        assert_eq!(endpoint(Path::new("/run/12")), None);
    }
}
