//! Pictures: series of times over categories, the times on a logarithmic axis, as an SVG that is readable by day and by night.

use std::fmt::Write as _;

use crate::measure::{Runs, Spread};

/// A picture.
#[derive(Debug)]
pub(super) struct Plot {
    /// Of its file, without the ending.
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    /// What the categories are.
    pub(super) axis: &'static str,
    /// The categories, from left to right.
    pub(super) categories: Vec<String>,
    pub(super) series: Vec<Series>,
}

/// One line, a point for each category: milliseconds, or nothing.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) name: &'static str,
    pub(super) look: Look,
    /// Whether it is the same as another one under worse conditions.
    pub(super) is_dashed: bool,
    pub(super) points: Vec<Option<Spread>>,
}

/// The same thing looks the same in all pictures; each is told apart by its form, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    Native,
    Populated,
    Criu,
    Cold,
    /// What nothing can be faster than.
    Floor,
}

impl Series {
    pub(super) fn new<'a>(name: &'static str, look: Look, runs: impl IntoIterator<Item = &'a Runs>) -> Self {
        Self { name, look, is_dashed: false, points: runs.into_iter().map(Runs::spread).collect() }
    }

    pub(super) fn dashed(self) -> Self {
        Self { is_dashed: true, ..self }
    }

    /// The last point that there is: where the line ends.
    fn end(&self) -> f64 {
        self.points.iter().rev().flatten().next().map_or(0.0, |point| point.median)
    }
}

impl Look {
    const ALL: [Look; 5] = [Look::Native, Look::Populated, Look::Criu, Look::Cold, Look::Floor];

    fn class(self) -> &'static str {
        match self {
            Look::Native => "native",
            Look::Populated => "populated",
            Look::Criu => "criu",
            Look::Cold => "cold",
            Look::Floor => "floor",
        }
    }

    /// By day and by night; the colours of Okabe and Ito, or near to them.
    fn colours(self) -> [&'static str; 2] {
        match self {
            Look::Native => ["#0072b2", "#56b4e9"],
            Look::Populated => ["#009e73", "#3fc8a0"],
            Look::Criu => ["#d55e00", "#ff9248"],
            Look::Cold => ["#8a3ffc", "#be95ff"],
            Look::Floor => ["#6e7781", "#a5afb9"],
        }
    }

    /// The marker at a point.
    fn marker(self, x: f64, y: f64) -> String {
        let class = self.class();
        let shape = |points: &[(f64, f64)]| {
            let points: Vec<String> = points.iter().map(|(dx, dy)| format!("{:.1},{:.1}", x + dx, y + dy)).collect();
            format!("<polygon class=\"{class} mark\" points=\"{}\"/>\n", points.join(" "))
        };
        match self {
            Look::Native => format!("<circle class=\"{class} mark\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\"/>\n"),
            Look::Populated => shape(&[(0.0, 5.4), (5.2, -4.2), (-5.2, -4.2)]),
            Look::Criu => shape(&[(-4.2, -4.2), (4.2, -4.2), (4.2, 4.2), (-4.2, 4.2)]),
            Look::Cold => shape(&[(0.0, -5.4), (5.2, 4.2), (-5.2, 4.2)]),
            Look::Floor => shape(&[(0.0, -5.6), (5.0, 0.0), (0.0, 5.6), (-5.0, 0.0)]),
        }
    }
}

const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 440.0;
/// Of the plotted area.
const LEFT: f64 = 76.0;
const RIGHT: f64 = 570.0;
const TOP: f64 = 54.0;
const BOTTOM: f64 = 378.0;
/// Between the lines of the legend.
const LINE: f64 = 24.0;
/// Between the points of two series in one category, so that their ranges can be told apart.
const ASIDE: f64 = 7.0;

