//! A throw-away PostgreSQL server that lets nobody in without TLS and SCRAM.

use std::{
    fs,
    net::SocketAddr,
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use crac_testing::lab::free_addr;
use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;

use super::plan::Plan;
use crate::shell;

/// `nobody`: PostgreSQL refuses to run as root.
const NOBODY: u32 = 65534;
const PASSWORD: &str = "not-a-secret";
/// Until the server lets somebody in, or has ended.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running server; dropping it stops it and removes everything.
#[derive(Debug)]
pub(super) struct Cluster {
    server: Child,
    addr: SocketAddr,
    _directory: TempDir,
}

impl Cluster {
    /// Starts one, or says why there is none.
    pub(super) fn start(plan: &Plan) -> Result<Self> {
        let binaries = binaries().context("PostgreSQL is not installed; install the package `postgresql`")?;
        ensure!(shell::is_installed("openssl"), "there is no openssl(1) to make a certificate with; install it");
        let directory = TempDir::with_prefix_in("postgresql-", plan.scratch.path())?;
        let path = |name: &str| directory.path().join(name);
        fs::write(path("password"), PASSWORD)?;
        let mut openssl = shell::command("openssl", ["req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost"]);
        openssl.args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]);
        openssl.arg("-keyout").arg(path("server.key")).arg("-out").arg(path("server.crt"));
        said_well(&mut openssl)?;
        fs::set_permissions(path("server.key"), fs::Permissions::from_mode(0o600))?;
        // Nobody is let in by another way.
        fs::write(path("hba"), "hostssl all all 127.0.0.0/8 scram-sha-256\n")?;
        if geteuid().is_root() {
            for file in [directory.path().to_owned(), path("password"), path("server.key"), path("server.crt"), path("hba")] {
                chown(&file, Some(NOBODY), Some(NOBODY))?;
            }
        }
        let mut initdb = as_nobody(&binaries.join("initdb"), directory.path());
        initdb.arg("-D").arg(path("data")).arg(format!("--pwfile={}", path("password").display()));
        initdb.args(["-U", "postgres", "-A", "scram-sha-256", "--no-sync", "--no-instructions", "--locale=C", "-E", "UTF8"]);
        said_well(&mut initdb)?;

        let addr = free_addr();
        let mut server = as_nobody(&binaries.join("postgres"), directory.path());
        server.arg("-D").arg(path("data")).arg("-k").arg(directory.path());
        let set = [
            format!("listen_addresses={}", addr.ip()),
            format!("port={}", addr.port()),
            format!("hba_file={}", path("hba").display()),
            format!("ssl_cert_file={}", path("server.crt").display()),
            format!("ssl_key_file={}", path("server.key").display()),
            // Small, and without the disk: it is gone afterwards.
            "ssl=on fsync=off synchronous_commit=off full_page_writes=off shared_buffers=16MB max_connections=40".to_owned(),
        ];
        let set = set.iter().flat_map(|line| line.split(' ')).flat_map(|one| ["-c", one]);
        let log = fs::File::create(path("log"))?;
        server.args(set).stdout(log.try_clone()?).stderr(log).process_group(0);
        let server = server.spawn().context("cannot start PostgreSQL")?;
        let mut cluster = Self { server, addr, _directory: directory };
        cluster.wait_until_it_listens()?;
        Ok(cluster)
    }

    /// Of the database `postgres` and its owner.
    pub(super) fn url(&self) -> String {
        format!("postgres://postgres:{PASSWORD}@{}/postgres?sslmode=require", self.addr)
    }

    fn wait_until_it_listens(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while std::net::TcpStream::connect(self.addr).is_err() {
            if self.server.try_wait()?.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(self._directory.path().join("log")).unwrap_or_default();
                bail!("PostgreSQL does not start: {log}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // At once, whoever is connected: `immediate shutdown`. It may have ended by itself.
        let _ = kill_process(Pid::from_child(&self.server), Signal::QUIT);
        let _ = self.server.wait();
    }
}

/// The version of PostgreSQL that is measured with, if there is one.
pub(super) fn version() -> Option<String> {
    let version = shell::output(Command::new(binaries()?.join("postgres")).arg("--version")).ok()?;
    Some(version.trim().replace("postgres (PostgreSQL)", "PostgreSQL"))
}

/// `program` in `directory`, without privileges.
fn as_nobody(program: &Path, directory: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(directory).stdin(Stdio::null());
    if geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// Runs `command`, which is talkative; what it says is told only if it fails.
fn said_well(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot start {}", command.get_program().display()))?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(output.status.success(), "{} failed: {}", command.get_program().display(), String::from_utf8_lossy(&said));
    Ok(())
}

/// Where `initdb` and `postgres` are: on the search path, else the newest of Debian's.
fn binaries() -> Option<PathBuf> {
    let has_both = |directory: &PathBuf| directory.join("initdb").is_file() && directory.join("postgres").is_file();
    let on_path = std::env::split_paths(&std::env::var_os("PATH")?).find(has_both);
    on_path.or_else(|| {
        let versions = fs::read_dir("/usr/lib/postgresql").ok()?.flatten().map(|version| version.path().join("bin"));
        versions.filter(has_both).max()
    })
}
