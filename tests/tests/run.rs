//! The line for ENTRYPOINT and ExecStart: restore if it fits, else start cold and take an image.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crac_testing::{
    lab::{Lab, Service, free_addr, text},
    programs::program,
    wait_until,
};
use rustix::process::Signal;

fn run(lab: &Lab, image: &str, on: &str) -> Service {
    let addr = free_addr();
    let mut command = lab.command(program("crac"));
    command.args(["run", "--image", image, "--checkpoint-on", on, "--"]).arg(program("web-server"));
    command.args(["--listen", &addr.to_string(), "--warm-mib", "1"]);
    Service::start(command, addr).answering()
}

fn generation(service: &Service) -> u64 {
    service.get("/instance").json()["generation"].as_u64().expect("a number")
}

#[test]
fn the_first_start_is_cold_takes_the_image_and_becomes_it_and_the_second_restores() {
    let lab = Lab::new();
    let first = run(&lab, "web.crac", "ready");
    wait_until("the service has become its image", || {
        let answer = crac_testing::http::exchange(first.addr, "GET", "/instance", "").ok()?;
        (answer.status == 200 && answer.json()["generation"] == 1).then_some(())
    });
    assert!(lab.file("web.crac").is_file());
    assert!(first.output().contains("cold"), "it says why it starts cold: {}", first.output());
    drop(first);
    let second = run(&lab, "web.crac", "ready");
    assert_eq!(generation(&second), 1, "{}", second.output());
}

#[test]
fn never_takes_no_image() {
    let lab = Lab::new();
    let service = run(&lab, "web.crac", "never");
    assert_eq!(generation(&service), 0);
    assert!(!lab.file("web.crac").exists());
}

#[test]
fn a_damaged_image_starts_cold_and_says_so() {
    let lab = Lab::new();
    std::fs::write(lab.file("web.crac"), "rubbish").unwrap();
    let service = run(&lab, "web.crac", "never");
    assert_eq!(generation(&service), 0);
    assert!(service.output().contains("web.crac"), "{}", service.output());
}

#[test]
fn signals_and_exit_status_pass_through() {
    let lab = Lab::new();
    let mut service = run(&lab, "web.crac", "never");
    service.signal(Signal::KILL);
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&service.wait()), Some(9));
    let output = lab.crac(["run", "--image", "x.crac", "--", "sh", "-c", "exit 7"]);
    assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
    let output = lab.crac(["run", "--image", "x.crac", "--", "no-such-program-anywhere"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
}
