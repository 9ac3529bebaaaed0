//! `docs/benchmarks.md`: what was measured last, and how.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result};

use super::{caches, cluster, plan::Plan, restore, section::Section};
use crate::{measure, shell, workspace};

/// What the page says of where it was written.
#[derive(Debug)]
pub(super) struct Machine {
    lines: Vec<String>,
}

impl Machine {
    /// To be asked before anything is measured: how busy the machine was.
    pub(super) fn of(plan: &Plan) -> Self {
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let rustc = shell::output(&mut shell::command("rustc", ["--version"])).unwrap_or_default();
        let lines = [
            Some(measure::machine()),
            Some(format!("images on {}", plan.scratch.file_system())),
            Some(caches::sentence()),
            Some(format!("load average before the run: {}", load.split(' ').next().unwrap_or_default())),
            Some(format!("crac {}, release build, {}", env!("CARGO_PKG_VERSION"), rustc.trim())),
            plan.criu.as_deref().and_then(criu_version).map(|version| format!("CRIU {version}")),
            cluster::version(),
        ];
        Self { lines: lines.into_iter().flatten().collect() }
    }
}

fn criu_version(criu: &Path) -> Option<String> {
    let text = shell::output(Command::new(criu).arg("--version")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("Version: ")).map(|version| version.trim().to_owned())
}

/// Writes the page and its pictures into `directory`; pictures that it no longer shows are removed.
pub(super) fn write(directory: &Path, plan: &Plan, machine: &Machine, sections: &[Section]) -> Result<()> {
    let pictures = directory.join("benchmarks");
    match fs::remove_dir_all(&pictures) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).context("cannot remove the old pictures");
        }
        _ => {}
    }
    fs::create_dir_all(&pictures).with_context(|| format!("cannot make {}", pictures.display()))?;
    for plot in sections.iter().flat_map(|section| &section.plots) {
        fs::write(pictures.join(plot.name).with_extension("svg"), plot.svg()).context("cannot write a picture")?;
    }
    let path = directory.join("benchmarks.md");
    let text = render(&machine.lines, plan.quick, plan.took(), &plan.left_out(), sections);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    println!("written: {}", path.strip_prefix(workspace::root()).unwrap_or(&path).display());
    Ok(())
}

fn render(machine: &[String], is_quick: bool, took: Duration, left_out: &[String], sections: &[Section]) -> String {
    let items = |lines: &mut dyn Iterator<Item = &String>| lines.map(|line| format!("* {line}\n")).collect::<String>();
    let quick = if is_quick { "**Only tried out, with few runs of small services: these are no figures.**\n\n" } else { "" };
    let left_out = match left_out {
        [] => String::new(),
        notes => format!("Not measured:\n\n{}\n", items(&mut notes.iter())),
    };
    let short = items(&mut sections.iter().flat_map(|section| &section.short));
    let machine = items(&mut machine.iter());
    let (minutes, method) = (took.as_secs().div_ceil(60), restore::method());
    let sections: String = sections.iter().map(Section::markdown).collect();
    let text = format!(
        "{HEAD}{quick}## In short\n\nMedians, as in all ratios.\n\n{short}\n## Machine\n\n{machine}\n{left_out}## Method\n\n{GENERAL} \
         The run took {minutes} min.\n\n{method}\n\n{sections}"
    );
    text.trim_end().to_owned() + "\n"
}

const HEAD: &str = "\
# Benchmarks

Written by `cargo xtask bench`, which anybody can run; one machine, one run. Ratios are within the run: what is compared was measured in
turn. Absolute numbers are those of this machine.

";

const GENERAL: &str = "\
Everything runs on one machine, clients too, on loopback; release builds; nothing is tuned. Single runs are up to some ten milliseconds late
where the machine has something else to do, so that the median and the minimum say more than the maximum.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_says_what_it_could_not_measure_and_when_it_is_none() {
        let section = Section { title: "Threads", short: vec!["Fast.".into()], text: "| a |\n".into(), plots: Vec::new() };
        let machine = ["a machine".to_owned()];
        let text = render(&machine, false, Duration::from_secs(61), &["CRIU: it needs root".to_owned()], &[section]);
        for part in
            ["\n* Fast.\n", "\n* a machine\n", "Not measured:\n\n* CRIU: it needs root\n", "took 2 min", "## Threads\n\n| a |\n"]
        {
            assert!(text.contains(part), "{part:?} is missing in {text}");
        }
        assert!(!text.contains("no figures") && !text.contains("\n\n\n"), "{text}");
        let quick = render(&machine, true, Duration::ZERO, &[], &[]);
        assert!(quick.contains("no figures") && !quick.contains("Not measured"), "{quick}");
    }
}
