//! A throw-away PostgreSQL cluster on a Unix socket, for one test.

use std::{
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tempfile::TempDir;

/// `nobody`: PostgreSQL refuses to run as root.
const NOBODY: u32 = 65534;
/// Small, and without the disk: it is gone after the test.
const SERVER_OPTIONS: &str = "-c listen_addresses='' -c fsync=off -c synchronous_commit=off -c full_page_writes=off \
     -c shared_buffers=16MB -c max_connections=20";

/// A running cluster; dropping it stops the server and removes everything.
pub(crate) struct Cluster {
    binaries: PathBuf,
    directory: TempDir,
}

impl Cluster {
    /// Starts a cluster whose superuser `postgres` has this password; connections are checked by SCRAM.
    ///
    /// None where PostgreSQL is not installed, which is said on standard output - or a panic with `CRAC_NO_SKIP=1`.
    pub(crate) fn start(test: &str, password: &str) -> Option<Cluster> {
        let Some(binaries) = binaries() else {
            let reason = "PostgreSQL is not installed: neither in PATH nor in /usr/lib/postgresql/*/bin";
            assert!(std::env::var_os("CRAC_NO_SKIP").is_none_or(|value| value != "1"), "{test}: {reason}");
            println!("SKIP: {test}: {reason}");
            return None;
        };
        let cluster = Cluster { binaries, directory: TempDir::with_prefix("crac-pg").unwrap() };
        let password_file = cluster.path("password");
        std::fs::write(&password_file, password).unwrap();
        if is_root() {
            for path in [cluster.directory.path(), &password_file] {
                std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
        let data = cluster.path("data").display().to_string();
        let password_file = format!("--pwfile={}", password_file.display());
        let fixed = ["-U", "postgres", "-A", "scram-sha-256", "--no-sync", "--no-instructions", "--locale=C", "-E", "UTF8"];
        let init = [&["-D", &data, &password_file], &fixed[..]].concat();
        succeed(cluster.run("initdb", &init));
        cluster.control_start();
        Some(cluster)
    }

    /// Starts the server again after [`stop`](Self::stop).
    pub(crate) fn control_start(&self) {
        let options = format!("-k {} {SERVER_OPTIONS}", self.directory.path().display());
        let (data, log) = (self.path("data").display().to_string(), self.path("log").display().to_string());
        succeed(self.run("pg_ctl", &["-D", &data, "-w", "-s", "-l", &log, "-o", &options, "start"]));
    }

    /// Stops the server, whoever is connected.
    pub(crate) fn stop(&self) {
        // Not `immediate`: without the disk, that would forget what was committed last.
        succeed(self.control_stop("fast"));
    }

    fn control_stop(&self, mode: &str) -> Output {
        // It signals the process whose id is in this cluster's own directory.
        self.run("pg_ctl", &["-D", &self.path("data").display().to_string(), "-w", "-s", "-m", mode, "stop"])
    }

    /// The URL of the database `postgres` for a user.
    pub(crate) fn url(&self, user: &str, password: &str) -> String {
        let socket = self.directory.path().display().to_string().replace('/', "%2F");
        format!("postgres://{user}:{password}@{socket}/postgres?application_name=crac-{user}")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(self.binaries.join(program));
        // The server keeps what `pg_ctl` is given: nothing of ours, or the test's runner would wait for its end.
        command.args(arguments).current_dir(self.directory.path()).stdin(std::process::Stdio::null());
        if is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        if program == "pg_ctl" {
            let output = std::fs::File::create(self.path("pg_ctl.log")).unwrap();
            let status = command.stdout(output.try_clone().unwrap()).stderr(output).status().unwrap();
            return Output { status, stdout: std::fs::read(self.path("pg_ctl.log")).unwrap(), stderr: Vec::new() };
        }
        command.output().unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // It may be stopped already, or never have started.
        self.control_stop("immediate");
    }
}

fn succeed(output: Output) {
    let text = [&output.stdout[..], &output.stderr].concat();
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&text));
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// Where `initdb` and `pg_ctl` are.
fn binaries() -> Option<PathBuf> {
    let has_both = |directory: &Path| directory.join("initdb").is_file() && directory.join("pg_ctl").is_file();
    let in_path = std::env::split_paths(&std::env::var_os("PATH")?).find(|directory| has_both(directory));
    in_path.or_else(|| {
        let versions = Path::new("/usr/lib/postgresql").read_dir().ok()?;
        let mut found: Vec<_> =
            versions.filter_map(|version| Some(version.ok()?.path().join("bin"))).filter(|path| has_both(path)).collect();
        found.sort();
        found.pop()
    })
}
