//! Starts the programs and runs their images.

use std::{
    fs,
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering::SeqCst},
    time::{Duration, Instant},
};

use crac_programs::{FEATURES, Fate, Feature};
use crac_testing::PATIENCE;
use libtest_mimic::{Arguments, Trial};

use crate::{kernel, lives};

pub(crate) fn main() {
    kernel::close_what_was_left_open();
    let mut trials = vec![Trial::test("every_feature_has_a_program", || {
        every_feature_has_a_program();
        Ok(())
    })];
    trials.extend(FEATURES.iter().map(|feature| {
        Trial::test(format!("{}::{}", feature.area, feature.name), || {
            round(feature, &Lab::new());
            Ok(())
        })
    }));
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn every_feature_has_a_program() {
    let mut listed: Vec<_> = FEATURES.iter().map(|feature| feature.name).collect();
    let mut there: Vec<_> = lives::programs().map(|(name, _)| *name).collect();
    listed.sort_unstable();
    there.sort_unstable();
    assert_eq!(listed, there);
}

fn round(feature: &Feature, lab: &Lab) {
    let first = lab.start(&std::env::current_exe().expect("own path"), feature.name).end();
    if let Some(reason) = first.said.lines().find_map(|line| line.strip_prefix("not here: ")) {
        println!("skipped: {}: {reason}", feature.name);
        return;
    }
    match feature.fate {
        Fate::Restored => {
            first.said("");
            let start = |image: &str, task| lab.start(&lab.path(image), task);
            if feature.is_alone {
                start("first", "end").end().said(WELL);
                start("first", "again").end().said("");
            } else {
                let clones = [start("first", "end"), start("first", "again")];
                for (clone, word) in clones.into_iter().zip([WELL, ""]) {
                    clone.end().said(word);
                }
            }
            if lab.path("copy").exists() {
                start("copy", "end").end().said(WELL);
            }
            start("second", "become").end().said(WELL);
        }
        Fate::Refused(kind) => {
            let obstacles: Vec<_> = first.said.lines().filter_map(|line| line.strip_prefix("obstacle ")).collect();
            let named = |line: &&str| line.starts_with(&format!("{kind}: ")) && line.ends_with(kind.advice());
            assert!(!obstacles.is_empty() && obstacles.iter().all(named), "expected {kind}: {first:?}");
            assert!(first.is_well && first.said.ends_with("refused\n"), "the original goes on unharmed: {first:?}");
        }
    }
}

const WELL: &str = "all as it was\n";

/// A process at work.
struct Running {
    child: Child,
    outputs: [PathBuf; 2],
}

impl Running {
    /// Waits for its end. One that does not come is killed.
    fn end(mut self) -> Ended {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match self.child.try_wait().expect("own child") {
                Some(status) => break status.to_string(),
                None if Instant::now() > deadline => {
                    self.child.kill().expect("own child");
                    self.child.wait().expect("own child");
                    break format!("killed after {PATIENCE:?}");
                }
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        let [said, complained] = self.outputs.map(|path| fs::read_to_string(path).expect("text"));
        Ended { is_well: status == "exit status: 0", status, said, complained }
    }
}

/// What became of a process.
#[derive(Debug)]
struct Ended {
    is_well: bool,
    status: String,
    said: String,
    complained: String,
}

impl Ended {
    fn said(self, expected: &str) {
        let Self { status, said, complained, .. } = &self;
        assert!(
            self.is_well && said == expected,
            "{status}, expected {expected:?}\n--- said\n{said}\n--- complained\n{complained}"
        );
    }
}

/// A directory of a program's own; it stays after a failure.
struct Lab(tempfile::TempDir);

impl Lab {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Starts an image, which is told what to do, or the program of that name.
    fn start(&self, path: &Path, task: &str) -> Running {
        let work = self.path("work");
        fs::create_dir_all(&work).expect("a directory to work in");
        let number = STARTED.fetch_add(1, SeqCst);
        let outputs = ["said", "complained"].map(|name| self.path(&format!("{number}-{task}.{name}")));
        let [said, complained] = outputs.each_ref().map(|path| fs::File::create_new(path).expect("a file for what it says"));
        let mut command = Command::new(path);
        command.current_dir(work).stdin(Stdio::null()).stdout(said).stderr(complained);
        command.env("CRAC_TEST_PROGRAM", task).env("CRAC_TEST_DIRECTORY", self.0.path()).args(["--", task]);
        // An image is restored by its owner, who may have been made one by the program.
        let (owner, group) = fs::metadata(path).map(|found| (found.uid(), found.gid())).expect("it is there");
        if owner != 0 && kernel::is_root() {
            command.uid(owner).gid(group);
        }
        Running { child: command.spawn().expect("it starts"), outputs }
    }
}

static STARTED: AtomicU32 = AtomicU32::new(0);

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.disable_cleanup(true);
            println!("see {}", self.0.path().display());
        }
    }
}
