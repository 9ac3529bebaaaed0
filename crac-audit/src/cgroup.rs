//! The memory limit of a control group (cgroups(7)).

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The tightest memory limit in bytes on the way from this process's group up to the root; nothing without a limit.
pub(crate) fn memory_limit() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    groups(&text)
        .into_iter()
        .flat_map(|group| {
            let ancestors: Vec<PathBuf> = group.path.ancestors().map(Path::to_owned).collect();
            let read = move |ancestor: PathBuf| limit(&fs::read_to_string(group.root.join(ancestor).join(group.file)).ok()?);
            ancestors.into_iter().filter_map(read).collect::<Vec<_>>()
        })
        .min()
}

/// A place where a limit may stand.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    root: &'static Path,
    /// Relative to the root.
    path: PathBuf,
    file: &'static str,
}

/// The groups in `/proc/self/cgroup` that can limit memory: `0::PATH` (version 2), `N:...,memory,...:PATH` (version 1).
fn groups(text: &str) -> Vec<Group> {
    let mut groups = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(hierarchy), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let path = PathBuf::from(path.trim_start_matches('/'));
        if hierarchy == "0" && controllers.is_empty() {
            groups.push(Group { root: Path::new("/sys/fs/cgroup"), path, file: "memory.max" });
        } else if controllers.split(',').any(|controller| controller == "memory") {
            groups.push(Group { root: Path::new("/sys/fs/cgroup/memory"), path, file: "memory.limit_in_bytes" });
        }
    }
    groups
}

/// `max` and version 1's largest page-aligned number mean no limit.
fn limit(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|limit| *limit < i64::MAX as u64 - 0xffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_found() {
        let found = groups("12:cpu,cpuacct:/a\n5:memory:/docker/b\n0::/user.slice/c\nnonsense\n");
        let files: Vec<_> = found.iter().map(|group| (group.file, group.path.to_str().unwrap())).collect();
        assert_eq!(files, [("memory.limit_in_bytes", "docker/b"), ("memory.max", "user.slice/c")]);
    }

    #[test]
    fn no_limit_is_not_a_number() {
        assert_eq!(limit("max\n"), None);
        assert_eq!(limit("9223372036854771712\n"), None);
        assert_eq!(limit("1073741824\n"), Some(1 << 30));
    }
}
