//! Running programs: echoed, with a deadline, from the root of the workspace.

use anyhow::{Context, Result, anyhow, bail};
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The program `name`, to be run in the root of the workspace.
pub(crate) fn command<const N: usize>(name: impl AsRef<OsStr>, args: [&str; N]) -> Command {
    let mut command = Command::new(name);
    command.args(args).current_dir(crate::workspace::root());
    command
}

/// cargo, the one that runs this task.
pub(crate) fn cargo<const N: usize>(args: [&str; N]) -> Command {
    command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()), args)
}

/// `command` with the words of `prefix` in front, where it was to be run and with what was set for it.
pub(crate) fn behind(prefix: &[impl AsRef<OsStr>], command: Command) -> Command {
    let [first, rest @ ..] = prefix else { return command };
    let mut whole = Command::new(first);
    whole.args(rest).arg(command.get_program()).args(command.get_args());
    if let Some(directory) = command.get_current_dir() {
        whole.current_dir(directory);
    }
    whole.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    whole
}

/// Runs `command` to its end, its output going where ours goes.
///
/// # Errors
///
/// It does not start, it ends with another status than success, or it is still running after `deadline` (then it is killed).
pub(crate) fn run(command: &mut Command, deadline: Duration) -> Result<()> {
    let line = line(command);
    eprintln!("$ {line}");
    let mut child = command.spawn().with_context(|| format!("cannot start `{line}`"))?;
    let status = wait(&mut child, deadline).with_context(|| format!("waiting for `{line}`"))?;
    if !status.success() {
        bail!("`{line}` ended with {status}");
    }
    Ok(())
}

/// Like [`run`], with what the command writes to its standard output shown and also returned.
///
/// # Errors
///
/// It does not start. How it ended is the second value.
pub(crate) fn tee(command: &mut Command, deadline: Duration) -> Result<(String, Result<()>)> {
    let line = line(command);
    eprintln!("$ {line}");
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start `{line}`"))?;
    let stdout = child.stdout.take().context("the output was not piped")?;
    let reader = std::thread::spawn(move || {
        let lines = BufReader::new(stdout).lines().map_while(Result::ok);
        lines.inspect(|line| println!("{line}")).fold(String::new(), |text, line| text + &line + "\n")
    });
    let status = wait(&mut child, deadline);
    let text = reader.join().unwrap_or_default();
    let result = match status.with_context(|| format!("waiting for `{line}`")) {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(anyhow!("`{line}` ended with {status}")),
        Err(error) => Err(error),
    };
    Ok((text, result))
}

/// A program at work beside this one. Dropping it kills it.
pub(crate) struct Running {
    child: Child,
    line: String,
}

impl Running {
    /// Starts `command`.
    ///
    /// # Errors
    ///
    /// It does not start.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let line = line(command);
        eprintln!("$ {line}");
        let child = command.spawn().with_context(|| format!("cannot start `{line}`"))?;
        Ok(Self { child, line })
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// It ends with another status than success, or it is still running after `deadline` (then it is killed).
    pub(crate) fn wait(mut self, deadline: Duration) -> Result<()> {
        let status = wait(&mut self.child, deadline).with_context(|| format!("waiting for `{}`", self.line))?;
        if status.success() { Ok(()) } else { bail!("`{}` ended with {status}", self.line) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `command` writes to its standard output.
///
/// # Errors
///
/// It does not start, fails, or writes something else than text.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let line = line(command);
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot start `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}` ended with {}", output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{line}` wrote something else than text"))
}

/// Whether `command` can be started and succeeds; what it writes is nobody's business.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Whether the program `name` is on the search path.
pub(crate) fn is_installed(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(name).is_file())
}

/// Whether this is a continuous integration, by the variable that all of them set.
pub(crate) fn is_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| value == "true")
}

fn wait(child: &mut Child, deadline: Duration) -> Result<ExitStatus> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= end {
            child.kill()?;
            child.wait()?;
            bail!("still running after {} s, killed", deadline.as_secs());
        }
        // The standard library cannot wait for a child and a clock at once.
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The command as one would type it, without the directory of the program.
fn line(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let set = command.get_envs().filter_map(|(name, value)| Some(format!("{}={:?}", name.display(), value?)));
    let words = std::iter::once(program).chain(command.get_args()).map(|word| word.display().to_string());
    set.chain(words).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::{line, run, tee};
    use std::process::Command;
    use std::time::Duration;

    #[test]
    fn a_failure_names_the_command_and_its_status() {
        let error = run(Command::new("sh").args(["-c", "exit 3"]), Duration::from_secs(60)).unwrap_err();
        assert_eq!(error.to_string(), "`sh -c exit 3` ended with exit status: 3");
    }

    #[test]
    fn a_program_past_its_deadline_is_killed() {
        let error = run(Command::new("sleep").arg("600"), Duration::ZERO).unwrap_err();
        assert_eq!(format!("{error:#}"), "waiting for `sleep 600`: still running after 0 s, killed");
    }

    #[test]
    fn what_was_shown_is_returned_also_after_a_failure() {
        let (text, result) = tee(Command::new("sh").args(["-c", "echo one; echo two; exit 1"]), Duration::from_secs(60)).unwrap();
        assert_eq!(text, "one\ntwo\n");
        assert!(result.is_err());
    }

    #[test]
    fn the_line_shows_what_was_set_and_hides_where_the_program_is() {
        let mut command = Command::new("/somewhere/cargo");
        command.arg("test").env("RUSTFLAGS", "--cfg x");
        assert_eq!(line(&command), "RUSTFLAGS=\"--cfg x\" cargo test");
    }
}
