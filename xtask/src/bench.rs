//! Measurements. What is compared is measured in one run, in turn: no number stands alone.

mod clones;
mod goes_on;
mod page;
mod restore;

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::workspace;

pub(crate) use clones::clones;
pub(crate) use goes_on::goes_on;
pub(crate) use page::page;
pub(crate) use restore::restore;

/// `CRAC_BENCH_RUNS=5` chooses another number of runs.
fn runs(usual: usize) -> Result<usize> {
    Ok(std::env::var("CRAC_BENCH_RUNS").ok().map(|runs| runs.parse()).transpose().context("CRAC_BENCH_RUNS")?.unwrap_or(usual))
}

/// `CRAC_BENCH_MIB=16,256` chooses other sizes.
fn sizes(usual: &[usize]) -> Result<Vec<usize>> {
    match std::env::var("CRAC_BENCH_MIB") {
        Err(_) => Ok(usual.into()),
        Ok(text) => text.split(',').map(|mib| mib.trim().parse().context("CRAC_BENCH_MIB")).collect(),
    }
}

/// Compiles the program that does nothing but answer, statically linked.
fn build_floor() -> Result<PathBuf> {
    let source = workspace::root().join("benches/floor/floor.rs");
    let floor = workspace::metadata()?.target_directory.join("release/floor");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let status = Command::new(rustc)
        .args(["--edition", "2024", "-O", "-C", "panic=abort", "-C", "target-feature=+crt-static", "-o"])
        .arg(&floor)
        .arg(source)
        .status()?;
    ensure!(status.success(), "rustc cannot build the floor: {status}");
    Ok(floor)
}
