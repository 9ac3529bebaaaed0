//! Which crate may know which.
//!
//! ```text
//! 2   crac   crac-cli                         compose, decide nothing
//!       │       │
//! 1   audit   tokio ◄─ hyper   sqlx   native   criu   know level 0, not each other
//!       │       │        │       │      │
//! 0   crac-core   crac-sys                    know nothing of each other
//! ```

use super::Problem;
use crate::workspace::Package;

/// Each crate of the workspace and those members it may depend on, in every dependency table.
const ARROWS: [(&str, &[&str]); 18] = [
    ("crac-core", &[]),
    ("crac-sys", &[]),
    ("crac-macros", &[]),
    ("crac-audit", &LEVEL_0),
    ("crac-tokio", &LEVEL_0),
    ("crac-hyper", &["crac-core", "crac-sys", "crac-tokio"]),
    ("crac-sqlx", &LEVEL_0),
    ("crac-native", &LEVEL_0),
    ("crac-criu", &LEVEL_0),
    ("crac", &BELOW_2),
    ("crac-cli", &BELOW_2),
    ("crac-testing", &[]),
    ("crac-tests", &ALL),
    ("crac-benches", &ALL),
    ("web-server", &ALL),
    ("crac-programs", &["crac-core", "crac-criu", "crac-native", "crac-sys", "crac-testing"]),
    ("crac-allocators", &["crac-core", "crac-native", "crac-testing"]),
    ("xtask", &["crac-core", "crac-native", "crac-programs", "crac-testing"]),
];

const LEVEL_0: [&str; 2] = ["crac-core", "crac-sys"];

const BELOW_2: [&str; 9] =
    ["crac-core", "crac-sys", "crac-macros", "crac-audit", "crac-tokio", "crac-hyper", "crac-sqlx", "crac-native", "crac-criu"];

const ALL: [&str; 12] = [
    "crac-core",
    "crac-sys",
    "crac-macros",
    "crac-audit",
    "crac-tokio",
    "crac-hyper",
    "crac-sqlx",
    "crac-native",
    "crac-criu",
    "crac",
    "crac-cli",
    "crac-testing",
];

/// Crates through which `crac-core` would name an OS call.
const OS_CRATES: [&str; 6] = ["libc", "rustix", "nix", "linux-raw-sys", "procfs", "mio"];

pub(crate) fn check(packages: &[Package]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for package in packages {
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == package.name) else {
            problems.push(Problem::new(&package.name, "this crate has no level; give it one in xtask/src/tidy/arrows.rs"));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|dependency| dependency.path.is_some()) {
            if !allowed.contains(&dependency.name.as_str()) {
                problems.push(Problem::new(
                    &package.name,
                    format!(
                        "may not depend on {}; what is missing is usually a small type one level down (allowed: {})",
                        dependency.name,
                        if allowed.is_empty() { "none".to_owned() } else { allowed.join(", ") }
                    ),
                ));
            }
        }
    }
    for (name, _) in ARROWS {
        if !packages.iter().any(|package| package.name == name) {
            problems.push(Problem::new(name, "has a level in xtask/src/tidy/arrows.rs but is not in the workspace"));
        }
    }
    problems.extend(packages.iter().filter(|package| package.name == "crac-core").flat_map(check_core));
    problems
}

/// Core coordinates; it makes no OS call and starts no runtime. Its tests may.
fn check_core(core: &Package) -> Vec<Problem> {
    let mut problems = Vec::new();
    for dependency in core.dependencies.iter().filter(|dependency| dependency.kind.as_deref() != Some("dev")) {
        if OS_CRATES.contains(&dependency.name.as_str()) {
            problems.push(Problem::new(&core.name, format!("may not call the OS through {}", dependency.name)));
        }
        if dependency.name != "tokio" {
            continue;
        }
        for feature in dependency.features.iter().filter(|feature| *feature != "sync") {
            problems.push(Problem::new(&core.name, format!("may use tokio's `sync` only, not `{feature}`")));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::{ARROWS, check};
    use crate::workspace::{Dependency, Package};

    fn workspace(change: impl Fn(&mut Package)) -> Vec<Package> {
        let package = |name: &str| Package { name: name.to_owned(), ..Package::default() };
        let mut packages: Vec<Package> = ARROWS.iter().map(|(name, _)| package(name)).collect();
        packages.iter_mut().for_each(change);
        packages
    }

    fn member(name: &str) -> Dependency {
        Dependency { name: name.to_owned(), path: Some("somewhere".into()), ..Dependency::default() }
    }

    fn found(packages: &[Package]) -> Vec<String> {
        check(packages).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_arrows_of_the_picture_are_allowed() {
        let packages = workspace(|package| match package.name.as_str() {
            "crac-hyper" => package.dependencies = vec![member("crac-core"), member("crac-tokio")],
            "crac" => package.dependencies = vec![member("crac-macros"), member("crac-native")],
            "crac-tests" => package.dependencies = vec![member("crac"), member("crac-cli")],
            _ => {}
        });
        assert_eq!(found(&packages), [""; 0]);
    }

    #[test]
    fn siblings_and_upward_arrows_are_reported_in_every_table() {
        for (from, to) in [("crac-sqlx", "crac-tokio"), ("crac-core", "crac-sys"), ("crac-native", "crac"), ("crac-cli", "crac")]
        {
            for kind in [None, Some("dev"), Some("build")] {
                let packages = workspace(|package| {
                    if package.name == from {
                        package.dependencies = vec![Dependency { kind: kind.map(str::to_owned), ..member(to) }];
                    }
                });
                let found = found(&packages);
                assert_eq!(found.len(), 1, "{found:?}");
                assert!(found[0].starts_with(&format!("{from}: may not depend on {to}")), "{found:?}");
            }
        }
    }

    #[test]
    fn a_crate_nobody_placed_and_a_place_without_a_crate_are_reported() {
        let mut packages = workspace(|_| {});
        packages.retain(|package| package.name != "crac-audit");
        packages.push(Package { name: "crac-vm".to_owned(), ..Package::default() });
        let found = found(&packages);
        assert!(found[0].starts_with("crac-vm: this crate has no level"), "{found:?}");
        assert!(found[1].starts_with("crac-audit: has a level"), "{found:?}");
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn core_names_no_os_call_and_starts_no_runtime() {
        let outside = |name: &str, kind: Option<&str>, features: &[&str]| Dependency {
            name: name.to_owned(),
            kind: kind.map(str::to_owned),
            features: features.iter().map(ToString::to_string).collect(),
            ..Dependency::default()
        };
        let packages = workspace(|package| {
            if package.name == "crac-core" {
                package.dependencies = vec![
                    outside("rustix", None, &[]),
                    outside("tokio", None, &["sync", "rt"]),
                    outside("tokio", Some("dev"), &["full"]),
                    outside("libc", Some("dev"), &[]),
                ];
            }
        });
        assert_eq!(
            found(&packages),
            ["crac-core: may not call the OS through rustix", "crac-core: may use tokio's `sync` only, not `rt`"]
        );
    }
}
