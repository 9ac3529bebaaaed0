//! Notes when a program begins: `begin FILE PROGRAM ARGUMENTS...` executes it, right after it has written to the file what
//! `CLOCK_REALTIME` says, in nanoseconds.
//!
//! Whoever starts a process needs some time to make it; that belongs to the starter, not to what is started. Static, for to be
//! executed is also to give up the memory that one had: that of a program with libraries took 0.3 ms of what was measured.

use std::{
    env,
    fs::File,
    io::Write as _,
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
    time::{SystemTime, UNIX_EPOCH},
};

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    let (Some(note), Some(program)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: begin FILE PROGRAM [ARGUMENTS...]");
        return ExitCode::from(2);
    };
    let mut command = Command::new(&program);
    command.args(arguments);
    let noted = File::create(&note).and_then(|mut file| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        file.write_all(now.as_nanos().to_string().as_bytes())
    });
    if let Err(error) = noted {
        eprintln!("begin: cannot write {}: {error}", note.display());
        return ExitCode::FAILURE;
    }
    let error = command.exec();
    eprintln!("begin: cannot execute {}: {error}", program.display());
    ExitCode::FAILURE
}
