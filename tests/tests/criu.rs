//! The same services under CRIU: they come back as they do from the native engine, and go on when it fails.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::HashSet,
    net::TcpListener,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use crac_testing::{
    criu::criu,
    http,
    lab::{Lab, Service, free_addr, text},
    programs::program,
    skip::skip,
    wait_until,
};
use rustix::process::{
    Pid, Signal, WaitOptions, getpid, set_child_subreaper, test_kill_process, test_kill_process_group, waitpgid, waitpid,
};

/// A lab in which everything uses the CRIU at `criu`.
struct World {
    lab: Lab,
    criu: PathBuf,
}

impl World {
    fn new(criu: impl Into<PathBuf>) -> Self {
        Self { lab: Lab::new(), criu: criu.into() }
    }

    fn command(&self, name: &str) -> Command {
        let mut command = self.lab.command(program(name));
        command.env("CRAC_ENGINE", "criu").env("CRAC_CRIU_PATH", &self.criu);
        command
    }

    /// Starts `program` with `args` under `change`.
    fn service_with(&self, program: &str, args: &[&str], change: impl FnOnce(&mut Command)) -> Service {
        let addr = free_addr();
        let mut command = self.command(program);
        command.args(["--listen", &addr.to_string()]).args(args);
        change(&mut command);
        Service::start(command, addr).answering()
    }

    fn web_server(&self) -> Service {
        self.service_with("web-server", &["--warm-mib", "1"], |_| {})
    }

    fn image(&self) -> PathBuf {
        self.lab.file("web.crac")
    }

    fn crac(&self, args: &[&str]) -> Output {
        self.command("crac").args(args).output().unwrap()
    }

    /// Checkpoints `service`, which must end well.
    fn checkpoint(&self, service: &mut Service) {
        let image = self.image();
        let output = self.crac(&["checkpoint", &service.pid().to_string(), "--image", image.to_str().unwrap()]);
        assert!(output.status.success(), "{}{}\n{}", text(&output.stdout), text(&output.stderr), service.output());
        let status = service.wait();
        assert!(status.success(), "{status}\n{}", service.output());
    }

    fn restore(&self) -> Service {
        let addr = free_addr();
        let mut command = self.command("crac");
        command.arg("restore").arg(self.image()).args(["--", "--listen", &addr.to_string()]);
        Service::start(command, addr).answering()
    }

    /// `crac restore` in a process id namespace, where the ids of all services are free.
    fn in_namespace(&self, number: usize) -> Command {
        let mut command = self.lab.command("unshare");
        command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]).arg(program("crac")).arg("restore");
        command.env("CRAC_CRIU_PATH", &self.criu).env("CRAC_RUN_DIR", self.lab.file(&format!("run-{number}")));
        command
    }

    /// A checkpoint that must fail with `code`, after which the service serves; what was said.
    fn refused(&self, service: &mut Service, code: i32) -> String {
        let image = self.image();
        let output = self.crac(&["checkpoint", &service.pid().to_string(), "--image", image.to_str().unwrap()]);
        let said = text(&output.stderr) + &text(&output.stdout);
        assert_eq!(output.status.code(), Some(code), "{said}\n{}", service.output());
        assert!(service.is_running(), "the service must go on: {said}");
        service.get("/");
        let left: Vec<_> = std::fs::read_dir(self.lab.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().contains("web.crac")), "nothing is left behind: {left:?}");
        said
    }
}

fn assert_says(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "`{part}` is missing in:\n{said}");
    }
}

/// The process id of the service itself, which is a child of the command that restored it.
fn own_pid(service: &Service) -> u64 {
    service.get("/instance").json()["pid"].as_u64().unwrap()
}

fn exists(pid: u64) -> bool {
    // A zombie that nobody has waited for yet runs nothing.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with('Z'))
}

fn descriptors(pid: u64) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[test]
fn state_pool_and_listener_come_back() {
    let Some(criu) = criu("state_pool_and_listener_come_back") else { return };
    let world = World::new(criu);
    let mut service = world.web_server();
    assert_eq!(service.get("/counter").body.trim(), "1");
    assert!(http::exchange(service.addr, "POST", "/orders", "before").unwrap().status < 300);
    let warm = service.get("/warm/7").body;
    let before = service.get("/instance").json();
    world.checkpoint(&mut service);

    let mut restored = world.restore();
    assert_eq!(restored.get("/counter").body.trim(), "2");
    assert_eq!(restored.get("/warm/7").body, warm);
    assert!(http::exchange(restored.addr, "POST", "/orders", "after").unwrap().status < 300);
    let orders = restored.get("/orders").body;
    assert!(orders.contains("before") && orders.contains("after"), "{orders}");
    let after = restored.get("/instance").json();
    assert_eq!((&after["generation"], &after["restored"]), (&1.into(), &true.into()));
    assert_ne!(before["instance_id"], after["instance_id"]);
    assert_eq!(before["pid"], after["pid"], "CRIU restores the process id");

    // Its signals, its output and its exit status are those of the command that restored it.
    restored.signal(Signal::TERM);
    let status = restored.wait();
    assert!(status.success(), "{status}\n{}", restored.output());
    assert!(restored.output().contains("told to stop"), "{}", restored.output());
}

