//! Continue mode: the service goes on while a copy of it writes the image.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    io::{BufRead, BufReader, Lines, Write},
    os::unix::net::UnixStream,
    path::Path,
};

use crac_testing::lab::{Lab, Service};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// A continue-checkpoint of which the copy is stopped before it has written much, so that there is time to look around.
struct Underway {
    lines: Lines<BufReader<UnixStream>>,
    copy: Pid,
}

impl Underway {
    /// Stops the copy once it is at work, which is when the door is open again. On a loaded machine that may be after the copy's
    /// last write: then it may end, and there is another.
    fn begin(lab: &Lab, service: &Service, image: &Path) -> Self {
        for _ in 0..50 {
            match Self::try_begin(lab, service, image) {
                Some(underway) => return underway,
                None => {
                    assert!(image.exists(), "the checkpoint failed:\n{}", service.output());
                    std::fs::remove_file(image).unwrap();
                }
            }
        }
        panic!("no copy could be stopped before its image was whole:\n{}", service.output());
    }

    /// None if the image was whole before its copy could be stopped.
    fn try_begin(lab: &Lab, service: &Service, image: &Path) -> Option<Self> {
        let mut socket = UnixStream::connect(lab.path().join("run").join(format!("{}.sock", service.pid()))).unwrap();
        writeln!(socket, "{}", json!({"do": "checkpoint", "mode": "continue", "image": image})).unwrap();
        let mut lines = BufReader::new(socket).lines();
        let mut is_open = false;
        loop {
            let reply = next(&mut lines)?;
            is_open |= reply["at"] == "open";
            if reply["is"] == "planned" {
                assert!(is_open, "the copy was at work before the door was open");
                break;
            }
        }
        if let Some(copy) = copy_of(service.pid()).filter(|copy| kill_process(*copy, Signal::STOP).is_ok()) {
            crac_testing::wait_until("the copy stands still", || matches!(state(copy), Some('T' | 'Z') | None).then_some(()));
            if !image.exists() {
                return Some(Self { lines, copy });
            }
            // It may be gone already.
            let _ = kill_process(copy, Signal::CONT);
        }
        while next(&mut lines).is_some() {}
        None
    }

    /// The replies up to the last one.
    fn end(mut self, signal: Signal) -> Vec<Value> {
        kill_process(self.copy, signal).unwrap();
        std::iter::from_fn(|| next(&mut self.lines)).collect()
    }
}

/// The next reply of the control socket, if there is one.
fn next(lines: &mut Lines<BufReader<UnixStream>>) -> Option<Value> {
    lines.next().map(|line| serde_json::from_str(&line.unwrap()).unwrap())
}

fn state(pid: Pid) -> Option<char> {
    crac_testing::state(pid.as_raw_nonzero().get().cast_unsigned())
}

/// The process that writes the image, if it is not gone.
fn copy_of(pid: u32) -> Option<Pid> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|task| task.unwrap().path());
    let children = tasks.filter_map(|task| std::fs::read_to_string(task.join("children")).ok());
    let children: Vec<i32> =
        children.flat_map(|text| text.split(' ').filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect();
    assert!(children.len() <= 1, "one copy: {children:?}");
    children.first().and_then(|pid| Pid::from_raw(*pid))
}

