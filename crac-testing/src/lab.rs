//! A world of its own for each test: a directory, a run directory, services that end with it.

use std::{
    collections::VecDeque,
    ffi::OsStr,
    io::{BufRead, BufReader, Read},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rustix::{
    io::ioctl_fionbio,
    process::{Pid, Signal, kill_process, kill_process_group},
};

use crate::{PATIENCE, http, programs::program, wait_until};

/// A private directory in which services and the `crac` command find each other.
#[derive(Debug)]
pub struct Lab {
    dir: Option<tempfile::TempDir>,
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Lab {
    /// A new lab. When the test fails its directory is kept and its path printed.
    pub fn new() -> Self {
        Self::new_in(&std::env::temp_dir())
    }

    /// A new lab in `place`, which exists: for images that are too large for where temporary files go.
    pub fn new_in(place: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("crac-lab-").tempdir_in(place).expect("a temporary directory");
        std::fs::create_dir(dir.path().join("run")).expect("a run directory");
        std::fs::set_permissions(dir.path().join("run"), std::fs::Permissions::from_mode(0o700))
            .expect("a private run directory");
        Self { dir: Some(dir) }
    }

    /// The lab's directory.
    pub fn path(&self) -> &Path {
        self.dir.as_ref().expect("the lab is there until it is dropped").path()
    }

    /// A path in the lab's directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// A command of `program` in this lab, without standard input.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.path())
            .env("CRAC_RUN_DIR", self.path().join("run"))
            .env("TMPDIR", self.path())
            .env_remove("CRAC_IMAGE")
            .env_remove("CRAC_ENGINE")
            .env_remove("CRAC_CRIU_PATH")
            .env_remove("CRAC_CHECKPOINT_ON")
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null());
        command
    }

    /// Runs `crac` with `args` to its end.
    pub fn crac<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        self.command(program("crac")).args(args).output().expect("crac starts")
    }

    /// Runs `crac` with `args`, which must succeed; its standard output.
    pub fn crac_ok<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> String {
        let output = self.crac(args);
        assert!(output.status.success(), "{}\n{}\n{}", output.status, text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    /// Starts `web-server` on a free port with `args`, little warmed up unless they say otherwise, and waits until it answers.
    pub fn web_server(&self, args: &[&str]) -> Service {
        let addr = free_addr();
        let mut command = self.command(program("web-server"));
        command.args(["--listen", &addr.to_string()]).args(args);
        if !args.contains(&"--warm-mib") {
            command.args(["--warm-mib", "1"]);
        }
        Service::start(command, addr).answering()
    }

    /// Starts the image as `crac restore` does, on a free port, and waits until it answers.
    pub fn restore(&self, image: &Path, args: &[&str]) -> Service {
        let addr = free_addr();
        let mut command = self.command(program("crac"));
        command.arg("restore").arg(image).args(["--", "--listen", &addr.to_string()]).args(args);
        Service::start(command, addr).answering()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(dir) = self.dir.take().filter(|_| std::thread::panicking()) {
            eprintln!("the lab of the failed test is kept: {}", dir.keep().display());
        }
    }
}

/// A process under test; killed when dropped.
#[derive(Debug)]
pub struct Service {
    child: Child,
    /// Where it listens, as far as it does.
    pub addr: SocketAddr,
    output: Arc<Mutex<String>>,
    /// What nobody collects so far.
    pipes: Option<(ChildStdout, ChildStderr)>,
}

impl Service {
    /// Starts `command`, which is told elsewhere to listen at `addr`. Its output is collected and shown when the test fails.
    pub fn start(command: Command, addr: SocketAddr) -> Self {
        let mut service = Self::start_alone(command, addr);
        service.collect();
        service
    }

    /// Starts `command` and nothing else, which would take time of a processor. Its output is not collected: when a pipe is full it
    /// waits.
    fn start_alone(mut command: Command, addr: SocketAddr) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let pipes = child.stdout.take().zip(child.stderr.take());
        Self { child, addr, output: Arc::default(), pipes }
    }

    /// Collects its output from now on.
    pub fn collect(&mut self) {
        if let Some((stdout, stderr)) = self.pipes.take() {
            collect(stdout, self.output.clone());
            collect(stderr, self.output.clone());
        }
    }

    /// Starts `command` and asks `GET path` until it is answered with 200; how long that took, the start of the process included.
    ///
    /// Between two attempts it sleeps for some 50 µs: that is the resolution.
    pub fn timed(command: Command, addr: SocketAddr, path: &str) -> (Self, Duration) {
        Self::timed_after(Duration::ZERO, command, addr, path)
    }

    /// As [`timed`](Self::timed), but does not ask for the first time before `quiet` has passed: each attempt takes the processor
    /// for some 20 µs, and on a small machine the process that is measured pays for it.
    pub fn timed_after(quiet: Duration, command: Command, addr: SocketAddr, path: &str) -> (Self, Duration) {
        let (mut service, took) = Self::try_timed_after(quiet, command, addr, path).unwrap_or_else(|what| panic!("{what}"));
        service.collect();
        (service, took)
    }

    /// The same for a start that may fail, of a service that says little or is asked to [`collect`](Self::collect).
    ///
    /// # Errors
    ///
    /// If it ends or patience does; with what it has printed.
    pub fn try_timed_after(quiet: Duration, command: Command, addr: SocketAddr, path: &str) -> Result<(Self, Duration), String> {
        let begun = Instant::now();
        let mut service = Self::start_alone(command, addr);
        std::thread::sleep(quiet.saturating_sub(begun.elapsed()));
        loop {
            if http::exchange(addr, "GET", path, "").is_ok_and(|answer| answer.status == 200) {
                return Ok((service, begun.elapsed()));
            }
            if !service.is_running() || begun.elapsed() >= PATIENCE {
                return Err(format!("the service does not answer:\n{}", service.end()));
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Ends the service; what it has printed that nobody has collected.
    fn end(mut self) -> String {
        // Both fail only when it has ended already.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
        let mut said = Vec::new();
        if let Some((mut stdout, mut stderr)) = self.pipes.take() {
            // What there is, and no more: who has left the group may hold them open for good.
            let _ = ioctl_fionbio(&stdout, true).map(|()| stdout.read_to_end(&mut said));
            let _ = ioctl_fionbio(&stderr, true).map(|()| stderr.read_to_end(&mut said));
        }
        String::from_utf8_lossy(&said).into_owned()
    }

    /// Waits until the service answers `GET /`.
    pub fn answering(mut self) -> Self {
        let addr = self.addr;
        wait_until("the service answers", || {
            if let Some(status) = self.child.try_wait().expect("our child") {
                panic!("the service ended with {status} before it answered:\n{}", self.output());
            }
            http::exchange(addr, "GET", "/", "").ok().filter(|answer| answer.status == 200)
        });
        self
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub fn output(&self) -> String {
        self.output.lock().expect("no collector panics").clone()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        wait_until("the service ends", || self.child.try_wait().expect("our child"))
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("our child").is_none()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("our child can be signalled");
    }

    /// `GET path`, which must be answered with 200.
    pub fn get(&self, path: &str) -> http::Answer {
        http::get(self.addr, path)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- output of process {}:\n{}", self.child.id(), self.output());
        }
    }
}

/// Collects what comes from `source` until its end.
fn collect(source: impl Read + Send + 'static, into: Arc<Mutex<String>>) {
    std::thread::spawn(move || {
        for line in BufReader::new(source).lines().map_while(Result::ok) {
            let mut into = into.lock().expect("no collector panics");
            into.push_str(&line);
            into.push('\n');
        }
    });
}

/// An address on loopback that is free and stays so: on a loopback host of this process's own (all of 127.0.0.0/8 is this
/// machine), so that no other test's connections take the port meanwhile, and none of the last thousand of it: the kernel draws
/// ports, and the one of a service that is about to listen is free for it.
pub fn free_addr() -> SocketAddr {
    static GIVEN: Mutex<VecDeque<SocketAddr>> = Mutex::new(VecDeque::new());
    let pid = std::process::id();
    let [_, high, middle, low] = pid.to_be_bytes();
    let host = Ipv4Addr::new(127, 64 | high, middle, low);
    let draw = || TcpListener::bind((host, 0)).and_then(|listener| listener.local_addr()).expect("loopback has free ports");
    let mut given = GIVEN.lock().expect("nothing panics here but without ports");
    // Among a few thousand ports it would find one within some attempts.
    let new = std::iter::repeat_with(draw).take(10_000).find(|addr| !given.contains(addr));
    let new = new.expect("net.ipv4.ip_local_port_range has more than a thousand ports");
    given.push_front(new);
    given.truncate(1000);
    new
}

/// Makes a file that this process has written ready to be executed: replaced by a copy that another process has made.
///
/// A child that another test of this process is about to start could hold the file open for writing, and a file that somebody may
/// write to is not executed ("text file busy").
pub fn release(path: &Path) {
    let copy = path.with_extension("copy");
    let copied = Command::new("cp").arg("--preserve=mode").args([path, &copy]).status();
    assert!(copied.is_ok_and(|status| status.success()), "room for a copy of {}", path.display());
    std::fs::rename(&copy, path).expect("our own directory");
}

/// Bytes as text, for messages.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_address_is_given_to_two_who_have_not_begun_to_listen() {
        let given: HashSet<_> = (0..1000).map(|_| free_addr()).collect();
        assert_eq!(given.len(), 1000, "the kernel draws some port twice among so many");
    }
}