#[test]
fn generations_follow_each_other_without_a_trace() {
    let Some(criu) = criu("generations_follow_each_other_without_a_trace") else { return };
    let world = World::new(criu);
    let mut service = world.web_server();
    let open = descriptors(own_pid(&service));
    for generation in 1..=4_u64 {
        service.get("/counter");
        let pid = own_pid(&service);
        let image = world.image();
        let output = world.crac(&["checkpoint", &pid.to_string(), "--image", image.to_str().unwrap()]);
        assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
        assert!(service.wait().success(), "{}", service.output());
        service = world.restore();
        assert_eq!(service.get("/instance").json()["generation"], generation);
    }
    assert_eq!(service.get("/counter").body.trim(), "5");
    wait_until("no descriptor is left over", || (descriptors(own_pid(&service)) <= open).then_some(()));
}

#[test]
fn a_service_goes_on_beside_its_image() {
    let Some(criu) = criu("a_service_goes_on_beside_its_image") else { return };
    let world = World::new(criu);
    let mut service = world.web_server();
    service.get("/counter");
    let image = world.image();
    let pid = service.pid().to_string();
    let output = world.crac(&["checkpoint", &pid, "--continue", "--image", image.to_str().unwrap()]);
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    assert!(service.is_running());
    assert_eq!(service.get("/counter").body.trim(), "2");
    assert_eq!(service.get("/instance").json()["generation"], 0);

    // Its process id is taken as long as it runs.
    let output = world.crac(&["restore", image.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(20), "{}", text(&output.stderr));
    assert_says(&text(&output.stderr), &[&pid, "web-server", "unshare --pid"]);
    // And its address, wherever the process ids are its own.
    let output = world.in_namespace(0).arg(&image).output().unwrap();
    assert_eq!(output.status.code(), Some(22), "{}", text(&output.stderr));
    assert_says(&text(&output.stderr), &["Address already in use", "somebody listens there"]);
    assert_eq!(service.get("/counter").body.trim(), "3");

    service.signal(Signal::KILL);
    service.wait();
    let restored = world.restore();
    assert_eq!(restored.get("/counter").body.trim(), "2");
}

#[test]
fn clones_live_in_namespaces_of_their_own() {
    let Some(criu) = criu("clones_live_in_namespaces_of_their_own") else { return };
    let world = World::new(criu);
    let mut service = world.web_server();
    service.get("/random");
    world.checkpoint(&mut service);
    let clones: Vec<Service> = (0..2)
        .map(|number| {
            let addr = free_addr();
            let mut command = world.in_namespace(number);
            command.arg(world.image()).args(["--", "--listen", &addr.to_string()]);
            Service::start(command, addr).answering()
        })
        .collect();
    let mut drawn = HashSet::new();
    for clone in &clones {
        assert_eq!(clone.get("/instance").json()["pid"], service.pid(), "each is alone with its ids");
        assert!(drawn.insert(clone.get("/instance").json()["instance_id"].to_string()));
        for _ in 0..16 {
            let random = clone.get("/random").json();
            for generator in ["rand", "uuid", "fast"] {
                assert!(drawn.insert(random[generator].to_string()), "{generator} repeats: {random}");
            }
        }
    }
}

#[test]
fn memory_that_must_not_survive_a_fork_comes_back_zero() {
    let Some(criu) = criu("memory_that_must_not_survive_a_fork_comes_back_zero") else { return };
    let world = World::new(criu);
    let mut service = world.service_with("wiped", &[], |_| {});
    assert_eq!(service.get("/page").body, "kept");
    let pid = service.pid().to_string();
    let output = world.crac(&["checkpoint", &pid, "--continue", "--image", world.image().to_str().unwrap()]);
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(service.get("/page").body, "kept", "this process was not copied");
    world.checkpoint(&mut service);
    assert_eq!(world.restore().get("/page").body, "wiped");
}

#[test]
fn a_restored_service_ends_with_the_command_that_restored_it() {
    let Some(criu) = criu("a_restored_service_ends_with_the_command_that_restored_it") else { return };
    let world = World::new(criu);
    let mut service = world.web_server();
    world.checkpoint(&mut service);
    let mut restored = world.restore();
    let pid = own_pid(&restored);
    assert!(exists(pid) && pid != u64::from(restored.pid()));
    restored.signal(Signal::KILL);
    restored.wait();
    wait_until("the service has ended, too", || (!exists(pid)).then_some(()));
}

#[test]
fn a_restore_that_is_killed_half_way_leaves_nothing_alive() {
    let Some(criu) = criu("a_restore_that_is_killed_half_way_leaves_nothing_alive") else { return };
    let world = World::new(criu);
    let mut service = world.web_server();
    let pid = Pid::from_raw(service.pid() as i32).unwrap();
    world.checkpoint(&mut service);
    // What loses its parent comes here, and its id is free at once.
    set_child_subreaper(Some(getpid())).unwrap();
    for moment in (0..240).step_by(30).map(Duration::from_millis) {
        let mut command = world.command("crac");
        command.arg("restore").arg(world.image()).args(["--", "--listen", &free_addr().to_string()]);
        let begun = Instant::now();
        let mut command = command.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).spawn().unwrap();
        let group = Pid::from_child(&command);
        wait_until("its moment has come", || (begun.elapsed() >= moment).then_some(()));
        command.kill().unwrap();
        command.wait().unwrap();
        // CRIU itself is in the command's group, the service in its own.
        wait_until("CRIU has ended", || {
            let _ = waitpgid(group, WaitOptions::NOHANG);
            test_kill_process_group(group).is_err().then_some(())
        });
        wait_until("nothing is left of the service", || {
            // Fails for as long as it is somebody else's.
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
            test_kill_process(pid).is_err().then_some(())
        });
    }
    world.restore();
}

