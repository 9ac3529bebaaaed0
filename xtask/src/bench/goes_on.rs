//! Continue mode: how long a service stands still, and what its clients notice.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use crac_testing::{
    http::{self, NoAnswer},
    lab::{Lab, Service, free_addr},
};

use super::{
    plan::Plan,
    plot::{Look, Plot, Series},
    section::{Section, cells, list, number, table, times},
    starts::{self, Program},
};
use crate::measure::Runs;

const SIZES: [usize; 3] = [16, 256, 1024];
const QUICK_SIZES: [usize; 1] = [16];
/// Counted captures of each size, and of those the ones by CRIU too.
const RUNS: [usize; 2] = [6, 3];
const QUICK_RUNS: [usize; 2] = [1, 1];
/// Who asks meanwhile.
const CLIENTS: usize = 2;
/// Each client pauses so long between two requests, so that the machine is not only busy with them.
const BETWEEN: Duration = Duration::from_millis(1);

/// What was measured at one size.
#[derive(Debug, Default)]
struct Size {
    mib: usize,
    fork: Runs,
    native: Pause,
    criu: Pause,
    undisturbed: Requests,
}

/// Captures of a service that goes on, by one engine.
#[derive(Debug, Default)]
struct Pause {
    /// While every thread stood still.
    frozen: Runs,
    /// While the door was shut, as the command sees it.
    closed: Runs,
    /// Until the image was durable.
    whole: Runs,
    meanwhile: Requests,
    failed: usize,
}

/// Bare fork, capture by each engine, fork ..., then the requests of an undisturbed stretch.
pub(super) fn goes_on(plan: &Plan) -> Result<Vec<Section>> {
    let mut sizes = Vec::new();
    for mib in plan.sizes(&SIZES, &QUICK_SIZES)? {
        plan.say(&format!("checkpoints of a service that goes on with {mib} MiB"));
        sizes.push(measure(plan, mib)?);
    }
    Ok(vec![section(&sizes)])
}

fn measure(plan: &Plan, mib: usize) -> Result<Size> {
    let [runs, runs_criu] = if plan.quick { QUICK_RUNS } else { RUNS };
    let native = Subject::start(plan, mib, None);
    let by_criu = plan.criu.as_deref().map(|criu| Subject::start(plan, mib, Some(criu)));
    let mut size = Size { mib, ..Size::default() };
    for run in 0..=runs {
        // Each begins with pages that are the service's own.
        native.service.get("/dirty");
        let fork: u64 = native.service.get("/fork").body.parse().context("the time of a fork")?;
        native.service.get("/dirty");
        let captured = native.capture()?;
        if run > 0 {
            size.fork.add(Duration::from_micros(fork));
            size.native.add(captured)?;
        }
        // The first one by CRIU is not counted either.
        if let Some(subject) = by_criu.as_ref().filter(|_| run <= runs_criu) {
            subject.service.get("/dirty");
            match subject.capture() {
                Ok(captured) if run > 0 => size.criu.add(captured)?,
                Ok(_) => {}
                Err(error) => {
                    size.criu.failed += 1;
                    plan.criu_failed(&format!("{error:#}"))?;
                }
            }
        }
    }
    let stretch = size.native.whole.median() * u32::try_from(runs)?;
    let ((), undisturbed) = Requests::during(native.service.addr, || {
        std::thread::sleep(stretch.max(Duration::from_secs(1)));
        Ok(())
    })?;
    Ok(Size { undisturbed, ..size })
}

/// A service and the engine that saves it.
struct Subject {
    service: Service,
    lab: Lab,
}

/// What `crac checkpoint` said, and what clients saw meanwhile.
type Captured = (serde_json::Value, Requests);

