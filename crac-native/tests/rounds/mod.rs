//! The tests: each starts a program, lets it capture itself, and runs the image.
#![allow(unsafe_code, reason = "one system call without a wrapper")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

type Test = fn(&Path);

const TESTS: &[(&str, Test)] = &[
    ("a_single_thread_comes_back", |dir| exit_rounds(dir, "single", 3)),
    ("many_threads_come_back", |dir| exit_rounds(dir, "threads", 5)),
];

pub fn main() {
    keep_descriptors_to_ourselves();
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let mut failed = 0;
    for (name, test) in TESTS.iter().filter(|(name, _)| name.contains(&filter)) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let outcome = std::panic::catch_unwind(|| test(dir.path()));
        match outcome {
            Ok(()) => println!("test {name} ... ok"),
            Err(_) => {
                failed += 1;
                println!("test {name} ... FAILED; see {}", dir.keep().display());
            }
        }
    }
    if failed > 0 {
        println!("{failed} test(s) failed");
        std::process::exit(101);
    }
}

/// Whoever started the tests may have left descriptors open, which a program cannot take into another life.
fn keep_descriptors_to_ourselves() {
    const CLOSE_RANGE_CLOEXEC: usize = 4;
    // SAFETY: sets a flag of descriptors; nothing is closed here.
    unsafe { crac_sys::syscall(libc::SYS_close_range, [3, u32::MAX as usize, CLOSE_RANGE_CLOEXEC, 0, 0, 0]) }
        .expect("close_range, Linux 5.11");
}

/// Starts this file as a program.
fn program(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("own path"));
    command.env("CRAC_TEST_PROGRAM", name);
    command
}

fn finish(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().expect("the program starts")
}

/// The lines of a program that ended well.
fn lines_of(output: &Output) -> Vec<String> {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n--- stdout\n{out}\n--- stderr\n{err}", output.status);
    out.lines().map(str::to_owned).collect()
}

fn image(dir: &Path, generation: usize) -> PathBuf {
    dir.join(format!("{generation}.crac"))
}

/// Captures and restores `generations` times, then lets the last life end in order.
fn exit_rounds(dir: &Path, name: &str, generations: usize) {
    let to = |generation| format!("--image={}", image(dir, generation).display());
    let lines = lines_of(&finish(program(name).arg(to(0))));
    assert_eq!(lines, ["life 0"], "the original runs nothing after the capture");
    for generation in 1..generations {
        let lines = lines_of(&finish(Command::new(image(dir, generation - 1)).args(["--", &to(generation)])));
        assert_eq!(lines, [format!("life {generation}")]);
    }
    let last = lines_of(&finish(&mut Command::new(image(dir, generations - 1))));
    assert_eq!(last[..2], [format!("life {generations}"), "done".to_owned()]);
}
