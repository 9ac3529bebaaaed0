//! The page of benchmarks is found from the README, and shows its pictures, all of them.

use super::Problem;
use crate::workspace::File;

const PAGE: &str = "docs/benchmarks.md";
const README: &str = "README.md";
/// Where the pictures are, from the root and from the page.
const PICTURES: [&str; 2] = ["docs/benchmarks/", "benchmarks/"];

pub(crate) fn check(files: &[File]) -> Vec<Problem> {
    let text = |path: &str| files.iter().find(|file| file.path == path).map(|file| file.text.as_str());
    let mut problems = Vec::new();
    if !text(README).is_some_and(|readme| links(readme).any(|link| link == PAGE)) {
        problems.push(Problem::new(README, format!("does not link to {PAGE}; say where the measurements are")));
    }
    // It is written by a run of twenty minutes on a quiet machine, so that it may not be there yet.
    let Some(page) = text(PAGE) else { return problems };
    let shown: Vec<&str> = links(page).filter_map(|link| link.strip_prefix(PICTURES[1])).collect();
    let there: Vec<&str> = files.iter().filter_map(|file| file.path.strip_prefix(PICTURES[0])).collect();
    for missing in shown.iter().filter(|name| !there.contains(name)) {
        problems.push(Problem::new(PAGE, format!("shows {missing}, which is not there; run `cargo xtask bench`")));
    }
    for left in there.iter().filter(|name| !shown.contains(name)) {
        problems.push(Problem::new(format!("{}{left}", PICTURES[0]), format!("is not shown by {PAGE}; remove it")));
    }
    problems
}

/// Where the links and pictures of a page point to, without the place in the page.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next())
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::workspace::File;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let files: Vec<File> =
            files.iter().map(|(path, text)| File { path: (*path).to_owned(), text: (*text).to_owned() }).collect();
        check(&files).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_readme_leads_to_the_page() {
        assert!(found(&[("README.md", "docs/benchmarks.md")])[0].contains("does not link"));
        assert_eq!(found(&[("README.md", "[measured](docs/benchmarks.md#threads)")]), [""; 0]);
    }

    #[test]
    fn a_page_shows_its_pictures_and_there_are_no_others() {
        let readme = ("README.md", "[measured](docs/benchmarks.md)");
        let page = ("docs/benchmarks.md", "![a](benchmarks/a.svg)");
        assert_eq!(found(&[readme, page, ("docs/benchmarks/a.svg", "<svg/>")]), [""; 0]);
        assert!(found(&[readme, page])[0].contains("shows a.svg, which is not there"));
        let left = found(&[readme, page, ("docs/benchmarks/a.svg", ""), ("docs/benchmarks/b.svg", "")]);
        assert_eq!(left, ["docs/benchmarks/b.svg: is not shown by docs/benchmarks.md; remove it"]);
    }
}
