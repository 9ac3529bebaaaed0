//! Whether the crates could be published: what cargo would put into each package.

use super::Problem;
use crate::shell;
use crate::workspace::Package;
use anyhow::Result;

/// What a crate cannot be built from its package without, by a part of the path.
const NEEDED: [(&str, &str); 1] = [("crac-native", "stub/src/main.rs")];

/// Checks the list that `contents` gives for each published crate. `cargo xtask ci` builds the packages too.
pub(crate) fn check(packages: &[Package], contents: impl Fn(&Package) -> Result<Vec<String>>) -> Result<Vec<Problem>> {
    let mut problems = Vec::new();
    for package in packages.iter().filter(|package| package.is_published()) {
        let files = contents(package)?;
        for (_, needed) in NEEDED.iter().filter(|(name, _)| *name == package.name) {
            if !files.iter().any(|file| file == needed) {
                problems.push(Problem::new(
                    &package.name,
                    format!("its package would lack {needed}; a directory with a Cargo.toml of its own is left out"),
                ));
            }
        }
        for unwanted in files.iter().filter(|file| is_unwanted(file)) {
            problems.push(Problem::new(&package.name, format!("its package would hold {unwanted}; add it to `exclude`")));
        }
    }
    Ok(problems)
}

/// Asks cargo.
pub(crate) fn contents(package: &Package) -> Result<Vec<String>> {
    let list = shell::output(&mut shell::cargo(["package", "--list", "--allow-dirty", "--quiet", "--package", &package.name]))?;
    Ok(list.lines().map(|line| line.replace('\\', "/")).collect())
}

/// Results of running, never sources.
fn is_unwanted(path: &str) -> bool {
    [".crac", ".profraw", ".sqlite", ".db", ".core"].iter().any(|ending| path.ends_with(ending)) && !path.contains("testdata/")
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::workspace::Package;

    fn found(name: &str, publish: Option<Vec<String>>, files: &[&str]) -> Vec<String> {
        let package = Package { name: name.to_owned(), publish, ..Package::default() };
        let problems = check(&[package], |_| Ok(files.iter().map(ToString::to_string).collect())).unwrap();
        problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_package_without_the_stub_is_reported() {
        assert!(found("crac-native", None, &["src/lib.rs"])[0].contains("would lack stub/src/main.rs"));
        assert_eq!(found("crac-native", None, &["src/lib.rs", "stub/src/main.rs"]), [""; 0]);
    }

    #[test]
    fn an_image_left_behind_is_reported_and_a_golden_one_is_not() {
        assert!(found("crac", None, &["orders.crac"])[0].contains("would hold orders.crac"));
        assert_eq!(found("crac", None, &["testdata/0.1.0.crac"]), [""; 0]);
    }

    #[test]
    fn crates_that_stay_here_are_not_asked() {
        assert_eq!(found("xtask", Some(Vec::new()), &["orders.crac"]), [""; 0]);
    }
}
