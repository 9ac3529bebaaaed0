//! Standard output is data, standard error is talk.

use std::{
    io::{ErrorKind, Write},
    process,
};

use serde::Serialize;

use crate::exit::Exit;

/// Prints `value` as JSON.
pub(crate) fn json(value: &impl Serialize) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => line(text),
        Err(error) => {
            say(format_args!("cannot print the answer as JSON: {error}"));
            process::exit(Exit::Bug as i32);
        }
    }
}

/// Prints a line of data. A reader that has gone away ends the command, as it ends any filter.
pub(crate) fn line(text: impl std::fmt::Display) {
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => process::exit(Exit::Done as i32),
        Err(error) => {
            say(format_args!("cannot write to standard output: {error}"));
            process::exit(Exit::Failed as i32);
        }
    }
}

/// Talks to whoever looks at standard error.
pub(crate) fn say(text: impl std::fmt::Display) {
    // Nobody to tell that standard error is gone.
    let _ = writeln!(std::io::stderr(), "crac: {text}");
}

/// Bytes in MiB.
pub(crate) fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Microseconds in milliseconds.
pub(crate) fn ms(us: u64) -> String {
    format!("{:.1} ms", us as f64 / 1e3)
}

/// Rows under a heading, columns aligned.
pub(crate) fn table<const N: usize>(heading: [&str; N], rows: &[[String; N]]) {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([heading[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let print = |cells: [&str; N]| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect::<Vec<_>>();
        line(padded.join("  ").trim_end());
    };
    print(heading);
    rows.iter().for_each(|row| print(row.each_ref().map(String::as_str)));
}
