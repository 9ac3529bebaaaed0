//! What of the workspace is built for tests.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::shell;

/// Everything, from nothing, on two cores.
const DEADLINE: Duration = Duration::from_secs(20 * 60);

/// A test program of the workspace. Several crates have one of the same name.
pub(crate) struct TestProgram {
    /// The directory of its crate, without those above.
    of: String,
    name: String,
    path: PathBuf,
}

/// Builds all programs, examples and tests, and says where the tests are.
///
/// All at once, for cargo builds a dependency with the features that are wanted by what is built together: whoever builds some of it
/// has cargo build most dependencies once more.
///
/// # Errors
///
/// Something does not compile.
pub(crate) fn all() -> Result<Vec<TestProgram>> {
    let everything = ["build", "--workspace", "--bins", "--examples", "--tests"];
    // What the compiler has to say is printed now, and what cargo has to say is then its last word.
    shell::run(&mut shell::cargo(everything), DEADLINE)?;
    let mut command = shell::cargo(everything);
    let messages = shell::output(command.args(["--quiet", "--message-format=json"]))?;
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    Ok(messages.filter_map(|message| TestProgram::of_message(&message)).collect())
}

/// The test program `name` of the crate in the directory `of`.
///
/// # Errors
///
/// There is none.
pub(crate) fn find<'a>(tests: &'a [TestProgram], of: &str, name: &str) -> Result<&'a Path> {
    let found = tests.iter().find(|test| test.of == of && test.name == name).map(|test| test.path.as_path());
    found.with_context(|| format!("no test `{name}` of {of} was built"))
}

impl TestProgram {
    /// What a message of cargo's says, if it is about one.
    fn of_message(message: &serde_json::Value) -> Option<Self> {
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        let manifest = PathBuf::from(text(&message["manifest_path"])?);
        let of = manifest.parent()?.file_name()?.to_str()?.to_owned();
        let is_test = message["target"]["kind"][0] == "test";
        is_test.then_some(Self { of, name: text(&message["target"]["name"])?, path: text(&message["executable"])?.into() })
    }
}
