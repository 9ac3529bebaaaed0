//! The whole way without privilege: in a container's default seccomp profile.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crac_testing::{
    lab::{Lab, Service, free_addr, text},
    programs::program,
};

#[test]
fn checkpoint_and_restore_work_under_a_default_seccomp_profile() {
    let lab = Lab::new();
    let addr = free_addr();
    let mut command = lab.command(program("confined"));
    command.arg(program("web-server")).args(["--listen", &addr.to_string(), "--warm-mib", "1"]);
    let mut service = Service::start(command, addr).answering();
    service.get("/counter");
    let image = lab.file("web.crac");
    for generation in 1..=3 {
        lab.crac_ok(["checkpoint".as_ref(), service.pid().to_string().as_ref(), "--image".as_ref(), image.as_os_str()]);
        assert!(service.wait().success(), "{}", service.output());
        let addr = free_addr();
        let mut command = lab.command(program("confined"));
        command.arg(program("crac")).arg("restore").arg(&image).args(["--", "--listen", &addr.to_string()]);
        service = Service::start(command, addr).answering();
        assert_eq!(service.get("/instance").json()["generation"], generation);
    }
    assert_eq!(service.get("/counter").body.trim(), "2");
    let refused = lab.command(program("confined")).args(["unshare", "--user", "true"]).output().unwrap();
    assert!(!refused.status.success(), "the profile is not in force: {}", text(&refused.stderr));
}
