//! `crac check`: a rehearsal. Everything but the capture is done, and every obstacle reported.

use std::time::{Duration, Instant};

use crac_core::{Mode, RoundEnding, control::ControlRequest};

use crate::{
    checkpoint::{self, Last},
    duration,
    exit::Exit,
    failure::Failure,
    output, outside,
    services::{self, Target},
};

/// Rehearse a checkpoint: report everything that stands in its way, capture nothing.
#[derive(Debug, clap::Args)]
#[command(visible_alias = "rehearse")]
pub(crate) struct Args {
    /// The service, by process id or name.
    #[arg(value_name = "PID|NAME")]
    target: Target,

    /// Rehearse `crac checkpoint --outside`: also look whether this command could save the service.
    #[arg(long)]
    outside: bool,

    /// How long it may take.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration::parse)]
    timeout: Duration,

    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<Exit, Failure> {
    let deadline = Instant::now() + args.timeout;
    let (endpoint, status) = services::find(&args.target)?;
    let account = if args.outside {
        outside::rehearse(&endpoint, deadline)?
    } else {
        let request = ControlRequest::Checkpoint { mode: Mode::Rehearse, image: None, data_only: false };
        checkpoint::follow(&endpoint, &request, deadline)?
    };
    match account.into_last() {
        Some(Last::Report(report)) => {
            if args.json {
                output::json(&report);
            } else {
                output::line(&report);
            }
            Ok(if report.ending == RoundEnding::Rehearsed { Exit::Done } else { Exit::Refused })
        }
        Some(Last::Denied(_, what)) => {
            Err(Failure::new(Exit::Refused, format!("{} has not begun a rehearsal: {what}", status.name)))
        }
        Some(Last::Error(what)) => {
            Err(Failure::new(Exit::Failed, format!("{} could not serve the request: {what}", status.name)))
        }
        None => {
            let what = format!("{} (process {}) ended the conversation without a report", status.name, endpoint.pid);
            Err(Failure::new(Exit::Failed, what).hint("see whether it still runs, and what it said last"))
        }
    }
}
