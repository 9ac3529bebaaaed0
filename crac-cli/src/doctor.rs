//! `crac doctor`: what works on this machine, and why not.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod criu;
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
#[path = "doctor/criu_elsewhere.rs"]
mod criu;
mod probes;
mod trial;

use std::path::PathBuf;

use crac_core::ObstacleKind;
use serde::Serialize;
use serde_json::json;

pub(crate) use self::trial::{TrialArgs, run as trial};
use crate::{exit::Exit, failure::Failure, output};

/// Tell what works on this machine and why not. Exits with 0 if services can be saved and restored here.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where images would go.
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,

    /// Instead list everything that a checkpoint can be refused for, with its cause and what to do.
    #[arg(long)]
    obstacles: bool,

    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

/// One thing that is there or not.
#[derive(Debug, Serialize)]
pub(crate) struct Check {
    /// Stable, for scripts.
    id: &'static str,
    found: bool,
    /// Whether services cannot be saved and restored without it.
    needed: bool,
    /// What was found.
    detail: String,
    /// What to do, if it is missing.
    advice: Option<&'static str>,
}

impl Check {
    /// Something that makes things faster or offers more.
    fn useful(id: &'static str, answer: Result<String, String>, advice: &'static str) -> Self {
        let found = answer.is_ok();
        let detail = answer.unwrap_or_else(|missing| missing);
        Self { id, found, needed: false, detail, advice: (!found).then_some(advice) }
    }

    /// Something without which nothing works.
    fn needed(id: &'static str, answer: Result<String, String>, advice: &'static str) -> Self {
        Self { needed: true, ..Self::useful(id, answer, advice) }
    }

    /// `found` or `missing`, then what to do.
    fn print(&self) {
        let word = match (self.found, self.needed) {
            (true, _) => "found",
            (false, true) => "MISSING",
            (false, false) => "missing",
        };
        output::line(format_args!("{word:<8}{:<22}{}", self.id, self.detail));
        self.advice.iter().for_each(|advice| output::line(format_args!("{:<30}hint: {advice}", "")));
    }
}

pub(crate) fn run(args: &Args) -> Result<Exit, Failure> {
    if args.obstacles {
        print_obstacles(args.json);
        return Ok(Exit::Done);
    }
    let checks = probes::all(&args.dir);
    let works = checks.iter().all(|check| check.found || !check.needed);
    if args.json {
        output::json(&json!({ "works": works, "checks": checks }));
    } else {
        checks.iter().for_each(Check::print);
        let verdict =
            if works { "services can be saved and restored here" } else { "services cannot be saved and restored here" };
        output::line(verdict);
    }
    Ok(if works { Exit::Done } else { Exit::Failed })
}

fn print_obstacles(json: bool) {
    if json {
        let list: Vec<_> = ObstacleKind::ALL
            .iter()
            .map(|kind| json!({ "kind": kind.id(), "cause": kind.cause(), "advice": kind.advice() }))
            .collect();
        return output::json(&list);
    }
    for kind in ObstacleKind::ALL {
        output::line(format_args!("{kind}\n  {}\n  hint: {}", kind.cause(), kind.advice()));
    }
}
