//! `crac inspect`: what is in an image, without running it.

use std::path::PathBuf;

use crate::{exit::Exit, failure::Failure, image, output};

/// Show what is in an image and whether it fits here. Never runs it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The image.
    #[arg(value_name = "IMAGE")]
    image: PathBuf,

    /// List every mapping: addresses, protection, how much of it is in the image. Always part of the JSON.
    #[arg(long)]
    maps: bool,

    /// A file with age identities to decrypt the image with.
    #[arg(long = "identity", value_name = "FILE")]
    identities: Vec<PathBuf>,

    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<Exit, Failure> {
    let inspection = image::inspect(&args.image, &args.identities)
        .map_err(|reason| Failure::new(reason.exit, format!("cannot inspect {}: {}", args.image.display(), reason.what)))?;
    if args.json {
        output::json(&inspection);
    } else {
        inspection.print(args.maps);
    }
    Ok(Exit::Done)
}
