//! Starts the programs and runs their images.

use std::{
    fs,
    os::unix::{
        fs::MetadataExt as _,
        process::{CommandExt as _, ExitStatusExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering::SeqCst},
    time::{Duration, Instant},
};

use crac_criu::{Criu, restore::Restore};
use crac_programs::{FEATURES, Fate, Feature, WithCriu};
use crac_testing::{PATIENCE, criu::criu};
use libtest_mimic::{Arguments, Trial};

use crate::{kernel, lives, memory};

pub(crate) fn main() {
    kernel::close_what_was_left_open();
    let mut trials = vec![Trial::test("every_feature_has_a_program", || {
        every_feature_has_a_program();
        Ok(())
    })];
    trials.extend(FEATURES.iter().map(|feature| {
        Trial::test(format!("{}::{}", feature.area, feature.name), || {
            round(feature, &Lab::new(None));
            Ok(())
        })
    }));
    if std::env::var_os("CRAC_TEST_CRIU").is_some() && kernel::is_root() {
        trials.extend(FEATURES.iter().map(|feature| {
            Trial::test(format!("criu::{}::{}", feature.area, feature.name), || {
                criu_round(feature, &Lab::new(criu(feature.name)));
                Ok(())
            })
        }));
    } else {
        // Says whether that is as it should be.
        trials.push(Trial::test("criu::there_is_none", || {
            criu("the programs with CRIU");
            Ok(())
        }));
    }
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
    let first = lab.start(&std::env::current_exe().expect("own path"), feature.name);
    // From outside, as tracing tools do; it goes when the descriptor is closed.
    let _probe = (feature.name == "uprobe").then(|| {
        let probe = kernel::probe(&first.child, memory::probed as *const () as usize);
        let answer = probe.as_ref().err().map_or_else(String::new, ToString::to_string);
        fs::write(lab.path(memory::PROBED), answer).expect("the directory is ours");
        probe
    });
    let first = first.end();
    if let Some(reason) = first.not_here() {
        println!("skipped: {}: {reason}", feature.name);
        return;
    }
    let lives_on = |life: Ended| match feature.overflows {
        Some(thread) => life.has_overflowed(thread),
        None => life.said(WELL),
    };
    match feature.fate {
        Fate::Restored => {
            first.said("");
            let start = |image: &str, task| lab.start(&lab.path(image), task);
            if feature.is_alone {
                lives_on(start("first", "end").end());
                start("first", "again").end().said("");
            } else {
                let [one, other] = [start("first", "end"), start("first", "again")];
                lives_on(one.end());
                other.end().said("");
            }
            if lab.path("copy").exists() {
                lives_on(start("copy", "end").end());
            }
            lives_on(start("second", "become").end());
        }
        Fate::Refused(kind) => {
            let obstacles: Vec<_> = first.said.lines().filter_map(|line| line.strip_prefix("obstacle ")).collect();
            let named = |line: &&str| line.starts_with(&format!("{kind}: ")) && line.ends_with(kind.advice());
            assert!(!obstacles.is_empty() && obstacles.iter().all(named), "expected {kind}: {first:?}");
            assert!(first.is_well && first.said.ends_with("refused\n"), "the original goes on unharmed: {first:?}");
        }
    }
}

/// The same program with CRIU: one image, and one life after it.
fn criu_round(feature: &Feature, lab: &Lab) {
    if let WithCriu::Untried(reason) = feature.with_criu {
        println!("not tried: {}: {reason}", feature.name);
        return;
    }
    let first = lab.start(&std::env::current_exe().expect("own path"), feature.name).end();
    if let Some(reason) = first.not_here() {
        println!("skipped: {}: {reason}", feature.name);
        return;
    }
    if let WithCriu::Refused(_) = feature.with_criu {
        assert!(first.is_well && first.said.ends_with("refused\n"), "the original goes on unharmed: {first:?}");
        return;
    }
    first.said("");
    let next = lab.restore_by_criu().end();
    match (feature.with_criu, feature.overflows) {
        (WithCriu::Changed(how), _) => assert!(!next.is_well, "it is said that {how}, but: {next:?}"),
        (_, Some(thread)) => next.has_overflowed(thread),
        (_, None) => next.said(WELL),
    }
}

/// In a process of its own, whose standard streams and end become those of the restored life.
pub(crate) fn restore_by_criu() -> ! {
    let directory = std::env::var_os("CRAC_TEST_DIRECTORY").expect("the driver says where");
    let image = Path::new(&directory).join("first");
    let criu = Criu::find(std::env::var_os("CRAC_TEST_ENGINE").as_deref().map(Path::new)).expect("the engine is given");
    let restore = Restore::open(&image, None).expect("an image that fits");
    let living = restore.bring_back(&criu, vec!["end".into()], Vec::new(), PATIENCE);
    let status = living.unwrap_or_else(|error| panic!("{error}")).wait().expect("a child of this process");
    match status.signal() {
        // Whoever waits for this process is to see how that one ended.
        Some(libc::SIGABRT) => std::process::abort(),
        Some(signal) => panic!("killed by signal {signal}"),
        None => std::process::exit(status.code().unwrap_or(1)),
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
    /// Why the feature does not exist here, if it does not.
    fn not_here(&self) -> Option<&str> {
        self.said.lines().find_map(|line| line.strip_prefix("not here: "))
    }

    /// Killed by SIGABRT, as the standard library does to itself, once it has named the thread.
    fn has_overflowed(self, thread: &str) {
        let Self { status, said, complained, .. } = &self;
        let names_it = |line: &str| line.starts_with(&format!("thread '{thread}'")) && line.ends_with("has overflowed its stack");
        let is_abort = status.starts_with(&format!("signal: {}", libc::SIGABRT));
        assert!(
            is_abort && said.is_empty() && complained.lines().any(names_it),
            "{status}, expected {thread} to overflow its stack\n--- said\n{said}\n--- complained\n{complained}"
        );
    }

    fn said(self, expected: &str) {
        let Self { status, said, complained, .. } = &self;
        assert!(
            self.is_well && said == expected,
            "{status}, expected {expected:?}\n--- said\n{said}\n--- complained\n{complained}"
        );
    }
}

/// A directory of a program's own, which stays after a failure, and what saves it if not the native engine.
struct Lab {
    directory: tempfile::TempDir,
    criu: Option<PathBuf>,
}

impl Lab {
    fn new(criu: Option<PathBuf>) -> Self {
        Self { directory: tempfile::tempdir().expect("a temporary directory"), criu }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Has CRIU restore the first image.
    fn restore_by_criu(&self) -> Running {
        self.start(&std::env::current_exe().expect("own path"), RESTORE)
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
        command.env("CRAC_TEST_PROGRAM", task).env("CRAC_TEST_DIRECTORY", self.directory.path()).args(["--", task]);
        if let Some(criu) = &self.criu {
            command.env("CRAC_TEST_ENGINE", criu);
        }
        // An image is restored by its owner, who may have been made one by the program.
        let (owner, group) = fs::metadata(path).map(|found| (found.uid(), found.gid())).expect("it is there");
        if owner != 0 && kernel::is_root() {
            command.uid(owner).gid(group);
        }
        Running { child: command.spawn().expect("it starts"), outputs }
    }
}

/// The name of a program that restores what CRIU has saved.
pub(crate) const RESTORE: &str = "restore-by-criu";

static STARTED: AtomicU32 = AtomicU32::new(0);

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.directory.disable_cleanup(true);
            println!("see {}", self.directory.path().display());
        }
    }
}
