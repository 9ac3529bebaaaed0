//! The chart of states in the documentation, which is drawn from the code.

use super::Problem;

/// The page that shows the chart.
pub(crate) const PAGE: &str = "docs/states.md";

const BEGIN: &str = "<!-- chart: drawn by `cargo xtask tidy --write` -->";
const END: &str = "<!-- end of chart -->";

const NEW_PAGE: &str = "# The coordinator's states\n\n\
    One function, `step` in `crac-core/src/state.rs`, takes a state and an event and says what comes next. The chart below is\n\
    drawn by asking it about every state and every event; what is not an arrow is refused.\n\n";

pub(crate) fn check(page: Option<&str>, chart: &str) -> Vec<Problem> {
    match page {
        None => vec![Problem::new(PAGE, "is missing; `cargo xtask tidy --write` makes it")],
        Some(page) if redrawn(Some(page), chart) != page => {
            vec![Problem::new(PAGE, "does not show the states of the code; run `cargo xtask tidy --write`")]
        }
        Some(_) => Vec::new(),
    }
}

/// The page with `chart` between its marks. Everything around them stays; a page without them gets them at its end.
pub(crate) fn redrawn(page: Option<&str>, chart: &str) -> String {
    let page = page.unwrap_or(NEW_PAGE);
    let (before, after) = match page.split_once(BEGIN).map(|(before, rest)| (before, rest.split_once(END))) {
        Some((before, Some((_, after)))) => (before, after),
        Some((before, None)) => (before, "\n"),
        None => (page, "\n"),
    };
    format!("{before}{BEGIN}\n```mermaid\n{}\n```\n{END}{after}", chart.trim_end())
}

#[cfg(test)]
mod tests {
    use super::{check, redrawn};

    #[test]
    fn a_drawn_page_is_in_order_until_the_states_change() {
        let page = redrawn(None, "open --> shut\n");
        assert!(check(Some(&page), "open --> shut\n").is_empty());
        assert_eq!(check(Some(&page), "open --> held\n").len(), 1);
        assert_eq!(check(None, "open --> shut\n").len(), 1);
    }

    #[test]
    fn drawing_again_keeps_the_words_around() {
        let page = redrawn(None, "old").replace("# The", "My own words.\n# The") + "And below.\n";
        let page = redrawn(Some(&page), "new");
        assert!(page.starts_with("My own words.\n") && page.ends_with("And below.\n"), "{page}");
        assert!(page.contains("\nnew\n") && !page.contains("\nold\n"), "{page}");
    }

    #[test]
    fn a_page_that_lost_a_mark_gets_it_back() {
        let page = redrawn(None, "old");
        assert_eq!(redrawn(Some(page.split("<!-- end").next().unwrap()), "old"), page);
        assert!(check(Some("# States\n"), "old").len() == 1);
    }
}
