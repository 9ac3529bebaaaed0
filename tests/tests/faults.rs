//! Whatever goes wrong in a checkpoint: the service serves on, there is no image, and the message names what it was.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
    process::Command,
};

use crac_native::layout::{Trial, trial};
use crac_testing::{
    lab::{Lab, Service, free_addr, release, text},
    programs::program,
    skip::skip,
    wait_until,
};
use rustix::process::Signal;

/// Starts the misbehaving service with `args` and short deadlines.
fn faulty(lab: &Lab, args: &[&str]) -> Service {
    let addr = free_addr();
    let mut command = lab.command(program("faulty"));
    command.args(["--listen", &addr.to_string()]).args(args).envs(DEADLINES);
    Service::start(command, addr).answering()
}

/// Short enough for a test that waits for them to pass, long enough for a loaded machine to do the ordinary.
const DEADLINES: [(&str, &str); 2] = [("CRAC_HOOK_DEADLINE", "2s"), ("CRAC_HOLD_DEADLINE", "2s")];

/// Asks for a checkpoint that must be refused with `code`; what was said about it.
fn refused(lab: &Lab, service: &mut Service, image: &Path, code: i32) -> String {
    refused_with(lab, service, image, code, &[])
}

/// The same, with more arguments.
fn refused_with(lab: &Lab, service: &mut Service, image: &Path, code: i32, more: &[&str]) -> String {
    let pid = service.pid().to_string();
    let args = ["checkpoint".as_ref(), pid.as_ref(), "--image".as_ref(), image.as_os_str()];
    let output = lab.crac(args.into_iter().chain(more.iter().map(std::ffi::OsStr::new)));
    let said = text(&output.stderr) + &text(&output.stdout);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(!image.exists(), "there must be no image: {said}");
    assert!(service.is_running(), "the service must go on: {said}");
    assert_eq!(service.get("/").body, "serving");
    said
}

fn assert_says(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "`{part}` is missing in:\n{said}");
    }
}

#[test]
fn a_hook_that_fails_is_named() {
    let lab = Lab::new();
    let mut service = faulty(&lab, &["--before", "fail"]);
    let said = refused(&lab, &mut service, &lab.file("f.crac"), 4);
    assert_says(&said, &["moody", "does not feel like it"]);
}

#[test]
fn a_hook_that_panics_is_named() {
    let lab = Lab::new();
    let mut service = faulty(&lab, &["--before", "panic"]);
    assert_says(&refused(&lab, &mut service, &lab.file("f.crac"), 4), &["moody", "panics"]);
}

#[test]
fn a_hook_that_hangs_is_late_and_named() {
    let lab = Lab::new();
    let mut service = faulty(&lab, &["--before", "hang"]);
    assert_says(&refused(&lab, &mut service, &lab.file("f.crac"), 4), &["moody", "did not end within 2s"]);
}

#[test]
fn a_hook_that_blocks_its_thread_wedges_its_resource_only() {
    let lab = Lab::new();
    let mut service = faulty(&lab, &["--before", "block"]);
    for _ in 0..2 {
        assert_says(&refused(&lab, &mut service, &lab.file("f.crac"), 4), &["moody"]);
    }
}

#[test]
fn a_worker_in_a_busy_loop_is_named_and_a_later_checkpoint_succeeds() {
    let lab = Lab::new();
    let mut service = faulty(&lab, &[]);
    service.get("/stick");
    assert_says(&refused(&lab, &mut service, &lab.file("f.crac"), 4), &["worker-stuck", "tokio-rt-worker"]);
    service.get("/unstick");
    let image = lab.file("f.crac");
    lab.crac_ok(["checkpoint".as_ref(), service.pid().to_string().as_ref(), "--image".as_ref(), image.as_os_str()]);
    assert!(service.wait().success());
}

#[test]
fn a_connection_that_nobody_closes_is_named_with_both_ends() {
    let lab = Lab::new();
    let peer = TcpListener::bind(free_addr()).unwrap();
    let addr = peer.local_addr().unwrap().to_string();
    let mut service = faulty(&lab, &["--connect", &addr]);
    assert_says(&refused(&lab, &mut service, &lab.file("f.crac"), 4), &["tcp-established", &addr, "hint"]);
}