impl Subject {
    fn start(plan: &Plan, mib: usize, criu: Option<&Path>) -> Self {
        let (lab, addr) = (plan.lab(), free_addr());
        let mut command = Program::pause(mib, 0).command(&lab, addr);
        if let Some(criu) = criu {
            command.env("CRAC_ENGINE", "criu").env("CRAC_CRIU_PATH", criu);
        }
        Self { service: Service::timed(command, addr, "/").0, lab }
    }

    fn capture(&self) -> Result<Captured> {
        Requests::during(self.service.addr, || checkpoint(&self.lab, &self.service))
    }
}

fn checkpoint(lab: &Lab, service: &Service) -> Result<serde_json::Value> {
    let image = lab.file("pause.crac");
    starts::remove(&image)?;
    let pid = service.pid().to_string();
    let options = ["--continue", "--json", "--image"].map(std::ffi::OsStr::new);
    let output = lab.crac(["checkpoint".as_ref(), pid.as_ref()].into_iter().chain(options).chain([image.as_os_str()]));
    let said = [&output.stdout[..], &output.stderr].concat();
    ensure!(output.status.success(), "the checkpoint failed: {}", String::from_utf8_lossy(&said));
    Ok(serde_json::from_slice(&output.stdout)?)
}

impl Pause {
    fn add(&mut self, (said, asked): Captured) -> Result<()> {
        for (runs, name) in [(&mut self.frozen, "frozen_us"), (&mut self.closed, "closed_us"), (&mut self.whole, "elapsed_us")] {
            runs.add(Duration::from_micros(said[name].as_u64().with_context(|| format!("{name}: {said}"))?));
        }
        self.meanwhile.add(asked);
        Ok(())
    }
}

fn section(sizes: &[Size]) -> Section {
    let mut pauses = Vec::new();
    let mut requests = Vec::new();
    for size in sizes {
        let mut pause = |name: &str, runs: &Runs, failed: usize| {
            if runs.len() + failed > 0 {
                let [min, median, max, times] = cells(runs, &size.fork);
                let [counted, failed] = [runs.len(), failed].map(|count| count.to_string());
                pauses.push([size.mib.to_string(), name.to_owned(), counted, failed, min, median, max, times]);
            }
        };
        pause("bare fork", &size.fork, 0);
        for (engine, measured) in [("native", &size.native), ("CRIU", &size.criu)] {
            pause(&format!("{engine}: all threads stand still"), &measured.frozen, measured.failed);
            pause(&format!("{engine}: door shut"), &measured.closed, 0);
            pause(&format!("{engine}: until the image is durable"), &measured.whole, 0);
        }
        let mut asked = |when: &str, seen: &Requests| {
            let Requests { answered, turned_away, failed } = seen;
            if answered.len() > 0 {
                let [_, median, max, _] = cells(answered, answered);
                let p99 = number(answered.p99().as_secs_f64() * 1e3);
                let [answered, turned_away, failed] = [answered.len(), *turned_away, *failed].map(|count| count.to_string());
                requests.push([size.mib.to_string(), when.to_owned(), answered, turned_away, failed, median, p99, max]);
            }
        };
        asked("undisturbed", &size.undisturbed);
        asked("while the native engine takes images", &size.native.meanwhile);
        asked("while CRIU takes images", &size.criu.meanwhile);
    }
    let series = |name, look, runs: fn(&Size) -> &Runs| Series::new(name, look, sizes.iter().map(runs));
    let plot = Plot {
        name: "continue",
        title: "How long a service that goes on stands still",
        axis: "heap, MiB",
        categories: sizes.iter().map(|size| size.mib.to_string()).collect(),
        series: vec![
            series("CRIU", Look::Criu, |size| &size.criu.frozen),
            series("native", Look::Native, |size| &size.native.frozen),
            series("bare fork", Look::Floor, |size| &size.fork),
        ],
    };
    let text = format!(
        "`crac checkpoint --continue` against a bare `fork` of the same process, every page written to before each; {CLIENTS} clients \
         ask meanwhile, on a new connection each time, with {} ms in between.\n\n{}What those clients saw; *turned away* is 503 with \
         `Retry-After`.\n\n{}",
        BETWEEN.as_millis(),
        table(["MiB", "what", "runs", "failed", "min, ms", "median, ms", "max, ms", "x fork"], &pauses),
        table(["MiB", "when", "answered", "turned away", "failed", "median, ms", "p99, ms", "max, ms"], &requests),
    );
    Section { title: "Checkpoints of a service that goes on", short: short(sizes).into_iter().collect(), text, plots: vec![plot] }
}

