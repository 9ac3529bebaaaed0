//! The first process of a virtual machine that `cargo xtask kernels` starts with a kernel of its own, and all that runs there.
//!
//! It mounts what a Linux system has, runs the programs that `/jobs` names, one after the other, exchanges images with the machine
//! that runs beside it on another kernel, and switches the machine off. What it finds goes to the console, line by line:
//!
//! ```text
//! guest: kernel 6.1.0-50-cloud-amd64
//! guest: ok NAME (1.2 s)            guest: FAILED NAME: why            guest: note NAME: what a program said about this kernel
//! guest: end
//! ```

mod exchange;
mod machine;
mod shared;

use std::{
    fs,
    panic::{self, AssertUnwindSafe},
    process::{Command, Output, Stdio},
    time::Instant,
};

fn main() {
    let is_init = std::process::id() == 1;
    let outcome = if is_init { machine::run() } else { work() };
    if let Err(what) = outcome {
        println!("guest: FAILED the machine: {what}");
    }
    if is_init {
        machine::switch_off();
    }
}

/// Runs everything. A job that fails does not keep the next from running.
fn work() -> Result<(), String> {
    println!("guest: kernel {}", machine::release());
    let jobs = fs::read_to_string("/jobs").map_err(|error| format!("/jobs: {error}"))?;
    let exchange = exchange::Exchange::find();
    for job in jobs.lines() {
        let mut words = job.split('\t');
        let name = words.next().unwrap_or_default();
        let begun = Instant::now();
        let outcome = match (words.next(), &exchange) {
            (Some("give"), Ok(exchange)) => {
                let given = whole(|| exchange.give());
                if given.is_err() {
                    // The other machine would wait for them, as this one for its.
                    exchange.nothing_more();
                }
                given
            }
            (Some("take"), Ok(exchange)) => whole(|| exchange.take()),
            (Some("give" | "take"), Err(what)) => Err(what.clone()),
            (Some(program), _) => run(name, program, words),
            (None, _) => Err("no program".to_owned()),
        };
        match outcome {
            Ok(()) => println!("guest: ok {name} ({:.1} s)", begun.elapsed().as_secs_f64()),
            Err(what) => println!("guest: FAILED {name}: {what}"),
        }
    }
    if let Ok(exchange) = &exchange {
        exchange.nothing_more();
    }
    println!("guest: end");
    Ok(())
}

/// A failure that is a panic, as in tests, is a failure of this job alone: the other machine waits for word.
fn whole(work: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err("it has panicked, see above".to_owned()))
}

/// Runs a program to its end. What it says is shown if it fails; what is not to be had on this kernel, in any case.
fn run<'a>(name: &str, program: &str, arguments: impl Iterator<Item = &'a str>) -> Result<(), String> {
    let mut command = Command::new(program);
    command.args(arguments).current_dir("/tmp").stdin(Stdio::null());
    let output = command.output().map_err(|error| format!("{program}: {error}"))?;
    let said = said(&output);
    for line in said.lines() {
        if let Some(note) = ["skipped: ", "SKIP: "].iter().find_map(|mark| line.split_once(mark)) {
            println!("guest: note {name}: {}", note.1);
        }
    }
    if said.contains("running 0 tests") {
        return Err("there is no such test in it".to_owned());
    }
    if output.status.success() { Ok(()) } else { Err(format!("{}\n{said}", output.status)) }
}

/// Everything that a program has written.
fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat()
}
