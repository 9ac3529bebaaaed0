//! Images on their way from one kernel to another: captured in this machine, restored in the one beside it, and the other way round.
//!
//! Both machines have the same memory as a PCI device (QEMU's `ivshmem-plain`), one half to write to each:
//!
//! ```text
//! 0      8      16      24        32              256     4096
//! ├──────┼──────┼───────┼─────────┼───────────────┼───────┼──────────────────────────┤
//! state  web    readers wall      release of the  zeros   image of the web server,
//!        bytes  bytes   clock, ms kernel                  then of the readers
//! ```

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
    sync::atomic::Ordering::SeqCst,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crac_testing::{http, lab::Service, wait_until};

use crate::{machine, said, shared::Shared};

/// A place that is there in every machine, because an image remembers its working directory.
const PLACE: &str = "/tmp/exchange";
const WEB: &str = "/bin/web-server";
const CRAC: &str = "/bin/crac";
/// The tests of the native engine, which play the parts of captured programs too.
const PROGRAMS: &str = "/bin/round_trip";

const READY: u64 = 1;
const NOTHING: u64 = 2;
const DATA: usize = 4096;
/// How long the other machine may take for its own tests: as long as this one, which may have been faster.
const OTHER_MAX: Duration = Duration::from_secs(600);

/// The memory that two machines share.
pub(super) struct Exchange {
    memory: Shared,
    own: usize,
}

impl Exchange {
    /// Finds the device. Which half is this machine's own, the kernel's command line says: `guest.half=0`, or 1.
    pub(super) fn find() -> Result<Self, String> {
        let devices = fs::read_dir("/sys/bus/pci/devices").map_err(|error| format!("PCI devices: {error}"))?;
        let is_wanted = |path: &Path| {
            let id = |name: &str| fs::read_to_string(path.join(name)).unwrap_or_default();
            id("vendor").trim() == "0x1af4" && id("device").trim() == "0x1110"
        };
        let found = devices.flatten().map(|device| device.path()).find(|path| is_wanted(path));
        let device = found.ok_or("there is no memory shared with another machine")?;
        // The third part of the device is the memory.
        let memory = Shared::map(&device.join("resource2"))?;
        let own = match machine::setting("guest.half=").as_deref() {
            Some("0") => 0,
            Some("1") => 1,
            _ => return Err("the command line names no half of the shared memory".to_owned()),
        };
        fs::create_dir_all(format!("{PLACE}/run")).map_err(|error| format!("{PLACE}: {error}"))?;
        let private = fs::Permissions::from_mode(0o700);
        fs::set_permissions(format!("{PLACE}/run"), private).map_err(|error| format!("{PLACE}: {error}"))?;
        Ok(Self { memory, own })
    }

    /// Bytes of a half.
    fn half(&self) -> usize {
        self.memory.len() / 2
    }

    /// Captures a service and a program, and gives the images away.
    pub(super) fn give(&self) -> Result<(), String> {
        let (web, readers) = (image("web"), image("readers"));
        let service = started(Command::new(WEB).args(["--listen", &ADDRESS.to_string(), "--warm-mib", "1"]));
        assert_eq!(service.get("/counter").body.trim(), "1");
        ticked(&service, 3);
        checkpoint(service, &web);
        let mut program = Command::new(PROGRAMS);
        program.env("CRAC_TEST_PROGRAM", "clock-readers").arg(format!("--image={readers}"));
        lines(&mut program, &["life 0"])?;

        let mut at = DATA;
        let mut header = Vec::new();
        for path in [&web, &readers] {
            let bytes = fs::read(path).map_err(|error| format!("{path}: {error}"))?;
            if at + bytes.len() > self.half() {
                return Err(format!("{path} has {} bytes, which do not fit", bytes.len()));
            }
            self.memory.write(self.own * self.half() + at, &bytes);
            header.extend((bytes.len() as u64).to_le_bytes());
            at = (at + bytes.len()).next_multiple_of(DATA);
        }
        header.extend(now_ms().to_le_bytes());
        header.extend(machine::release().bytes());
        self.memory.write(self.own * self.half() + 8, &header);
        self.memory.set(self.own * self.half(), READY);
        Ok(())
    }

    /// Takes the other machine's images, and restores them: on a kernel as new as theirs or newer they go on, through another
    /// generation as well; on an older one each says why not.
    pub(super) fn take(&self) -> Result<(), String> {
        let deadline = Instant::now() + OTHER_MAX;
        let other = (1 - self.own) * self.half();
        loop {
            match self.memory.word(other).load(SeqCst) {
                READY => break,
                NOTHING => return Err("the other machine has no images to give".to_owned()),
                _ if Instant::now() > deadline => return Err(format!("no images came in {OTHER_MAX:?}")),
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        }
        let header = self.memory.read(other + 8, 248);
        let (lengths, rest) = header.split_at(16);
        let (given_ms, release) = rest.split_at(8);
        // Each machine has read its hardware clock, which counts seconds, when it started.
        let given_ms = u64::from_le_bytes(given_ms.try_into().unwrap_or_default());
        wait_until("this machine's clock is past the other's", || (now_ms() > given_ms + 2000).then_some(()));
        let release = String::from_utf8_lossy(release).trim_end_matches('\0').to_owned();
        let mut at = DATA;
        let mut images = Vec::new();
        for (length, name) in lengths.as_chunks::<8>().0.iter().zip(["foreign-web", "foreign-readers"]) {
            let length = u64::from_le_bytes(*length) as usize;
            if at + length > self.half() {
                return Err(format!("{length} bytes at {at} are outside of shared memory"));
            }
            let path = image(name);
            fs::write(&path, self.memory.read(other + at, length)).map_err(|error| format!("{path}: {error}"))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).map_err(|error| format!("{path}: {error}"))?;
            at = (at + length).next_multiple_of(DATA);
            images.push(path);
        }
        let [web, readers] = images.try_into().map_err(|_| "two images were expected")?;
        let here = machine::release();
        println!("guest: note images: captured on {release}, here is {here}");
        if version(&here) < version(&release) { refused(&[web, readers]) } else { gone_on(&web, &readers) }
    }