impl Plot {
    pub(super) fn svg(&self) -> String {
        let axis = Axis::around(self.series.iter().flat_map(|series| series.points.iter().flatten()));
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\" \
             aria-label=\"{title}\">\n<title>{title}</title>\n<style>\n{}</style>\n<rect class=\"page\" width=\"{WIDTH}\" \
             height=\"{HEIGHT}\" rx=\"6\"/>\n",
            style(),
            title = escaped(self.title),
        );
        text(&mut svg, "title", LEFT - 56.0, 28.0, self.title);
        for tick in axis.ticks() {
            let y = axis.y(tick);
            line(&mut svg, "grid", (LEFT, y), (RIGHT, y));
            text(&mut svg, "tick end", LEFT - 8.0, y + 4.0, &shown(tick));
        }
        for (index, category) in self.categories.iter().enumerate() {
            let x = self.x(index);
            line(&mut svg, "axis", (x, BOTTOM), (x, BOTTOM + 5.0));
            text(&mut svg, "tick middle", x, BOTTOM + 20.0, category);
        }
        line(&mut svg, "axis", (LEFT, BOTTOM), (RIGHT, BOTTOM));
        text(&mut svg, "label middle", f64::midpoint(LEFT, RIGHT), BOTTOM + 44.0, self.axis);
        text(&mut svg, "label", LEFT - 56.0, TOP - 10.0, "time, logarithmic; median, least and greatest");
        for (index, series) in self.series.iter().enumerate() {
            let aside = (index as f64 - (self.series.len() as f64 - 1.0) / 2.0) * ASIDE;
            self.draw(&mut svg, &axis, series, aside);
        }
        self.legend(&mut svg);
        svg.push_str("</svg>\n");
        svg
    }

    fn x(&self, index: usize) -> f64 {
        LEFT + (RIGHT - LEFT) * (index as f64 + 0.5) / self.categories.len() as f64
    }

    fn draw(&self, svg: &mut String, axis: &Axis, series: &Series, aside: f64) {
        let class = series.class();
        let points = series.points.iter().enumerate();
        let points: Vec<(f64, Spread)> = points.filter_map(|(index, point)| Some((self.x(index) + aside, (*point)?))).collect();
        for (x, point) in &points {
            line(svg, &format!("{class} range"), (*x, axis.y(point.min)), (*x, axis.y(point.max)));
        }
        for pair in points.windows(2) {
            let [(x, from), (until, to)] = pair else { continue };
            line(svg, &format!("{class} line"), (*x, axis.y(from.median)), (*until, axis.y(to.median)));
        }
        for (x, point) in &points {
            svg.push_str(&series.look.marker(*x, axis.y(point.median)));
        }
    }

    /// In the order in which the lines end, from top to bottom.
    fn legend(&self, svg: &mut String) {
        let mut series: Vec<&Series> = self.series.iter().filter(|series| series.points.iter().any(Option::is_some)).collect();
        series.sort_by(|one, other| other.end().total_cmp(&one.end()));
        for (index, series) in series.iter().enumerate() {
            let (x, y) = (RIGHT + 22.0, TOP + 8.0 + index as f64 * LINE);
            line(svg, &format!("{} line", series.class()), (x, y), (x + 28.0, y));
            svg.push_str(&series.look.marker(x + 14.0, y));
            text(svg, "name", x + 36.0, y + 4.5, series.name);
        }
    }
}

impl Series {
    fn class(&self) -> String {
        format!("{}{}", self.look.class(), if self.is_dashed { " dashed" } else { "" })
    }
}

/// The logarithmic axis, in milliseconds.
#[derive(Debug, PartialEq)]
struct Axis {
    min: f64,
    max: f64,
}

impl Axis {
    /// From the last round number below all points to the first above them.
    fn around<'a>(points: impl Iterator<Item = &'a Spread>) -> Self {
        let (min, max) = points.fold((f64::INFINITY, 0.0_f64), |(min, max), point| (min.min(point.min), max.max(point.max)));
        if !(min > 0.0 && min.is_finite()) {
            return Self { min: 0.1, max: 10.0 };
        }
        let round = || (-6..9).flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(power)));
        let min = round().take_while(|number| *number <= min).last().unwrap_or(min);
        Self { min, max: round().find(|number| *number >= max && *number > min).unwrap_or(max) }
    }

    /// Powers of ten, and what is between them where there are few.
    fn ticks(&self) -> Vec<f64> {
        let digits: &[f64] = if self.max / self.min > 300.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let numbers = (-6..9).flat_map(|power| digits.iter().map(move |digit| digit * 10_f64.powi(power)));
        // The ends are computed in the same way; the margin is for what is lost in between.
        numbers.filter(|number| (self.min * 0.999..=self.max * 1.001).contains(number)).collect()
    }

    fn y(&self, value: f64) -> f64 {
        let part = (value.max(self.min) / self.min).ln() / (self.max / self.min).ln();
        BOTTOM - part * (BOTTOM - TOP - 8.0)
    }
}

/// Milliseconds as one says them.
fn shown(ms: f64) -> String {
    match ms {
        ..0.999 => format!("{:.0} µs", ms * 1e3),
        0.999..999.0 => format!("{ms:.0} ms"),
        _ => format!("{:.0} s", ms / 1e3),
    }
}

