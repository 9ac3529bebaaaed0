//! `crac keygen`: a key pair to sign images with.

use std::path::PathBuf;

use crate::{exit::Exit, failure::Failure, output, signature};

/// Make an Ed25519 key pair: FILE, to sign images with, and FILE.pub, to verify them. Never overwrites one.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the secret key goes (PKCS#8 PEM, readable by its owner alone).
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<Exit, Failure> {
    let public = signature::generate(&args.file)?;
    output::line(public.display());
    Ok(Exit::Done)
}
