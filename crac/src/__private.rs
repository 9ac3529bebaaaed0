//! What the expansion of `#[crac::main]` names. Not public API.

use std::{future::Future, time::Duration};

use crate::{service, settings::Settings};

/// The arguments of `#[crac::main]`; the head of `crac-macros` says what each may be.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs, reason = "documented where the attribute is")]
pub struct MainConfig {
    pub package: Option<&'static str>,
    pub version: Option<&'static str>,
    pub name: Option<&'static str>,
    pub flavor: Option<&'static str>,
    pub worker_threads: Option<usize>,
    pub image: Option<&'static str>,
    pub engine: Option<&'static str>,
    pub policy: Option<&'static str>,
    pub hook_deadline: Option<Duration>,
    pub drain_deadline: Option<Duration>,
    pub hold_deadline: Option<Duration>,
    pub checkpoint_deadline: Option<Duration>,
    pub restore_deadline: Option<Duration>,
    pub control: Option<bool>,
    pub checkpoint_signal: Option<&'static str>,
    pub clock: Option<&'static str>,
    pub downtime: Option<&'static str>,
    pub image_form: Option<&'static str>,
}

/// Exit status for settings that cannot be understood.
const EXIT_USAGE: i32 = 2;

/// Builds the runtime, attaches it, runs `body` as its root and gives back what it returned.
pub fn main<T>(config: MainConfig, body: impl Future<Output = T>) -> T {
    let settings = Settings::resolve(&config, variable).unwrap_or_else(|error| refuse(EXIT_USAGE, &error));
    service::run(settings, body).unwrap_or_else(|error| refuse(error.exit_status(), &error))
}

/// A variable of the environment; one that is no text is refused like any other that cannot be understood.
fn variable(name: &str) -> Option<String> {
    match std::env::var(name) {
        Ok(value) => Some(value),
        Err(std::env::VarError::NotPresent) => None,
        Err(std::env::VarError::NotUnicode(_)) => refuse(EXIT_USAGE, &format!("{name}: the value is not UTF-8; set it to text")),
    }
}

/// Ends the process before the service has begun.
fn refuse(status: i32, error: &dyn std::fmt::Display) -> ! {
    eprintln!("crac: {error}");
    std::process::exit(status)
}
