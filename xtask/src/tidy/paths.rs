//! Nothing of one particular machine belongs into the repository.

use super::Problem;
use crate::workspace::File;

/// Directories that exist on somebody's machine only.
const DIRECTORIES: [&str; 5] = ["/work/", "/root/", "/home/", "/Users/", "/builds/"];

/// Where `Cargo.lock` may take packages from.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Files that have to name such directories, and why.
const EXEMPT: [(&str, &str); 1] = [("xtask/src/tidy/paths.rs", "holds the list")];

pub(crate) fn check(files: &[File]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for file in files.iter().filter(|file| !EXEMPT.iter().any(|(path, _)| *path == file.path)) {
        for (index, line) in file.text.lines().enumerate() {
            problems.extend(check_line(&file.path, line).map(|message| Problem::at(&file.path, index, message)));
        }
    }
    problems
}

fn check_line(path: &str, line: &str) -> Option<String> {
    if let Some(directory) = DIRECTORIES.iter().find(|directory| has_directory(line, directory)) {
        return Some(format!("names the directory {directory} of one machine"));
    }
    let (key, value) = line.split_once('=').map(|(key, value)| (key.trim(), value.trim().trim_matches('"')))?;
    if path.ends_with("Cargo.lock") && key == "source" && value != REGISTRY {
        return Some(format!("takes a package from {value} rather than from crates.io"));
    }
    let is_config = path.ends_with(".toml");
    if is_config && matches!(key, "registry" | "index" | "replace-with" | "registry-index") {
        return Some(format!("`{key}` ties the build to one machine's registry"));
    }
    None
}

/// Whether a path in `line` begins with `directory`, rather than holding it further down.
fn has_directory(line: &str, directory: &str) -> bool {
    line.match_indices(directory).any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-}*~>".contains(c)))
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::workspace::File;

    fn found(path: &str, text: &str) -> Vec<String> {
        check(&[File { path: path.to_owned(), text: text.to_owned() }]).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_directory_of_one_machine_is_reported_with_its_line() {
        assert_eq!(found("a.md", "fine\nsee /root/x\n"), ["a.md:2: names the directory /root/ of one machine"]);
        assert_eq!(found("a.rs", "\"file:///home/me\"").len(), 1);
    }

    #[test]
    fn the_same_name_further_down_a_path_is_fine() {
        assert_eq!(found("a.md", "$DIR/work/x, my-app/home/x, {prefix}/root/x, /network/"), [""; 0]);
    }

    #[test]
    fn packages_come_from_the_public_registry() {
        let lock = "source = \"registry+https://github.com/rust-lang/crates.io-index\"\n";
        assert_eq!(found("Cargo.lock", lock), [""; 0]);
        assert!(found("Cargo.lock", "source = \"sparse+https://mirror.example/\"")[0].contains("rather than from crates.io"));
        assert!(found(".cargo/config.toml", "replace-with = \"mirror\"")[0].contains("one machine's registry"));
    }
}
