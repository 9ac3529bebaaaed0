//! Restore against cold start and against the floor, in one run, in turn: no number stands alone.

mod clones;
mod goes_on;

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};
use crac_testing::lab::{Lab, Service, free_addr};

use crate::{
    demo::build_release,
    measure::{Runs, machine},
    workspace,
};

pub(crate) use clones::clones;
pub(crate) use goes_on::goes_on;

/// Counted runs of each thing; `CRAC_BENCH_RUNS` chooses another number.
const RUNS: usize = 20;
/// Cold starts are slow and vary little.
const COLD_RUNS: usize = 3;
/// What the service has warmed up; the last is only reported, not compared.
const WARM_MIB: [usize; 4] = [16, 256, 1024, 4096];

/// Exec to first answer: floor, restore by executing the image, cold start; warm page cache.
pub(crate) fn restore() -> Result<()> {
    build_release()?;
    let floor = build_floor()?;
    let runs = runs(RUNS)?;
    let sizes = sizes(&WARM_MIB)?;
    println!("{}", machine());
    println!(
        "{runs} counted runs in turn after one warm-up each; page cache warm; release build; milliseconds from spawn to first 200"
    );
    println!("{:<34} {:>9} {:>9} {:>9}", "", "min", "median", "max");
    let mut restored = Vec::new();
    for mib in sizes {
        let lab = Lab::new();
        let (image, mut cold) = take(&lab, mib)?;
        for _ in 1..COLD_RUNS {
            let run = once(&cold, |addr| web_server(&lab, mib, addr));
            cold.add(run);
        }
        let (mut at_floor, mut back) = (Runs::default(), Runs::default());
        for run in 0..=runs {
            let floor = once(&at_floor, |addr| {
                let mut command = lab.command(&floor);
                command.arg(addr.to_string());
                command
            });
            let restore = once(&back, |addr| {
                let mut command = lab.command(&image);
                command.args(["--", "--listen", &addr.to_string()]);
                command
            });
            if run > 0 {
                at_floor.add(floor);
                back.add(restore);
            }
        }
        println!("{:<34} {at_floor}", format!("floor, beside {mib} MiB"));
        println!("{:<34} {back}   {:.2} x floor", format!("restore {mib} MiB"), back.times(&at_floor));
        println!("{:<34} {cold}   {:.0} x restore", format!("cold start {mib} MiB ({COLD_RUNS} runs)"), cold.times(&back));
        restored.push((mib, back));
    }
    if let [(small, first), .., (large, last)] = &restored[..] {
        println!("restore {large} MiB / restore {small} MiB, medians: {:.2}", last.times(first));
    }
    Ok(())
}

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

/// Starts one service, times it until it answers, and ends it. The client keeps quiet for half of what the fastest run so far took.
fn once(so_far: &Runs, command: impl FnOnce(std::net::SocketAddr) -> Command) -> std::time::Duration {
    let addr = free_addr();
    Service::timed_after(so_far.min() / 2, command(addr), addr, "/").1
}

fn web_server(lab: &Lab, mib: usize, addr: std::net::SocketAddr) -> Command {
    let mut command = lab.command(crac_testing::programs::program("web-server"));
    command.args(["--listen", &addr.to_string(), "--warm-mib", &mib.to_string()]);
    command
}

/// An image of a service that has warmed `mib` MiB up, and how long its cold start took.
fn take(lab: &Lab, mib: usize) -> Result<(PathBuf, Runs)> {
    let image = lab.file("web.crac");
    let addr = free_addr();
    let (mut service, cold) = Service::timed(web_server(lab, mib, addr), addr, "/");
    lab.crac_ok(["checkpoint".as_ref(), service.pid().to_string().as_ref(), "--image".as_ref(), image.as_os_str()]);
    ensure!(service.wait().success(), "the checkpoint of {mib} MiB failed:\n{}", service.output());
    let mut runs = Runs::default();
    runs.add(cold);
    Ok((image, runs))
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
