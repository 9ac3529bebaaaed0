//! Whatever fails, and whenever the process is killed: the service goes on or is gone, and an image is whole or not there.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crac_core::Mode;
use crac_native::{FAULT_POINTS, FaultPoint};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use super::{finish, lines_of, program};

/// How long a process may take to end. None comes near it.
const PATIENCE: Duration = Duration::from_secs(60);
/// More arrivals than any point has.
const ARRIVALS_MAX: u32 = 2000;

/// Which arrivals at a point are tried: of many writes the first ones and some of the others, or the first one alone.
fn arrivals(many: bool) -> impl Iterator<Item = u32> {
    let some = (1..6).chain((6..).step_by(10));
    some.take(if many { usize::MAX } else { 1 })
}

/// The points that a capture in `mode` comes through, each with an empty directory of its own.
fn points(dir: &Path, mode: Mode) -> impl Iterator<Item = (&'static FaultPoint, PathBuf)> {
    FAULT_POINTS.iter().filter(move |point| point.modes.contains(&mode)).map(move |point| {
        let own = dir.join(format!("{mode}-{}", point.name));
        std::fs::create_dir(&own).expect("room");
        (point, own)
    })
}

fn arguments(name: &str, dir: &Path, mode: Mode, point: &FaultPoint) -> Command {
    let mut command = program(name);
    command.args([format!("--dir={}", dir.display()), format!("--mode={mode}"), format!("--point={}", point.name)]);
    command
}

/// The files in `dir`, in order.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(dir).expect("own directory").map(|entry| entry.expect("own file").path()).collect();
    files.sort();
    files
}

pub(super) fn everywhere(dir: &Path, mode: Mode) {
    for (point, own) in points(dir, mode) {
        let mut lines = lines_of(&finish(&mut arguments("faults", &own, mode, point)));
        // In exit mode each capture that goes through is the end of a process; the newest image goes on.
        for _ in 0..10 {
            if !lines.is_empty() {
                break;
            }
            lines = lines_of(&finish(&mut Command::new(files(&own).pop().expect("an image"))));
        }
        let failed: u32 = match &lines[..] {
            [line] => line.split(' ').nth(2).expect("a number").parse().expect("a number"),
            _ => panic!("{}: {lines:?}", point.name),
        };
        match point.name {
            "write" => assert!(failed > 10, "{failed} writes"),
            name => assert_eq!(failed, 1, "{name}"),
        }
    }
}

/// The first image and, for `rename`, what it replaces have this name.
fn image(own: &Path) -> PathBuf {
    own.join("0001.crac")
}

pub(super) fn kills(dir: &Path, mode: Mode) {
    for nameless in [true, false] {
        let dir = dir.join(if nameless { "nameless" } else { "named" });
        std::fs::create_dir(&dir).expect("room");
        // A file with a name from the beginning is not linked.
        let own = points(&dir, mode).filter(|(point, _)| nameless || point.name != "link");
        for (point, own) in own.filter(|(point, _)| mode != Mode::Continue || !point.in_copy) {
            for nth in arrivals(nameless) {
                if !killed_at(&own, mode, point, nth, nameless) {
                    assert!(nth > 1, "{} is never reached", point.name);
                    break;
                }
                assert!(nth < ARRIVALS_MAX, "{} has no end", point.name);
            }
        }
    }
}

/// Kills the process where it has stopped by itself, and looks what it leaves behind. Whether it came to the `nth` arrival at all.
fn killed_at(own: &Path, mode: Mode, point: &FaultPoint, nth: u32, nameless: bool) -> bool {
    let mut command = arguments("stops", own, mode, point);
    if !nameless {
        command.env("CRAC_TEST_NO_TMPFILE", "1");
    }
    let child = command.arg(format!("--nth={nth}")).stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("it starts");
    let was_stopped = stopped(child);
    if was_stopped {
        whole_or_nothing(own, point, nameless);
    }
    for file in files(own) {
        std::fs::remove_file(file).expect("own file");
    }
    was_stopped
}

/// Waits until the process has stopped, and kills it; or until it has ended well. Then nothing is left to be waited for.
pub(super) fn stopped(child: Child) -> bool {
    let pid = Pid::from_child(&child);
    let wait = |options| waitpid(Some(pid), options).expect("own child").expect("nobody said not to wait").1;
    let status = wait(WaitOptions::UNTRACED);
    if !status.stopped() {
        assert_eq!(status.exit_status(), Some(0), "{status:?}");
        return false;
    }
    kill_process(pid, Signal::KILL).expect("own child");
    assert_eq!(wait(WaitOptions::empty()).terminating_signal(), Some(Signal::KILL.as_raw()));
    true
}

