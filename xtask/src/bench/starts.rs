//! Ways to start a service, timed: from an image by either engine, and without one.

use std::{
    fs::File,
    io::Write as _,
    net::SocketAddr,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use crac_testing::{
    http::{self, Connection, NoAnswer},
    lab::{Lab, Service, free_addr},
    programs::program,
    wait_until,
};
use rustix::fs::{Advice, MemfdFlags};

use super::{memory, plan::Plan};
use crate::measure::Runs;

/// The usual setting of `CRAC_EAGER`.
const LAZILY: &str = "off";
/// Requests until the last of these answers is timed.
pub(super) const REQUESTS: usize = 100;

/// A program that serves, with its arguments besides `--listen`.
#[derive(Debug, Clone)]
pub(super) struct Program {
    name: &'static str,
    mib: usize,
    arguments: Vec<String>,
    /// Whether `GET /warm` reads every page of its state.
    has_state: bool,
}

impl Program {
    /// The example with so much state.
    pub(super) fn web_server(mib: usize) -> Self {
        Self { name: "web-server", mib, arguments: vec!["--warm-mib".to_owned(), mib.to_string()], has_state: true }
    }

    /// The service in `benches`.
    pub(super) fn pause(mib: usize, threads: usize) -> Self {
        let arguments = [["--mib".to_owned(), mib.to_string()], ["--threads".to_owned(), threads.to_string()]].concat();
        Self { name: "pause", mib, arguments, has_state: false }
    }

    /// With two more arguments.
    pub(super) fn with(mut self, option: &str, value: &str) -> Self {
        self.arguments.extend([option.to_owned(), value.to_owned()]);
        self
    }

    /// Its start in `lab`.
    pub(super) fn command(&self, lab: &Lab, addr: SocketAddr) -> Command {
        let mut command = lab.command(program(self.name));
        command.args(["--listen", &addr.to_string()]).args(&self.arguments);
        command
    }

    /// `restore` with the arguments of another life: the same, as in a unit file, but elsewhere.
    pub(super) fn again(&self, mut restore: Command, addr: SocketAddr) -> Command {
        restore.args(["--", "--listen", &addr.to_string()]).args(&self.arguments);
        restore
    }
}

/// One way to start a service, over several runs: times from the start of the process.
#[derive(Debug, Default, Clone)]
pub(super) struct Way {
    /// See [`Timed::made`].
    pub(super) made: Runs,
    /// Until the first answer.
    pub(super) first: Runs,
    /// Until the hundredth.
    pub(super) hundredth: Runs,
    /// Until every page of the warmed-up state was read.
    pub(super) all: Runs,
    /// Starts that did not answer.
    pub(super) failed: usize,
}

/// Times of one start.
#[derive(Debug)]
pub(super) struct Timed {
    /// Until its program was executed, before the other times begin.
    made: Duration,
    pub(super) first: Duration,
    /// Nothing from a program that does nothing but answer once.
    pub(super) hundredth: Option<Duration>,
    pub(super) all: Option<Duration>,
    /// Bytes that this process has had fetched from the disk.
    pub(super) fetched: u64,
}

impl Way {
    /// Counts a start.
    pub(super) fn add(&mut self, timed: Result<Timed, String>) {
        match timed {
            Ok(timed) => {
                self.made.add(timed.made);
                self.first.add(timed.first);
                timed.hundredth.into_iter().for_each(|time| self.hundredth.add(time));
                timed.all.into_iter().for_each(|time| self.all.add(time));
            }
            Err(what) => {
                eprintln!("a start failed: {what}");
                self.failed += 1;
            }
        }
    }
}

/// Starts the floor.
pub(super) fn floor(plan: &Plan, lab: &Lab, so_far: &Way) -> Result<Timed, String> {
    let addr = free_addr();
    let mut command = lab.command(&plan.floor);
    command.arg(addr.to_string());
    Ok(time(lab, so_far, &command, addr, Asked::Once)?.1)
}

/// What is asked of a service before it is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Once,
    Often,
    /// Also to read all of its state.
    All,
}

