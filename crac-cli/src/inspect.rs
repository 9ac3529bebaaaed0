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

    /// Instead: look through all of the image for secrets - values of the service's and of this command's variables with telling
    /// names, private keys, tokens - and say where they are. What was found is not shown. Exits with status 1 if anything was.
    #[arg(long)]
    find_secrets: bool,

    /// Look for the value of this variable of this command's environment, too.
    #[arg(long = "secret-env", value_name = "NAME", requires = "find_secrets")]
    secret_variables: Vec<String>,

    /// Look for this regular expression, too.
    #[arg(long = "pattern", value_name = "REGEX", requires = "find_secrets")]
    patterns: Vec<String>,

    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<Exit, Failure> {
    if args.find_secrets {
        return find_secrets(args);
    }
    let inspection = image::inspect(&args.image, &args.identities)
        .map_err(|reason| Failure::new(reason.exit, format!("cannot inspect {}: {}", args.image.display(), reason.what)))?;
    if args.json {
        output::json(&inspection);
    } else {
        inspection.print(args.maps);
    }
    Ok(Exit::Done)
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn find_secrets(args: &Args) -> Result<Exit, Failure> {
    let wanted =
        crate::find::Wanted::new(&args.secret_variables, &args.patterns).map_err(|what| Failure::new(Exit::Usage, what))?;
    let findings = image::open_plain(&args.image, &args.identities)
        .and_then(|file| image::find(&file, wanted))
        .map_err(|reason| Failure::new(reason.exit, format!("cannot look through {}: {}", args.image.display(), reason.what)))?;
    if args.json {
        output::json(&findings);
    } else {
        for finding in &findings {
            output::line(format_args!("{}: {} time(s)", finding.what, finding.count));
            for place in &finding.places {
                let address = place.address.map_or_else(|| "-".to_owned(), |address| format!("{address:#x}"));
                output::line(format_args!("  {address:<16} {:<14} at {:#x} of the file", place.region, place.file_offset));
            }
        }
    }
    if findings.is_empty() {
        output::say(format_args!("{}: nothing that looks like a secret was found", args.image.display()));
        return Ok(Exit::Done);
    }
    Err(Failure::new(Exit::Failed, format!("{} holds what looks like {} secret(s)", args.image.display(), findings.len()))
        .hint("keep them with crac::secret::Secret, free them with crac::alloc::Zeroising, or encrypt the image"))
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn find_secrets(args: &Args) -> Result<Exit, Failure> {
    image::open_plain(&args.image, &args.identities)
        .map(|_| Exit::Done)
        .map_err(|reason| Failure::new(reason.exit, format!("cannot look through {}: {}", args.image.display(), reason.what)))
}
