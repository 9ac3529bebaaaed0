//! Continue mode: how long a service stands still, and what its clients notice.

use std::{
    net::SocketAddr,
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
    programs::program,
};

use super::{runs, sizes};
use crate::{
    demo::build_release_of,
    measure::{Runs, machine, ms},
};

/// Counted captures of each size.
const RUNS: usize = 5;
const MIB: [usize; 3] = [16, 256, 1024];
/// Who asks meanwhile.
const CLIENTS: usize = 2;
/// Each client pauses so long between two requests, so that the machine is not only busy with them.
const BETWEEN: Duration = Duration::from_millis(1);

/// Bare fork, capture, fork, capture ..., then the requests of an undisturbed stretch as long as the captures were.
pub(crate) fn goes_on() -> Result<()> {
    build_release_of(&["crac-cli", "crac-benches"])?;
    let (counted, sizes) = (runs(RUNS)?, sizes(&MIB)?);
    println!("{}", machine());
    println!(
        "{counted} counted runs of each in turn after one warm-up; release build; milliseconds; {CLIENTS} clients ask meanwhile"
    );
    println!("{:<44} {:>9} {:>9} {:>9}", "", "min", "median", "max");
    for mib in sizes {
        let lab = Lab::new();
        let addr = free_addr();
        let mut command = lab.command(program("pause"));
        command.args(["--listen", &addr.to_string(), "--mib", &mib.to_string()]);
        let (service, _) = Service::timed(command, addr, "/");
        let [mut fork, mut frozen, mut closed, mut whole] = std::array::from_fn(|_| Runs::default());
        let mut during = Requests::default();
        for run in 0..=counted {
            // Each begins with pages that are the service's own.
            service.get("/dirty");
            let bare: u64 = service.get("/fork").body.parse().context("the time of a fork")?;
            service.get("/dirty");
            let (outcome, asked) = Requests::during(addr, || checkpoint(&lab, &service))?;
            if run > 0 {
                fork.add(Duration::from_micros(bare));
                for (runs, name) in [(&mut frozen, "frozen_us"), (&mut closed, "closed_us"), (&mut whole, "elapsed_us")] {
                    runs.add(Duration::from_micros(outcome[name].as_u64().with_context(|| format!("{name}: {outcome}"))?));
                }
                during.add(asked);
            }
        }
        let stretch = whole.median() * u32::try_from(counted)?;
        let ((), before) = Requests::during(addr, || {
            std::thread::sleep(stretch.max(Duration::from_secs(1)));
            Ok(())
        })?;
        let bound = fork.median().mul_f64(1.3) + Duration::from_millis(5);
        println!("{:<44} {fork}", format!("{mib} MiB: bare fork"));
        let verdict = if frozen.median() <= bound { "within" } else { "beyond" };
        println!("{:<44} {frozen}   {verdict} 1.3 x fork + 5 = {}", "  all threads frozen", ms(bound));
        println!("{:<44} {closed}", "  door shut, as the command sees it");
        println!("{:<44} {whole}", "  until the image was durable");
        println!("{:<44} {}", "  requests, undisturbed", before.told());
        println!("{:<44} {}", "  requests, while images were taken", during.told());
    }
    Ok(())
}

fn checkpoint(lab: &Lab, service: &Service) -> Result<serde_json::Value> {
    let image = lab.file("pause.crac");
    let pid = service.pid().to_string();
    let output = lab.crac([
        "checkpoint".as_ref(),
        pid.as_ref(),
        "--continue".as_ref(),
        "--json".as_ref(),
        "--image".as_ref(),
        image.as_os_str(),
    ]);
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
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

    fn told(&self) -> String {
        let Self { answered, turned_away, failed } = self;
        format!(
            "{:>9} {:>9} {:>9}   p99 {}; {} answered, {turned_away} turned away, {failed} failed",
            ms(answered.min()),
            ms(answered.median()),
            ms(answered.max()),
            ms(answered.p99()),
            answered.len()
        )
    }
}