/// Starts a service in `lab` and times it, from the moment in which its program is executed. The client keeps quiet for three
/// quarters of what the fastest run so far took: to ask takes time of a processor.
fn time(lab: &Lab, so_far: &Way, command: &Command, addr: SocketAddr, asked: Asked) -> Result<(Service, Timed), String> {
    let note = Note::new().map_err(|error| format!("memfd_create: {error}"))?;
    let command = noting(lab, &note.path(), command);
    let (started, steady) = (now(), Instant::now());
    let quiet = so_far.made.min() + so_far.first.min() * 3 / 4;
    let (mut service, _) = Service::try_timed_after(quiet, command, addr, "/")?;
    let answered = now();
    if answered.saturating_sub(started).abs_diff(steady.elapsed()) > CLOCK_SLACK {
        return Err("the wall clock was set meanwhile".to_owned());
    }
    let begun = note.read().ok_or_else(|| format!("`begin` has left nothing in {}", note.path().display()))?;
    let since = |now: Duration| now.saturating_sub(begun);
    let mut timed = Timed { made: begun.saturating_sub(started), first: since(answered), hundredth: None, all: None, fetched: 0 };
    if asked != Asked::Once {
        ask_again(addr).map_err(|error| format!("{error:?}"))?;
        timed.hundredth = Some(since(now()));
    }
    if asked == Asked::All {
        let read = http::exchange(addr, "GET", "/warm", "").map_err(|error| format!("{error:?}"))?;
        timed.all = Some(since(now()));
        if read.status != 200 {
            return Err(format!("/warm: {read:?}"));
        }
    }
    timed.fetched = fetched(service.pid());
    service.collect();
    Ok((service, timed))
}

/// Where `begin` notes the time. In memory: the kernel writes a file on a disk that takes the place of another out at once, and the
/// disk would answer while the program is timed.
struct Note(OwnedFd);

impl Note {
    fn new() -> rustix::io::Result<Self> {
        rustix::fs::memfd_create("begun", MemfdFlags::CLOEXEC).map(Self)
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()))
    }

    fn read(&self) -> Option<Duration> {
        Some(Duration::from_nanos(std::fs::read_to_string(self.path()).ok()?.parse().ok()?))
    }
}

/// `command` behind `begin` (`benches/static/begin.rs`), which leaves in `note` when it executed it.
fn noting(lab: &Lab, note: &Path, command: &Command) -> Command {
    let mut noting = lab.command(program("begin"));
    noting.arg(note).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => noting.env(name, value),
            None => noting.env_remove(name),
        };
    }
    noting
}

/// More than this lies between two reads of two clocks only if one of them was set. Far from what is measured, to be on the safe side.
const CLOCK_SLACK: Duration = Duration::from_millis(5);

/// By the clock that `begin` uses.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn ask_again(addr: SocketAddr) -> Result<(), NoAnswer> {
    let mut connection = Connection::open(addr).map_err(NoAnswer::Refused)?;
    for _ in 1..REQUESTS {
        connection.exchange("GET", "/", "", "keep-alive")?;
    }
    Ok(())
}

/// Bytes that a process has had fetched from the disk; see proc_pid_io(5).
fn fetched(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("read_bytes: ")?.parse().ok()).unwrap_or_default()
}

/// A checkpoint.
#[derive(Debug, Default, Clone)]
pub(super) struct Taken {
    /// From the beginning of the capture until the image was durable.
    pub(super) took: Runs,
    /// Of the last one, on disk.
    pub(super) bytes: u64,
    /// Writing and syncing as many bytes of nothing in particular.
    pub(super) plain_write: Runs,
    /// Checkpoints that were refused.
    pub(super) failed: usize,
}

/// Images of one service by one engine, one after the other.
#[derive(Debug)]
pub(super) struct Images {
    lab: Lab,
    program: Program,
    /// CRIU, if it is not the native engine.
    criu: Option<PathBuf>,
    /// Of the life that was saved: CRIU needs its process id again.
    pid: u32,
    pub(super) taken: Taken,
}

impl Images {
    pub(super) fn new(plan: &Plan, program: Program, criu: Option<&Path>) -> Self {
        Self { lab: plan.lab(), program, criu: criu.map(Path::to_owned), pid: 0, taken: Taken::default() }
    }

    fn path(&self) -> PathBuf {
        self.lab.file("service.crac")
    }

    /// Starts the service cold, which is counted in `cold`, and takes one in place of the last.
    ///
    /// # Errors
    ///
    /// It does not start, or there is no image of it.
    pub(super) fn take(&mut self, cold: &mut Way) -> Result<()> {
        let path = self.path();
        remove(&path)?;
        let addr = free_addr();
        let mut command = self.program.command(&self.lab, addr);
        if let Some(criu) = &self.criu {
            command.env("CRAC_ENGINE", "criu").env("CRAC_CRIU_PATH", criu);
        }
        memory::have_at_hand(self.program.mib);
        let (mut service, timed) = time(&self.lab, cold, &command, addr, self.asked()).map_err(|what| anyhow!(what))?;
        cold.add(Ok(timed));
        self.pid = service.pid();
        // In turn before and behind. How much is not known the first time.
        let is_second = self.taken.took.len().is_multiple_of(2);
        if !is_second {
            self.write_plainly()?;
        }
        memory::have_at_hand(self.program.mib);
        let said = self.checkpoint(&path).inspect_err(|_| self.taken.failed += 1)?;
        ensure!(service.wait().success(), "the service did not end well after its checkpoint:\n{}", service.output());
        let number = |name: &str| said[name].as_u64().with_context(|| format!("`{name}` is missing in {said}"));
        self.taken.took.add(Duration::from_micros(number("elapsed_us")?));
        self.taken.bytes = number("bytes")?;
        if is_second {
            self.write_plainly()?;
        }
        Ok(())
    }