#[test]
fn all_obstacles_come_at_once_with_the_failures() {
    let lab = Lab::new();
    let written = lab.file("written");
    let mut service = faulty(&lab, &["--before", "fail", "--child", "--write", written.to_str().unwrap()]);
    let said = refused(&lab, &mut service, &lab.file("f.crac"), 4);
    assert_says(&said, &["moody", "child", "file-writable", "written"]);
    let output = lab.crac(["check", "--json", &service.pid().to_string()]);
    assert_eq!(output.status.code(), Some(4));
    let found = serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap().to_string();
    assert_says(&found, &["moody", r#""child""#, r#""file-writable""#]);
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let lab = Lab::new();
    let mut service = faulty(&lab, &[]);
    assert_says(&refused(&lab, &mut service, &lab.file("not-there/f.crac"), 4), &["not-there"]);
    if rustix::process::geteuid().is_root() {
        // Permissions do not stop root; a directory of /proc does.
        assert_says(&refused(&lab, &mut service, Path::new("/proc/self/f.crac"), 4), &["/proc/"]);
    } else {
        let locked = lab.file("locked");
        std::fs::create_dir(&locked).unwrap();
        std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o500)).unwrap();
        assert_says(&refused(&lab, &mut service, &locked.join("f.crac"), 4), &["locked"]);
    }
}

#[test]
fn a_full_disk_is_named_and_nothing_is_left_on_it() {
    let name = "a_full_disk_is_named_and_nothing_is_left_on_it";
    let lab = Lab::new();
    let small = lab.file("small");
    std::fs::create_dir(&small).unwrap();
    let namespaces = lab.command("unshare").args(["--user", "--map-root-user", "--mount", "true"]).status();
    if !namespaces.is_ok_and(|status| status.success()) {
        return skip(name, "this user may not make a mount namespace, so there is no small file system to fill");
    }
    let addr = free_addr();
    let mut command = lab.command("unshare");
    let script = format!(
        "mount -t tmpfs -o size=1m none {dir} && exec {service} --listen {addr}",
        dir = small.display(),
        service = program("faulty").display()
    );
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]).envs(DEADLINES);
    let mut service = Service::start(command, addr).answering();
    for mode in [&[][..], &["--continue"]] {
        let said = refused_with(&lab, &mut service, &small.join("f.crac"), 4, mode);
        assert_says(&said, &["No space left", "small"]);
        let inside = format!("/proc/{}/root{}", service.pid(), small.display());
        assert_eq!(std::fs::read_dir(inside).unwrap().count(), 0, "something was left on the full disk");
    }
}

