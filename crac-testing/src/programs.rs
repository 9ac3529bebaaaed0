//! Where the programs under test are.

use std::path::{Path, PathBuf};

/// The program called `name`, built by `cargo xtask test` (or `cargo build --workspace --bins`).
///
/// # Panics
///
/// If it is not built.
pub fn program(name: &str) -> PathBuf {
    let path = directory().join(name);
    assert!(path.is_file(), "{} is not built; run `cargo build --workspace --bins` or `cargo xtask test`", path.display());
    path
}

/// The directory of the build profile that this test belongs to, or `CRAC_TEST_PROGRAMS`.
fn directory() -> PathBuf {
    if let Some(given) = std::env::var_os("CRAC_TEST_PROGRAMS") {
        return given.into();
    }
    let this = std::env::current_exe().expect("a test knows its own program");
    this.ancestors()
        .find(|dir| dir.file_name().is_some_and(|name| name == "deps"))
        .and_then(Path::parent)
        .map_or_else(|| this.parent().expect("a program is in a directory").to_owned(), Path::to_owned)
}
