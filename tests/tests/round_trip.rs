//! A service is checkpointed, gone, and comes back: as itself, as clones, again and again.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{collections::HashSet, os::unix::fs::PermissionsExt};

use crac_testing::{
    http::{self, NoAnswer},
    lab::{Lab, text},
    wait_until,
};

/// Checkpoints `service` into `image` with the command, which exits once the image is safe.
fn checkpoint(lab: &Lab, service: &mut crac_testing::lab::Service, image: &std::path::Path) {
    lab.crac_ok(["checkpoint".as_ref(), service.pid().to_string().as_ref(), "--image".as_ref(), image.as_os_str()]);
    let status = service.wait();
    assert!(status.success(), "{status}\n{}", service.output());
}

#[test]
fn state_pool_and_listener_come_back() {
    let lab = Lab::new();
    let mut service = lab.web_server(&[]);
    assert_eq!(service.get("/counter").body.trim(), "1");
    assert_eq!(service.get("/counter").body.trim(), "2");
    assert!(http::exchange(service.addr, "POST", "/orders", "before").unwrap().status < 300);
    let warm = service.get("/warm/7").body;
    let before = service.get("/instance").json();

    let image = lab.file("web.crac");
    checkpoint(&lab, &mut service, &image);
    assert!(matches!(http::exchange(service.addr, "GET", "/", ""), Err(NoAnswer::Refused(_))), "nobody listens while it is away");

    let restored = lab.restore(&image, &[]);
    assert_eq!(restored.get("/counter").body.trim(), "3");
    assert_eq!(restored.get("/warm/7").body, warm);
    assert!(http::exchange(restored.addr, "POST", "/orders", "after").unwrap().status < 300);
    let orders = restored.get("/orders").body;
    assert!(orders.contains("before") && orders.contains("after"), "{orders}");
    let after = restored.get("/instance").json();
    assert_eq!((&before["generation"], &before["restored"]), (&0.into(), &false.into()));
    assert_eq!((&after["generation"], &after["restored"]), (&1.into(), &true.into()));
    assert_ne!(before["instance_id"], after["instance_id"]);
    assert_eq!(after["pid"], restored.pid());
}

/// As under systemd's socket activation: the supervisor listens all the time, and hands the socket to every life.
#[test]
fn a_socket_that_a_supervisor_keeps_open_is_taken_over() {
    let lab = Lab::new();
    let mut service = lab.web_server(&[]);
    service.get("/counter");
    let image = lab.file("web.crac");
    checkpoint(&lab, &mut service, &image);
    let listener = std::net::TcpListener::bind(service.addr).unwrap();
    let mut early = http::Connection::open(service.addr).unwrap();
    early.send("GET", "/counter", "", "close").unwrap();

    let mut command = lab.command("/bin/sh");
    // The shell knows its own number before it becomes the image.
    let script = r#"exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$0""#;
    command.arg("-c").arg(script).arg(&image).stdin(std::os::fd::OwnedFd::from(listener));
    let restored = crac_testing::lab::Service::start(command, service.addr).answering();
    assert_eq!(early.receive().unwrap().body.trim(), "2", "who came while nobody served is answered");
    assert_eq!(restored.get("/counter").body.trim(), "3");
    // Its own copy was closed with the command: only the restored life listens.
    drop(restored);
    std::net::TcpListener::bind(service.addr).expect("the socket has gone with the service");
}

#[test]
fn the_image_is_a_program() {
    let lab = Lab::new();
    let mut service = lab.web_server(&[]);
    service.get("/counter");
    let image = lab.file("web.crac");
    checkpoint(&lab, &mut service, &image);
    let addr = crac_testing::lab::free_addr();
    let mut command = lab.command(&image);
    command.args(["--", "--listen", &addr.to_string()]);
    let restored = crac_testing::lab::Service::start(command, addr).answering();
    assert_eq!(restored.get("/counter").body.trim(), "2");
}