    fn write_plainly(&mut self) -> Result<()> {
        memory::have_at_hand(self.program.mib);
        self.taken.plain_write.add(plain_write(&self.lab.file("plain"), self.taken.bytes)?);
        Ok(())
    }

    fn checkpoint(&self, path: &Path) -> Result<serde_json::Value> {
        let pid = self.pid.to_string();
        let arguments = ["checkpoint".as_ref(), "--json".as_ref(), "--image".as_ref(), path.as_os_str(), pid.as_ref()];
        let output = self.lab.crac(arguments);
        let [stdout, stderr] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
        ensure!(output.status.success(), "the checkpoint failed: {stdout}{stderr}");
        serde_json::from_str(&stdout).context("what `crac checkpoint --json` says")
    }

    /// Starts a life from the last image, times it as `so_far` until the first answer, and ends it.
    pub(super) fn restore_and_ask_once(&self, so_far: &Way) -> Result<Timed, String> {
        self.restore_asking(so_far, Asked::Once, LAZILY)
    }

    /// Starts a life from the last image, times it as `so_far`, and ends it.
    pub(super) fn restore(&self, so_far: &Way) -> Result<Timed, String> {
        self.restore_asking(so_far, self.asked(), LAZILY)
    }

    /// Likewise by the native engine, with all memory mapped from the image as usual, and fetched before the service runs.
    pub(super) fn restore_populated(&self, so_far: &Way) -> Result<Timed, String> {
        self.restore_asking(so_far, self.asked(), "populate")
    }

    /// Likewise, with all memory read into the process's own and checked before the service runs.
    pub(super) fn restore_eagerly(&self, so_far: &Way) -> Result<Timed, String> {
        self.restore_asking(so_far, self.asked(), "on")
    }

    fn restore_asking(&self, so_far: &Way, asked: Asked, eager: &str) -> Result<Timed, String> {
        let addr = free_addr();
        let Some(criu) = &self.criu else {
            let mut command = self.program.again(self.lab.command(self.path()), addr);
            command.env("CRAC_EAGER", eager);
            return Ok(time(&self.lab, so_far, &command, addr, asked)?.1);
        };
        let mut command = self.lab.command(program("crac"));
        command.arg("restore").arg(self.path()).env("CRAC_CRIU_PATH", criu);
        let command = self.program.again(command, addr);
        let timed = time(&self.lab, so_far, &command, addr, asked).map(|(_, timed)| timed);
        // Its process id is needed again, and it ends a moment after the command that has restored it.
        wait_until("the process id is free", || (!Path::new(&format!("/proc/{}", self.pid)).exists()).then_some(()));
        timed
    }

    fn asked(&self) -> Asked {
        if self.program.has_state { Asked::All } else { Asked::Often }
    }

    /// Drops the last image from the page cache.
    pub(super) fn forget(&self) -> Result<()> {
        let path = self.path();
        let files = if path.is_dir() {
            std::fs::read_dir(&path)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?
        } else {
            vec![path]
        };
        for path in files {
            let file = File::open(&path)?;
            if file.metadata()?.size() > 0 {
                file.sync_all()?;
                let told = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
                told.with_context(|| format!("cannot drop {} from the page cache", path.display()))?;
            }
        }
        Ok(())
    }
}

/// Removes an image of either kind, if there is one.
pub(super) fn remove(image: &Path) -> Result<()> {
    let removed = if image.is_dir() { std::fs::remove_dir_all(image) } else { std::fs::remove_file(image) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("cannot remove an image"),
        _ => Ok(()),
    }
}

/// Writes so many bytes to `path` and syncs them, as dd(1) does with `conv=fsync`; the file is removed.
fn plain_write(path: &Path, bytes: u64) -> Result<Duration> {
    // In pieces of 2 MiB, as the native engine does.
    let block: Vec<u8> = (0..1_u32 << 19).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_write_writes_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("plain");
        assert!(plain_write(&path, (1 << 20) + 1).unwrap() > Duration::ZERO);
        assert!(!path.exists());
    }

    #[test]
    fn a_failed_start_is_counted_and_nothing_else() {
        let mut way = Way::default();
        way.add(Err("no".to_owned()));
        way.add(Ok(Timed { made: Duration::ZERO, first: Duration::from_millis(1), hundredth: None, all: None, fetched: 0 }));
        assert_eq!((way.failed, way.first.len(), way.all.len()), (1, 1, 0));
    }

    #[test]
    fn an_image_is_removed_whether_it_is_a_file_a_directory_or_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        remove(&path).unwrap();
        std::fs::write(&path, "x").unwrap();
        remove(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("pages"), "x").unwrap();
        remove(&path).unwrap();
        assert!(!path.exists());
    }
}
