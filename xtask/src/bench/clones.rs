//! Many lives of one image at once: how soon all of them answer, and what each takes for itself.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use crac_testing::{
    http,
    lab::{Lab, Service, free_addr},
    programs::program,
};

use super::sizes;
use crate::{
    demo::build_release_of,
    measure::{Runs, machine, ms},
};

/// `CRAC_BENCH_CLONES` chooses another number.
const CLONES: usize = 200;
const MIB: [usize; 1] = [1024];
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts all clones one after the other, then waits until each has answered.
pub(crate) fn clones() -> Result<()> {
    build_release_of(&["crac-cli", "crac-benches"])?;
    let count = std::env::var("CRAC_BENCH_CLONES").ok().map(|count| count.parse()).transpose().context("CRAC_BENCH_CLONES")?;
    let count = count.unwrap_or(CLONES);
    println!("{}", machine());
    for mib in sizes(&MIB)? {
        let lab = Lab::new();
        let image = take(&lab, mib)?;
        let begun = Instant::now();
        let mut clones: Vec<Service> = (0..count).map(|_| start(&lab, &image)).collect();
        let started = begun.elapsed();
        for clone in &mut clones {
            while !http::exchange(clone.addr, "GET", "/", "").is_ok_and(|answer| answer.status == 200) {
                ensure!(clone.is_running() && begun.elapsed() < PATIENCE, "a clone does not answer:\n{}", clone.output());
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        let answered = begun.elapsed();
        let [mut private, mut share] = [Runs::default(), Runs::default()];
        for clone in &clones {
            let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", clone.pid()))?;
            let kib = |names: &[&str]| {
                text.lines().filter(|line| names.iter().any(|name| line.starts_with(name))).filter_map(kib).sum()
            };
            // Only the order and the middle of sizes matter here, so a nanosecond stands for a KiB.
            private.add(Duration::from_nanos(kib(&["Private_Clean:", "Private_Dirty:"])));
            share.add(Duration::from_nanos(kib(&["Pss:"])));
        }
        println!("{count} clones of {mib} MiB: started within {} ms, all answered within {} ms", ms(started), ms(answered));
        let sizes = [private.median(), private.max(), share.median()].map(|kib| kib.as_nanos());
        println!(
            "private of each: median {} KiB, at most {} KiB; proportional share: median {} KiB",
            sizes[0], sizes[1], sizes[2]
        );
    }
    Ok(())
}

/// The number of a line such as `Pss:  12 kB`.
fn kib(line: &str) -> Option<u64> {
    line.split_whitespace().nth(1)?.parse().ok()
}

fn take(lab: &Lab, mib: usize) -> Result<std::path::PathBuf> {
    let (image, addr) = (lab.file("clones.crac"), free_addr());
    let mut command = lab.command(program("pause"));
    command.args(["--listen", &addr.to_string(), "--mib", &mib.to_string()]);
    let (mut service, _) = Service::timed(command, addr, "/");
    lab.crac_ok(["checkpoint".as_ref(), service.pid().to_string().as_ref(), "--image".as_ref(), image.as_os_str()]);
    ensure!(service.wait().success(), "the checkpoint of {mib} MiB failed:\n{}", service.output());
    Ok(image)
}

fn start(lab: &Lab, image: &Path) -> Service {
    let addr = free_addr();
    let mut command: Command = lab.command(image);
    command.args(["--", "--listen", &addr.to_string(), "--mib", "0"]);
    Service::start(command, addr)
}
