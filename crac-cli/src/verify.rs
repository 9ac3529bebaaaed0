//! `crac verify`: every byte of an image against its checksums.

use std::path::PathBuf;

use serde_json::json;

use crate::{exit::Exit, failure::Failure, image, output};

/// Check every byte of an image, page data too.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The image.
    #[arg(value_name = "IMAGE")]
    image: PathBuf,

    /// Print the outcome as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<Exit, Failure> {
    match image::verify(&args.image) {
        Ok(inspection) if args.json => output::json(&json!({ "whole": true, "image": inspection })),
        Ok(inspection) => output::line(inspection.verified()),
        Err(reason) => {
            if args.json {
                output::json(&json!({ "whole": false, "reason": reason }));
            }
            let what = format!("cannot vouch for {}: {}", args.image.display(), reason.what);
            return Err(Failure::new(reason.exit, what));
        }
    }
    Ok(Exit::Done)
}
