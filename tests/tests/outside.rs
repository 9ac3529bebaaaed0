//! A service that may do nothing, saved by root from outside; and whatever happens meanwhile, it goes on.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use crac_testing::{
    criu::criu,
    http,
    lab::{Lab, Service, free_addr, text},
    programs::program,
    skip::skip,
    state, wait_until,
};
use rustix::process::{Pid, Signal, kill_process};

const NOBODY: u32 = 65534;

/// A lab in which the service has a home and a run directory, and root the images.
struct World {
    lab: Lab,
    criu: PathBuf,
    /// Nobody; or root, without any capability, where root may not ask for the limits of others, as CRIU has to (prlimit(2)).
    user: u32,
}

impl World {
    /// Nothing if this test, called `name`, cannot run here.
    fn new(name: &str) -> Option<Self> {
        let criu = criu(name)?;
        if Command::new("setpriv").arg("--version").output().is_err() {
            skip(name, "there is no setpriv(1)");
            return None;
        }
        let user = if may_ask_for_limits() { NOBODY } else { 0 };
        println!("note: {name}: the service is that of user {user}, without capabilities");
        let lab = Lab::new();
        let mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        mode(lab.path(), 0o711);
        std::fs::create_dir(lab.file("home")).unwrap();
        for own in ["home", "run"] {
            chown(lab.file(own), Some(user), Some(user)).unwrap();
            mode(&lab.file(own), 0o700);
        }
        Some(Self { lab, criu, user })
    }

    /// `program` as the service's user, without capabilities, in its home.
    fn unprivileged(&self, name: &str) -> Command {
        let mut command = self.lab.command("setpriv");
        let [user, group] = ["--reuid", "--regid"].map(|what| format!("{what}={}", self.user));
        command
            .args([user.as_str(), group.as_str(), "--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"])
            .arg(program(name));
        command.current_dir(self.lab.file("home")).env("TMPDIR", self.lab.file("home"));
        command.env("CRAC_ENGINE", "criu").env("CRAC_CRIU_PATH", &self.criu);
        command
    }

    fn service(&self, warm_mib: &str) -> Service {
        let addr = free_addr();
        let mut command = self.unprivileged("web-server");
        command.args(["--listen", &addr.to_string(), "--warm-mib", warm_mib]);
        let service = Service::start(command, addr).answering();
        assert_eq!(owner(service.pid().into()), self.user);
        assert_eq!(capabilities(service.pid().into()), 0);
        service
    }

    fn image(&self) -> PathBuf {
        self.lab.file("web.crac")
    }

    /// `crac` as root.
    fn crac(&self) -> Command {
        let mut command = self.lab.command(program("crac"));
        command.env("CRAC_CRIU_PATH", &self.criu);
        command
    }

    /// `crac checkpoint --outside` of `pid`.
    fn checkpoint(&self, pid: u64, more: &[&str]) -> Command {
        let mut command = self.crac();
        command.args(["checkpoint", "--outside", &pid.to_string(), "--image"]).arg(self.image()).args(more);
        command
    }

    fn restore(&self) -> Service {
        let addr = free_addr();
        let mut command = self.crac();
        command.arg("restore").arg(self.image()).args(["--", "--listen", &addr.to_string()]);
        Service::start(command, addr).answering()
    }

    /// A CRIU that does `script`, in which `$CRIU` is the real one.
    fn odd_criu(&self, script: &str) -> PathBuf {
        let path = self.lab.file("odd-criu");
        std::fs::write(&path, format!("#!/bin/sh\nCRIU='{}'\n{script}\n", self.criu.display())).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// Whether an image, or a part of one, is there.
    fn images(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.lab.path()).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
        names.filter(|name| name.contains("web.crac")).collect()
    }

    /// The service serves, has counted on, and can be saved after all.
    fn goes_on(&self, service: &mut Service, count: u64) {
        wait_until("the service serves on", || {
            http::exchange(service.addr, "GET", "/", "").ok().filter(|answer| answer.status == 200)
        });
        assert_eq!(service.get("/counter").body.trim(), count.to_string());
        wait_until("nothing is left behind", || self.images().is_empty().then_some(()));
        assert!(service.is_running());
        done(&self.checkpoint(service.pid().into(), &[]).output().unwrap());
        assert!(service.wait().success(), "{}", service.output());
        assert_eq!(self.restore().get("/counter").body.trim(), (count + 1).to_string());
    }
}

