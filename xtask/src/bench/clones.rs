//! Many lives of one image at once: how soon all of them answer, and what each takes for itself.

use std::{
    collections::HashSet,
    net::SocketAddr,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use crac_testing::{
    http,
    lab::{Lab, Service, free_addr},
};

use super::{
    plan::{self, Plan},
    section::{Section, cells, number, spread_cells, table, times},
    starts::Program,
};
use crate::measure::{Runs, Spread};

const CLONES: usize = 200;
const QUICK_CLONES: usize = 5;
const SIZES: [usize; 2] = [16, 1024];
const QUICK_SIZES: [usize; 1] = [16];
/// Counted rounds, after one that is not counted.
const ROUNDS: usize = 3;
const QUICK_ROUNDS: usize = 1;
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two rounds of asking those that have not answered yet.
const PAUSE: Duration = Duration::from_micros(200);

/// So many at once of one thing.
#[derive(Debug, Default)]
struct Crowd {
    /// Until all were started.
    started: Runs,
    /// Until all had answered.
    answered: Runs,
    /// KiB that are one's alone, over all of the last round, and one's share.
    private: Option<Spread>,
    share: Option<Spread>,
}

/// Starts all clones one after the other, then waits until each has answered; in turn with as many of the floor.
pub(super) fn clones(plan: &Plan) -> Result<Vec<Section>> {
    let count = plan::number(plan::CLONES)?.unwrap_or_else(|| plan.either(CLONES, QUICK_CLONES));
    let mut crowds = Vec::new();
    for mib in plan.sizes(&SIZES, &QUICK_SIZES)? {
        plan.say(&format!("{count} clones with {mib} MiB"));
        let lab = plan.lab();
        let program = Program::pause(mib, 0);
        let image = take(&lab, &program)?;
        let (mut floor, mut native) = (Crowd::default(), Crowd::default());
        for round in 0..=plan.either(ROUNDS, QUICK_ROUNDS) {
            let is_counted = round > 0;
            floor.gather(count, is_counted, |addr| {
                let mut command = lab.command(&plan.floor);
                command.arg(addr.to_string());
                command
            })?;
            native.gather(count, is_counted, |addr| program.again(lab.command(&image), addr))?;
        }
        crowds.push((mib, floor, native));
    }
    Ok(vec![section(count, &crowds)])
}

impl Crowd {
    fn gather(&mut self, count: usize, is_counted: bool, start: impl Fn(SocketAddr) -> Command) -> Result<()> {
        // Different ones: an address is free until the process that was told to take it has done so.
        let mut addrs = HashSet::new();
        while addrs.len() < count {
            addrs.insert(free_addr());
        }
        let begun = Instant::now();
        let mut all: Vec<Service> = addrs.into_iter().map(|addr| Service::start(start(addr), addr)).collect();
        let started = begun.elapsed();
        for one in &mut all {
            while !http::exchange(one.addr, "GET", "/", "").is_ok_and(|answer| answer.status == 200) {
                ensure!(one.is_running() && begun.elapsed() < PATIENCE, "one of {count} does not answer:\n{}", one.output());
                std::thread::sleep(PAUSE);
            }
        }
        let answered = begun.elapsed();
        if is_counted {
            self.started.add(started);
            self.answered.add(answered);
            self.private = Some(kib(&all, &["Private_Clean:", "Private_Dirty:"])?);
            self.share = Some(kib(&all, &["Pss:"])?);
        }
        Ok(())
    }
}

/// The sum of the named lines of what each one's memory is, in KiB; see proc_pid_smaps(5).
fn kib(all: &[Service], names: &[&str]) -> Result<Spread> {
    let of_one = |one: &Service| {
        let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", one.pid())).context("cannot weigh a process")?;
        let lines = text.lines().filter(|line| names.iter().any(|name| line.starts_with(name)));
        Ok(lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok()).sum())
    };
    all.iter().map(of_one).collect()
}

fn take(lab: &Lab, program: &Program) -> Result<PathBuf> {
    let (image, addr) = (lab.file("clones.crac"), free_addr());
    let (mut service, _) = Service::timed(program.command(lab, addr), addr, "/");
    lab.crac_ok(["checkpoint".as_ref(), service.pid().to_string().as_ref(), "--image".as_ref(), image.as_os_str()]);
    ensure!(service.wait().success(), "the checkpoint failed:\n{}", service.output());
    Ok(image)
}

fn section(count: usize, crowds: &[(usize, Crowd, Crowd)]) -> Section {
    let (mut times_of, mut weights) = (Vec::new(), Vec::new());
    for (mib, floor, native) in crowds {
        let rows = [
            ("floor: all started", &floor.started),
            ("floor: all answered", &floor.answered),
            ("clones: all started", &native.started),
            ("clones: all answered", &native.answered),
        ];
        for (name, runs) in rows {
            let [min, median, max, times] = cells(runs, &floor.answered);
            times_of.push([mib.to_string(), name.to_owned(), runs.len().to_string(), min, median, max, times]);
        }
        let rows = [
            ("floor: private", floor.private, floor.private),
            ("clone: private", native.private, floor.private),
            ("floor: proportional share", floor.share, floor.share),
            ("clone: proportional share", native.share, floor.share),
        ];
        for (name, kib, of) in rows {
            let [min, median, max, times] = spread_cells(kib, of);
            weights.push([mib.to_string(), name.to_owned(), min, median, max, times]);
        }
    }
    let text = format!(
        "{count} lives of one image by the native engine, started one after the other and asked until each has answered, in turn with \
         {count} processes of the floor. (Lives that CRIU restores have the process ids of the one that was saved: there are no two of \
         them in one process id namespace.)\n\n{}What each takes for itself once it has answered, in KiB.\n\n{}",
        table(["MiB", "what", "runs", "min, ms", "median, ms", "max, ms", "x floor, answered"], &times_of),
        table(["MiB", "what", "min, KiB", "median, KiB", "max, KiB", "x floor"], &weights),
    );
    let short = crowds.iter().filter_map(|(mib, floor, native)| {
        let private = native.private?;
        Some(format!(
            "{count} clones with {mib} MiB have all answered after {} ms, {} times as long as {count} processes of the floor; at most {} KiB \
             are one's own.",
            number(native.answered.median().as_secs_f64() * 1e3),
            number(times(&native.answered, &floor.answered)?),
            number(private.max)
        ))
    });
    Section { title: "Clones", short: short.collect(), text, plots: Vec::new() }
}
