//! What every manifest must say.

use super::{Problem, text_of};
use crate::workspace::{File, Package, root};

pub(crate) fn check(packages: &[Package], files: &[File]) -> Vec<Problem> {
    packages.iter().flat_map(|package| check_one(package, files)).collect()
}

fn check_one(package: &Package, files: &[File]) -> Vec<Problem> {
    let path = package.manifest_path.strip_prefix(root()).unwrap_or(&package.manifest_path).display().to_string();
    let mut problems = Vec::new();
    let fields = [
        ("description", package.description.is_some()),
        ("license", package.license.is_some()),
        ("repository", package.repository.is_some()),
        ("rust-version", package.rust_version.is_some()),
    ];
    for (field, _) in fields.iter().filter(|(_, given)| !given) {
        problems.push(Problem::new(&path, format!("`{field}` is missing")));
    }
    if text_of(files, &path).is_some_and(|text| !inherits_lints(text)) {
        problems.push(Problem::new(&path, "`workspace = true` is missing in `[lints]`"));
    }
    let shipped = package.dependencies.iter().filter(|dependency| dependency.kind.as_deref() != Some("dev"));
    for dependency in shipped.filter(|_| package.is_published()) {
        if dependency.path.is_some() && dependency.req == "*" {
            problems.push(Problem::new(
                &path,
                format!("{} has a path but no version, so it cannot be published; write `{0}.workspace = true`", dependency.name),
            ));
        }
        if dependency.name == "tokio" && dependency.features.iter().any(|feature| feature == "full") {
            problems.push(Problem::new(&path, "tokio's `full` is for applications; name the features that are used"));
        }
    }
    problems
}

fn inherits_lints(manifest: &str) -> bool {
    let mut lines = manifest.lines().map(str::trim).skip_while(|line| *line != "[lints]").skip(1);
    lines.by_ref().take_while(|line| !line.starts_with('[')).any(|line| line == "workspace = true")
}

#[cfg(test)]
mod tests {
    use super::{check, inherits_lints};
    use crate::workspace::{Dependency, File, Package};

    fn complete() -> Package {
        let text = || Some("something".to_owned());
        Package {
            name: "crac-core".to_owned(),
            manifest_path: "crac-core/Cargo.toml".into(),
            description: text(),
            license: text(),
            repository: text(),
            rust_version: text(),
            ..Package::default()
        }
    }

    fn found(package: Package, manifest: &str) -> Vec<String> {
        let files = [File { path: "crac-core/Cargo.toml".to_owned(), text: manifest.to_owned() }];
        check(&[package], &files).iter().map(ToString::to_string).collect()
    }

    const LINTS: &str = "[lints]\nworkspace = true\n";

    #[test]
    fn a_complete_manifest_is_in_order() {
        assert_eq!(found(complete(), LINTS), [""; 0]);
    }

    #[test]
    fn each_missing_field_is_named() {
        let package = Package { description: None, license: None, repository: None, rust_version: None, ..complete() };
        let fields = ["description", "license", "repository", "rust-version"];
        assert_eq!(found(package, LINTS), fields.map(|field| format!("crac-core/Cargo.toml: `{field}` is missing")));
    }

    #[test]
    fn a_member_without_version_stops_only_a_published_crate() {
        let member =
            Dependency { name: "crac-sys".to_owned(), req: "*".to_owned(), path: Some("x".into()), ..Dependency::default() };
        let published = Package { dependencies: vec![member], ..complete() };
        assert!(found(published.clone(), LINTS)[0].contains("crac-sys has a path but no version"));
        assert_eq!(found(Package { publish: Some(Vec::new()), ..published }, LINTS), [""; 0]);
    }

    #[test]
    fn a_published_crate_names_the_features_of_tokio_that_it_ships() {
        let tokio = Dependency { name: "tokio".to_owned(), features: vec!["full".to_owned()], ..Dependency::default() };
        let tests = Dependency { kind: Some("dev".to_owned()), ..tokio.clone() };
        assert!(found(Package { dependencies: vec![tokio], ..complete() }, LINTS)[0].contains("name the features"));
        assert_eq!(found(Package { dependencies: vec![tests], ..complete() }, LINTS), [""; 0]);
    }

    #[test]
    fn lints_are_inherited_in_their_own_table() {
        assert!(inherits_lints(LINTS));
        assert!(!inherits_lints("[lints]\n[dependencies]\nworkspace = true\n"));
        assert!(!inherits_lints("[dependencies]\nworkspace = true\n"));
    }
}
