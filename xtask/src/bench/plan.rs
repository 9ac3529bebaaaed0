//! What is measured how often.

use std::{
    cell::RefCell,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use crac_testing::{
    lab::Lab,
    programs::{program, take_from},
};

use super::{
    memory,
    scratch::{Scratch, is_in_memory},
};
use crate::{criu, shell, test, workspace};

/// From nothing, on a small machine.
const BUILD_DEADLINE: Duration = Duration::from_secs(20 * 60);
/// Set where the kernel-feature cache of CRIU has a place to be.
const INSIDE: &str = "CRAC_BENCH_INSIDE";
/// Not `sh`, which cannot close descriptors above 9. They are of files outside of the namespace, where CRIU does not find them.
const ENTER: &str = "mount -t tmpfs crac-bench /run && \
     for file in /proc/$$/fd/*; do fd=${file##*/}; if [ $fd -gt 2 ]; then eval \"exec $fd>&-\"; fi; done; exec \"$@\"";
const MIB: u64 = 1 << 20;
/// What services, page tables and drafts of images take besides what is counted.
const SLACK_MIB: u64 = 1024;

/// Environment variables that choose other sizes (`16,256`) and numbers than the usual ones.
pub(super) const CHOICES: [&str; 3] = [SIZES, BLOCKS, CLONES];
const SIZES: &str = "CRAC_BENCH_MIB";
const BLOCKS: &str = "CRAC_BENCH_BLOCKS";
pub(super) const CLONES: &str = "CRAC_BENCH_CLONES";

/// What is measured how often, with what, and where.
#[derive(Debug)]
pub(super) struct Plan {
    /// Little and small: only whether everything works.
    pub(super) quick: bool,
    /// Where CRIU is, if one works here.
    pub(super) criu: Option<PathBuf>,
    pub(super) scratch: Scratch,
    /// The program that does nothing but answer.
    pub(super) floor: PathBuf,
    begun: Instant,
    left_out: RefCell<Vec<String>>,
}

/// How often things are done at one size. A block is one cold start, one checkpoint, restores from that image with the
/// page cache warm, and restores with it cold, each by each engine; so what is compared is measured close together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rounds {
    pub(super) blocks: usize,
    /// Restores by the native engine in a block.
    pub(super) native: usize,
    /// By CRIU, which takes seconds where the native engine takes milliseconds.
    pub(super) criu: usize,
    /// By CRIU in quick succession.
    pub(super) criu_at_once: usize,
    /// With the page cache cold, in each way.
    pub(super) uncached: usize,
}

impl Rounds {
    pub(super) fn of(mib: usize) -> Self {
        match mib {
            ..=256 => Self { blocks: 3, native: 6, criu: 2, criu_at_once: 2, uncached: 3 },
            257..=1024 => Self { blocks: 2, native: 6, criu: 2, criu_at_once: 3, uncached: 3 },
            _ => Self { blocks: 2, native: 3, criu: 1, criu_at_once: 0, uncached: 1 },
        }
    }
}

impl Plan {
    /// Builds everything and finds CRIU. Where `/run` is on a disk, it enters a mount namespace in which it is not: CRIU keeps its cache
    /// of kernel features nowhere else.
    pub(super) fn new(quick: bool) -> Result<Self> {
        let is_inside = std::env::var_os(INSIDE).is_some();
        if !is_inside {
            build()?;
        }
        take_from(&workspace::metadata()?.target_directory.join("release"));
        let criu = match criu::set_up(&program("crac")) {
            Ok(_) if !is_inside && !is_in_memory(Path::new("/run")) => {
                let mut inside = Command::new("unshare");
                inside.args(["--mount", "bash", "-c", ENTER, "bash"]).arg(std::env::current_exe()?);
                let error = inside.args(std::env::args_os().skip(1)).env(INSIDE, "1").exec();
                return Err(error).context("cannot run unshare(1)");
            }
            found => found,
        };
        let plan = Self {
            quick,
            criu: criu.as_ref().ok().cloned(),
            scratch: Scratch::new()?,
            floor: workspace::metadata()?.target_directory.join("release/floor"),
            begun: Instant::now(),
            left_out: RefCell::default(),
        };
        if let Err(reason) = criu {
            plan.leave_out("CRIU", &format!("{reason:#}"))?;
        }
        Ok(plan)
    }

    pub(super) fn lab(&self) -> Lab {
        self.scratch.lab()
    }

    pub(super) fn rounds(&self, mib: usize) -> Result<Rounds> {
        let usual =
            if self.quick { Rounds { blocks: 1, native: 2, criu: 1, criu_at_once: 1, uncached: 1 } } else { Rounds::of(mib) };
        Ok(Rounds { blocks: number(BLOCKS)?.unwrap_or(usual.blocks), ..usual })
    }

    /// Of two numbers, the one for this plan.
    pub(super) fn either(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }

