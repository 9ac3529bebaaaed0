//! Where the programs under test are.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

static CHOSEN: OnceLock<PathBuf> = OnceLock::new();

/// Takes the programs from `directory` from now on; the first choice stays.
pub fn take_from(directory: &Path) {
    CHOSEN.get_or_init(|| directory.to_owned());
}

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

/// The directory that was chosen, else `CRAC_TEST_PROGRAMS`, else that of the build profile that this test belongs to.
fn directory() -> PathBuf {
    if let Some(chosen) = CHOSEN.get() {
        return chosen.clone();
    }
    if let Some(given) = std::env::var_os("CRAC_TEST_PROGRAMS") {
        return given.into();
    }
    let this = std::env::current_exe().expect("a test knows its own program");
    this.ancestors()
        .find(|dir| dir.file_name().is_some_and(|name| name == "deps"))
        .and_then(Path::parent)
        .map_or_else(|| this.parent().expect("a program is in a directory").to_owned(), Path::to_owned)
}
