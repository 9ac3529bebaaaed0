//! `crac run`: restores the service if its image fits this host and this build, else starts it cold. It executes one or the
//! other, so that signals and the exit status are the service's own.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    demands::Demands,
    duration, env,
    exit::Exit,
    failure::Failure,
    fetch::Fetch,
    image::{self, Reason},
    output,
};

/// Restore a service if its image fits this host and this build of it, else start it cold.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The image. Default: the name of the program and `.crac`, in the working directory.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,

    /// When a service that was started cold takes the image and becomes it: once it is `ready`, some time `after=DURATION` its
    /// start, or `never`. Default: what CRAC_CHECKPOINT_ON says, else never.
    #[arg(long, value_name = "ready|after=DURATION|never", value_parser = checkpoint_on)]
    checkpoint_on: Option<String>,

    #[command(flatten)]
    fetch: Fetch,

    #[command(flatten)]
    demands: Demands,

    /// The program and its arguments; a restored life gets the same arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

pub(crate) fn run(args: Args) -> Result<Exit, Failure> {
    let Some((name, arguments)) = args.command.split_first() else {
        return Err(Failure::new(Exit::Usage, "there is no program to run"));
    };
    let program = find_program(name, std::env::var_os("PATH").as_deref())?;
    let image = args.image.unwrap_or_else(|| default_image(&program));
    let image = std::path::absolute(&image)
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot tell where the image {} is: {error}", image.display())))?;

    let mut variables: Vec<_> = std::env::vars_os().collect();
    if let Some(value) = args.fetch.value() {
        variables.retain(|(name, _)| name != env::EAGER);
        variables.push((env::EAGER.into(), value.into()));
    }
    let is_eager = variables.iter().any(|(name, value)| name == env::EAGER && value == "on");
    let mut opened = image::open(&image, Some(&program), &args.demands);
    if is_eager {
        // The image checks them as well, but then there is nobody any more who could start the service cold.
        opened = opened.and_then(image::Fitting::verified);
    }
    let reasons = match opened {
        Ok(fitting) => vec![fitting.exec(arguments.to_vec(), variables)],
        Err(reasons) => reasons,
    };
    output::say(why_cold(name, &image, image.exists(), &reasons));

    let mut command = Command::new(&program);
    command.arg0(name).args(arguments).env(env::IMAGE, &image);
    if let Some(value) = args.fetch.value() {
        command.env(env::EAGER, value);
    }
    if let Some(when) = args.checkpoint_on {
        command.env(env::CHECKPOINT_ON, when);
    }
    let error = command.exec();
    Err(Failure::new(Exit::Failed, format!("cannot execute {}: {error}", program.display()))
        .hint("is it a program for this machine?"))
}

/// Why the service starts cold, in one line.
fn why_cold(name: &OsStr, image: &Path, exists: bool, reasons: &[Reason]) -> String {
    let (name, image) = (Path::new(name).display(), image.display());
    if !exists {
        return format!("starting {name} cold: there is no image {image} yet");
    }
    let what = reasons.iter().map(|reason| reason.what.as_str()).collect::<Vec<_>>().join("; ");
    if reasons.iter().any(|reason| matches!(reason.exit, Exit::Untrusted | Exit::Bug)) {
        format!("WARNING: the image {image} is damaged or cannot be trusted and was not used ({what}); starting {name} cold")
    } else {
        format!("starting {name} cold: the image {image} was not used: {what}")
    }
}

fn default_image(program: &Path) -> PathBuf {
    let mut name = program.file_name().unwrap_or(OsStr::new("service")).to_owned();
    name.push(".crac");
    name.into()
}

/// The program that executing `name` would find (execvp(3)): as it stands if it holds a slash, else along `path`.
fn find_program(name: &OsStr, path: Option<&OsStr>) -> Result<PathBuf, Failure> {
    if name.as_encoded_bytes().contains(&b'/') {
        return Ok(name.into());
    }
    let runs = |candidate: &PathBuf| {
        std::fs::metadata(candidate).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    let dirs = path.map(std::env::split_paths).into_iter().flatten();
    dirs.map(|dir| dir.join(name)).find(runs).ok_or_else(|| {
        let error = io::Error::from(io::ErrorKind::NotFound);
        Failure::new(Exit::Failed, format!("cannot find the program {}: {error}", Path::new(name).display()))
            .hint("give its path, or put its directory into PATH")
    })
}

fn checkpoint_on(text: &str) -> Result<String, String> {
    match text {
        "ready" | "never" => Ok(text.to_owned()),
        _ => match text.strip_prefix("after=") {
            Some(time) => duration::parse(time).map(|_| text.to_owned()),
            None => Err(format!("`{text}` is not `ready`, `after=DURATION` or `never`")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(exit: Exit) -> Reason {
        Reason { exit, what: "the reason".into() }
    }

    #[test]
    fn a_missing_image_is_no_warning() {
        let said = why_cold("./orders".as_ref(), Path::new("/srv/orders.crac"), false, &[reason(Exit::StartCold)]);
        assert_eq!(said, "starting ./orders cold: there is no image /srv/orders.crac yet");
    }

    #[test]
    fn another_build_is_told_and_damage_is_told_loudly() {
        let said = |exit| why_cold("orders".as_ref(), Path::new("/srv/orders.crac"), true, &[reason(exit)]);
        assert!(said(Exit::StartCold).contains("the reason") && !said(Exit::StartCold).contains("WARNING"));
        assert!(said(Exit::Untrusted).contains("the reason") && said(Exit::Untrusted).starts_with("WARNING"));
        assert!(!said(Exit::Untrusted).contains('\n'));
    }

    #[test]
    fn the_moment_of_the_checkpoint_is_checked_before_anything_starts() {
        assert!(checkpoint_on("after=10s").is_ok() && checkpoint_on("ready").is_ok());
        assert!(checkpoint_on("after=soon").is_err() && checkpoint_on("later").is_err());
    }

    #[test]
    fn programs_are_found_as_a_shell_finds_them() {
        assert_eq!(find_program("./x".as_ref(), None).unwrap(), Path::new("./x"));
        assert!(find_program("sh".as_ref(), Some("/nowhere:/bin:/usr/bin".as_ref())).unwrap().ends_with("sh"));
        assert_eq!(find_program("no-such-program".as_ref(), Some("/bin".as_ref())).unwrap_err().exit, Exit::Failed);
        assert_eq!(default_image(Path::new("/usr/bin/orders")), Path::new("orders.crac"));
    }
}
