//! All tests: as whoever asks, and - if that is root - once more as nobody.

use crate::{criu, setup, shell, skips, workspace};
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

/// Building everything, or running everything once.
const DEADLINE: Duration = Duration::from_secs(20 * 60);

/// uid and gid of the user without any privilege.
const NOBODY: u32 = 65534;

/// Crates whose tests call cargo, which lives in somebody's home directory; they have nothing to do with privileges.
const NEED_CARGO: [&str; 2] = ["crac-macros", "xtask"];

/// Where `.config/nextest.toml` puts the report, wherever the target directory is.
const JUNIT: &str = "target/nextest/default/junit.xml";

/// What was left out so far, with the reason. Steps of `ci` add to it as well.
static SKIPPED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Sets everything up, runs all tests, and lists those that could not be set up.
///
/// # Errors
///
/// A test failed, or does not compile. All parts are run before this is said.
pub(crate) fn run() -> Result<()> {
    setup::run()?;
    own_session()?;
    // The end-to-end tests start these programs; as nobody they could not build them.
    shell::run(&mut shell::cargo(["build", "--workspace", "--bins", "--examples"]), DEADLINE)?;
    // What does not compile is said once, here.
    shell::run(&mut shell::cargo(["test", "--workspace", "--no-run", "--quiet"]), DEADLINE)?;
    let target = workspace::metadata()?.target_directory;
    let uid = shell::output(&mut shell::command("id", ["-u"]))?.trim().to_owned();
    let me = if uid == "0" { "root".to_owned() } else { format!("user {uid}") };

    let mut failed = Vec::new();
    let mut part = |name: String, result: Result<()>| {
        if let Err(error) = result {
            eprintln!("error: {name}: {error:#}");
            failed.push(name);
        }
    };
    part("doctests".to_owned(), shell::run(&mut shell::cargo(["test", "--workspace", "--doc", "--quiet"]), DEADLINE));
    let environment = criu::environment()?;
    part(format!("tests as {me}"), run_as(&me, &[], &environment));
    match Nobody::new(&target) {
        Ok(nobody) => part("tests as nobody".to_owned(), run_as("nobody", &NEED_CARGO, &nobody.environment()?)),
        Err(reason) => skip("all tests as nobody", &format!("{reason:#}"))?,
    }
    if uid != "0" {
        skip("all tests as root", &format!("started by {me}"))?;
    }

    report();
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

/// Begins a session if the leader of this one is outside of this process id namespace, as under `docker exec` without a terminal:
/// CRIU saves nothing in such a session.
fn own_session() -> Result<()> {
    let stat = std::fs::read_to_string("/proc/self/stat").context("cannot read /proc/self/stat")?;
    // Behind the name, which may hold anything: state, parent, group, session.
    let session = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(3)).context("/proc/self/stat")?;
    if session == "0" {
        rustix::process::setsid().context("cannot begin a session; start this task with `setsid --wait`")?;
    }
    Ok(())
}

/// Notes that something is left out.
///
/// # Errors
///
/// `CRAC_NO_SKIP=1`: nothing may be left out here.
pub(crate) fn skip(name: &str, reason: &str) -> Result<()> {
    eprintln!("SKIP: {name}: {reason}");
    remember(format!("{name}: {reason}"));
    if std::env::var_os("CRAC_NO_SKIP").is_some_and(|value| value == "1") {
        bail!("{name} is skipped where nothing may be: {reason}");
    }
    Ok(())
}

