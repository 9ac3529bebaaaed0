//! The form of the changelog: Keep a Changelog 1.1.

use super::Problem;

pub(crate) const PAGE: &str = "CHANGELOG.md";

const KINDS: [&str; 6] = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"];

pub(crate) fn check(page: Option<&str>) -> Vec<Problem> {
    let Some(page) = page else {
        return vec![Problem::new(PAGE, "is missing; begin it with `# Changelog` and `## [Unreleased]`")];
    };
    let mut problems = Vec::new();
    let mut report = |index: usize, message: String| problems.push(Problem::at(PAGE, index, message));
    if page.lines().next() != Some("# Changelog") {
        report(0, "the first line is not `# Changelog`".to_owned());
    }
    let headings: Vec<(usize, &str)> = page.lines().enumerate().filter(|(_, line)| line.starts_with("##")).collect();
    if headings.first().is_none_or(|(_, line)| *line != "## [Unreleased]") {
        report(headings.first().map_or(0, |(index, _)| *index), "the first release is not `## [Unreleased]`".to_owned());
    }
    let mut newest: Option<Version> = None;
    let mut kinds: Vec<&str> = Vec::new();
    for (position, (index, line)) in headings.iter().enumerate() {
        if let Some(kind) = line.strip_prefix("### ") {
            if !KINDS.contains(&kind) {
                report(*index, format!("`{kind}` is not one of {}", KINDS.join(", ")));
            }
            if kinds.contains(&kind) {
                report(*index, format!("`{kind}` stands twice in one release"));
            }
            let end = headings.get(position + 1).map_or(usize::MAX, |(next, _)| *next);
            if !page.lines().take(end).skip(index + 1).any(|line| line.starts_with("- ")) {
                report(*index, format!("`{kind}` lists nothing"));
            }
            kinds.push(kind);
            continue;
        }
        kinds.clear();
        if *line == "## [Unreleased]" {
            continue;
        }
        match release(line) {
            None => report(*index, "is neither `## [Unreleased]` nor like `## [1.2.3] - 2026-01-31`".to_owned()),
            Some(version) if newest.is_some_and(|newest| version >= newest) => {
                report(*index, "is not older than the release above it".to_owned());
            }
            version => newest = version,
        }
    }
    problems
}

type Version = (u64, u64, u64);

/// The version in `## [1.2.3] - 2026-01-31`.
fn release(heading: &str) -> Option<Version> {
    let (version, date) = heading.strip_prefix("## [")?.split_once("] - ")?;
    let mut day = date.split('-');
    let (year, month, day, end) = (day.next()?, day.next()?, day.next()?, day.next());
    let in_range = |text: &str, max: u32| text.len() == 2 && text.parse::<u32>().is_ok_and(|number| (1..=max).contains(&number));
    if end.is_some() || year.len() != 4 || year.parse::<u32>().is_err() || !in_range(month, 12) || !in_range(day, 31) {
        return None;
    }
    let mut numbers = version.split('.').map(|number| number.parse().ok());
    let version = (numbers.next()??, numbers.next()??, numbers.next()??);
    numbers.next().is_none().then_some(version)
}

#[cfg(test)]
mod tests {
    use super::check;

    fn found(page: &str) -> Vec<String> {
        check(Some(page)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_proper_changelog_is_in_order() {
        let page = "# Changelog\n\n## [Unreleased]\n\n### Added\n\n- This.\n\n## [0.10.0] - 2026-01-31\n\n### Added\n- That.\n\n\
                    ### Fixed\n- It.\n\n## [0.9.0] - 2025-12-01\n";
        assert_eq!(found(page), [""; 0]);
    }

    #[test]
    fn a_missing_or_foreign_page_is_reported() {
        assert_eq!(check(None).len(), 1);
        assert_eq!(found("# History\n").len(), 2);
    }

    #[test]
    fn kinds_are_the_known_ones_once_and_not_empty() {
        let page = "# Changelog\n## [Unreleased]\n### New\n- x\n### Added\n- x\n### Added\n- y\n### Fixed\n";
        assert_eq!(
            found(page),
            [
                "CHANGELOG.md:3: `New` is not one of Added, Changed, Deprecated, Removed, Fixed, Security",
                "CHANGELOG.md:7: `Added` stands twice in one release",
                "CHANGELOG.md:9: `Fixed` lists nothing",
            ]
        );
    }

    #[test]
    fn releases_have_a_version_a_date_and_fall() {
        for heading in ["## 0.1.0", "## [0.1.0]", "## [0.1] - 2026-01-01", "## [0.1.0] - 2026-13-01", "## [0.1.0] - 01.02.2026"] {
            assert_eq!(found(&format!("# Changelog\n## [Unreleased]\n{heading}\n")).len(), 1, "{heading}");
        }
        let rising = "# Changelog\n## [Unreleased]\n## [0.9.0] - 2026-01-01\n## [0.10.0] - 2026-01-02\n";
        assert_eq!(found(rising), ["CHANGELOG.md:4: is not older than the release above it"]);
    }
}
