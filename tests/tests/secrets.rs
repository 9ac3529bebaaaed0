//! Canaries in every place that secrets pass: none of them may be in an image, a temporary file or a log.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
};

use crac_testing::{
    lab::{Lab, Service, free_addr, text},
    programs::program,
};

const PASSWORD: &str = "canary-password-5b1e7c0a";
const KEY: &str = "canary-key-93d2f4e871";
const BODY: &str = "canary-body-a07be5c2d9";
const HEADER: &str = "canary-header-71c8e0f3b6";

fn start(lab: &Lab, args: &[&str]) -> Service {
    std::fs::create_dir_all(lab.file("keys")).unwrap();
    std::fs::write(lab.file("keys/key"), KEY).unwrap();
    let addr = free_addr();
    let mut command = lab.command(program("canaries"));
    command.args(["--listen", &addr.to_string()]).args(args);
    command.env("CANARY_PASSWORD", PASSWORD).env("CANARY_KEY_FILE", lab.file("keys/key")).env("RUST_LOG", "trace");
    Service::start(command, addr).answering()
}

/// A request with canaries in its body and a header.
fn tell(service: &Service) {
    let mut stream = TcpStream::connect(service.addr).unwrap();
    let body = BODY.repeat(20);
    let length = body.len();
    write!(
        stream,
        "POST /take HTTP/1.1\r\nhost: test\r\nauthorization: {HEADER}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with(&format!("{length} {}", HEADER.len())), "{answer}");
}

fn checkpoint(lab: &Lab, service: &mut Service, image: &Path) {
    lab.crac_ok(["checkpoint".as_ref(), service.pid().to_string().as_ref(), "--image".as_ref(), image.as_os_str()]);
    assert!(service.wait().success(), "{}", service.output());
}

/// The files below `dir` that hold one of `canaries`.
fn holding(dir: &Path, canaries: &[&str]) -> Vec<PathBuf> {
    let mut command = Command::new("grep");
    command.args(["--recursive", "--text", "--fixed-strings", "--files-with-matches"]);
    let output = command.args(canaries.iter().flat_map(|canary| ["-e", canary])).arg(dir).output().unwrap();
    text(&output.stdout).lines().map(PathBuf::from).collect()
}

#[test]
fn no_canary_is_in_the_image_a_temporary_file_or_a_log() {
    let lab = Lab::new();
    let mut service = start(&lab, &[]);
    for _ in 0..10 {
        tell(&service);
    }
    let expected = format!("{} {}", PASSWORD.len(), KEY.len());
    assert_eq!(service.get("/lengths").body, expected);
    let image = lab.file("c.crac");
    // A process that goes on keeps its secrets, and its image has none either.
    let pid = service.pid().to_string();
    let beside = lab.file("beside.crac");
    lab.crac_ok(["checkpoint".as_ref(), pid.as_ref(), "--continue".as_ref(), "--image".as_ref(), beside.as_os_str()]);
    assert_eq!(service.get("/lengths").body, expected);
    checkpoint(&lab, &mut service, &image);

    let [of_key, image_path] = ["keys/key", "c.crac"].map(|name| lab.file(name));
    assert!(image_path.is_file() && beside.is_file());
    let found = holding(lab.path(), &[PASSWORD, KEY, BODY, HEADER]);
    assert_eq!(found, [of_key], "only where the key is kept");
    let log = service.output();
    assert!([PASSWORD, KEY, BODY, HEADER].iter().all(|canary| !log.contains(canary)), "{log}");

    // The restored life has got them anew, from where it was told.
    let addr = free_addr();
    let mut command = lab.command(program("crac"));
    command.arg("restore").arg(&image).args(["--", "--listen", &addr.to_string()]).env("CANARY_PASSWORD", "another-one");
    let restored = Service::start(command, addr).answering();
    assert_eq!(restored.get("/lengths").body, format!("{} {}", "another-one".len(), KEY.len()));
    let without = lab.crac(["restore".as_ref(), image.as_os_str()]);
    assert_eq!(without.status.code(), Some(23), "{}", text(&without.stderr));
    assert!(text(&without.stderr).contains("CANARY_PASSWORD"), "{}", text(&without.stderr));
}

#[test]
fn a_forgotten_copy_is_found_and_not_shown() {
    let lab = Lab::new();
    let mut service = start(&lab, &["--careless"]);
    let image = lab.file("c.crac");
    checkpoint(&lab, &mut service, &image);
    let mut command = lab.command(program("crac"));
    command.args(["inspect", "--find-secrets", "--secret-env", "LOOK_FOR", "--json"]).arg(&image).env("LOOK_FOR", KEY);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let finding = found.as_array().unwrap().iter().find(|finding| finding["what"] == "variable LOOK_FOR").expect("it is there");
    assert_eq!(finding["places"][0]["region"], "heap", "{finding}");
    let offset = finding["places"][0]["file_offset"].as_u64().unwrap() as usize;
    assert_eq!(&std::fs::read(&image).unwrap()[offset..offset + KEY.len()], KEY.as_bytes());
    assert!(!text(&output.stdout).contains(KEY) && !text(&output.stderr).contains(KEY));
}

#[test]
fn a_pristine_service_is_not_saved_once_it_has_served() {
    let lab = Lab::new();
    let addr = free_addr();
    let mut command = lab.command(program("canaries"));
    std::fs::write(lab.file("key"), KEY).unwrap();
    command.args(["--listen", &addr.to_string()]).env("CRAC_POLICY", "pristine");
    command.env("CANARY_PASSWORD", PASSWORD).env("CANARY_KEY_FILE", lab.file("key"));
    let mut service = Service::start(command, addr);
    // Its control socket says that it is there, without a request.
    crac_testing::wait_until("it is ready", || lab.crac(["check", "canaries"]).status.success().then_some(()));
    service.get("/");
    let refused = lab.crac(["checkpoint", "canaries"]);
    assert_eq!(refused.status.code(), Some(4), "{}", text(&refused.stderr));
    assert!(text(&refused.stdout).contains("request-served"), "{}", text(&refused.stdout));
    assert!(service.is_running());
}
