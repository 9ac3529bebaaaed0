//! The `crac` command.
//!
//! ```text
//!  run, restore ──► image.rs: does it fit? ──► exec                          verify, inspect ──► image.rs
//!  sign, keygen, --verify-key ──► signature.rs     --encrypt-to, --identity ──► sealed.rs
//!  checkpoint, check, ps ──► services.rs: who? ──► conversation.rs: ask, follow        doctor ──► doctor/
//! ```
//!
//! Standard output is data, standard error is talk, exit statuses are in `exit.rs`, environment variables in `env.rs`.

mod check;
mod checkpoint;
mod conversation;
mod demands;
mod doctor;
mod duration;
mod env;
mod exit;
mod failure;
mod fetch;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod find;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod image;
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
#[path = "image_elsewhere.rs"]
mod image;
mod inspect;
mod keygen;
mod output;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod outside;
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
#[path = "outside_elsewhere.rs"]
mod outside;
mod progress;
mod ps;
mod restore;
mod run;
mod sealed;
mod services;
mod sign;
mod signature;
mod verify;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::{exit::Exit, failure::Failure};

/// Checkpoints services and brings them back.
#[derive(Debug, Parser)]
#[command(name = "crac", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(run::Args),
    Checkpoint(checkpoint::Args),
    Restore(restore::Args),
    Check(check::Args),
    Ps(ps::Args),
    Inspect(inspect::Args),
    Verify(verify::Args),
    Sign(sign::Args),
    Keygen(keygen::Args),
    Doctor(doctor::Args),
    #[command(hide = true)]
    DoctorTrial(doctor::TrialArgs),
}

fn main() -> ExitCode {
    let matches = Cli::command().after_help(after_help()).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match act(cli.verb) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            output::say(&failure);
            failure.exit.into()
        }
    }
}

fn act(verb: Verb) -> Result<Exit, Failure> {
    match verb {
        Verb::Run(args) => run::run(args),
        Verb::Checkpoint(args) => checkpoint::run(args),
        Verb::Restore(args) => restore::run(args),
        Verb::Check(args) => check::run(&args),
        Verb::Ps(args) => ps::run(&args),
        Verb::Inspect(args) => inspect::run(&args),
        Verb::Verify(args) => verify::run(&args),
        Verb::Sign(args) => sign::run(&args),
        Verb::Keygen(args) => keygen::run(&args),
        Verb::Doctor(args) => doctor::run(&args),
        Verb::DoctorTrial(args) => doctor::trial(args),
    }
}

/// The two lists that are part of the interface.
fn after_help() -> String {
    let mut text = String::from("Exit status:\n");
    for (exit, meaning) in Exit::ALL {
        text.push_str(&format!("  {:>2}  {meaning}\n", *exit as u8));
    }
    text.push_str("\nEnvironment:\n");
    for (name, meaning) in env::ALL {
        text.push_str(&format!("  {name:<18}  {meaning}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_exit_status_is_documented_once_and_in_order() {
        assert!(Exit::ALL.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(after_help().contains("  20  the image does not fit"));
    }
}