    /// `full` or `quick`, or what `CRAC_BENCH_MIB=16,256` says, without what does not fit this machine.
    pub(super) fn sizes(&self, full: &[usize], quick: &[usize]) -> Result<Vec<usize>> {
        let wanted = match std::env::var(SIZES) {
            Err(_) => if self.quick { quick } else { full }.to_vec(),
            Ok(text) => {
                let sizes = text.split(',').map(|mib| mib.trim().parse());
                sizes.collect::<Result<_, _>>().with_context(|| format!("{SIZES} is not a list of numbers"))?
            }
        };
        let mut fitting = Vec::new();
        for mib in wanted {
            match fits(mib as u64, self.scratch.free()? / MIB, memory::in_mib("MemAvailable:").unwrap_or(u64::MAX)) {
                None => fitting.push(mib),
                Some(reason) => self.leave_out(&format!("{mib} MiB"), &reason)?,
            }
        }
        if fitting.is_empty() {
            bail!("nothing that was to be measured fits this machine");
        }
        Ok(fitting)
    }

    /// Notes that something is not measured here. Nothing is left out where `CRAC_NO_SKIP=1` says so.
    pub(super) fn leave_out(&self, what: &str, reason: &str) -> Result<()> {
        // A page says nothing of paths of the machine it was written on.
        let reason_for_all = if reason.contains('/') { "see what the run printed" } else { reason };
        let note = format!("{what}: {reason_for_all}");
        if !self.left_out.borrow().contains(&note) {
            test::skip(what, reason)?;
            self.left_out.borrow_mut().push(note);
        }
        Ok(())
    }

    /// What is not measured here, and why.
    pub(super) fn left_out(&self) -> Vec<String> {
        self.left_out.borrow().clone()
    }

    /// Something of CRIU's failed: it is counted in a measurement, and an error where it is tried out whether everything works.
    pub(super) fn criu_failed(&self, what: &str) -> Result<()> {
        eprintln!("CRIU failed: {what}");
        if self.quick {
            bail!("CRIU failed: {what}");
        }
        Ok(())
    }

    /// Says what is measured next.
    pub(super) fn say(&self, what: &str) {
        eprintln!("[{:4} s] {what}", self.begun.elapsed().as_secs());
    }

    pub(super) fn took(&self) -> Duration {
        self.begun.elapsed()
    }
}

/// The number in an environment variable.
pub(super) fn number(variable: &str) -> Result<Option<usize>> {
    let value = std::env::var(variable).ok().map(|value| value.parse());
    value.transpose().with_context(|| format!("{variable} is not a number"))
}

/// Builds everything as it is shipped. All at once and always the same, or cargo would choose other features and build all anew.
fn build() -> Result<()> {
    let mut build = shell::cargo(["build", "--release", "--bins", "--package", "crac-cli", "--package", "web-server"]);
    build.args(["--package", "crac-benches", "--features", "web-server/tls,crac-benches/tls"]);
    shell::run(&mut build, BUILD_DEADLINE)?;
    let (sources, programs) = (workspace::root().join("benches/static"), workspace::metadata()?.target_directory.join("release"));
    ["floor", "begin"].into_iter().try_for_each(|name| {
        build_static(&sources.join(name).with_extension("rs"), &programs.join(name))
            .with_context(|| format!("cannot build `{name}`"))
    })
}

/// Compiles a program of one file, statically linked.
fn build_static(source: &Path, program: &Path) -> Result<()> {
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args(["--edition", "2024", "-O", "-C", "panic=abort", "-C", "target-feature=+crt-static", "-o"]);
    shell::run(rustc.arg(program).arg(source), BUILD_DEADLINE)
}

/// Why `mib` MiB of state cannot be measured with so much space on the disk and in memory.
fn fits(mib: u64, free_mib: u64, available_mib: u64) -> Option<String> {
    // Two images and the plain write; a life and both images in the page cache.
    let (disk, memory) = (3 * mib + SLACK_MIB, 3 * mib + SLACK_MIB);
    if free_mib < disk {
        return Some(format!("needs {disk} MiB on the disk, {free_mib} are free; set TMPDIR to a larger one"));
    }
    (available_mib < memory).then(|| format!("needs {memory} MiB of memory, {available_mib} are available"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_said_with_numbers() {
        assert_eq!(fits(4096, 20_000, 20_000), None);
        assert!(fits(4096, 13_000, 20_000).unwrap().contains("needs 13312 MiB on the disk, 13000 are free"));
        assert!(fits(4096, 20_000, 8_000).unwrap().contains("needs 13312 MiB of memory, 8000 are available"));
    }

    #[test]
    fn the_larger_the_fewer_and_never_none() {
        let rounds = [0, 16, 256, 1024, 4096].map(Rounds::of);
        assert!(rounds.windows(2).all(|pair| pair[0].blocks >= pair[1].blocks));
        assert!(rounds.iter().all(|rounds| rounds.blocks > 1 && rounds.native > 0 && rounds.criu > 0));
    }
}
