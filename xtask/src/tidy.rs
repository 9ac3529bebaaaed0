//! What a program can check about the project, so that no reader has to.
//!
//! Every check is a pure function from plain data to a list of problems; this file gathers the data and prints the list.

mod arrows;
mod benchmarks;
mod changelog;
mod drawn;
mod length;
mod manifests;
mod paths;
mod publish;
mod unsafe_list;

use crate::workspace::{self, File};
use anyhow::{Context, Result, bail};
use std::fmt;

/// Something that is not as the project wants it.
#[derive(Debug, PartialEq)]
pub(crate) struct Problem {
    /// Where: a file, a file and line, or a crate.
    place: String,
    /// What, and what to do about it.
    message: String,
}

/// What to do with the parts of the documentation that are drawn from the code.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Drawn {
    Check,
    Write,
}

/// Runs all checks.
///
/// # Errors
///
/// There are problems (they were printed), or the facts cannot be read.
pub(crate) fn run(mode: Drawn) -> Result<()> {
    if mode == Drawn::Write {
        redraw()?;
    }
    let metadata = workspace::metadata()?;
    let files = workspace::files()?;

    let problems: Vec<Problem> = [
        arrows::check(&metadata.packages),
        manifests::check(&metadata.packages, &files),
        publish::check(&metadata.packages, publish::contents)?,
        unsafe_list::check(&files),
        length::check(&files),
        paths::check(&files),
        drawn::all().iter().filter_map(|drawing| drawing.check(text_of(&files, drawing.page))).collect(),
        benchmarks::check(&files),
        changelog::check(text_of(&files, changelog::PAGE)),
    ]
    .into_iter()
    .flatten()
    .collect();

    for problem in &problems {
        eprintln!("{problem}");
    }
    match problems.len() {
        0 => println!("tidy: {} crates and {} files are in order", metadata.packages.len(), files.len()),
        count => bail!("tidy found {count} problem{}", if count == 1 { "" } else { "s" }),
    }
    Ok(())
}

fn redraw() -> Result<()> {
    for drawing in drawn::all() {
        let path = workspace::root().join(drawing.page);
        let old = std::fs::read_to_string(&path).ok();
        let new = drawing.redrawn(old.as_deref());
        if old.as_ref() != Some(&new) {
            std::fs::write(&path, new).with_context(|| format!("cannot write {}", drawing.page))?;
            println!("redrew {}", drawing.page);
        }
    }
    Ok(())
}

fn text_of<'a>(files: &'a [File], path: &str) -> Option<&'a str> {
    files.iter().find(|file| file.path == path).map(|file| file.text.as_str())
}

impl Problem {
    fn new(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self { place: place.into(), message: message.into() }
    }

    /// In `path`, at the line with this index (from 0).
    fn at(path: &str, line_index: usize, message: impl Into<String>) -> Self {
        Self::new(format!("{path}:{}", line_index + 1), message)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}
