//! `crac restore`: becomes the service that is in an image.

use std::{ffi::OsString, path::PathBuf};

use crate::{demands::Demands, env, exit::Exit, failure::Failure, fetch::Fetch, image};

/// Become the service that was saved into an image, in the foreground. `./IMAGE -- ARGS...` does the same where
/// an image may be executed; this command also restores those that may not.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The image.
    #[arg(value_name = "IMAGE")]
    image: PathBuf,

    /// Set a variable in the environment of the restored life; the others are those of this command.
    #[arg(long = "env", value_name = "K=V", value_parser = variable)]
    variables: Vec<(String, String)>,

    #[command(flatten)]
    fetch: Fetch,

    #[command(flatten)]
    demands: Demands,

    /// Arguments of the restored life.
    #[arg(last = true, value_name = "ARGS")]
    arguments: Vec<OsString>,
}

pub(crate) fn run(args: Args) -> Result<Exit, Failure> {
    let file = args.image.display();
    let image = image::open(&args.image, None, &args.demands).map_err(|reasons| {
        let exit = reasons.first().map_or(Exit::Bug, |gravest| gravest.exit);
        let what = reasons.iter().map(|reason| reason.what.as_str()).collect::<Vec<_>>().join("\n  ");
        let failure = Failure::new(exit, format!("cannot restore {file}:\n  {what}"));
        match exit {
            Exit::StartCold => failure.hint("start the service cold, or let `crac run` decide"),
            Exit::Untrusted => failure.hint("do not use this file; `crac verify` reads all of it"),
            _ => failure,
        }
    })?;
    let mut variables = args.variables;
    variables.extend(args.fetch.value().map(|value| (env::EAGER.to_owned(), value.to_owned())));
    let reason = image.exec(args.arguments, environment(variables));
    Err(Failure::new(reason.exit, format!("cannot restore {file}: {}", reason.what)).hint("start the service cold"))
}

/// This command's own environment under `changes`.
fn environment(changes: Vec<(String, String)>) -> Vec<(OsString, OsString)> {
    let changes: Vec<(OsString, OsString)> = changes.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
    let changed = |name: &OsString| changes.iter().any(|(other, _)| other == name);
    let mut all: Vec<_> = std::env::vars_os().filter(|(name, _)| !changed(name)).collect();
    // The last one given for a name counts.
    for (name, value) in changes {
        all.retain(|(other, _)| *other != name);
        all.push((name, value));
    }
    all
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` does not set a variable; write NAME=VALUE")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_has_a_name_and_may_be_empty() {
        assert_eq!(variable("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert_eq!(variable("A="), Ok(("A".into(), String::new())));
        assert!(variable("A").is_err() && variable("=b").is_err());
    }

    #[test]
    fn the_last_value_given_for_a_name_counts() {
        let given = [("PATH", "one"), ("PATH", "two")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let all = environment(given.to_vec());
        let paths: Vec<_> = all.iter().filter(|(name, _)| name == "PATH").map(|(_, value)| value.to_str()).collect();
        assert_eq!(paths, [Some("two")]);
    }
}
