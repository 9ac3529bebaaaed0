//! What the documentation shows of the code - the chart of states, the list of obstacles - is drawn from the code.

use crac_core::{Mode, ObstacleKind};
use crac_native::{FAULT_POINTS, layout::Step};
use crac_programs::{Area, FEATURES, Fate, WithCriu};

use super::Problem;

const BEGIN: &str = "<!-- drawn by `cargo xtask tidy --write` -->";
const END: &str = "<!-- end of what is drawn -->";

/// One page with something that is drawn between its marks. Everything around them stays.
pub(crate) struct Drawing {
    /// The page, from the root of the workspace.
    pub(crate) page: &'static str,
    /// What a page that is made anew begins with.
    head: &'static str,
    text: String,
}

/// All of them.
pub(crate) fn all() -> [Drawing; 4] {
    [
        Drawing {
            page: "docs/states.md",
            head: "# The coordinator's states\n\n\
                One function, `step` in `crac-core/src/state.rs`, takes a state and an event and says what comes next. The chart below is\n\
                drawn by asking it about every state and every event; what is not an arrow is refused.\n\n",
            text: format!("```mermaid\n{}\n```", crac_core::chart().trim_end()),
        },
        Drawing { page: "docs/limits.md", head: "# Limits\n\n", text: obstacles() },
        Drawing { page: "docs/features.md", head: "# What comes back\n\n", text: features() },
        Drawing { page: "docs/faults.md", head: "# Faults\n\n", text: faults() },
    ]
}

/// The closed list of obstacles as a table.
fn obstacles() -> String {
    let row = |kind: &ObstacleKind| format!("| `{kind}` | {} | {} |\n", kind.cause(), kind.advice());
    let rows: String = ObstacleKind::ALL.iter().map(row).collect();
    format!("| kind | why it cannot be saved | what to do |\n|---|---|---|\n{}", rows.trim_end())
}

/// The closed lists of the points of a capture and the steps of a restore.
fn faults() -> String {
    let row = |point: &crac_native::FaultPoint| {
        let modes: Vec<_> = point.modes.iter().map(ToString::to_string).collect();
        let in_copy = if point.in_copy && point.modes.contains(&Mode::Continue) { " (there in the copy)" } else { "" };
        format!("| `{}` | {} | {}{in_copy} |\n", point.name, point.what, modes.join(", "))
    };
    let points: String = FAULT_POINTS.iter().map(row).collect();
    let steps = Step::ALL.iter().enumerate().map(|(at, step)| {
        let ends = if *step == Step::Check { "20 start cold, 21 untrusted, 22 an address cannot be had" } else { "22" };
        format!("| {} | {} | {ends} |\n", at + 1, step.name())
    });
    format!(
        "## Points of a capture\n\n| point | what fails | modes |\n|---|---|---|\n{points}\n\
         ## Steps of a restore\n\n| step | name | exit status of a failure |\n|---|---|---|\n{}",
        steps.collect::<String>().trim_end()
    )
}

/// The closed list of features of the kernel, part by part.
fn features() -> String {
    let part = |area: Area| {
        let rows = FEATURES.iter().filter(|feature| feature.area == area).map(|feature| {
            let fate = match feature.fate {
                Fate::Restored => "restored".to_owned(),
                Fate::Refused(kind) => format!("refused: `{kind}`"),
            };
            let with_criu = match feature.with_criu {
                WithCriu::Restored => "restored".to_owned(),
                WithCriu::Refused(reason) => format!("refused: {reason}"),
                WithCriu::Changed(how) => format!("**no**: {how}"),
                WithCriu::Unexamined => "comes back, not looked into".to_owned(),
                WithCriu::Untried(reason) => format!("not tried: {reason}"),
            };
            format!("| {} | {} | {} | `{}` |\n", feature.what, fate, with_criu, feature.name)
        });
        format!("## {area}\n\n| what | native engine | CRIU | program |\n|---|---|---|---|\n{}", rows.collect::<String>())
    };
    Area::ALL.map(part).join("\n").trim_end().to_owned()
}

impl Drawing {
    pub(crate) fn check(&self, page: Option<&str>) -> Option<Problem> {
        match page {
            None => Some(Problem::new(self.page, "is missing; `cargo xtask tidy --write` makes it")),
            Some(page) if self.redrawn(Some(page)) != page => {
                Some(Problem::new(self.page, "does not show what the code says; run `cargo xtask tidy --write`"))
            }
            Some(_) => None,
        }
    }

    /// The page with the drawing between its marks; a page without them gets them at its end.
    pub(crate) fn redrawn(&self, page: Option<&str>) -> String {
        let page = page.unwrap_or(self.head);
        let (before, after) = match page.split_once(BEGIN).map(|(before, rest)| (before, rest.split_once(END))) {
            Some((before, Some((_, after)))) => (before, after),
            Some((before, None)) => (before, "\n"),
            None => (page, "\n"),
        };
        format!("{before}{BEGIN}\n{}\n{END}{after}", self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::{Drawing, all};

    fn drawing(text: &str) -> Drawing {
        Drawing { page: "docs/states.md", head: "# The states\n\n", text: text.to_owned() }
    }

    #[test]
    fn a_drawn_page_is_in_order_until_the_code_changes() {
        let page = drawing("open --> shut").redrawn(None);
        assert_eq!(drawing("open --> shut").check(Some(&page)), None);
        assert!(drawing("open --> held").check(Some(&page)).is_some());
        assert!(drawing("open --> shut").check(None).is_some());
    }

    #[test]
    fn drawing_again_keeps_the_words_around() {
        let page = drawing("old").redrawn(None).replace("# The", "My own words.\n# The") + "And below.\n";
        let page = drawing("new").redrawn(Some(&page));
        assert!(page.starts_with("My own words.\n") && page.ends_with("And below.\n"), "{page}");
        assert!(page.contains("\nnew\n") && !page.contains("\nold\n"), "{page}");
    }

    #[test]
    fn a_page_that_lost_a_mark_gets_it_back() {
        let page = drawing("old").redrawn(None);
        assert_eq!(drawing("old").redrawn(Some(page.split("<!-- end").next().unwrap())), page);
        assert!(drawing("old").check(Some("# States\n")).is_some());
    }

    #[test]
    fn every_obstacle_has_its_row() {
        let [_, limits, ..] = all();
        for kind in crac_core::ObstacleKind::ALL {
            assert!(limits.text.contains(&format!("| `{kind}` |")), "{kind}");
        }
    }

    #[test]
    fn every_feature_has_its_row() {
        let [_, _, features, _] = all();
        for feature in crac_programs::FEATURES {
            assert!(features.text.contains(&format!("| `{}` |", feature.name)), "{}", feature.name);
        }
    }
}