/// Under the name there is nothing, what was there before, or a whole image that runs; and nothing else, unless the file had to
/// have a name while it was written or was about to replace another one.
fn whole_or_nothing(own: &Path, point: &FaultPoint, nameless: bool) {
    let (name, at) = (image(own), point.name);
    if name.exists() && std::fs::read(&name).expect("own file") != b"old" {
        crac_native::image::verify(&std::fs::File::open(&name).expect("own file")).expect("whole");
        assert_eq!(lines_of(&finish(&mut Command::new(&name))).last().map(String::as_str), Some("whole"), "{at}");
    }
    let others: Vec<_> = files(own).into_iter().filter(|file| *file != name).collect();
    let known = |file: &PathBuf| file.extension().is_some_and(|extension| extension == "tmp");
    assert!(others.is_empty() || others.iter().all(known) && (!nameless || at == "rename"), "{at}: {others:?}");
}

pub(super) fn copies(dir: &Path) {
    for nameless in [true, false] {
        let dir = dir.join(if nameless { "nameless" } else { "named" });
        std::fs::create_dir(&dir).expect("room");
        let points = points(&dir, Mode::Continue).filter(|(point, _)| point.in_copy && (nameless || point.name != "link"));
        for (point, own) in points {
            for then in ["kill", "drop", "late", "never"] {
                for nth in arrivals(nameless && then == "kill") {
                    let mut command = arguments("stops", &own, Mode::Continue, point);
                    if !nameless {
                        command.env("CRAC_TEST_NO_TMPFILE", "1");
                    }
                    let lines = lines_of(&finish(command.args([format!("--nth={nth}"), format!("--then={then}")])));
                    for file in files(&own) {
                        std::fs::remove_file(file).expect("own file");
                    }
                    match lines.last().map(String::as_str) {
                        Some("whole") => {
                            assert!(nth > 1, "{} is never reached", point.name);
                            break;
                        }
                        // It has its name, and only nobody was told: that is an image.
                        Some("stopped and whole") => assert_eq!(point.name, "name"),
                        Some(said) if ["drop", "never"].contains(&then) => assert_eq!(said, "stopped given up"),
                        Some(said) => assert!(said.contains("was ended"), "{}: {said}", point.name),
                        None => panic!("{} says nothing", point.name),
                    }
                }
            }
        }
    }
}

pub(super) fn orphans(dir: &Path) {
    for (point, own) in points(dir, Mode::Continue).filter(|(point, _)| point.in_copy) {
        for then in ["wait", "unwaited"] {
            let mut command = arguments("stops", &own, Mode::Continue, point);
            let then = format!("--then={then}");
            let mut child = command.args(["--nth=1", &then]).stdout(Stdio::piped()).spawn().expect("it starts");
            let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
            let line = lines.next().expect("a line").expect("text");
            let copy = line.strip_prefix("copy ").expect("its number").to_owned();
            child.kill().expect("own child");
            child.wait().expect("own child");
            gone(&copy, point.name);
            whole_or_nothing(&own, point, true);
            for file in files(&own) {
                std::fs::remove_file(file).expect("own file");
            }
        }
    }
}

/// Waits until the process `pid` has ended. Whoever has to reap it may be slow.
fn gone(pid: &str, at: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if stat.is_empty() || stat.contains(") Z ") || stat.contains(") X ") {
            return;
        }
        assert!(Instant::now() < deadline, "{at} goes on: {stat}");
        std::thread::yield_now();
    }
}

/// A user whose threads count for the limit of processes.
pub(super) fn no_more_processes(dir: &Path) {
    let nobody = super::Nobody::new(dir);
    let image = dir.join("0.crac");
    let to = format!("--image={}", image.display());
    // Lowered by the service itself, once its threads run.
    for (mode, lines) in [
        ("--mode=become", &["life 0", "obstacle privilege", "done", "joined"][..]),
        ("--mode=continue", &["life 0", "error cannot capture: copying the process", "done", "joined"]),
        ("--mode=exit", &["life 0"]),
    ] {
        let said = lines_of(&finish(nobody.program("limited").args([&to, mode])));
        assert!(said.len() == lines.len() && said.iter().zip(lines).all(|(said, line)| said.starts_with(line)), "{said:?}");
        assert_eq!(image.exists(), mode == "--mode=exit", "{mode}");
    }
    // It comes back under a limit that is large enough, and has its own again.
    assert_eq!(lines_of(&finish(&mut nobody.command(&image))), ["life 1", "done", "joined"]);
    let mut command = nobody.command(Path::new("prlimit"));
    let output = finish(command.arg("--nproc=3").arg(&image));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(20), "{said}");
    assert!(said.contains("the limit of processes (RLIMIT_NPROC) is 3"), "{said}");
}