#[test]
fn what_criu_cannot_dump_is_quoted_and_the_service_goes_on() {
    let name = "what_criu_cannot_dump_is_quoted_and_the_service_goes_on";
    let Some(criu) = criu(name) else { return };
    // Devices whose state lies in the kernel.
    let Some(device) = ["/dev/userfaultfd", "/dev/fuse", "/dev/kvm"].iter().find(|path| Path::new(path).exists()) else {
        return skip(name, "there is no device that CRIU cannot dump");
    };
    let world = World::new(criu);
    let addr = free_addr();
    let mut command = world.lab.command("sh");
    command.args(["-c", &format!("exec \"$0\" \"$@\" 9<{device}")]).arg(program("web-server"));
    command.args(["--listen", &addr.to_string(), "--warm-mib", "0"]);
    command.env("CRAC_ENGINE", "criu").env("CRAC_CRIU_PATH", &world.criu);
    let mut service = Service::start(command, addr).answering();
    for round in 1..=2 {
        let said = world.refused(&mut service, 4);
        assert_says(&said, &["CRIU could not dump the process", "Error (criu/", "hint: "]);
        assert_eq!(service.get("/counter").body.trim(), round.to_string());
    }
}

#[test]
fn connections_are_refused_or_severed() {
    let Some(criu) = criu("connections_are_refused_or_severed") else { return };
    let world = World::new(criu);
    let peer = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = peer.local_addr().unwrap().to_string();
    let mut service = world.service_with("faulty", &["--connect", &address], |_| {});
    assert_says(&world.refused(&mut service, 4), &["tcp-established", &address]);
    drop(service);
    let sever = |command: &mut Command| {
        command.env("CRAC_POLICY", "tcp-established = sever");
    };
    let mut service = world.service_with("faulty", &["--connect", &address], sever);
    world.checkpoint(&mut service);
    // What the service was restored with is not what it listens at: it does not read its arguments again.
    let addr = service.addr;
    let mut command = world.command("crac");
    command.arg("restore").arg(world.image());
    let restored = Service::start(command, addr).answering();
    assert_eq!(restored.get("/").body, "serving");
}

#[test]
fn run_takes_an_image_goes_on_and_restores_it_the_next_time() {
    let Some(criu) = criu("run_takes_an_image_goes_on_and_restores_it_the_next_time") else { return };
    let world = World::new(criu);
    let run = || {
        let addr = free_addr();
        let mut command = world.command("crac");
        command.args(["run", "--image", "web.crac", "--checkpoint-on", "ready", "--"]).arg(program("web-server"));
        command.args(["--listen", &addr.to_string(), "--warm-mib", "1"]);
        Service::start(command, addr).answering()
    };
    let mut first = run();
    wait_until("the image is there", || world.image().is_dir().then_some(()));
    wait_until("the service serves on", || {
        http::exchange(first.addr, "GET", "/instance", "").ok().filter(|answer| answer.status == 200)
    });
    first.signal(Signal::TERM);
    assert!(first.wait().success(), "{}", first.output());
    let second = run();
    assert_eq!(second.get("/instance").json()["generation"], 1, "{}", second.output());
}

