//! The command against scripted services: what is asked, what is made of the answers, and when it is over.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use serde_json::{Value, json};

/// Plays a service: a process that does nothing, and a control socket with its number on which a thread answers.
struct Fake {
    child: Arc<Mutex<Child>>,
    pid: u32,
    requests: Arc<Mutex<Vec<Value>>>,
}

/// What a fake does when it is asked for a checkpoint.
struct Scene {
    stream: UnixStream,
    child: Arc<Mutex<Child>>,
    generation: Arc<AtomicU64>,
}

impl Scene {
    fn say(&mut self, reply: &Value) {
        writeln!(self.stream, "{reply}").unwrap();
    }

    fn durable(&mut self) {
        self.say(&json!({"is": "progress", "at": "shut"}));
        self.say(&json!({"is": "progress", "at": "capture"}));
        self.say(&json!({"is": "planned", "bytes": 4096}));
        self.say(&json!({"is": "durable", "bytes": 8192, "elapsed_us": 700, "frozen_us": 600}));
    }

    fn die(&self) {
        let mut child = self.child.lock().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

impl Fake {
    fn start(lab: &Lab, name: &'static str, scene: impl Fn(Scene) + Send + 'static) -> Self {
        // It reads from us until it is killed.
        let child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let pid = child.id();
        let listener = UnixListener::bind(lab.socket(pid)).unwrap();
        let fake = Self { child: Arc::new(Mutex::new(child)), pid, requests: Arc::default() };
        let (child, requests, generation) = (fake.child.clone(), fake.requests.clone(), Arc::new(AtomicU64::new(3)));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line).unwrap();
                let request: Value = serde_json::from_str(&line).unwrap();
                if request["do"] == "status" {
                    let mut status = status(name, generation.load(Ordering::SeqCst)).to_string();
                    status.push('\n');
                    // In two pieces, as a socket may deliver it.
                    let (first, second) = status.split_at(status.len() / 2);
                    stream.write_all(first.as_bytes()).unwrap();
                    stream.write_all(second.as_bytes()).unwrap();
                } else {
                    requests.lock().unwrap().push(request);
                    scene(Scene { stream, child: child.clone(), generation: generation.clone() });
                }
            }
        });
        fake
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let mut child = self.child.lock().unwrap();
        // Both fail only when a scene has ended it already.
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn status(name: &str, generation: u64) -> Value {
    json!({
        "is": "status", "name": name, "engine": "native", "state": "open", "ready": true, "generation": generation,
        "instance_id": "0".repeat(32), "image": "x.crac", "resources": []
    })
}

fn report(mode: &str, ending: &str) -> Value {
    json!({
        "is": "report", "name": "orders", "engine": "native", "mode": mode, "ending": ending, "generation": 3,
        "instance_id": "0".repeat(32), "image_id": "1".repeat(32), "image": "/srv/orders.crac", "phases": [], "resources": [],
        "held_threads": 2, "capture": null, "unswept": [], "asleep": null, "took": {"secs": 0, "nanos": 1000},
        "failures": [{"subject": "moody", "during": "before_checkpoint", "kind": "error", "what": "does not feel like it"}],
        "obstacles": [{"kind": "child", "subject": "process 12", "owner": null}]
    })
}

/// A run directory and a place to stand.
struct Lab(tempfile::TempDir);

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("run")).unwrap();
        std::fs::set_permissions(dir.path().join("run"), std::fs::Permissions::from_mode(0o700)).unwrap();
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn socket(&self, pid: u32) -> PathBuf {
        self.path().join("run").join(format!("{pid}.sock"))
    }

    fn crac(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_crac"))
            .args(args)
            .current_dir(self.path())
            .env("CRAC_RUN_DIR", self.path().join("run"))
            .output()
            .unwrap();
        (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
    }
}

fn parsed(out: &str) -> Value {
    serde_json::from_str(out).unwrap_or_else(|error| panic!("{error}: {out}"))
}

