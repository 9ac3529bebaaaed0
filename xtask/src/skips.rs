//! Which tests did not test anything, and why.
//!
//! A test that cannot be set up writes one line, `SKIP: <name>: <reason>`, and returns.

use std::collections::BTreeSet;

/// The skips in the output of a test runner, or in its JUnit report, which holds the output of each test.
pub(crate) fn find(text: &str) -> BTreeSet<String> {
    text.lines().filter_map(skip).map(|skip| unescape(skip.trim())).collect()
}

/// What follows the mark, at the beginning of a line or of an element.
fn skip(line: &str) -> Option<&str> {
    let at = line.find("SKIP: ")?;
    let before = line[..at].trim_end();
    if !before.is_empty() && !before.ends_with('>') {
        return None;
    }
    let text = &line[at + "SKIP: ".len()..];
    Some(text.split("</system-").next().unwrap_or(text))
}

fn unescape(text: &str) -> String {
    let entities = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&amp;", "&")];
    entities.iter().fold(text.to_owned(), |text, (entity, character)| text.replace(entity, character))
}

#[cfg(test)]
mod tests {
    use super::find;

    #[test]
    fn the_output_of_a_runner_is_searched_line_by_line() {
        let text = "running 1 test\nSKIP: b: no kcmp\ntest x ... ok\n  SKIP: a: no PostgreSQL\nassert: no SKIP: here\nSKIP: b: no kcmp\n";
        assert_eq!(find(text).into_iter().collect::<Vec<_>>(), ["a: no PostgreSQL", "b: no kcmp"]);
    }

    #[test]
    fn a_report_is_searched_through_its_marks_and_entities() {
        let text = "<system-out>SKIP: a: needs &gt;= 6.7 &amp;&amp; &quot;x&quot;\nmore</system-out>\n<system-err>SKIP: b: why</system-err>";
        assert_eq!(find(text).into_iter().collect::<Vec<_>>(), ["a: needs >= 6.7 && \"x\"", "b: why"]);
    }

    #[test]
    fn a_text_without_skips_has_none() {
        assert!(find("test result: ok. 3 passed; SKIP: none\n").is_empty());
    }
}