#[test]
fn a_service_killed_in_the_middle_of_the_write_leaves_no_image() {
    let lab = Lab::new();
    let images = lab.file("images");
    std::fs::create_dir(&images).unwrap();
    let image = images.join("w.crac");
    // On a loaded machine the image may be whole before this process hears of its first piece. Then there is another service.
    let was_killed = (0..50).any(|_| {
        let mut service = lab.web_server(&["--warm-mib", "192"]);
        let mut socket = UnixStream::connect(lab.path().join("run").join(format!("{}.sock", service.pid()))).unwrap();
        let request = serde_json::json!({"do": "checkpoint", "mode": "exit", "image": image});
        writeln!(socket, "{request}").unwrap();
        let mut lines = BufReader::new(socket).lines().map(Result::unwrap);
        assert!(lines.any(|line| line.contains(r#""is":"written""#)), "nothing was written:\n{}", service.output());
        service.signal(Signal::KILL);
        let ended = service.wait();
        if !image.exists() {
            assert!(!ended.success(), "without an image it is no success");
            return true;
        }
        lab.crac_ok(["verify".as_ref(), image.as_os_str()]);
        std::fs::remove_file(&image).unwrap();
        false
    });
    assert!(was_killed, "no service could be killed before its image was whole");
    assert_eq!(std::fs::read_dir(&images).unwrap().count(), 0, "something was left behind");
}

#[test]
fn a_restored_life_that_does_not_come_back_whole_exits_with_its_code() {
    let lab = Lab::new();
    let mut service = faulty(&lab, &["--after", "fail", "--only-restored"]);
    let image = lab.file("f.crac");
    lab.crac_ok(["checkpoint".as_ref(), service.pid().to_string().as_ref(), "--image".as_ref(), image.as_os_str()]);
    assert!(service.wait().success());
    let output = lab.crac(["restore".as_ref(), image.as_os_str()]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(23), "{said}");
    assert_says(&said, &["moody", "start it cold"]);
}

#[test]
fn a_restore_that_fails_on_its_way_names_its_step_and_can_be_tried_again() {
    let lab = Lab::new();
    let mut service = faulty(&lab, &[]);
    let image = lab.file("f.crac");
    lab.crac_ok(["checkpoint".as_ref(), service.pid().to_string().as_ref(), "--image".as_ref(), image.as_os_str()]);
    assert!(service.wait().success());
    let whole = std::fs::read(&image).unwrap();
    let mut steps = BTreeSet::new();
    // Some of its system calls, from the first to beyond the last.
    for call in (1..).step_by(19) {
        on_trial(&image, &whole, Trial { kind: trial::ONCE, call });
        let mut restored = Restored::start(&lab, &image, service.addr);
        let Some((code, said)) = restored.failure() else {
            if call > 1000 {
                break;
            }
            continue;
        };
        assert!([20, 22].contains(&code) && said.contains("cannot restore: "), "call {call}: {code}\n{said}");
        if let Some((_, step)) = said.split_once("cannot restore: step ") {
            assert_eq!(code, 22, "{said}");
            steps.extend(step.split([',', ':']).nth(1).map(|name| name.trim().to_owned()));
        }
        TcpListener::bind(service.addr).expect("the port is free");
    }
    assert!(steps.contains("memory") && steps.contains("process"), "{steps:?}");
    on_trial(&image, &whole, Trial::default());
    assert!(Restored::start(&lab, &image, service.addr).failure().is_none());
}

/// Writes the image `whole` with a trial in its header.
fn on_trial(image: &Path, whole: &[u8], trial: Trial) {
    let mut bytes = whole.to_vec();
    crac_native::image::set_trial(&mut bytes, trial);
    std::fs::write(image, bytes).unwrap();
    release(image);
}

/// A service that is being restored: it answers, or it ends.
struct Restored(Service);

impl Restored {
    fn start(lab: &Lab, image: &Path, addr: std::net::SocketAddr) -> Self {
        let mut command = lab.command(program("crac"));
        command.arg("restore").arg(image);
        Self(Service::start(command, addr))
    }

    /// How it has ended and what it has said; nothing if it answers.
    fn failure(&mut self) -> Option<(i32, String)> {
        let addr = self.0.addr;
        let ended = wait_until("the service answers or ends", || {
            if !self.0.is_running() {
                return Some(true);
            }
            let answers = crac_testing::http::exchange(addr, "GET", "/", "").is_ok_and(|answer| answer.status == 200);
            answers.then_some(false)
        });
        if !ended {
            return None;
        }
        let code = self.0.wait().code().expect("no signal has ended it");
        // What it has said is collected by a thread, which may be a little later than its end.
        wait_until("it says why", || self.0.output().contains('\n').then_some(()));
        Some((code, self.0.output()))
    }
}

#[test]
fn a_taken_port_is_named_by_the_restored_life() {
    let lab = Lab::new();
    let mut service = faulty(&lab, &[]);
    let image = lab.file("f.crac");
    lab.crac_ok(["checkpoint".as_ref(), service.pid().to_string().as_ref(), "--image".as_ref(), image.as_os_str()]);
    assert!(service.wait().success());
    let _squatter = TcpListener::bind(service.addr).unwrap();
    let output = lab.crac(["restore".as_ref(), image.as_os_str()]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(23), "{said}");
    assert_says(&said, &[&service.addr.to_string()]);
}

#[test]
fn a_database_that_is_gone_is_named_by_the_restored_life() {
    let lab = Lab::new();
    let dir = lab.file("db");
    std::fs::create_dir(&dir).unwrap();
    let url = format!("sqlite:{}", dir.join("orders.db").display());
    let mut service = lab.web_server(&["--database", &url]);
    let image = lab.file("w.crac");
    lab.crac_ok(["checkpoint".as_ref(), service.pid().to_string().as_ref(), "--image".as_ref(), image.as_os_str()]);
    assert!(service.wait().success());
    std::fs::remove_dir_all(&dir).unwrap();
    let output = lab.crac(["restore".as_ref(), image.as_os_str()]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(23), "{said}");
    assert_says(&said, &["orders.db"]);
}

#[test]
fn backtraces_after_a_restore_still_name_functions() {
    let lab = Lab::new();
    let mut service = faulty(&lab, &[]);
    let image = lab.file("f.crac");
    lab.crac_ok(["checkpoint".as_ref(), service.pid().to_string().as_ref(), "--image".as_ref(), image.as_os_str()]);
    assert!(service.wait().success());
    let restored = lab.restore(&image, &[]);
    let trace = restored.get("/backtrace").body;
    assert!(trace.contains("faulty::"), "{trace}");
}

#[test]
fn a_debugger_attaches_to_a_restored_service() {
    let name = "a_debugger_attaches_to_a_restored_service";
    if !Command::new("gdb").arg("--version").output().is_ok_and(|output| output.status.success()) {
        return skip(name, "gdb is not installed");
    }
    let lab = Lab::new();
    let mut service = faulty(&lab, &[]);
    let image = lab.file("f.crac");
    lab.crac_ok(["checkpoint".as_ref(), service.pid().to_string().as_ref(), "--image".as_ref(), image.as_os_str()]);
    assert!(service.wait().success());
    let restored = lab.restore(&image, &[]);
    let output = Command::new("gdb")
        .args(["-nx", "-batch", "-p", &restored.pid().to_string(), "-ex", "info threads", "-ex", "detach"])
        .output()
        .unwrap();
    let said = text(&output.stdout);
    assert!(said.contains("tokio-rt-worker") && said.contains("detached"), "{said}\n{}", text(&output.stderr));
    wait_until("the service answers after the debugger has left", || (restored.get("/").status == 200).then_some(()));
}