#[test]
fn a_checkpoint_is_over_when_the_image_is_durable_and_the_process_is_gone() {
    let lab = Lab::new();
    let fake = Fake::start(&lab, "orders", |mut scene| {
        scene.durable();
        scene.die();
    });
    let (code, out, err) = lab.crac(&["checkpoint", "orders", "--json"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(fake.child.lock().unwrap().try_wait().unwrap().is_some(), "it waited for the end");
    let outcome = parsed(&out);
    let image = lab.path().join("orders.crac");
    assert_eq!((&outcome["outcome"], &outcome["pid"], &outcome["bytes"]), (&json!("taken"), &json!(fake.pid), &json!(8192)));
    assert_eq!((&outcome["elapsed_us"], &outcome["frozen_us"]), (&json!(700), &json!(600)));
    assert!(outcome["down_us"].is_u64(), "{outcome}");
    let asked = fake.requests.lock().unwrap().clone();
    assert_eq!(
        asked,
        [json!({"do": "checkpoint", "mode": "exit", "image": image})],
        "the default image, where the caller stands"
    );
}

#[test]
fn without_a_durable_line_there_is_no_image() {
    let lab = Lab::new();
    let _fake = Fake::start(&lab, "orders", |mut scene| scene.say(&json!({"is": "progress", "at": "capture"})));
    let (code, _, err) = lab.crac(&["checkpoint", "orders"]);
    assert_eq!(code, Some(1));
    assert!(err.contains("there is no image"), "{err}");
}

#[test]
fn what_stands_in_the_way_is_reported_with_4() {
    let lab = Lab::new();
    let fake = Fake::start(&lab, "orders", |mut scene| scene.say(&report("exit", "aborted")));
    let (code, out, _) = lab.crac(&["checkpoint", &fake.pid.to_string()]);
    assert_eq!(code, Some(4));
    assert!(out.contains("moody") && out.contains("child: process 12") && out.contains("hint"), "{out}");
    let (code, out, _) = lab.crac(&["checkpoint", "orders", "--json"]);
    assert_eq!((code, &parsed(&out)["report"]["obstacles"][0]["kind"]), (Some(4), &json!("child")));
}

#[test]
fn a_denied_request_exits_with_4_and_says_why() {
    let lab = Lab::new();
    let _fake = Fake::start(&lab, "orders", |mut scene| {
        scene.say(&json!({"is": "denied", "reason": "busy", "what": "another checkpoint is under way"}));
    });
    let (code, _, err) = lab.crac(&["checkpoint", "orders"]);
    assert_eq!(code, Some(4));
    assert!(err.contains("another checkpoint is under way"), "{err}");
    let (code, out, _) = lab.crac(&["checkpoint", "orders", "--json"]);
    assert_eq!((code, &parsed(&out)["reason"]), (Some(4), &json!("busy")));
}

#[test]
fn a_service_that_says_nothing_times_out_with_5() {
    let lab = Lab::new();
    let silent = Mutex::new(Vec::new());
    let _fake = Fake::start(&lab, "orders", move |scene| silent.lock().unwrap().push(scene));
    for verb in ["checkpoint", "check"] {
        let (code, _, err) = lab.crac(&[verb, "orders", "--timeout", "200ms"]);
        assert_eq!(code, Some(5), "{err}");
        assert!(err.contains("in time") && err.contains("hint"), "{err}");
    }
}

#[test]
fn becoming_is_over_when_the_next_generation_answers() {
    let lab = Lab::new();
    let fake = Fake::start(&lab, "orders", |mut scene| {
        scene.durable();
        scene.generation.fetch_add(1, Ordering::SeqCst);
    });
    let (code, out, err) = lab.crac(&["checkpoint", "orders", "--become", "--image", "sub/o.crac", "--json"]);
    assert_eq!((code, &parsed(&out)["generation"]), (Some(0), &json!(4)), "{err}");
    assert!(fake.child.lock().unwrap().try_wait().unwrap().is_none(), "it is still the same process");
    let asked = fake.requests.lock().unwrap().clone();
    assert_eq!(asked, [json!({"do": "checkpoint", "mode": "become", "image": lab.path().join("sub/o.crac")})]);
}

#[test]
fn a_process_that_ends_instead_of_becoming_its_image_exits_with_22() {
    let lab = Lab::new();
    let _fake = Fake::start(&lab, "orders", |mut scene| {
        scene.durable();
        scene.die();
    });
    let (code, _, err) = lab.crac(&["checkpoint", "orders", "--become"]);
    assert_eq!(code, Some(22), "{err}");
    assert!(err.contains("durable") && err.contains("has ended"), "{err}");
}

#[test]
fn a_service_that_goes_on_is_done_when_the_image_is_durable_and_the_door_open() {
    let lab = Lab::new();
    let fake = Fake::start(&lab, "orders", |mut scene| {
        scene.say(&json!({"is": "progress", "at": "shut"}));
        scene.say(&json!({"is": "progress", "at": "capture"}));
        scene.say(&json!({"is": "progress", "at": "open"}));
        scene.say(&json!({"is": "durable", "bytes": 8192, "elapsed_us": 700, "frozen_us": 60}));
        scene.say(&report("continue", "continued"));
    });
    let (code, out, err) = lab.crac(&["checkpoint", "orders", "--continue", "--json"]);
    assert_eq!((code, &parsed(&out)["frozen_us"]), (Some(0), &json!(60)), "{err}");
    assert!(parsed(&out)["closed_us"].is_u64(), "{out}");
    assert_eq!(fake.requests.lock().unwrap()[0]["mode"], "continue");
    let (code, out, _) = lab.crac(&["checkpoint", "orders", "--continue"]);
    assert!(code == Some(0) && out.contains("goes on") && out.contains("door shut"), "{out}");
    assert_eq!(lab.crac(&["checkpoint", "orders", "--continue", "--become"]).0, Some(2));
}

#[test]
fn an_image_that_failed_beside_the_service_exits_with_4() {
    let lab = Lab::new();
    let _fake = Fake::start(&lab, "orders", |mut scene| {
        scene.say(&json!({"is": "progress", "at": "shut"}));
        scene.say(&json!({"is": "progress", "at": "open"}));
        scene.say(&report("continue", "aborted"));
    });
    let (code, out, _) = lab.crac(&["checkpoint", "orders", "--continue"]);
    assert!(code == Some(4) && out.contains("moody"), "{out}");
}

#[test]
fn a_process_that_could_not_become_its_image_and_goes_on_exits_with_4() {
    let lab = Lab::new();
    let _fake = Fake::start(&lab, "orders", |mut scene| {
        scene.durable();
        scene.say(&report("become", "aborted"));
    });
    assert_eq!(lab.crac(&["checkpoint", "orders", "--become"]).0, Some(4));
}

#[test]
fn a_check_tells_a_clear_way_from_a_blocked_one() {
    let lab = Lab::new();
    let clear = Fake::start(&lab, "clear", |mut scene| scene.say(&report("rehearse", "rehearsed")));
    let _blocked = Fake::start(&lab, "blocked", |mut scene| scene.say(&report("rehearse", "aborted")));
    assert_eq!(lab.crac(&["check", "clear"]).0, Some(0));
    assert_eq!(lab.crac(&["rehearse", "clear"]).0, Some(0), "the other name of it");
    assert_eq!(clear.requests.lock().unwrap()[0], json!({"do": "checkpoint", "mode": "rehearse", "image": null}));
    let (code, out, _) = lab.crac(&["check", "blocked", "--json"]);
    assert_eq!((code, &parsed(&out)["failures"][0]["subject"]), (Some(4), &json!("moody")));
}

#[test]
fn ps_lists_who_answers_and_leaves_out_what_a_dead_process_left() {
    let lab = Lab::new();
    let fake = Fake::start(&lab, "orders", drop);
    drop(UnixListener::bind(lab.socket(1)).unwrap());
    let (code, out, _) = lab.crac(&["ps", "--json"]);
    let list = parsed(&out);
    assert_eq!((code, list.as_array().map(Vec::len)), (Some(0), Some(1)), "{list}");
    assert_eq!((&list[0]["pid"], &list[0]["status"]["name"]), (&json!(fake.pid), &json!("orders")));
    let (_, out, _) = lab.crac(&["ps"]);
    assert!(out.lines().next().unwrap().starts_with("PID") && out.contains("orders"), "{out}");
}

#[test]
fn an_ambiguous_name_lists_the_processes() {
    let lab = Lab::new();
    let fakes = [Fake::start(&lab, "orders", drop), Fake::start(&lab, "orders", drop)];
    let (code, _, err) = lab.crac(&["checkpoint", "orders"]);
    assert_eq!(code, Some(2), "{err}");
    assert!(fakes.iter().all(|fake| err.contains(&fake.pid.to_string())), "{err}");
}

#[test]
fn a_service_that_talks_otherwise_is_reported_not_believed() {
    let lab = Lab::new();
    let _fake = Fake::start(&lab, "orders", |mut scene| scene.stream.write_all(b"HTTP/1.1 200 OK\n").unwrap());
    let (code, _, err) = lab.crac(&["checkpoint", "orders"]);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("HTTP/1.1 200 OK"), "{err}");
}
