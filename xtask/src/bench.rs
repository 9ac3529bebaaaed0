//! Measurements. What is compared is measured in one run, in turn: no number stands alone.

mod caches;
mod clones;
mod cluster;
mod database;
mod goes_on;
mod layer;
mod memory;
mod page;
mod plan;
mod plot;
mod restore;
mod scratch;
mod section;
mod starts;
mod threads;

use anyhow::{Result, bail};

use self::{page::Machine, plan::Plan, section::Section};
use crate::workspace;

/// A part has a name to be called by, and measures.
type Part = (&'static str, fn(&Plan) -> Result<Vec<Section>>);

const PARTS: [Part; 6] = [
    ("restore", restore::restore),
    ("continue", goes_on::goes_on),
    ("clones", clones::clones),
    ("threads", threads::threads),
    ("postgres", database::database),
    ("layer", layer::layer),
];

/// Measures what `arguments` name and prints it, or everything and writes the page.
///
/// # Errors
///
/// Something cannot be built, or does not work.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    let (options, wanted): (Vec<&str>, Vec<&str>) = arguments.iter().partition(|argument| argument.starts_with("--"));
    if let Some(unknown) = options.iter().find(|option| **option != "--quick") {
        bail!("no option `{unknown}`; there is --quick");
    }
    if let Some(unknown) = wanted.iter().find(|name| !PARTS.iter().any(|(part, _)| part == *name)) {
        bail!("nothing to measure is called `{unknown}`; there are {}", PARTS.map(|(name, _)| name).join(", "));
    }
    let plan = Plan::new(!options.is_empty())?;
    let machine = Machine::of(&plan);
    let mut sections = Vec::new();
    for (_, measure) in PARTS.iter().filter(|(name, _)| wanted.is_empty() || wanted.contains(name)) {
        sections.extend(measure(&plan)?);
    }
    // What a part, a trial or a choice of one's own has measured is no page for everybody.
    let is_chosen = std::env::vars_os().any(|(name, _)| plan::CHOICES.iter().any(|choice| name == *choice));
    let directory = if wanted.is_empty() && !plan.quick && !is_chosen {
        workspace::root().join("docs")
    } else {
        workspace::metadata()?.target_directory.join("bench")
    };
    page::write(&directory, &plan, &machine, &sections)?;
    if !wanted.is_empty() {
        print!("\n{}", sections.iter().map(Section::markdown).collect::<String>());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::run;

    #[test]
    fn what_is_not_known_is_answered_with_what_is() {
        let error = run(&["restores"]).unwrap_err().to_string();
        assert!(error.ends_with("there are restore, continue, clones, threads, postgres, layer"), "{error}");
        assert!(run(&["--fast"]).unwrap_err().to_string().contains("there is --quick"));
    }
}