/// Runs the tests of all crates but `without`, in the environment changed by `environment`.
fn run_as(who: &str, without: &[&str], environment: &[(String, OsString)]) -> Result<()> {
    let has_nextest = shell::is_installed("cargo-nextest");
    let mut command = if has_nextest {
        // A filter rather than `--exclude`: with fewer packages cargo may choose other features and build all anew.
        let filter = without.iter().fold("all()".to_owned(), |filter, name| format!("{filter} - package({name})"));
        shell::cargo(["nextest", "run", "--workspace", "--no-fail-fast", "--filterset", &filter])
    } else {
        let mut command = shell::cargo(["test", "--workspace", "--lib", "--bins", "--tests", "--no-fail-fast"]);
        command.args(without.iter().flat_map(|name| ["--exclude", name]));
        command
    };
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    if !has_nextest {
        let (output, result) = shell::tee(command.args(["--", "--show-output"]), DEADLINE)?;
        remember_all(who, &skips::find(&output));
        return result;
    }
    // An old report would speak of another run. That there is none is the usual case.
    let _ = std::fs::remove_file(workspace::root().join(JUNIT));
    let result = shell::run(&mut command, DEADLINE);
    let junit = workspace::root().join(JUNIT);
    match std::fs::read_to_string(&junit) {
        Ok(text) => remember_all(who, &skips::find(&text)),
        Err(error) if result.is_ok() => bail!("cannot read the report {}: {error}", junit.display()),
        // Not even compiled; there is no report, and the reason is in `result`.
        Err(_) => {}
    }
    result
}

/// How to run a program as nobody, with a directory of its own to write to. Dropping it removes the directory.
struct Nobody {
    home: PathBuf,
    /// Host triple as in the names of cargo's variables.
    triple: String,
}

impl Nobody {
    /// Checks that it can be done.
    ///
    /// # Errors
    ///
    /// Why it cannot: this is not root, or nobody may not enter the target directory.
    fn new(target: &Path) -> Result<Self> {
        if !shell::is_installed("setpriv") {
            bail!("there is no setpriv(1)");
        }
        let version = shell::output(&mut shell::command("rustc", ["-vV"]))?;
        let triple = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
        let home = std::env::temp_dir().join(format!("crac-nobody-{}", std::process::id()));
        std::fs::create_dir(&home).with_context(|| format!("cannot make {}", home.display()))?;
        let nobody = Self { home, triple: triple.to_uppercase().replace('-', "_") };
        std::os::unix::fs::chown(&nobody.home, Some(NOBODY), Some(NOBODY)).context("only root can become nobody")?;
        for directory in [&nobody.home, target, workspace::root()] {
            let mut probe = Command::new("setpriv");
            probe.args(nobody.setpriv()).args(["test", "-x"]).arg(directory);
            if !shell::succeeds(&mut probe) {
                bail!("nobody may not enter {}; use a checkout that everybody may read", directory.display());
            }
        }
        Ok(nobody)
    }

    /// The environment in which cargo and nextest start each test as nobody.
    fn environment(&self) -> Result<Vec<(String, OsString)>> {
        let home = self.home.to_str().context("the temporary directory is not text")?;
        let runner = format!("setpriv {} env -u XDG_RUNTIME_DIR HOME={home} TMPDIR={home} USER=nobody", self.setpriv().join(" "));
        Ok(vec![(format!("CARGO_TARGET_{}_RUNNER", self.triple), runner.into())])
    }

    fn setpriv(&self) -> [String; 5] {
        [
            format!("--reuid={NOBODY}"),
            format!("--regid={NOBODY}"),
            "--clear-groups".to_owned(),
            "--inh-caps=-all".to_owned(),
            "--no-new-privs".to_owned(),
        ]
    }
}

impl Drop for Nobody {
    fn drop(&mut self) {
        // A directory left behind in the temporary directory harms nobody.
        let _ = std::fs::remove_dir_all(&self.home);
    }
}

fn remember(skipped: String) {
    SKIPPED.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(skipped);
}

fn remember_all(who: &str, skipped: &BTreeSet<String>) {
    skipped.iter().for_each(|line| remember(format!("{line} (as {who})")));
}

/// Lists what was left out.
fn report() {
    let skipped = SKIPPED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    match skipped.as_slice() {
        [] => println!("skipped: nothing"),
        skipped => println!("skipped: {}\n  {}", skipped.len(), skipped.join("\n  ")),
    }
}
