//! What `#[crac::main]` does to a program, seen from outside: this test starts itself as one service after another.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::{
    process::{Command, ExitCode, Output, Stdio},
    rc::Rc,
    time::Duration,
};

/// Which service this process is to be, if it was started by a test.
const SERVICE: &str = "CRAC_TEST_SERVICE";

fn start(service: &str, vars: &[(&str, &str)]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "be_the_service", "--nocapture", "--test-threads=1"])
        .env(SERVICE, service)
        .env("CRAC_RUN_DIR", dir.path().join("run"))
        .env("CRAC_ENGINE", "sim")
        .envs(vars.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Not a test of its own: the body of the services.
#[test]
fn be_the_service() {
    let Ok(service) = std::env::var(SERVICE) else { return };
    let status = match service.as_str() {
        "restored" => restored(),
        "current_thread" => current_thread(),
        "local" => local(),
        "panics" => panics(),
        "fails" => match fails() {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("Error: {error:?}");
                1
            }
        },
        "code" => return assert_eq!(code(), ExitCode::from(7)),
        other => panic!("no service {other}"),
    };
    std::process::exit(status)
}

#[crac::main(name = "restored", worker_threads = 2)]
async fn restored() -> i32 {
    let not_send = Rc::new(5);
    let (before, id) = (crac::generation(), crac::life().unwrap().instance_id());
    let answer = crac::checkpoint(crac::Mode::Exit).await;
    let Ok(crac::Completed::Restored(life, report)) = answer else {
        eprintln!("{answer:?}");
        return 1;
    };
    println!("threads held: {}", report.held_threads);
    let root_swept = !report.unswept.iter().any(|thread| thread.starts_with("be_the_service"));
    let fresh = life.generation() == before + 1 && life.instance_id() != id && crac::generation() == 1;
    assert_eq!((crac::Context::current().unwrap().name().as_str(), *not_send), ("restored", 5));
    if fresh && root_swept && report.held_threads >= 3 { 0 } else { 1 }
}

#[crac::main(flavor = "current_thread")]
async fn current_thread() -> i32 {
    let here = std::thread::current().id();
    let there = tokio::spawn(async { std::thread::current().id() }).await.unwrap();
    let answer = crac::checkpoint(crac::Mode::Continue).await;
    if here == there && matches!(answer, Ok(crac::Completed::Continued(_))) { 0 } else { 1 }
}

#[crac::main(flavor = "local")]
async fn local() -> i32 {
    let shared = Rc::new(std::cell::Cell::new(0));
    let other = shared.clone();
    tokio::task::spawn_local(async move { other.set(3) }).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    let answer = crac::checkpoint(crac::Mode::Continue).await;
    if shared.get() == 3 && matches!(answer, Ok(crac::Completed::Continued(_))) { 0 } else { 1 }
}

#[crac::main]
async fn panics() -> i32 {
    panic!("on purpose")
}

#[crac::main]
async fn fails() -> Result<(), std::num::ParseIntError> {
    "x".parse::<i32>()?;
    Ok(())
}

#[crac::main]
async fn code() -> ExitCode {
    ExitCode::from(7)
}

#[test]
fn every_flavor_runs_and_is_held() {
    for service in ["restored", "current_thread", "local"] {
        let output = start(service, &[]);
        assert!(output.status.success(), "{service}: {}", said(&output));
    }
}

#[test]
fn a_panic_of_the_body_and_its_return_value_reach_main() {
    let output = start("panics", &[]);
    assert_eq!(output.status.code(), Some(101), "{}", said(&output));
    let output = start("fails", &[]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("ParseIntError"), "{}", said(&output));
    assert!(start("code", &[]).status.success());
}

#[test]
fn a_setting_that_is_not_understood_ends_the_program_before_its_body() {
    let output = start("panics", &[("CRAC_HOOK_DEADLINE", "soon")]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("CRAC_HOOK_DEADLINE: `soon` is not a duration"), "{}", said(&output));
    assert!(!said(&output).contains("on purpose"));
}

#[test]
fn the_environment_names_the_service_and_its_policy() {
    let output = start("restored", &[("CRAC_NAME", "other")]);
    assert_eq!(output.status.code(), Some(101), "it expects its own name: {}", said(&output));
    let output = start("restored", &[("CRAC_POLICY_FILE", "/nowhere/policy.toml")]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("/nowhere/policy.toml"), "{}", said(&output));
}
