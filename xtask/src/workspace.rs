//! The workspace as plain data: its packages from `cargo metadata`, its files from git.

use crate::shell;
use anyhow::{Context, Result};
use serde::Deserialize;
use std::{
    path::{Path, PathBuf},
    sync::LazyLock,
};

/// What cargo says about the members of the workspace.
#[derive(Debug, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) packages: Vec<Package>,
    pub(crate) target_directory: PathBuf,
}

/// One member.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) manifest_path: PathBuf,
    pub(crate) description: Option<String>,
    pub(crate) license: Option<String>,
    pub(crate) repository: Option<String>,
    pub(crate) rust_version: Option<String>,
    /// Registries it may go to: none means any, an empty list means none.
    pub(crate) publish: Option<Vec<String>>,
    pub(crate) dependencies: Vec<Dependency>,
}

/// One line of a dependency table.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// `None` for an ordinary dependency, else `"dev"` or `"build"`.
    pub(crate) kind: Option<String>,
    pub(crate) features: Vec<String>,
    /// The version it asks for; `*` where the manifest names none.
    pub(crate) req: String,
    /// Set where it is another member.
    pub(crate) path: Option<PathBuf>,
}

/// A text file that is, or is about to be, under version control.
#[derive(Debug)]
pub(crate) struct File {
    /// From the root of the workspace, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
}

impl Package {
    pub(crate) fn is_published(&self) -> bool {
        self.publish.as_ref().is_none_or(|registries| !registries.is_empty())
    }
}

/// The root of the workspace: that of the checkout in which cargo runs this, which may have been built in another one that shares the
/// target directory.
pub(crate) fn root() -> &'static Path {
    static MANIFEST: LazyLock<PathBuf> =
        LazyLock::new(|| std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into()).into());
    MANIFEST.parent().unwrap_or(&MANIFEST)
}

/// Asks cargo.
pub(crate) fn metadata() -> Result<Metadata> {
    let json = shell::output(&mut shell::cargo(["metadata", "--format-version=1", "--no-deps"]))?;
    serde_json::from_str(&json).context("cannot read what `cargo metadata` wrote")
}

/// Reads every text file that git tracks, or would with `git add .`. Files that are not UTF-8 are left out.
pub(crate) fn files() -> Result<Vec<File>> {
    let list = shell::output(&mut shell::command("git", ["ls-files", "-z", "--cached", "--others", "--exclude-standard"]))?;
    let mut files = Vec::new();
    for path in list.split_terminator('\0') {
        // Gone from the directory but not yet from the index, a link, or a submodule.
        if !root().join(path).symlink_metadata().is_ok_and(|metadata| metadata.is_file()) {
            continue;
        }
        let bytes = std::fs::read(root().join(path)).with_context(|| format!("cannot read {path}"))?;
        if let Ok(text) = String::from_utf8(bytes) {
            files.push(File { path: path.to_owned(), text });
        }
    }
    Ok(files)
}