fn line(svg: &mut String, class: &str, from: (f64, f64), to: (f64, f64)) {
    let (x, y, until, to) = (from.0, from.1, to.0, to.1);
    // Writing to a string does not fail.
    let _ = writeln!(svg, "<line class=\"{class}\" x1=\"{x:.1}\" y1=\"{y:.1}\" x2=\"{until:.1}\" y2=\"{to:.1}\"/>");
}

fn text(svg: &mut String, class: &str, x: f64, y: f64, text: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(svg, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", escaped(text));
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// What is seen by day, and what is other by night. What does not know of nights shows the day.
fn style() -> String {
    let colours = |at: usize| -> String {
        let rules = Look::ALL.map(|look| {
            let (class, colour) = (look.class(), look.colours()[at]);
            format!(".{class} {{ stroke: {colour}; fill: {colour} }}\n")
        });
        rules.concat()
    };
    format!(
        "text {{ font-family: system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif; font-size: 12px; fill: #1f2328 }}\n\
         .title {{ font-size: 15px; font-weight: 600 }}\n.name {{ font-size: 13px }}\n.label, .tick {{ fill: #59636e }}\n\
         .middle {{ text-anchor: middle }}\n.end {{ text-anchor: end }}\n.page {{ fill: #ffffff }}\n\
         .grid {{ stroke: #d8dee4 }}\n.axis {{ stroke: #59636e }}\n{}.mark {{ stroke: none }}\n.line {{ stroke-width: 2 }}\n\
         .range {{ stroke-width: 1.5; opacity: 0.6 }}\n.dashed {{ stroke-dasharray: 5 4 }}\n.dashed.range {{ stroke-dasharray: none }}\n\
         @media (prefers-color-scheme: dark) {{\ntext {{ fill: #e6edf3 }}\n.label, .tick {{ fill: #9aa4ae }}\n.page {{ fill: #0d1117 }}\n\
         .grid {{ stroke: #2a313a }}\n.axis {{ stroke: #9aa4ae }}\n{}.mark {{ stroke: none }}\n}}\n",
        colours(0),
        colours(1),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(min: f64, max: f64) -> Spread {
        Spread { min, median: f64::midpoint(min, max), max }
    }

    #[test]
    fn the_axis_ends_at_round_numbers_and_ticks_are_few() {
        let axis = Axis::around([spread(0.7, 3.0), spread(2.0, 4800.0)].iter());
        assert_eq!(axis.ticks().len(), 4);
        assert!((axis.min - 0.5).abs() < 1e-9 && (axis.max - 5000.0).abs() < 1e-6, "{axis:?}");
        let narrow = Axis::around([spread(3.0, 30.0)].iter());
        assert_eq!(
            narrow.ticks().iter().map(|tick| shown(*tick)).collect::<Vec<_>>(),
            ["2 ms", "5 ms", "10 ms", "20 ms", "50 ms"]
        );
    }

    #[test]
    fn more_is_higher_and_nothing_leaves_the_area() {
        let axis = Axis::around([spread(1.0, 900.0)].iter());
        assert!(axis.y(900.0) < axis.y(30.0) && axis.y(30.0) < axis.y(1.0));
        assert!((axis.y(axis.min) - BOTTOM).abs() < 1e-9 && axis.y(axis.max) >= TOP);
        assert_eq!(Axis::around([].iter()), Axis { min: 0.1, max: 10.0 });
    }

    #[test]
    fn a_picture_has_a_point_for_each_measurement_and_none_for_what_was_not_measured() {
        let series = |points| Series { name: "a <b>", look: Look::Native, is_dashed: false, points };
        let plot = Plot {
            name: "p",
            title: "t & u",
            axis: "MiB",
            categories: ["1", "2", "3"].map(str::to_owned).to_vec(),
            series: vec![series(vec![Some(spread(1.0, 2.0)), None, Some(spread(3.0, 9.0))]), series(vec![None, None, None])],
        };
        let svg = plot.svg();
        // Two points and the one in the legend.
        assert_eq!(svg.matches("<circle").count(), 3);
        assert_eq!(svg.matches("class=\"native range\"").count(), 2);
        assert!(svg.contains("t &amp; u") && svg.contains("a &lt;b&gt;") && !svg.contains("NaN"), "{svg}");
    }

    #[test]
    fn times_are_shown_as_one_says_them() {
        assert_eq!([0.5, 1.0, 200.0, 1000.0, 20000.0].map(shown), ["500 µs", "1 ms", "200 ms", "1 s", "20 s"]);
    }
}
