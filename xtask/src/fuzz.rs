//! Coverage-guided fuzzing of everything that reads what others wrote, with the installed stable compiler.

use std::{
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Result, bail, ensure};
use crac_testing::{lab::Lab, programs::take_from};

use crate::{built, shell, workspace};

/// The programs in `fuzz/fuzz_targets`.
const TARGETS: [&str; 9] = ["image", "maps", "smaps", "fdinfo", "process", "net", "words", "control", "criu"];

/// What libFuzzer needs to see which way the code went; cargo-fuzz passes the same.
const INSTRUMENTATION: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";

/// More than the front of an image of a small service takes.
const FRONT_BYTES: usize = 128 << 10;

/// Runs every target for `seconds`, some at a time. What was learned is kept below the target directory and used the next time.
///
/// # Errors
///
/// A target crashed, ran out of memory or hung; libFuzzer names the file that did it.
pub(crate) fn run(seconds: u32) -> Result<()> {
    let triple = "x86_64-unknown-linux-gnu";
    let target = workspace::metadata()?.target_directory.join("fuzz");
    let manifest = workspace::root().join("fuzz/Cargo.toml");
    let mut build = shell::cargo(["build", "--release", "--target", triple, "--bins", "--manifest-path"]);
    build.arg(manifest).env("CARGO_TARGET_DIR", &target).env("RUSTFLAGS", INSTRUMENTATION);
    shell::run(&mut build, Duration::from_secs(20 * 60))?;
    seed_images(&target.join("corpus/image"))?;
    let programs = target.join(triple).join("release");
    let next = AtomicUsize::new(0);
    let work = || {
        let mut failed = Vec::new();
        while let Some(name) = TARGETS.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = one(name, &programs.join(name), &target, seconds) {
                failed.push(format!("{name}: {error:#}"));
            }
        }
        failed
    };
    // More than there are processors: what is learned depends little on it, and nine targets take two turns on two processors.
    let count = 2 * std::thread::available_parallelism().map_or(1, usize::from) + 1;
    let failed: Vec<String> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..count).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_else(|_| vec!["a panic".to_owned()])).collect()
    });
    if !failed.is_empty() {
        bail!("{}", failed.join("; "));
    }
    Ok(())
}

/// Runs the target called `name`.
fn one(name: &str, program: &Path, target: &Path, seconds: u32) -> Result<()> {
    let (corpus, found) = (target.join("corpus").join(name), target.join("found").join(name));
    std::fs::create_dir_all(&corpus)?;
    std::fs::create_dir_all(&found)?;
    let mut fuzz = shell::command(program, []);
    fuzz.arg(&corpus).arg(workspace::root().join("fuzz/seeds").join(name));
    fuzz.arg(format!("-max_total_time={seconds}")).arg(format!("-artifact_prefix={}/", found.display()));
    fuzz.arg(format!("-max_len={FRONT_BYTES}"));
    fuzz.args(["-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1", "-verbosity=0"]);
    shell::run(&mut fuzz, Duration::from_secs(u64::from(seconds) + 120))
}

/// Puts the front of a real image, everything before its page data, where the fuzzer begins.
fn seed_images(corpus: &Path) -> Result<()> {
    built::all()?;
    take_from(&workspace::metadata()?.target_directory.join("debug"));
    let lab = Lab::new();
    let mut service = lab.web_server(&["--warm-mib", "0"]);
    lab.crac_ok(["checkpoint", &service.pid().to_string(), "--image", "seed.crac"]);
    ensure!(service.wait().success(), "the checkpoint failed:\n{}", service.output());
    let image = std::fs::read(lab.file("seed.crac"))?;
    let front = image.len().min(FRONT_BYTES);
    std::fs::create_dir_all(corpus)?;
    std::fs::write(corpus.join("seed"), &image[..front])?;
    Ok(())
}
