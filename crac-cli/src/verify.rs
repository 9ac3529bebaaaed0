//! `crac verify`: every byte of an image against its checksums.

use std::path::PathBuf;

use serde_json::json;

use crate::{demands::Demands, exit::Exit, failure::Failure, image, output};

/// Check every byte of an image, page data too.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The image.
    #[arg(value_name = "IMAGE")]
    image: PathBuf,

    /// The image must be signed with the secret half of this Ed25519 public key (PEM).
    #[arg(long, value_name = "FILE")]
    verify_key: Option<PathBuf>,

    /// Where the signature is. Default: the name of the image and `.sig`.
    #[arg(long, value_name = "FILE", requires = "verify_key")]
    signature: Option<PathBuf>,

    /// A file with age identities to decrypt the image with.
    #[arg(long = "identity", value_name = "FILE")]
    identities: Vec<PathBuf>,

    /// Print the outcome as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<Exit, Failure> {
    let demands = Demands {
        verify_key: args.verify_key.clone(),
        signature: args.signature.clone(),
        identities: args.identities.clone(),
        ..Demands::default()
    };
    match image::verify(&args.image, &demands) {
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
