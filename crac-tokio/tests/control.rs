//! The control socket as a client sees it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::Arc,
    time::Duration,
};

use crac_core::{
    BoxError, CheckpointContext, Context, Gate, Mode, Resource, ResourceOptions, RoundEnding, SimEngine, SimScript, async_trait,
    control::{ControlReply, REQUEST_BYTES_MAX},
};
use crac_tokio::control;

struct Setup {
    context: Context,
    engine: Arc<SimEngine>,
    control: control::Control,
    _dir: tempfile::TempDir,
}

fn setup() -> Setup {
    let engine = Arc::new(SimEngine::new());
    let context = Context::builder("orders", engine.clone()).build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let control = control::serve(&context, Some(&dir.path().join("run"))).unwrap();
    Setup { context, engine, control, _dir: dir }
}

/// Sends `line`; what came back until the end of file.
fn ask(path: &Path, line: &str) -> Vec<ControlReply> {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // In one write: a server that has heard enough ends the connection under a second one.
    stream.write_all(format!("{line}\n").as_bytes()).unwrap();
    replies(stream)
}

fn replies(stream: UnixStream) -> Vec<ControlReply> {
    BufReader::new(stream).lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect()
}

const CONTINUE: &str = r#"{"do":"checkpoint","mode":"continue","image":"/nowhere/orders.crac"}"#;

#[test]
fn a_checkpoint_is_told_step_by_step_and_ends_with_the_report() {
    let setup = setup();
    let path = setup.control.path().unwrap();
    let replies = ask(&path, CONTINUE);
    assert!(matches!(replies.first(), Some(ControlReply::Progress(_))), "{replies:?}");
    assert!(replies.iter().any(|reply| matches!(reply, ControlReply::Planned { .. })), "{replies:?}");
    let Some(ControlReply::Report(report)) = replies.last() else { panic!("{replies:?}") };
    assert_eq!((report.ending, report.image.as_path()), (RoundEnding::Continued, Path::new("/nowhere/orders.crac")));
    assert_eq!(setup.control.path(), Some(path), "the socket is back after the round");
}

#[test]
fn a_refusal_comes_as_a_report_too() {
    let setup = setup();
    setup.engine.then(SimScript::Panic);
    let replies = ask(&setup.control.path().unwrap(), CONTINUE);
    let Some(ControlReply::Report(report)) = replies.last() else { panic!("{replies:?}") };
    assert_eq!((report.ending, report.failures.len()), (RoundEnding::Aborted, 1));
}