#[test]
fn become_keeps_the_process_and_proves_the_image() {
    let lab = Lab::new();
    let service = lab.web_server(&[]);
    service.get("/counter");
    let image = lab.file("web.crac");
    let pid = service.pid().to_string();
    lab.crac_ok(["checkpoint".as_ref(), pid.as_ref(), "--become".as_ref(), "--image".as_ref(), image.as_os_str()]);
    let mut service = service.answering();
    let instance = service.get("/instance").json();
    assert_eq!((&instance["generation"], &instance["pid"]), (&1.into(), &service.pid().into()));
    assert_eq!(service.get("/counter").body.trim(), "2");
    assert!(service.is_running());
}

#[test]
fn clones_share_state_but_not_randomness() {
    let lab = Lab::new();
    let mut service = lab.web_server(&[]);
    service.get("/random");
    let image = lab.file("web.crac");
    checkpoint(&lab, &mut service, &image);
    let clones: Vec<_> = (0..3).map(|_| lab.restore(&image, &[])).collect();
    let mut drawn = HashSet::new();
    for clone in &clones {
        // Every worker thread has generators of its own, so one draw is not enough.
        for _ in 0..16 {
            let random = clone.get("/random").json();
            for generator in ["rand", "uuid", "fast"] {
                assert!(drawn.insert(random[generator].to_string()), "{generator} repeats: {random}");
            }
        }
    }
    let ids: HashSet<_> = clones.iter().map(|clone| clone.get("/instance").json()["instance_id"].to_string()).collect();
    assert_eq!(ids.len(), clones.len());
}

/// The generator of `rand` 0.9 draws from memory: without the sweep, clones repeat each other.
#[test]
fn clones_do_not_share_the_generator_of_rand_09() {
    let lab = Lab::new();
    let start = |program: &std::path::Path, between: &[&str]| {
        let addr = crac_testing::lab::free_addr();
        let mut command = lab.command(program);
        command.args(between).args(["--listen", &addr.to_string()]);
        crac_testing::lab::Service::start(command, addr).answering()
    };
    let mut service = start(&crac_testing::programs::program("faulty"), &[]);
    // Every worker thread has a generator of its own, which is made when it first draws.
    (0..16).for_each(|_| _ = service.get("/rand09"));
    let image = lab.file("faulty.crac");
    checkpoint(&lab, &mut service, &image);
    let clones: Vec<_> = (0..3).map(|_| start(&image, &["--"])).collect();
    let mut drawn = HashSet::new();
    for clone in &clones {
        for _ in 0..16 {
            let number = clone.get("/rand09").body;
            assert!(drawn.insert(number.clone()), "{number} repeats");
        }
    }
}

#[test]
fn many_clones_of_one_image_each_have_their_own_place_and_identity() {
    let lab = Lab::new();
    let mut service = lab.web_server(&["--warm-mib", "16"]);
    service.get("/counter");
    let image = lab.file("web.crac");
    checkpoint(&lab, &mut service, &image);
    let clones: Vec<_> = (0..24)
        .map(|_| {
            let addr = crac_testing::lab::free_addr();
            let mut command = lab.command(&image);
            command.args(["--", "--listen", &addr.to_string()]);
            crac_testing::lab::Service::start(command, addr)
        })
        .collect();
    let (mut ids, mut drawn) = (HashSet::new(), HashSet::new());
    for clone in clones {
        let clone = clone.answering();
        assert_eq!(clone.get("/counter").body.trim(), "2", "each has the state of the image, and changes its own");
        assert!(ids.insert(clone.get("/instance").json()["instance_id"].to_string()), "an instance id repeats");
        assert!(drawn.insert(clone.get("/random").json()["rand"].to_string()), "randomness repeats");
        assert_eq!(clone.get("/instance").json()["pid"], clone.pid());
    }
}

#[test]
fn generations_follow_each_other() {
    let lab = Lab::new();
    let mut service = lab.web_server(&[]);
    let mut sizes = Vec::new();
    for generation in 1..=10_u64 {
        service.get("/counter");
        let image = lab.file(&format!("{generation}.crac"));
        checkpoint(&lab, &mut service, &image);
        sizes.push(std::os::unix::fs::MetadataExt::blocks(&image.metadata().unwrap()) * 512);
        service = lab.restore(&image, &[]);
        assert_eq!(service.get("/instance").json()["generation"], generation);
    }
    assert_eq!(service.get("/counter").body.trim(), "11");
    let (first, last) = (sizes[0], sizes[sizes.len() - 1]);
    assert!(last < first + first / 2 + (4 << 20), "the image grows with the generations: {sizes:?}");
}

