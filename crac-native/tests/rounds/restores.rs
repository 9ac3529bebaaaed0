//! A restore is whole, or says why it is not; killed at whatever moment, it leaves an image that can be restored.

use std::{
    collections::BTreeSet,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use crac_native::layout::{EXIT_FAILED, EXIT_START_COLD, EXIT_UNTRUSTED, Step, trial};

use super::{faults::stopped, finish, image, lines_of, program};

/// More system calls than the restore of this image makes.
const CALLS_MAX: u32 = 3000;

/// A captured process, and where it listened.
struct Captured {
    image: PathBuf,
    address: SocketAddr,
    files: Vec<PathBuf>,
    /// The setting of `CRAC_EAGER`.
    eager: &'static str,
}

impl Captured {
    fn new(dir: &Path) -> Self {
        Self::restored(dir, "off")
    }

    fn restored(dir: &Path, eager: &'static str) -> Self {
        let image = image(dir, 0);
        let work = dir.join("work");
        std::fs::create_dir(&work).expect("room");
        let mut command = program("everything");
        let lines =
            lines_of(&finish(command.args([format!("--image={}", image.display()), format!("--dir={}", work.display())])));
        let address = lines[0].strip_prefix("address ").expect("an address").parse().expect("an address");
        let captured = Self { image, address, files: files(dir), eager };
        captured.is_whole();
        captured
    }

    /// A restore in which `call` is on trial.
    fn attempt(&self, kind: u32, call: u32) -> Command {
        let mut command = program("try");
        command.arg(format!("--image={}", self.image.display())).args([format!("--kind={kind}"), format!("--call={call}")]);
        command.stdin(Stdio::null()).env("CRAC_EAGER", self.eager);
        command
    }

    /// Nothing of the restore is left, and it succeeds without a fault.
    fn is_whole(&self) {
        self.is_over();
        assert_eq!(lines_of(&finish(&mut self.attempt(trial::NONE, 0))), ["whole"]);
        crac_native::image::verify(&std::fs::File::open(&self.image).expect("the image")).expect("whole");
        let found = files(self.image.parent().expect("a directory"));
        assert_eq!(found, self.files);
    }

    /// Nobody runs or listens any more.
    fn is_over(&self) {
        TcpListener::bind(self.address).expect("nobody listens there any more");
        let links = std::fs::read_dir("/proc").expect("proc").map(|entry| entry.expect("proc").path().join("exe"));
        let running: Vec<_> = links.filter(|link| std::fs::read_link(link).is_ok_and(|to| to == self.image)).collect();
        assert!(running.is_empty(), "{running:?}");
    }
}

/// Files and directories below `dir`, sorted.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).expect("own directory") {
        let path = entry.expect("own file").path();
        if path.is_dir() {
            found.extend(files(&path));
        }
        found.push(path);
    }
    found.sort();
    found
}

/// How many system calls of the stub are on trial: each is made to stop the process, until none does.
fn killed(captured: &Captured) -> u32 {
    for call in 1..CALLS_MAX {
        let child = captured.attempt(trial::STOP, call).stdout(Stdio::null()).spawn().expect("it starts");
        if !stopped(child) {
            return call - 1;
        }
        if call % 16 == 0 {
            captured.is_over();
        }
    }
    panic!("the restore has no end");
}

pub(super) fn killed_at_each_call(dir: &Path) {
    let captured = Captured::new(dir);
    let calls = killed(&captured);
    assert!(calls > 100, "{calls} calls");
    captured.is_whole();
}

pub(super) fn killed_at_random(dir: &Path) {
    let captured = Captured::new(dir);
    let mut ended = 0;
    for round in 0..200_u64 {
        let mut child = captured.attempt(trial::NONE, 0).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        // Any moment will do; these are spread over what a restore takes, and beyond.
        std::thread::sleep(Duration::from_micros(round * 7919 % 20_000));
        child.kill().expect("own child");
        ended += u32::from(child.wait().expect("own child").success());
        if round % 16 == 0 {
            captured.is_over();
        }
    }
    println!("{ended} of 200 were through before they were killed");
    captured.is_whole();
}

pub(super) fn fail(dir: &Path) {
    let captured = Captured::new(dir);
    let calls = killed(&captured);
    let mut steps = BTreeSet::new();
    for kind in [trial::ONCE, trial::FOR_GOOD] {
        for call in 1..=calls {
            let output = captured.attempt(kind, call).output().expect("it starts");
            steps.extend(failed_step(&output, call));
            if call % 16 == 0 {
                captured.is_over();
            }
        }
        captured.is_whole();
    }
    // What follows the stub's last step, before any other thread goes on.
    let output = captured.attempt(trial::RESUME, 0).output().expect("it starts");
    assert_eq!(output.status.code(), Some(EXIT_FAILED), "{output:?}");
    assert!(output.stdout.is_empty() && String::from_utf8_lossy(&output.stderr).contains("resuming: "), "{output:?}");
    captured.is_whole();
    let named: Vec<_> = Step::ALL.iter().map(|step| step.name()).filter(|name| steps.contains(*name)).collect();
    assert_eq!(named, ["clear", "memory", "kernel", "process", "descriptors", "threads"], "every step behind the check fails");
}

/// Memory that cannot be fetched ends the restore, as every other failure does.
pub(super) fn fail_populated(dir: &Path) {
    let captured = Captured::restored(dir, "populate");
    let mut not_fetched = 0;
    for call in 1..=killed(&captured) {
        let output = captured.attempt(trial::ONCE, call).output().expect("it starts");
        if String::from_utf8_lossy(&output.stderr).contains("memory: fetching page data at ") {
            assert_eq!(failed_step(&output, call).as_deref(), Some("memory"));
            not_fetched += 1;
        } else {
            failed_step(&output, call);
        }
        if call % 16 == 0 {
            captured.is_over();
        }
    }
    assert!(not_fetched > 3, "{not_fetched}");
    captured.is_whole();
}

/// Where a restore has failed, if it has; a whole one, and one that is refused before anything is touched, has no such step.
fn failed_step(output: &Output, call: u32) -> Option<String> {
    let (said, why) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let why = why.trim();
    match output.status.code() {
        Some(0) => {
            assert!(said == "whole\n", "call {call}: {said}{why}");
            None
        }
        Some(EXIT_START_COLD | EXIT_UNTRUSTED | EXIT_FAILED) => {
            assert!(said.is_empty() && why.starts_with("crac: cannot restore: "), "call {call}: {said}{why}");
            let (_, rest) = why.split_once("cannot restore: step ")?;
            let (_, rest) = rest.split_once(", ")?;
            Some(rest.split_once(": ")?.0.to_owned())
        }
        _ => panic!("call {call}: {}: {said}{why}", output.status),
    }
}
