//! The audit of a real process. Every test holds things of its own kind only, since all run in one process, and looks for
//! its own finding.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::{
    fs::File,
    net::{TcpListener, TcpStream},
    os::{
        fd::AsRawFd,
        unix::net::{UnixListener, UnixStream},
    },
    process::{Command, Stdio},
};

use crac_audit::{Auditor, ThreadFamily};
use crac_core::{Mode, Needs, Obstacle, ObstacleKind, Policy};

const NEEDS: Needs = Needs::new("native", &[Mode::Exit]);

fn audit(policy: &str, own: &[i32]) -> Vec<Obstacle> {
    let policy: Policy = policy.parse().expect("a policy");
    Auditor::new().audit(&NEEDS, &policy, own).expect("/proc can be read")
}

fn find<'a>(obstacles: &'a [Obstacle], kind: ObstacleKind, start: &str) -> Option<&'a Obstacle> {
    obstacles.iter().find(|obstacle| obstacle.kind == kind && obstacle.subject.starts_with(start))
}

#[test]
fn a_connection_is_reported_with_both_addresses_and_a_likely_owner() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    let (here, there) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
    let found = audit("", &[]);
    let subject = format!("fd {}, TCP {here} -> {there}, ESTABLISHED", client.as_raw_fd());
    assert!(find(&found, ObstacleKind::TcpEstablished, &subject).is_some(), "{found:?}");
    let accepted = find(&found, ObstacleKind::TcpEstablished, &format!("fd {},", server.as_raw_fd())).unwrap();
    assert_eq!(accepted.owner.as_deref(), Some(&*format!("a server: accepted on {there}")));
    let listening = format!("fd {},", listener.as_raw_fd());
    assert!(find(&found, ObstacleKind::TcpEstablished, &listening).is_none(), "engines rebind listeners");

    // Whose peer has gone is still a connection.
    drop(client);
    let found = audit("", &[]);
    let half = find(&found, ObstacleKind::TcpEstablished, &format!("fd {},", server.as_raw_fd())).unwrap();
    assert!(half.subject.ends_with("CLOSE-WAIT") || half.subject.ends_with("ESTABLISHED"), "{half}");

    let start = format!("fd {},", server.as_raw_fd());
    for policy in [format!("tcp-established:{here} = sever"), "tcp-established = keep".into()] {
        assert!(find(&audit(&policy, &[]), ObstacleKind::TcpEstablished, &start).is_none(), "{policy}");
    }
    assert!(find(&audit("", &[server.as_raw_fd()]), ObstacleKind::TcpEstablished, &start).is_none(), "the round's own");
}

#[test]
fn a_unix_stream_counts_only_if_its_peer_is_elsewhere() {
    let (left, _right) = UnixStream::pair().unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut child =
        Command::new("cat").stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs))).stdout(Stdio::null()).spawn().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("s")).unwrap();
    let found = audit("", &[]);
    let of = |number: i32| find(&found, ObstacleKind::UnixConnected, &format!("fd {number},"));
    assert!(of(left.as_raw_fd()).is_none() && of(listener.as_raw_fd()).is_none(), "{found:?}");
    assert!(of(ours.as_raw_fd()).unwrap().subject.contains("another process"));
    let process = find(&found, ObstacleKind::Child, &format!("process {}", child.id())).unwrap();
    assert_eq!(process.owner.as_deref(), Some("the program cat"));
    assert!(
        find(&audit("unix-connected = sever", &[]), ObstacleKind::UnixConnected, &format!("fd {}", ours.as_raw_fd())).is_none()
    );
    drop(ours);
    child.wait().unwrap();
    let start = format!("process {}", child.id());
    assert!(find(&audit("", &[]), ObstacleKind::Child, &start).is_none(), "it was waited for");
}

#[test]
fn a_child_that_was_not_waited_for_is_named() {
    let mut child = Command::new("true").spawn().unwrap();
    let mut status = String::new();
    // Waits for its end without reaping it: its standard output would be closed, but `true` has none; its state tells.
    while !status.contains("State:\tZ") {
        status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        std::thread::yield_now();
    }
    let found = audit("", &[]);
    let obstacle = find(&found, ObstacleKind::Child, &format!("process {}", child.id())).unwrap();
    assert_eq!(obstacle.owner.as_deref(), Some("the program true, which has ended and was not waited for"));
    child.wait().unwrap();
}

#[test]
fn a_lock_is_reported_with_the_file_and_the_call() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("orders.db");
    let file = File::create(&path).unwrap();
    file.lock().unwrap();
    let duplicate = file.try_clone().unwrap();
    let found = audit("", &[]);
    let subject = format!(", {}, locked by flock(2)", path.display());
    let locks: Vec<_> = found.iter().filter(|o| o.kind == ObstacleKind::FileLock && o.subject.ends_with(&subject)).collect();
    assert_eq!(locks.len(), 1, "once for fd {} and {}: {found:?}", file.as_raw_fd(), duplicate.as_raw_fd());
    assert_eq!(locks[0].owner.as_deref(), Some("SQLite"));
    file.unlock().unwrap();
    assert!(!audit("", &[]).iter().any(|obstacle| obstacle.subject.ends_with(&subject)));
}

#[test]
fn a_tracer_is_named() {
    const VARIABLE: &str = "CRAC_AUDIT_TEST_TRACED";
    if std::env::var_os(VARIABLE).is_some() {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).unwrap();
        let found = audit("", &[]);
        println!("\nfound: {}", find(&found, ObstacleKind::Tracer, "process ").map_or("nobody", |found| &found.subject));
        return;
    }
    assert!(find(&audit("", &[]), ObstacleKind::Tracer, "").is_none());
    let mut traced = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_tracer_is_named", "--nocapture"])
        .env(VARIABLE, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    #[expect(unsafe_code, reason = "ptrace is not in the standard library")]
    // SAFETY: PTRACE_SEIZE takes no pointer that is followed; the process is our own child.
    let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, traced.id() as libc::pid_t, 0, 0) };
    if seized != 0 {
        println!("skipped: a_tracer_is_named: ptrace is not allowed here: {}", std::io::Error::last_os_error());
        traced.kill().unwrap();
        traced.wait().unwrap();
        return;
    }
    std::io::Write::write_all(&mut traced.stdin.take().unwrap(), b"go\n").unwrap();
    let output = std::io::read_to_string(traced.stdout.take().unwrap()).unwrap();
    // The kernel names the tracing thread.
    let expected = format!("found: process {} traces this one", crac_sys::process::tid());
    assert!(output.contains(&expected), "{output}");
    traced.wait().unwrap();
}

#[test]
fn an_engine_that_keeps_descriptors_hears_of_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let needs = NEEDS.with_descriptors(false);
    assert_eq!(Auditor::new().audit(&needs, &Policy::new(), &[]).unwrap(), []);
}

#[test]
fn threads_are_listed_by_name() {
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let (started, wait) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new()
        .name("sqlx-sqlite-worker-7".into())
        .spawn(move || {
            started.send(()).unwrap();
            assert!(stopped.recv().is_err(), "nothing is sent");
        })
        .unwrap();
    wait.recv().unwrap();
    let threads = Auditor::new().threads().unwrap();
    let worker = threads.iter().find(|thread| thread.family == ThreadFamily::SqlxSqlite).unwrap();
    assert_eq!(worker.name, "sqlx-sqlite-wor");
    drop(stop);
    thread.join().unwrap();
}