#[test]
fn the_service_and_a_life_from_its_image_run_side_by_side() {
    let lab = Lab::new();
    let mut service = lab.web_server(&[]);
    service.get("/counter");
    let image = lab.file("web.crac");
    let pid = service.pid().to_string();
    let outcome = lab.crac_ok([
        "checkpoint".as_ref(),
        pid.as_ref(),
        "--continue".as_ref(),
        "--json".as_ref(),
        "--image".as_ref(),
        image.as_os_str(),
    ]);
    let outcome: Value = serde_json::from_str(&outcome).unwrap();
    assert!(outcome["frozen_us"].as_u64() < outcome["elapsed_us"].as_u64(), "{outcome}");
    assert!(service.is_running());
    assert_eq!(service.get("/counter").body.trim(), "2");
    lab.crac_ok(["verify".as_ref(), image.as_os_str()]);

    let restored = lab.restore(&image, &[]);
    assert_eq!(restored.get("/counter").body.trim(), "2", "the state is that of the capture");
    assert_eq!(restored.get("/counter").body.trim(), "3");
    assert_eq!(service.get("/counter").body.trim(), "3");
    let [mine, other] = [&service, &restored].map(|service| service.get("/instance").json());
    assert_eq!((&mine["generation"], &other["generation"]), (&0.into(), &1.into()));
    assert_ne!(mine["instance_id"], other["instance_id"]);

    // The same again, of the one and of the other, and then the end of the first.
    for service in [&service, &restored] {
        let again = lab.file("again.crac");
        let pid = service.pid().to_string();
        lab.crac_ok(["checkpoint".as_ref(), pid.as_ref(), "--continue".as_ref(), "--image".as_ref(), again.as_os_str()]);
        assert_eq!(lab.restore(&again, &[]).get("/counter").body.trim(), "4");
    }
    lab.crac_ok(["checkpoint".as_ref(), pid.as_ref(), "--image".as_ref(), image.as_os_str()]);
    assert!(service.wait().success());
}

#[test]
fn connections_that_arrive_while_the_image_is_written_are_served_by_the_original() {
    let lab = Lab::new();
    let service = lab.web_server(&["--warm-mib", "128"]);
    let image = lab.file("web.crac");
    let underway = Underway::begin(&lab, &service, &image);
    for count in 1..=20 {
        assert_eq!(service.get("/counter").body.trim(), count.to_string());
    }
    assert!(!image.exists(), "there is no image before it is whole");
    let denied = lab.crac(["checkpoint", &service.pid().to_string()]);
    assert_eq!(denied.status.code(), Some(4), "one capture at a time");
    let replies = underway.end(Signal::CONT);
    assert!(replies.iter().any(|reply| reply["is"] == "durable"), "{replies:?}");
    assert_eq!(replies.last().unwrap()["ending"], "continued");
    assert_eq!(lab.restore(&image, &[]).get("/counter").body.trim(), "1", "none of those requests is in the image");
}

#[test]
fn a_copy_that_is_killed_leaves_the_original_untouched() {
    let lab = Lab::new();
    let mut service = lab.web_server(&["--warm-mib", "128"]);
    let images = lab.file("images");
    std::fs::create_dir(&images).unwrap();
    let underway = Underway::begin(&lab, &service, &images.join("w.crac"));
    let replies = underway.end(Signal::KILL);
    let report = replies.last().unwrap();
    assert_eq!(report["ending"], "aborted", "{report}");
    assert!(report["failures"].to_string().contains("was ended"), "{report}");
    assert_eq!(std::fs::read_dir(&images).unwrap().count(), 0, "something was left behind");
    assert_eq!(service.get("/counter").body.trim(), "1");
    let image = images.join("w.crac");
    lab.crac_ok(["checkpoint".as_ref(), service.pid().to_string().as_ref(), "--image".as_ref(), image.as_os_str()]);
    assert!(service.wait().success());
    assert_eq!(lab.restore(&image, &[]).get("/counter").body.trim(), "2");
}

#[test]
fn a_copy_ends_with_the_service() {
    let lab = Lab::new();
    let mut service = lab.web_server(&["--warm-mib", "128"]);
    let images = lab.file("images");
    std::fs::create_dir(&images).unwrap();
    let underway = Underway::begin(&lab, &service, &images.join("w.crac"));
    let copy = underway.copy;
    service.signal(Signal::KILL);
    assert!(!service.wait().success());
    crac_testing::wait_until("the copy ends", || matches!(state(copy), Some('Z') | None).then_some(()));
    assert_eq!(std::fs::read_dir(&images).unwrap().count(), 0, "something was left behind");
}