/// Whether it stands still for at most 1.3 times a fork and 5 ms.
fn short(sizes: &[Size]) -> Option<String> {
    let parts = sizes.iter().filter_map(|size| {
        let bound = size.fork.median().mul_f64(1.3) + Duration::from_millis(5);
        let verdict = if size.native.frozen.median() <= bound { "" } else { " (more than 1.3 forks and 5 ms)" };
        Some(format!("{}{verdict} with {} MiB", number(times(&size.native.frozen, &size.fork)?), size.mib))
    });
    let parts: Vec<String> = parts.collect();
    (!parts.is_empty())
        .then(|| format!("A service that goes on stands still for as many times as long as a bare fork: {}.", list(&parts)))
}

/// What clients saw.
#[derive(Debug, Default)]
struct Requests {
    answered: Runs,
    /// Told to come back later (503).
    turned_away: usize,
    failed: usize,
}

impl Requests {
    /// Asks again and again, on a new connection each time, while `work` is done.
    fn during<T>(addr: SocketAddr, work: impl FnOnce() -> Result<T>) -> Result<(T, Self)> {
        let (stop, seen) = (AtomicBool::new(false), Mutex::new(Self::default()));
        let done = std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| {
                    let mut own = Self::default();
                    while !stop.load(Ordering::Relaxed) {
                        own.ask(addr);
                        std::thread::sleep(BETWEEN);
                    }
                    seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner).add(own);
                });
            }
            let done = work();
            stop.store(true, Ordering::Relaxed);
            done
        })?;
        Ok((done, seen.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)))
    }

    fn ask(&mut self, addr: SocketAddr) {
        let begun = Instant::now();
        match http::exchange(addr, "GET", "/", "") {
            Ok(answer) if answer.status == 503 => self.turned_away += 1,
            Ok(answer) if answer.status == 200 => self.answered.add(begun.elapsed()),
            Ok(_) | Err(NoAnswer::Refused(_) | NoAnswer::BrokenOff(..)) => self.failed += 1,
        }
    }

    fn add(&mut self, other: Self) {
        self.turned_away += other.turned_away;
        self.failed += other.failed;
        self.answered.append(other.answered);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(ms: u64) -> Runs {
        let mut runs = Runs::default();
        runs.add(Duration::from_millis(ms));
        runs
    }

    #[test]
    fn a_pause_is_judged_against_the_fork_of_the_same_process() {
        let size = |frozen| Size {
            mib: 16,
            fork: runs(10),
            native: Pause { frozen: runs(frozen), ..Pause::default() },
            ..Size::default()
        };
        assert!(short(&[size(18)]).unwrap().ends_with("bare fork: 1.80 with 16 MiB."));
        assert!(short(&[size(19)]).unwrap().contains("1.90 (more than 1.3 forks and 5 ms)"));
    }

    #[test]
    fn captures_that_failed_are_in_the_table() {
        let size = Size { mib: 16, fork: runs(1), criu: Pause { failed: 2, ..Pause::default() }, ..Size::default() };
        let text = section(&[size]).text;
        assert!(text.contains("| 16 | CRIU: all threads stand still | 0 | 2 | - | - | - | - |"), "{text}");
        assert!(text.contains("| 16 | bare fork | 1 | 0 | 1.00 | 1.00 | 1.00 | 1.00 |"), "{text}");
    }
}
