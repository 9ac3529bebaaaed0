//! Restore by either engine, against cold start and against the floor.

use std::{
    fs::File,
    io::Write as _,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use crac_testing::{
    http::{self, Connection},
    lab::{Lab, Service, free_addr},
    programs::program,
    wait_until,
};
use rustix::fs::Advice;

use super::{build_floor, runs, sizes};
use crate::{
    criu,
    demo::build_release,
    measure::{Runs, machine},
};

/// Counted runs of each thing; `CRAC_BENCH_RUNS` chooses another number.
const RUNS: usize = 10;
/// Cold starts are slow and vary little.
const COLD_STARTS: usize = 3;
/// What the service has warmed up.
const WARM_MIB: [usize; 5] = [0, 16, 256, 1024, 4096];
/// Above this size there are fewer runs: a third.
const LARGE_MIB: usize = 1024;
/// Requests behind the first answer.
const REQUESTS: usize = 100;
/// Set where the kernel-feature cache of CRIU has a place to be.
const INSIDE: &str = "CRAC_BENCH_INSIDE";

/// One way to start a service, over several runs: times from the start of the process.
#[derive(Debug, Default, Clone)]
pub(super) struct Way {
    /// Until the first answer.
    pub(super) first: Runs,
    /// Until the hundredth.
    pub(super) hundredth: Runs,
    /// Until every page of the warmed-up state was read.
    pub(super) all: Runs,
    /// Starts that did not answer.
    pub(super) failed: usize,
}

/// What was measured at one size.
#[derive(Debug, Default)]
pub(super) struct Size {
    pub(super) mib: usize,
    pub(super) floor: Way,
    pub(super) cold_start: Way,
    pub(super) native: Way,
    pub(super) native_uncached: Way,
    /// Nothing without CRIU.
    pub(super) criu: Option<Way>,
    pub(super) criu_uncached: Option<Way>,
    pub(super) native_image: Taken,
    pub(super) criu_image: Option<Taken>,
}

/// A checkpoint.
#[derive(Debug, Default, Clone)]
pub(super) struct Taken {
    /// From the beginning of the capture until the image was durable.
    pub(super) took: Duration,
    /// On disk.
    pub(super) bytes: u64,
    /// Writing and syncing as many bytes of nothing in particular.
    pub(super) plain_write: Duration,
}

/// Measures and prints.
pub(crate) fn restore() -> Result<()> {
    let (criu, why_not) = prepare()?;
    println!("{}", machine());
    println!("{}", method()?);
    why_not.iter().for_each(|reason| println!("without CRIU: {reason}"));
    println!("{:<34} {:>9} {:>9} {:>9}   to the 100th, to the last page", "", "min", "median", "max");
    for mib in sizes(&WARM_MIB)? {
        let size = measure(mib, criu.as_deref())?;
        for (name, way) in size.ways() {
            let times = way.first.times(&size.native.first);
            let failed = if way.failed > 0 { format!(", {} FAILED", way.failed) } else { String::new() };
            let later = [&way.hundredth, &way.all].map(|runs| crate::measure::ms(runs.median()));
            println!(
                "{:<34} {}   {} {}  ({times:.2} x native{failed})",
                format!("{name}, {mib} MiB"),
                way.first,
                later[0],
                later[1]
            );
        }
    }
    Ok(())
}

/// Builds everything; where CRIU is, or why there is none. Enters a mount namespace in which `/run` can keep CRIU's cache.
pub(super) fn prepare() -> Result<(Option<PathBuf>, Option<String>)> {
    build_release()?;
    let criu = criu::set_up(&program("crac"));
    match criu {
        Ok(path) if std::env::var_os(INSIDE).is_some() => Ok((Some(path), None)),
        Ok(_) => {
            let mut inside = Command::new("unshare");
            inside.args(["--mount", "sh", "-c", "mount -t tmpfs crac-bench /run && exec \"$0\" \"$@\""]);
            let error = inside.arg(std::env::current_exe()?).args(std::env::args_os().skip(1)).env(INSIDE, "1").exec();
            Err(error).context("cannot run unshare(1)")
        }
        Err(reason) => Ok((None, Some(format!("{reason:#}")))),
    }
}

/// How it is measured, in words.
pub(super) fn method() -> Result<String> {
    Ok(format!(
        "{} counted runs of each in turn after one warm-up ({} above {LARGE_MIB} MiB, {COLD_STARTS} cold starts and uncached ones); \
         release build; milliseconds from the start of the process to the first 200",
        runs(RUNS)?,
        few(runs(RUNS)?)
    ))
}

fn few(runs: usize) -> usize {
    runs.div_ceil(3)
}

/// Everything at one size.
pub(super) fn measure(mib: usize, criu: Option<&Path>) -> Result<Size> {
    let floor = build_floor()?;
    let runs = if mib > LARGE_MIB { few(runs(RUNS)?) } else { runs(RUNS)? };
    let (native_lab, criu_lab) = (Lab::new(), Lab::new());
    let mut size = Size { mib, ..Size::default() };

    let image = native_lab.file("web.crac");
    size.native_image = take(&native_lab, mib, &image, None, &mut size.cold_start)?.0;
    let criu_image = criu_lab.file("web.crac");
    let mut own_pid = 0;
    if let Some(criu) = criu {
        let (taken, pid) = take(&criu_lab, mib, &criu_image, Some(criu), &mut size.cold_start)?;
        own_pid = pid;
        size.criu_image = Some(taken);
    }
    while size.cold_start.first.len() < COLD_STARTS {
        let addr = free_addr();
        let timed = time(&size.cold_start, web_server(&native_lab, mib, addr), addr, true);
        size.cold_start.add(timed);
    }

    let native = |addr: std::net::SocketAddr| {
        let mut command = native_lab.command(&image);
        command.args(["--", "--listen", &addr.to_string()]);
        command
    };
    let by_criu = |addr: std::net::SocketAddr| {
        let mut command = criu_lab.command(program("crac"));
        command.arg("restore").arg(&criu_image).args(["--", "--listen", &addr.to_string()]);
        command.envs(criu.map(|criu| ("CRAC_CRIU_PATH", criu)));
        command
    };
    let restored_by_criu = |so_far: &Way| {
        let addr = free_addr();
        let timed = time(so_far, by_criu(addr), addr, true);
        // Its process id is needed again, and it ends a moment after the command that has restored it.
        wait_until("the process id is free", || (!Path::new(&format!("/proc/{own_pid}")).exists()).then_some(()));
        timed
    };
    let mut ways = [Way::default(), Way::default(), Way::default()];
    for run in 0..=runs {
        let addr = free_addr();
        let mut at_floor = native_lab.command(&floor);
        at_floor.arg(addr.to_string());
        let mut timed = vec![time(&ways[0], at_floor, addr, false)];
        let addr = free_addr();
        timed.push(time(&ways[1], native(addr), addr, true));
        timed.extend(criu.map(|_| restored_by_criu(&ways[2])));
        if run > 0 {
            ways.iter_mut().zip(timed).for_each(|(way, timed)| way.add(timed));
        }
    }
    for _ in 0..few(runs).min(COLD_STARTS) {
        forget(&image)?;
        let addr = free_addr();
        let timed = time(&size.native_uncached, native(addr), addr, true);
        size.native_uncached.add(timed);
        if criu.is_some() {
            forget(&criu_image)?;
            let way = size.criu_uncached.get_or_insert_default();
            way.add(restored_by_criu(way));
        }
    }
    let [at_floor, native, by_criu] = ways;
    (size.floor, size.native) = (at_floor, native);
    size.criu = criu.map(|_| by_criu);
    ensure!(size.native.failed == 0, "the native engine failed {} times at {mib} MiB", size.native.failed);
    Ok(size)
}

impl Size {
    /// Every way with its name.
    pub(super) fn ways(&self) -> Vec<(&'static str, &Way)> {
        let mut ways = vec![("floor", &self.floor), ("native", &self.native)];
        ways.extend(self.criu.as_ref().map(|way| ("CRIU", way)));
        ways.push(("native, page cache cold", &self.native_uncached));
        ways.extend(self.criu_uncached.as_ref().map(|way| ("CRIU, page cache cold", way)));
        ways.push(("cold start", &self.cold_start));
        ways
    }
}

/// Times of one start.
struct Timed {
    first: Duration,
    hundredth: Duration,
    all: Duration,
}

impl Way {
    fn add(&mut self, timed: Result<Timed, String>) {
        match timed {
            Ok(timed) => {
                self.first.add(timed.first);
                self.hundredth.add(timed.hundredth);
                self.all.add(timed.all);
            }
            Err(what) => {
                eprintln!("a start failed: {what}");
                self.failed += 1;
            }
        }
    }
}

/// Starts a service, times it, and ends it. The client keeps quiet for half of what the fastest run so far took; `whole` if it is the web-server, with all it can be asked for.
fn time(so_far: &Way, command: Command, addr: std::net::SocketAddr, whole: bool) -> Result<Timed, String> {
    let begun = Instant::now();
    let (service, first) = Service::try_timed_after(so_far.first.min() / 2, command, addr, "/")?;
    let (mut hundredth, mut all) = (first, first);
    if whole {
        ask_again(addr).map_err(|error| format!("{error:?}"))?;
        hundredth = begun.elapsed();
        let read = http::exchange(addr, "GET", "/warm", "").map_err(|error| format!("{error:?}"))?;
        all = begun.elapsed();
        if read.status != 200 {
            return Err(format!("/warm: {read:?}"));
        }
    }
    drop(service);
    Ok(Timed { first, hundredth, all })
}

fn ask_again(addr: std::net::SocketAddr) -> Result<(), http::NoAnswer> {
    let mut connection = Connection::open(addr).map_err(http::NoAnswer::Refused)?;
    for _ in 1..REQUESTS {
        connection.exchange("GET", "/", "", "keep-alive")?;
    }
    Ok(())
}

fn web_server(lab: &Lab, mib: usize, addr: std::net::SocketAddr) -> Command {
    let mut command = lab.command(program("web-server"));
    command.args(["--listen", &addr.to_string(), "--warm-mib", &mib.to_string()]);
    command
}

/// Starts the service cold, which is counted, and takes an image of it. Also its process id.
fn take(lab: &Lab, mib: usize, image: &Path, criu: Option<&Path>, cold: &mut Way) -> Result<(Taken, u32)> {
    let addr = free_addr();
    let mut command = web_server(lab, mib, addr);
    if let Some(criu) = criu {
        command.env("CRAC_ENGINE", "criu").env("CRAC_CRIU_PATH", criu);
    }
    let begun = Instant::now();
    let (mut service, first) = Service::timed(command, addr, "/");
    ask_again(addr).map_err(|error| anyhow::anyhow!("{error:?}"))?;
    let hundredth = begun.elapsed();
    http::get(addr, "/warm");
    cold.add(Ok(Timed { first, hundredth, all: begun.elapsed() }));
    let pid = service.pid();
    let arguments = ["checkpoint".as_ref(), "--json".as_ref(), "--image".as_ref(), image.as_os_str()];
    let said = lab.crac_ok(arguments.into_iter().chain([pid.to_string().as_ref()]));
    ensure!(service.wait().success(), "the checkpoint of {mib} MiB failed:\n{}", service.output());
    let said: serde_json::Value = serde_json::from_str(&said).context("what `crac checkpoint --json` says")?;
    let number = |name: &str| said[name].as_u64().with_context(|| format!("`{name}` is missing in {said}"));
    let (took, bytes) = (Duration::from_micros(number("elapsed_us")?), number("bytes")?);
    Ok((Taken { took, bytes, plain_write: plain_write(&lab.file("plain"), bytes)? }, pid))
}

/// Writes so many bytes to `path` and syncs them, as dd(1) does with `conv=fsync`; the file is removed.
fn plain_write(path: &Path, bytes: u64) -> Result<Duration> {
    let block: Vec<u8> = (0..1_u32 << 18).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
    let begun = Instant::now();
    let mut file = File::create(path)?;
    let mut left = usize::try_from(bytes)?;
    while left > 0 {
        let part = left.min(block.len());
        file.write_all(&block[..part])?;
        left -= part;
    }
    file.sync_all()?;
    let took = begun.elapsed();
    std::fs::remove_file(path)?;
    Ok(took)
}

/// Drops an image from the page cache.
fn forget(image: &Path) -> Result<()> {
    let files = if image.is_dir() {
        std::fs::read_dir(image)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?
    } else {
        vec![image.to_owned()]
    };
    for path in files {
        let file = File::open(&path)?;
        if file.metadata()?.size() > 0 {
            file.sync_all()?;
            rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).with_context(|| format!("cannot forget {}", path.display()))?;
        }
    }
    Ok(())
}