#[test]
fn status_names_the_service() {
    let setup = setup();
    let replies = ask(&setup.control.path().unwrap(), r#"{"do":"status"}"#);
    let [ControlReply::Status(status)] = &replies[..] else { panic!("{replies:?}") };
    assert_eq!((status.name.as_str(), status.state.as_str()), ("orders", "open"));
}

#[test]
fn nonsense_is_answered_with_what_is_wrong() {
    let setup = setup();
    let path = setup.control.path().unwrap();
    let long = "x".repeat(REQUEST_BYTES_MAX + 2048);
    for (line, part) in [("rubbish", "not understood"), (r#"{"do":"reboot"}"#, "not understood"), (&long, "too long")] {
        let replies = ask(&path, line);
        assert!(matches!(&replies[..], [ControlReply::Error { what }] if what.contains(part)), "{part}: {replies:?}");
    }
    let stream = UnixStream::connect(&path).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(matches!(&replies(stream)[..], [ControlReply::Error { .. }]));
    assert_eq!(ask(&path, CONTINUE).len(), ask(&path, CONTINUE).len(), "it still serves");
}

struct Waits(Gate, Gate);

#[async_trait]
impl Resource for Waits {
    async fn before_checkpoint(&self, _context: &CheckpointContext) -> Result<(), BoxError> {
        self.0.open();
        self.1.opened().await;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_request_joins_or_is_denied_and_status_is_answered_meanwhile() {
    let setup = setup();
    let (begun, go_on) = (Gate::new("begun"), Gate::new("go on"));
    begun.shut();
    go_on.shut();
    setup.context.register(ResourceOptions::new("waits"), Waits(begun.clone(), go_on.clone())).forever();
    let path = setup.control.path().unwrap();
    let asking = |line: &'static str| {
        let path = path.clone();
        tokio::task::spawn_blocking(move || ask(&path, line))
    };
    let first = asking(CONTINUE);
    begun.opened().await;
    let other = asking(r#"{"do":"checkpoint","mode":"exit","image":"/elsewhere"}"#).await.unwrap();
    assert!(matches!(&other[..], [ControlReply::Denied { .. }]), "{other:?}");
    let status = asking(r#"{"do":"status"}"#).await.unwrap();
    assert!(matches!(&status[..], [ControlReply::Status(status)] if status.state == "down"), "{status:?}");
    go_on.open();
    let first = first.await.unwrap();
    assert!(matches!(first.last(), Some(ControlReply::Report(_))), "{first:?}");
}

#[test]
fn the_socket_is_gone_while_the_process_is_saved_and_with_its_guard() {
    struct Looks(std::path::PathBuf);
    impl crac_core::Audit for Looks {
        fn audit(&self, _: &crac_core::Needs, _: &crac_core::Policy, own: &[i32]) -> Result<Vec<crac_core::Obstacle>, BoxError> {
            let sockets = std::fs::read_dir(&self.0)?.count();
            if sockets == 0 && own.len() == 1 { Ok(Vec::new()) } else { Err(format!("{sockets} sockets, own {own:?}").into()) }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let context = Context::builder("orders", Arc::new(SimEngine::new())).audit(Arc::new(Looks(run.clone()))).build().unwrap();
    let control = control::serve(&context, Some(&run)).unwrap();
    let replies = ask(&control.path().unwrap(), CONTINUE);
    let Some(ControlReply::Report(report)) = replies.last() else { panic!("{replies:?}") };
    assert_eq!(report.ending, RoundEnding::Continued, "{report}");
    drop(control);
    assert_eq!(std::fs::read_dir(&run).unwrap().count(), 0);
    assert!(matches!(
        context.request(crac_core::CheckpointRequest::new(Mode::Continue)).wait(Duration::from_secs(20)),
        Ok(Err(_))
    ));
}

const PREPARE: &str = r#"{"do":"prepare","mode":"continue","image":"/nowhere/orders.crac","limit_ms":600000}"#;

/// Sends `line` and reads until the service stands still.
fn prepare(path: &Path, line: &str) -> BufReader<UnixStream> {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(format!("{line}\n").as_bytes()).unwrap();
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = String::new();
        assert!(stream.read_line(&mut line).unwrap() > 0, "it never said that it is ready");
        if let ControlReply::Ready(ready) = serde_json::from_str(&line).unwrap() {
            assert_eq!(ready.service.name, "orders");
            return stream;
        }
    }
}

fn rest(stream: BufReader<UnixStream>) -> Vec<ControlReply> {
    stream.lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect()
}

#[test]
fn a_prepared_service_stands_still_until_its_asker_has_captured_it() {
    let setup = setup();
    let path = setup.control.path().unwrap();
    let stream = prepare(&path, PREPARE);
    assert_eq!(setup.context.status().state, "capturing");
    assert!(setup.control.path().is_none(), "nobody else is listened to meanwhile");
    stream.get_ref().write_all(b"{\"say\":\"captured\"}\n").unwrap();
    let replies = rest(stream);
    let Some(ControlReply::Report(report)) = replies.last() else { panic!("{replies:?}") };
    assert_eq!(report.ending, RoundEnding::Continued);
    assert_eq!(setup.control.path(), Some(path));
}

#[test]
fn whatever_becomes_of_the_asker_the_service_goes_on() {
    let setup = setup();
    let path = setup.control.path().unwrap();
    let gate = setup.context.gate("requests");
    let ended = |replies: Vec<ControlReply>| {
        let Some(ControlReply::Report(report)) = replies.last() else { panic!("{replies:?}") };
        assert_eq!((report.ending, report.failures.len()), (RoundEnding::Aborted, 1), "{report}");
        assert!(gate.enter().is_ok(), "the door is open");
        report.failures[0].what.clone()
    };

    // It says that it has failed.
    let stream = prepare(&path, PREPARE);
    stream.get_ref().write_all(b"{\"say\":\"failed\",\"what\":\"no luck\",\"hint\":\"hint: try again\"}\n").unwrap();
    assert!(ended(rest(stream)).contains("no luck; hint: try again"));

    // It says what nobody understands.
    let stream = prepare(&path, PREPARE);
    stream.get_ref().write_all(b"{\"say\":\"abracadabra\"}\n").unwrap();
    assert!(ended(rest(stream)).contains("has gone before its end"));

    // It has nothing more to say.
    let stream = prepare(&path, PREPARE);
    stream.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    assert!(ended(rest(stream)).contains("has gone before its end"));

    // It says nothing in time, and is told that its capture is worth nothing.
    let replies = rest(prepare(&path, &PREPARE.replace("600000", "1")));
    assert!(replies.iter().any(|reply| matches!(reply, ControlReply::Withdrawn)), "{replies:?}");
    assert!(ended(replies).contains("did not finish within 0.001 s"));
}

#[test]
fn a_round_from_outside_is_not_joined() {
    let setup = setup();
    let path = setup.control.path().unwrap();
    let stream = prepare(&path, PREPARE);
    let request = crac_core::CheckpointRequest::new(Mode::Continue).image("/nowhere/orders.crac");
    let ticket = setup.context.request(request);
    stream.get_ref().write_all(b"{\"say\":\"captured\"}\n").unwrap();
    let denied = ticket.wait(Duration::from_secs(20)).unwrap();
    assert!(matches!(denied, Err(crac_core::CheckpointError::Denied(crac_core::Denial::Busy))), "{denied:?}");
    assert!(matches!(rest(stream).last(), Some(ControlReply::Report(_))));
}
