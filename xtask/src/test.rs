//! All tests: as whoever asks, and - if that is root - once more as nobody.

use crate::{built, container, criu, fapolicyd, kernels, linked, setup, shell, skips, workspace};
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

/// Running everything once.
const DEADLINE: Duration = Duration::from_secs(20 * 60);

/// uid and gid of the user without any privilege.
const NOBODY: u32 = 65534;

/// Crates whose tests call cargo, which lives in somebody's home directory; they have nothing to do with privileges.
const NEED_CARGO: [&str; 2] = ["crac-macros", "xtask"];

/// Crates whose tests start services and programs, which are run once more under clocks that are far off.
const SHIFTED: [&str; 2] = ["crac-programs", "crac-tests"];

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
    // The end-to-end tests start programs; as nobody they could not build them. What does not compile is said once, here.
    built::all()?;
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
    let mut environment = criu::environment()?;
    environment.extend(fapolicyd::environment()?);
    part(format!("tests as {me}"), run_as(&me, &Selection::AllBut(&[]), &[], &environment));
    let nobody = Nobody::new(&target);
    match &nobody {
        Ok(nobody) => {
            part("tests as nobody".to_owned(), run_as("nobody", &Selection::AllBut(&NEED_CARGO), &[], &nobody.environment()?));
        }
        Err(reason) => skip("all tests as nobody", &format!("{reason:#}"))?,
    }
    // What follows has nothing to do with privileges: once is enough, and without them if possible.
    let (who, user, environment) = match &nobody {
        Ok(nobody) => ("nobody", nobody.prefix()?, nobody.environment()?),
        Err(_) => (me.as_str(), Vec::new(), environment),
    };
    for (name, prefix, shift) in clocks()? {
        let environment: Vec<_> = environment.iter().cloned().chain(shift).collect();
        part(name.to_owned(), run_as(who, &Selection::Only(&SHIFTED), prefix, &environment));
    }
    for (name, result) in linked::run(&target, &user)? {
        part(name, result);
    }
    part("a container".to_owned(), container::run());
    part("other kernels".to_owned(), kernels::run());
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

/// Crates by name.
enum Selection<'a> {
    AllBut(&'a [&'a str]),
    Only(&'a [&'a str]),
}

/// Ten days ahead of the kernel, and ten behind. The second needs a kernel that was started before that, or looks like it.
type Clocks = (&'static str, &'static [&'static str], [(String, OsString); 2]);

fn clocks() -> Result<Vec<Clocks>> {
    const DAY: i64 = 86_400;
    let shift = |days: i64| {
        let variable = |name: &str, value: String| (name.to_owned(), OsString::from(value));
        [variable("CRAC_CLOCK_CHAOS", format!("{days:+}d")), variable("CRAC_TEST_SHIFT", (days * DAY).to_string())]
    };
    let mut clocks: Vec<Clocks> = vec![("tests ten days ahead", &[], shift(10))];
    let behind = "tests ten days behind";
    let uptime = std::fs::read_to_string("/proc/uptime").context("cannot read /proc/uptime")?;
    let uptime: f64 = uptime.split(' ').next().and_then(|seconds| seconds.parse().ok()).context("/proc/uptime")?;
    // What `unshare` makes, its children are in.
    const ENTER: &[&str] = &["unshare", "--time", "--fork", "--kill-child", "--monotonic", "950400", "--boottime", "950400"];
    if uptime > (11 * DAY) as f64 {
        clocks.push((behind, &[], shift(-10)));
    } else if shell::succeeds(&mut shell::behind(ENTER, Command::new("true"))) {
        clocks.push((behind, ENTER, shift(-10)));
    } else {
        skip(behind, "this machine was started less than eleven days ago, and unshare(1) cannot make a time namespace here")?;
    }
    Ok(clocks)
}

/// Runs the tests of some crates, in the environment changed by `environment`, `prefix` in front of the command.
fn run_as(who: &str, selection: &Selection<'_>, prefix: &[&str], environment: &[(String, OsString)]) -> Result<()> {
    let has_nextest = shell::is_installed("cargo-nextest");
    let command = if has_nextest {
        // A filter rather than `--exclude` or `--package`: with fewer packages cargo may choose other features and build all anew.
        let filter = match selection {
            Selection::AllBut(names) => names.iter().fold("all()".to_owned(), |all, name| format!("{all} - package({name})")),
            Selection::Only(names) => names.iter().fold("none()".to_owned(), |none, name| format!("{none} + package({name})")),
        };
        // Many tests wait for processes of theirs.
        let threads = std::thread::available_parallelism().map_or(1, usize::from) + 1;
        let threads = format!("--test-threads={threads}");
        shell::cargo(["nextest", "run", "--workspace", "--no-fail-fast", &threads, "--filterset", &filter])
    } else {
        let mut command = shell::cargo(["test", "--lib", "--bins", "--tests", "--no-fail-fast"]);
        match selection {
            Selection::AllBut(names) => {
                command.arg("--workspace").args(names.iter().flat_map(|name| ["--exclude", name]));
            }
            Selection::Only(names) => {
                command.args(names.iter().flat_map(|name| ["--package", name]));
            }
        }
        command
    };
    let mut command = shell::behind(prefix, command);
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
        Ok(vec![(format!("CARGO_TARGET_{}_RUNNER", self.triple), self.prefix()?.join(" ").into())])
    }

    /// What stands in front of a command that is to run as nobody.
    fn prefix(&self) -> Result<Vec<String>> {
        let home = self.home.to_str().context("the temporary directory is not text")?;
        let environment = ["env", "-u", "XDG_RUNTIME_DIR", &format!("HOME={home}"), &format!("TMPDIR={home}"), "USER=nobody"];
        let setpriv = std::iter::once("setpriv".to_owned()).chain(self.setpriv());
        Ok(setpriv.chain(environment.map(str::to_owned)).collect())
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

pub(crate) fn remember_all(who: &str, skipped: &BTreeSet<String>) {
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