#[test]
fn an_image_is_looked_at_and_not_trusted_when_others_may_write_it() {
    let Some(criu) = criu("an_image_is_looked_at_and_not_trusted_when_others_may_write_it") else { return };
    let world = World::new(criu);
    let mut service = world.web_server();
    world.checkpoint(&mut service);
    let image = world.image();
    let image = image.to_str().unwrap();
    let inspected: serde_json::Value = serde_json::from_slice(&world.crac(&["inspect", "--json", image]).stdout).unwrap();
    assert_eq!((&inspected["manifest"]["engine"], &inspected["fits"]), (&"criu".into(), &true.into()), "{inspected}");
    assert!(inspected["data_bytes"].as_u64().unwrap() > 1 << 20, "{inspected}");
    assert!(world.crac(&["verify", image]).status.success());

    let pages = world.image().join("pages-1.img");
    std::fs::set_permissions(&pages, std::fs::Permissions::from_mode(0o622)).unwrap();
    let output = world.crac(&["restore", image]);
    assert_eq!(output.status.code(), Some(21), "{}", text(&output.stderr));
    assert_says(&text(&output.stderr), &["pages-1.img", "others may write"]);
    std::fs::set_permissions(&pages, std::fs::Permissions::from_mode(0o600)).unwrap();

    // CRIU's own complaint about a part that is missing, and nothing half alive.
    std::fs::remove_file(&pages).unwrap();
    let output = world.crac(&["restore", image]);
    assert_eq!(output.status.code(), Some(22), "{}", text(&output.stderr));
    assert_says(&text(&output.stderr), &["CRIU could not restore the process", "Error (criu/"]);
    assert!(!exists(service.pid().into()));
    std::fs::remove_file(world.image().join("inventory.img")).unwrap();
    assert_eq!(world.crac(&["restore", image]).status.code(), Some(21));
}

#[test]
fn doctor_tells_whether_criu_works_by_trying() {
    let Some(criu) = criu("doctor_tells_whether_criu_works_by_trying") else { return };
    let world = World::new(criu);
    let checks = world.crac(&["doctor", "--json"]);
    let checks: serde_json::Value = serde_json::from_slice(&checks.stdout).unwrap();
    let found = |id: &str| checks["checks"].as_array().unwrap().iter().find(|check| check["id"] == id).unwrap()["found"].clone();
    for id in ["criu", "criu-privileges", "criu-trial"] {
        assert_eq!(found(id), true, "{id}: {checks}");
    }
}

// From here on no CRIU is needed, so that nobody can look, too.

#[test]
fn a_missing_criu_is_said_clearly_and_the_service_goes_on() {
    let world = World::new("/no/such/criu");
    let mut service = world.web_server();
    for _ in 0..2 {
        let said = world.refused(&mut service, 4);
        assert_says(&said, &["there is no CRIU: /no/such/criu is no program", "CRIU 4.2 or later", "CRAC_CRIU_PATH"]);
    }
    let output = world.crac(&["check", &service.pid().to_string()]);
    assert_eq!(output.status.code(), Some(4), "a check tells before: {}", text(&output.stderr));
    let doctor = world.crac(&["doctor"]);
    assert_says(&text(&doctor.stdout), &["missing criu", "/no/such/criu", "set CRAC_CRIU_PATH", "not tried"]);
}

#[test]
fn a_criu_that_hangs_is_killed_and_the_service_goes_on() {
    for (greets, what) in [(false, "say its version"), (true, "finish the dump")] {
        let world = World::new(program("odd_criu"));
        let pid = world.lab.file("odd.pid");
        let mut service = world.service_with("web-server", &["--warm-mib", "0"], |command| {
            command.env("CRAC_CRIU_DEADLINE", "1s").env("ODD_CRIU_PID", &pid);
            if greets {
                command.env("ODD_CRIU_GREETS", "1");
            }
        });
        let said = world.refused(&mut service, 4);
        assert_says(&said, &[what, "within 1 s", "was killed"]);
        let pid = std::fs::read_to_string(&pid).unwrap().parse().unwrap();
        wait_until("it was killed", || (!exists(pid)).then_some(()));
    }
}

#[test]
fn becoming_the_image_is_not_offered() {
    let world = World::new(program("odd_criu"));
    let mut service = world.web_server();
    let output = world.crac(&["checkpoint", &service.pid().to_string(), "--become"]);
    assert_eq!(output.status.code(), Some(4), "{}", text(&output.stderr));
    assert_says(&(text(&output.stderr) + &text(&output.stdout)), &["does not offer that mode"]);
    assert!(service.is_running());
    service.get("/");
}
