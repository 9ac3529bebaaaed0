//! The monotonic clock of a restored service goes on from where it stood, on whatever host.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crac_testing::{
    http,
    lab::{Lab, Service, free_addr, text},
    programs::program,
    wait_until,
};

/// A web server with one variable more in its environment.
fn web_server(lab: &Lab, variables: &[(&str, &str)]) -> Service {
    let addr = free_addr();
    let mut command = lab.command(program("web-server"));
    command.args(["--listen", &addr.to_string(), "--warm-mib", "1"]).envs(variables.iter().copied());
    Service::start(command, addr).answering()
}

fn checkpoint(lab: &Lab, service: &mut Service, image: &std::path::Path) {
    lab.crac_ok(["checkpoint".as_ref(), service.pid().to_string().as_ref(), "--image".as_ref(), image.as_os_str()]);
    let status = service.wait();
    assert!(status.success(), "{status}\n{}", service.output());
}

/// Waits until the interval has ticked `more` times, and tells what it saw.
fn ticked(service: &Service, more: u64) -> serde_json::Value {
    let first = service.get("/ticks").json()["ticks"].as_u64().unwrap();
    wait_until("more ticks", || {
        let seen = service.get("/ticks").json();
        (seen["ticks"].as_u64()? >= first + more).then_some(seen)
    })
}

#[test]
fn a_downtime_makes_no_burst() {
    let lab = Lab::new();
    let mut service = web_server(&lab, &[]);
    ticked(&service, 3);
    let image = lab.file("web.crac");
    checkpoint(&lab, &mut service, &image);
    // Sixty ticks' time: that it passes is what is looked at.
    std::thread::sleep(std::time::Duration::from_secs(3));
    let restored = lab.restore(&image, &[]);
    let seen = ticked(&restored, 3);
    assert!(seen["burst_max"].as_u64().unwrap() < 30, "{seen}");
    assert!(seen["gap_max_ms"].as_f64().unwrap() < 2500.0, "{seen}");
    assert!(restored.get("/instance").json()["asleep_ms"].as_f64().unwrap() >= 3000.0);
}

#[test]
fn a_downtime_that_has_passed_is_caught_up() {
    let lab = Lab::new();
    let mut service = web_server(&lab, &[("CRAC_DOWNTIME", "elapsed")]);
    ticked(&service, 3);
    let image = lab.file("web.crac");
    checkpoint(&lab, &mut service, &image);
    std::thread::sleep(std::time::Duration::from_secs(3));
    let seen = ticked(&lab.restore(&image, &[]), 3);
    assert!(seen["burst_max"].as_u64().unwrap() >= 30, "{seen}");
}

#[test]
fn services_whose_clocks_are_far_off_come_back_like_others() {
    for shift in ["+10d", "-10d", "+5s", "-5s"] {
        let lab = Lab::new();
        let mut service = web_server(&lab, &[("CRAC_CLOCK_CHAOS", shift)]);
        assert_eq!(service.get("/counter").body.trim(), "1");
        ticked(&service, 3);
        // The image of a life that is days ahead of its kernel is like one from a host with a long uptime.
        for generation in 1..=2_u64 {
            let image = lab.file(&format!("{generation}.crac"));
            checkpoint(&lab, &mut service, &image);
            let inspected = lab.crac_ok(["inspect".as_ref(), image.as_os_str()]);
            assert!(inspected.contains("go on from where they stood (proxy); downtime frozen"), "{inspected}");
            service = lab.restore(&image, &[]);
            assert_eq!(service.get("/instance").json()["generation"], generation);
            let seen = ticked(&service, 3);
            assert!(seen["burst_max"].as_u64().unwrap() < 30, "{shift}: {seen}");
        }
        assert_eq!(service.get("/counter").body.trim(), "2");
        assert_eq!(http::exchange(service.addr, "POST", "/orders", "late").unwrap().status / 100, 2);
        assert!(service.get("/slow?ms=50").status < 300);
    }
}

#[test]
fn a_shift_that_is_not_understood_ends_the_service() {
    let lab = Lab::new();
    let mut command = lab.command(program("web-server"));
    let output = command.env("CRAC_CLOCK_CHAOS", "10 days").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("CRAC_CLOCK_CHAOS: `10 days` is not a shift such as"), "{}", text(&output.stderr));
}
