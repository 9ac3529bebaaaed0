//! What a measurement hands to the page: words, tables, pictures.

use super::plot::Plot;
use crate::measure::{Runs, Spread};

/// One question and its answer.
#[derive(Debug, Default)]
pub(super) struct Section {
    pub(super) title: &'static str,
    /// Sentences for the head of the page.
    pub(super) short: Vec<String>,
    /// Markdown, without the title.
    pub(super) text: String,
    pub(super) plots: Vec<Plot>,
}

impl Section {
    /// As it is in the page.
    pub(super) fn markdown(&self) -> String {
        let plots = self.plots.iter().map(|plot| format!("![{}](benchmarks/{}.svg)\n\n", plot.title, plot.name));
        format!("## {}\n\n{}{}", self.title, plots.collect::<String>(), self.text)
    }
}

/// A table; columns that hold nothing but numbers are set to the right.
pub(super) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let is_number = |cell: &String| cell == "-" || cell.parse::<f64>().is_ok();
    let rule = (0..N).map(|column| if rows.iter().all(|row| is_number(&row[column])) { "---:" } else { "---" });
    let rule = rule.collect::<Vec<_>>().join("|");
    let line = |cells: Vec<&str>| format!("| {} |\n", cells.join(" | "));
    let rows = rows.iter().map(|row| line(row.iter().map(String::as_str).collect()));
    format!("{}|{rule}|\n{}\n", line(head.to_vec()), rows.collect::<String>())
}

/// Minimum, median, maximum and the median as a multiple of another's: four cells.
pub(super) fn cells(runs: &Runs, of: &Runs) -> [String; 4] {
    spread_cells(runs.spread(), of.spread())
}

/// The same of numbers that are no times.
pub(super) fn spread_cells(spread: Option<Spread>, of: Option<Spread>) -> [String; 4] {
    let Some(spread) = spread else { return std::array::from_fn(|_| "-".to_owned()) };
    let times = of.filter(|of| of.median > 0.0).map_or_else(|| "-".to_owned(), |of| number(spread.median / of.median));
    [number(spread.min), number(spread.median), number(spread.max), times]
}

/// The median of one as a multiple of another's, for a sentence.
pub(super) fn times(runs: &Runs, of: &Runs) -> Option<f64> {
    Some(runs.spread()?.median / of.spread().filter(|of| of.median > 0.0)?.median)
}

/// With three digits, or all that are in front of the point.
pub(super) fn number(number: f64) -> String {
    let digits = match number.abs() {
        ..9.995 => 2,
        9.995..99.95 => 1,
        _ => 0,
    };
    format!("{number:.digits$}")
}

/// `a, b and c`
pub(super) fn list(parts: &[String]) -> String {
    match parts {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn numbers_have_three_digits_or_as_many_as_they_need() {
        let numbers = [0.0, 1.234, 9.994, 9.996, 99.96, 1234.5].map(number);
        assert_eq!(numbers, ["0.00", "1.23", "9.99", "10.0", "100", "1234"]);
    }

    #[test]
    fn columns_of_numbers_are_set_to_the_right() {
        let text = table(["a", "b"], &[["x".to_owned(), "1.0".to_owned()], ["y".to_owned(), "-".to_owned()]]);
        assert_eq!(text, "| a | b |\n|---|---:|\n| x | 1.0 |\n| y | - |\n\n");
    }

    #[test]
    fn what_did_not_happen_is_a_dash() {
        let mut one = Runs::default();
        one.add(Duration::from_millis(3));
        assert_eq!(cells(&Runs::default(), &one), ["-"; 4]);
        assert_eq!(cells(&one, &Runs::default()), ["3.00", "3.00", "3.00", "-"]);
        assert_eq!(cells(&one, &one)[3], "1.00");
        assert_eq!(times(&one, &Runs::default()), None);
    }

    #[test]
    fn a_list_reads_as_one_says_it() {
        let parts = ["a", "b", "c"].map(str::to_owned);
        assert_eq!([list(&parts), list(&parts[..2]), list(&parts[..1])], ["a, b and c", "a and b", "a"]);
    }
}
