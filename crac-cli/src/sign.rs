//! `crac sign`: a signature over every byte of an image.

use std::path::PathBuf;

use crate::{exit::Exit, failure::Failure, image, output, signature};

/// Sign an image, so that `crac restore --verify-key` accepts it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The image. An encrypted one is signed in its plain form.
    #[arg(value_name = "IMAGE")]
    image: PathBuf,

    /// The secret key, as `crac keygen` makes it.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,

    /// Where the signature goes. Default: the name of the image and `.sig`.
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,

    /// A file with age identities to decrypt the image with.
    #[arg(long = "identity", value_name = "FILE")]
    identities: Vec<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<Exit, Failure> {
    let path = args.signature.clone().unwrap_or_else(|| signature::beside(&args.image));
    let file = image::open_plain(&args.image, &args.identities)
        .map_err(|reason| Failure::new(reason.exit, format!("cannot sign {}: {}", args.image.display(), reason.what)))?;
    signature::sign(&file, &args.key, &path)?;
    output::line(path.display());
    Ok(Exit::Done)
}