/// Whether this process has `CAP_SYS_RESOURCE`.
fn may_ask_for_limits() -> bool {
    capabilities(std::process::id().into()) & 1 << 24 != 0
}

/// The effective ones.
fn capabilities(pid: u64) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap()
}

fn owner(pid: u64) -> u32 {
    std::fs::metadata(format!("/proc/{pid}")).unwrap().uid()
}

fn own_pid(service: &Service) -> u64 {
    service.get("/instance").json()["pid"].as_u64().unwrap()
}

fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}\n{}{}", output.status, text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// What was said by a command that had to end with `code`.
fn failed(output: &Output, code: i32) -> String {
    let said = text(&output.stdout) + &text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    said
}

fn assert_says(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "`{part}` is missing in:\n{said}");
    }
}

fn start(mut command: Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn root_saves_and_restores_a_service_that_may_do_nothing() {
    let Some(world) = World::new("root_saves_and_restores_a_service_that_may_do_nothing") else { return };
    let mut service = world.service("1");
    service.get("/counter");
    let warm = service.get("/warm/7").body;
    let before = service.get("/instance").json();
    for generation in 1..=3_u64 {
        let pid = own_pid(&service);
        let said = done(&world.checkpoint(pid, &["--json"]).output().unwrap());
        let outcome: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!((&outcome["outcome"], &outcome["mode"]), (&"taken".into(), &"exit".into()), "{outcome}");
        for number in ["bytes", "down_us", "elapsed_us", "frozen_us"] {
            assert!(outcome[number].as_u64().unwrap() > 0, "{number}: {outcome}");
        }
        let status = service.wait();
        assert!(status.success(), "{status}\n{}", service.output());
        assert_eq!(std::fs::metadata(world.image()).unwrap().uid(), 0, "the image is root's");
        let inspected = done(&world.crac().args(["inspect", "--json"]).arg(world.image()).output().unwrap());
        let inspected: serde_json::Value = serde_json::from_str(&inspected).unwrap();
        assert_eq!(inspected["fits"], true, "{inspected}");
        assert_eq!(inspected["manifest"]["user"], serde_json::json!([world.user, world.user]));
        assert_eq!(inspected["manifest"]["service"]["generation"], generation - 1);

        service = world.restore();
        assert_eq!(service.get("/instance").json()["generation"], generation, "{}", service.output());
        assert_eq!((owner(own_pid(&service)), capabilities(own_pid(&service))), (world.user, 0));
        assert_eq!(service.get("/counter").body.trim(), (generation + 1).to_string());
    }
    assert_eq!(service.get("/warm/7").body, warm);
    let after = service.get("/instance").json();
    assert_ne!(before["instance_id"], after["instance_id"]);
    assert!(http::exchange(service.addr, "POST", "/orders", "after").unwrap().status < 300);
    service.signal(Signal::TERM);
    let status = service.wait();
    assert!(status.success(), "{status}\n{}", service.output());
}

#[test]
fn a_service_goes_on_beside_an_image_that_root_has_taken() {
    let Some(world) = World::new("a_service_goes_on_beside_an_image_that_root_has_taken") else { return };
    let mut service = world.service("1");
    service.get("/counter");
    let open = std::fs::read_dir(format!("/proc/{}/fd", service.pid())).unwrap().count();
    for _ in 0..3 {
        let said = done(&world.checkpoint(service.pid().into(), &["--continue"]).output().unwrap());
        assert_says(&said, &["goes on", "door shut"]);
        service.get("/");
    }
    assert!(service.is_running());
    assert_eq!(service.get("/counter").body.trim(), "2");
    assert_eq!(service.get("/instance").json()["generation"], 0);
    wait_until("no descriptor is left over", || {
        (std::fs::read_dir(format!("/proc/{}/fd", service.pid())).unwrap().count() <= open).then_some(())
    });
    service.signal(Signal::KILL);
    service.wait();
    let restored = world.restore();
    assert_eq!(restored.get("/counter").body.trim(), "2");
    assert_eq!((owner(own_pid(&restored)), capabilities(own_pid(&restored))), (world.user, 0));
}

#[test]
fn a_service_goes_on_when_criu_is_killed_in_the_middle() {
    let Some(world) = World::new("a_service_goes_on_when_criu_is_killed_in_the_middle") else { return };
    let mut service = world.service("128");
    let pid_file = world.lab.file("criu.pid");
    // It is killed while it writes pages; for that it is stopped, and looked at. Earlier and later it may just make the service run a
    // call of its own, and take the service along (docs/limits.md). One that is faster is tried again.
    let pages = || -> u64 {
        let directories = std::fs::read_dir(world.lab.path()).unwrap().flatten().filter_map(|entry| entry.path().read_dir().ok());
        let files = directories.flat_map(|directory| directory.flatten());
        let files = files.filter(|file| file.file_name().to_string_lossy().starts_with("pages-"));
        files.filter_map(|file| file.metadata().ok()).map(|pages| pages.len()).sum()
    };
    // The first few are those of shared memory, such as a CRIU killed before has left. They are read before the service is made to run
    // anything.
    let has_begun = || pages() > 4 << 20;
    let is_in_the_middle = || has_begun() && pages() < 64 << 20;
    let odd = world.odd_criu(&format!("echo $$ >'{}'\nexec \"$CRIU\" \"$@\"", pid_file.display()));
    let mut killed = 0;
    for _ in 0..50 {
        wait_until("the pages of the round before are gone", || (pages() == 0).then_some(()));
        let mut command = world.checkpoint(service.pid().into(), &["--continue"]);
        command.env("CRAC_CRIU_PATH", &odd);
        let mut child = start(command);
        wait_until("CRIU writes pages, or has done so", || (has_begun() || child.try_wait().unwrap().is_some()).then_some(()));
        let number = std::fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
        let pid = Pid::from_raw(number).unwrap();
        // It may have ended.
        let _ = kill_process(pid, Signal::STOP);
        wait_until("CRIU is stopped, or has ended", || {
            matches!(state(number.unsigned_abs()), Some('T' | 'Z') | None).then_some(())
        });
        let signal = if is_in_the_middle() { Signal::KILL } else { Signal::CONT };
        let _ = kill_process(pid, signal);
        let output = child.wait_with_output().unwrap();
        if output.status.success() {
            std::fs::remove_dir_all(world.image()).unwrap();
        } else {
            assert_says(&failed(&output, 4), &["was killed by signal 9"]);
            killed += 1;
        }
        service.get("/");
        if killed == 3 {
            break;
        }
    }
    assert_eq!(killed, 3, "CRIU was always faster");
    world.goes_on(&mut service, 1);
}

#[test]
fn a_service_that_is_stopped_for_its_end_goes_on_when_the_command_is_killed() {
    let Some(world) = World::new("a_service_that_is_stopped_for_its_end_goes_on_when_the_command_is_killed") else { return };
    let mut service = world.service("1");
    // The first one says its version. The second one dumps, and does not end.
    let greeted = world.lab.file("greeted");
    let first = format!("mkdir '{}' 2>/dev/null && exec \"$CRIU\" \"$@\"", greeted.display());
    let odd = world.odd_criu(&format!("{first}\n\"$CRIU\" \"$@\"\nexec sleep 600"));
    let mut command = world.checkpoint(service.pid().into(), &[]);
    command.env("CRAC_CRIU_PATH", &odd);
    let mut child = start(command);
    wait_until("the service is stopped", || (state(service.pid()) == Some('T')).then_some(()));
    child.kill().unwrap();
    child.wait().unwrap();
    world.goes_on(&mut service, 1);
    assert_says(&service.output(), &["has gone before its end"]);
}

#[test]
fn a_service_goes_on_when_criu_takes_too_long() {
    let Some(world) = World::new("a_service_goes_on_when_criu_takes_too_long") else { return };
    let mut service = world.service("1");
    let mut command = world.checkpoint(service.pid().into(), &["--timeout", "10s"]);
    command.env("CRAC_CRIU_PATH", program("odd_criu")).env("ODD_CRIU_GREETS", "1");
    let said = failed(&command.output().unwrap(), 4);
    assert_says(&said, &["did not finish the dump within", "was killed"]);
    world.goes_on(&mut service, 1);
}

#[test]
fn a_service_goes_on_when_the_command_is_killed_while_criu_hangs() {
    let Some(world) = World::new("a_service_goes_on_when_the_command_is_killed_while_criu_hangs") else { return };
    let mut service = world.service("1");
    let pid_file = world.lab.file("odd.pid");
    let mut command = world.checkpoint(service.pid().into(), &[]);
    command.env("CRAC_CRIU_PATH", program("odd_criu")).env("ODD_CRIU_GREETS", "1").env("ODD_CRIU_PID", &pid_file);
    let mut child = start(command);
    // The first is asked for its version, and gone.
    let first = wait_until("a CRIU is started", || std::fs::read_to_string(&pid_file).ok().filter(|pid| !pid.is_empty()));
    let second = wait_until("another one is to dump", || {
        std::fs::read_to_string(&pid_file).ok().filter(|pid| !pid.is_empty() && *pid != first)
    });
    child.kill().unwrap();
    child.wait().unwrap();
    let second: u32 = second.parse().unwrap();
    wait_until("CRIU has ended, too", || matches!(state(second), Some('Z') | None).then_some(()));
    world.goes_on(&mut service, 1);
}

#[test]
fn what_cannot_be_saved_is_refused_before_the_service_lets_go_of_anything() {
    let Some(world) = World::new("what_cannot_be_saved_is_refused_before_the_service_lets_go_of_anything") else { return };
    let mut service = world.service("0");
    let pid = service.pid().to_string();

    let image = world.lab.file("home").join("web.crac");
    // Root is not told from one who may do nothing before CRIU has tried.
    if world.user == NOBODY {
        // By itself it cannot, and is told who can.
        let said = failed(&world.crac().args(["check", &pid]).output().unwrap(), 4);
        assert_says(&said, &["CRIU needs root", "crac checkpoint --outside"]);
        let said = failed(&world.crac().args(["checkpoint", &pid, "--image"]).arg(&image).output().unwrap(), 4);
        assert_says(&said, &["CRIU could not dump the process", "crac checkpoint --outside"]);
        // Neither can another command of nobody's.
        let mut command = world.unprivileged("crac");
        command.args(["checkpoint", "--outside", &pid, "--image"]).arg(&image);
        assert_says(&failed(&command.output().unwrap(), 4), &["CRIU needs root", "run this command as root"]);
    }
    let check = world.crac().args(["check", "--outside", "--json", &pid]).output().unwrap();
    let report: serde_json::Value = serde_json::from_str(&done(&check)).unwrap();
    assert_eq!(report["ending"], "rehearsed", "{report}");

    // Nor is it saved where there is no room for an image, or by a CRIU that is none.
    let said = failed(&world.crac().args(["checkpoint", "--outside", &pid, "--image", "/no/such/place"]).output().unwrap(), 4);
    assert_says(&said, &["cannot write the image /no/such/place"]);
    let mut command = world.checkpoint(service.pid().into(), &[]);
    command.env("CRAC_CRIU_PATH", "/no/such/criu");
    assert_says(&failed(&command.output().unwrap(), 4), &["there is no CRIU"]);

    // A service may call its socket as it likes: nobody else is captured for it.
    let run = world.lab.file("run");
    std::fs::rename(run.join(format!("{pid}.sock")), run.join("1.sock")).unwrap();
    let said = failed(&world.crac().args(["checkpoint", "--outside", "1"]).output().unwrap(), 4);
    assert_says(&said, &[&format!("is served by process {pid}, not by 1")]);
    std::fs::rename(run.join("1.sock"), run.join(format!("{pid}.sock"))).unwrap();
    world.goes_on(&mut service, 1);
}

#[test]
fn an_engine_that_saves_from_inside_says_so() {
    let Some(world) = World::new("an_engine_that_saves_from_inside_says_so") else { return };
    let addr = free_addr();
    let mut command = world.unprivileged("web-server");
    command.env("CRAC_ENGINE", "native").args(["--listen", &addr.to_string(), "--warm-mib", "0"]);
    let service = Service::start(command, addr).answering();
    let said = failed(&world.checkpoint(service.pid().into(), &[]).output().unwrap(), 4);
    assert_says(&said, &["takes its images from inside", "CRAC_ENGINE=criu"]);
    service.get("/");
    assert!(world.images().is_empty());
}

#[test]
fn root_without_the_right_to_ask_for_limits_refuses_a_service_of_another_user() {
    let Some(mut world) = World::new("root_without_the_right_to_ask_for_limits_refuses_a_service_of_another_user") else {
        return;
    };
    world.user = NOBODY;
    for own in ["home", "run"] {
        chown(world.lab.file(own), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let mut service = world.service("0");
    let mut command = world.lab.command("setpriv");
    command.args(["--bounding-set=-sys_resource"]).arg(program("crac")).env("CRAC_CRIU_PATH", &world.criu);
    command.args(["checkpoint", "--outside", &service.pid().to_string(), "--image"]).arg(world.image());
    assert_says(&failed(&command.output().unwrap(), 4), &["CAP_SYS_RESOURCE", "--cap-add SYS_RESOURCE"]);
    assert!(service.is_running());
    service.get("/");
}