    /// Tells the other machine not to wait, unless there is something.
    pub(super) fn nothing_more(&self) {
        let state = self.memory.word(self.own * self.half());
        // Only where nothing was said so far.
        let _ = state.compare_exchange(0, NOTHING, SeqCst, SeqCst);
    }
}

/// Each is refused with the code for it, by its own restorer as by the command.
fn refused(images: &[String]) -> Result<(), String> {
    for path in images {
        for command in [&mut Command::new(path), Command::new(CRAC).args(["restore", path])] {
            let output = at_place(command).output().map_err(|error| format!("{path}: {error}"))?;
            let said = said(&output);
            if output.status.code() != Some(20) || !said.contains("this kernel is older than the one of the checkpoint") {
                return Err(format!("{path} was not refused for the kernel: {}\n{said}", output.status));
            }
        }
    }
    Ok(())
}

fn gone_on(web: &str, readers: &str) -> Result<(), String> {
    let restored = |image: &str| started(Command::new(CRAC).args(["restore", image, "--", "--listen", &ADDRESS.to_string()]));
    let mut service = restored(web);
    for generation in 1..=2_u64 {
        assert_eq!(service.get("/counter").body.trim(), (generation + 1).to_string());
        assert_eq!(service.get("/instance").json()["generation"], generation);
        let seen = ticked(&service, 3);
        // The machines' clocks are days apart. An emulated processor stands still for seconds.
        assert!(seen["gap_max_ms"].as_f64().is_some_and(|gap_ms| gap_ms < 600_000.0), "{seen}");
        let order = http::exchange(service.addr, "POST", "/orders", "late").map_err(|error| format!("an order: {error:?}"))?;
        assert_eq!(order.status / 100, 2, "{order:?}");
        let next = image(&format!("web-{generation}"));
        checkpoint(service, &next);
        service = restored(&next);
    }
    let next = image("readers-1");
    lines(Command::new(readers).args(["--", &format!("--image={next}")]), &["life 1"])?;
    lines(&mut Command::new(next), &["life 2", "done", "joined"])
}

const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);

fn image(name: &str) -> String {
    format!("{PLACE}/{name}.crac")
}

fn at_place(command: &mut Command) -> &mut Command {
    command.current_dir(PLACE).env("CRAC_RUN_DIR", format!("{PLACE}/run")).stdin(Stdio::null())
}

/// Starts a service and waits until it answers.
fn started(command: &mut Command) -> Service {
    let mut all = Command::new(command.get_program());
    at_place(all.args(command.get_args()));
    Service::start(all, ADDRESS).answering()
}

fn checkpoint(mut service: Service, image: &str) {
    let mut command = Command::new(CRAC);
    let output = at_place(command.args(["checkpoint", &service.pid().to_string(), "--image", image])).output();
    let output = output.unwrap_or_else(|error| panic!("{CRAC}: {error}"));
    assert!(output.status.success(), "{}\n{}\n{}", output.status, said(&output), service.output());
    let status = service.wait();
    assert!(status.success(), "{status}\n{}", service.output());
}

/// Waits until the interval has ticked `more` times, and tells what it saw.
fn ticked(service: &Service, more: u64) -> serde_json::Value {
    let ticks = |seen: &serde_json::Value| seen["ticks"].as_u64();
    let first = ticks(&service.get("/ticks").json()).unwrap_or_default();
    wait_until("more ticks", || {
        let seen = service.get("/ticks").json();
        ticks(&seen).is_some_and(|ticks| ticks >= first + more).then_some(seen)
    })
}

/// Runs a program that is to say just this.
fn lines(command: &mut Command, expected: &[&str]) -> Result<(), String> {
    let output = at_place(command).output().map_err(|error| format!("{command:?}: {error}"))?;
    let found = String::from_utf8_lossy(&output.stdout);
    if output.status.success() && found.lines().eq(expected.iter().copied()) {
        return Ok(());
    }
    Err(format!("{command:?} ended with {}, expected {expected:?}:\n{}", output.status, said(&output)))
}

/// The wall clock.
fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)
}

/// Major and minor version of a release.
fn version(release: &str) -> Vec<u32> {
    release.split('.').take(2).map_while(|number| number.parse().ok()).collect()
}
