//! `crac ps`: the services that can be asked.

use std::path::PathBuf;

use crac_core::Status;
use serde::Serialize;

use crate::{
    exit::Exit,
    failure::Failure,
    output,
    services::{self, Found},
};

/// List the services that can be asked for a checkpoint: one's own; as root, everybody's.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print the list as JSON.
    #[arg(long)]
    json: bool,
}

/// One service, for scripts.
#[derive(Debug, Serialize)]
struct Listed {
    pid: u32,
    socket: PathBuf,
    /// What it is doing; absent if it did not say.
    status: Option<Status>,
    /// Why it did not say.
    error: Option<String>,
}

impl From<Found> for Listed {
    fn from(found: Found) -> Self {
        let (status, error) = match found.status {
            Ok(status) => (Some(status), None),
            Err(error) => (None, Some(error.to_string())),
        };
        Self { pid: found.endpoint.pid, socket: found.endpoint.socket, status, error }
    }
}

impl Listed {
    fn row(&self) -> [String; 7] {
        let pid = self.pid.to_string();
        match &self.status {
            Some(status) => [
                pid,
                status.name.clone(),
                status.state.clone(),
                if status.ready { "yes" } else { "no" }.into(),
                status.generation.to_string(),
                status.engine.clone(),
                status.image.display().to_string(),
            ],
            None => [pid, "?".into(), self.error.clone().unwrap_or_default(), "?".into(), "?".into(), "?".into(), "?".into()],
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<Exit, Failure> {
    let listed: Vec<Listed> = services::all().into_iter().map(Listed::from).collect();
    if args.json {
        output::json(&listed);
    } else {
        let rows: Vec<_> = listed.iter().map(Listed::row).collect();
        output::table(["PID", "NAME", "STATE", "READY", "GENERATION", "ENGINE", "IMAGE"], &rows);
    }
    Ok(Exit::Done)
}
