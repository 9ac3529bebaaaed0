//! What taking part costs while no checkpoint runs.

use std::time::Duration;

use anyhow::{Context as _, Result};
use crac_testing::programs::program;
use serde::Deserialize;

use super::{
    plan::Plan,
    section::{Section, number, spread_cells, table},
};
use crate::{measure::Spread, shell};

/// Counted rounds and requests of one of four connections in a round.
const FULL: [usize; 2] = [10, 10_000];
const QUICK: [usize; 2] = [1, 500];
/// Some seconds, on the slowest machine a few minutes.
const DEADLINE: Duration = Duration::from_secs(10 * 60);

/// What the program `layer` of `benches` says.
#[derive(Debug, Deserialize)]
struct Said {
    alone_ns: Vec<f64>,
    behind_ns: Vec<f64>,
    plain_rps: Vec<f64>,
    layered_rps: Vec<f64>,
    served_rps: Vec<f64>,
}

pub(super) fn layer(plan: &Plan) -> Result<Vec<Section>> {
    plan.say("requests with and without the layer");
    let [rounds, requests] = if plan.quick { QUICK } else { FULL }.map(|number| number.to_string());
    let mut command = shell::command(program("layer"), ["--rounds", &rounds, "--requests", &requests]);
    let (said, result) = shell::tee(&mut command, DEADLINE)?;
    result?;
    let said: Said = serde_json::from_str(&said).context("what the program `layer` says")?;
    Ok(vec![section(&said)])
}

fn section(said: &Said) -> Section {
    let spread = |numbers: &[f64]| (!numbers.is_empty()).then(|| numbers.iter().copied().collect::<Spread>());
    let row = |name: &str, numbers: &[f64], of: &[f64]| {
        let [min, median, max, times] = spread_cells(spread(numbers), spread(of));
        [name.to_owned(), numbers.len().to_string(), min, median, max, times]
    };
    let Said { alone_ns, behind_ns, plain_rps, layered_rps, served_rps } = said;
    let calls =
        [row("a service that does nothing", alone_ns, alone_ns), row("the same behind `CheckpointLayer`", behind_ns, alone_ns)];
    let requests = [
        row("`axum::serve`", plain_rps, plain_rps),
        row("`axum::serve` with `CheckpointLayer`", layered_rps, plain_rps),
        row("`crac::http::serve`", served_rps, plain_rps),
    ];
    let text = format!(
        "A call without a network, in nanoseconds, from the request to the end of the answer's body.\n\n{}Requests a second over four \
         connections on loopback, kept open; clients and servers in one process, on the same processors.\n\n{}",
        table(["call", "rounds", "min, ns", "median, ns", "max, ns", "x alone"], &calls),
        table(["server", "rounds", "min, 1/s", "median, 1/s", "max, 1/s", "x without"], &requests),
    );
    let short = spread(behind_ns).zip(spread(alone_ns)).zip(spread(layered_rps).zip(spread(plain_rps)));
    let short = short.map(|((behind, alone), (layered, plain))| {
        format!(
            "`CheckpointLayer` adds {} ns to a request; a server with it answers {} times as many requests as without.",
            number(behind.median - alone.median),
            number(layered.median / plain.median)
        )
    });
    Section { title: "Requests while no checkpoint runs", short: short.into_iter().collect(), text, plots: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_compared_with_the_one_without_the_layer() {
        let said = r#"{"alone_ns":[40,50,60],"behind_ns":[80],"plain_rps":[50000],"layered_rps":[49000],"served_rps":[60000]}"#;
        let section = section(&serde_json::from_str(said).unwrap());
        assert!(
            section.text.contains("| `axum::serve` with `CheckpointLayer` | 1 | 49000 | 49000 | 49000 | 0.98 |"),
            "{}",
            section.text
        );
        assert!(section.short[0].starts_with("`CheckpointLayer` adds 30.0 ns"), "{:?}", section.short);
    }
}