#[test]
fn the_clock_of_a_restored_service_does_not_run_wild() {
    let lab = Lab::new();
    let mut service = lab.web_server(&[]);
    wait_until("a few ticks", || (service.get("/ticks").json()["ticks"].as_u64()? >= 3).then_some(()));
    let image = lab.file("web.crac");
    checkpoint(&lab, &mut service, &image);
    let restored = lab.restore(&image, &[]);
    let first = restored.get("/ticks").json()["ticks"].as_u64().expect("a number");
    wait_until("more ticks", || (restored.get("/ticks").json()["ticks"].as_u64()? >= first + 3).then_some(()));
}

#[test]
fn new_arguments_environment_and_names_reach_the_restored_life() {
    let lab = Lab::new();
    let mut service = lab.web_server(&["--name", "orders"]);
    let listed: serde_json::Value = serde_json::from_str(&lab.crac_ok(["ps", "--json"])).unwrap();
    assert!(listed.to_string().contains("orders"), "{listed}");
    lab.crac_ok(["checkpoint", "orders"]);
    assert!(service.wait().success());
    let image = lab.file("orders.crac");
    assert!(image.is_file(), "the default image is NAME.crac where the caller stands");
    let inspected: serde_json::Value =
        serde_json::from_str(&lab.crac_ok(["inspect".as_ref(), "--json".as_ref(), image.as_os_str()])).unwrap();
    assert!(inspected.to_string().contains("orders"), "{inspected}");
    lab.crac_ok(["verify".as_ref(), image.as_os_str()]);
    let restored = lab.restore(&image, &[]);
    restored.get("/");
}

#[test]
fn a_check_finds_nothing_and_takes_nothing() {
    let lab = Lab::new();
    let mut service = lab.web_server(&[]);
    lab.crac_ok(["check", &service.pid().to_string()]);
    assert!(service.is_running());
    assert_eq!(service.get("/instance").json()["generation"], 0);
    assert!(!lab.file("web-server.crac").exists());
    let unknown = lab.crac(["check", "nobody-of-that-name"]);
    assert_eq!(unknown.status.code(), Some(3), "{}", text(&unknown.stderr));
}

/// Before the program has told where its log goes.
#[test]
fn a_service_without_a_control_socket_says_so_and_serves() {
    let lab = Lab::new();
    std::fs::set_permissions(lab.file("run"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let service = lab.web_server(&[]);
    service.get("/");
    wait_until("it has said so", || service.output().contains("the control socket is not served").then_some(()));
    assert!(service.output().contains("set CRAC_RUN_DIR to a directory of your own with mode 0700"), "{}", service.output());
}

/// The processors that the threads of a process may run on, each set once.
fn processors(pid: u32) -> HashSet<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    // A thread may end meanwhile.
    let texts = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok());
    let line = |text: String| text.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim().to_owned();
    texts.map(line).collect()
}

/// It is restored on one, and has to have let go of it by then.
#[test]
fn a_life_that_serves_may_use_the_processors_of_whoever_restored_it() {
    let lab = Lab::new();
    let mut service = lab.web_server(&[]);
    let all = processors(std::process::id());
    for generation in 1..=2 {
        assert_eq!(processors(service.pid()), all, "before restore {generation}");
        let image = lab.file("web.crac");
        checkpoint(&lab, &mut service, &image);
        service = lab.restore(&image, &[]);
        service.get("/");
        wait_until("all threads may use all processors", || (processors(service.pid()) == all).then_some(()));
    }
    let image = lab.file("web.crac");
    checkpoint(&lab, &mut service, &image);
    let first: u32 = all.iter().next().unwrap().split([',', '-']).next().unwrap().parse().unwrap();
    let addr = crac_testing::lab::free_addr();
    let mut command = lab.command("taskset");
    command.args(["--cpu-list", &first.to_string()]).arg(&image).args(["--", "--listen", &addr.to_string()]);
    let bound = crac_testing::lab::Service::start(command, addr).answering();
    assert_eq!(processors(bound.pid()), HashSet::from([first.to_string()]), "it is not bound to what another life may use");
}
