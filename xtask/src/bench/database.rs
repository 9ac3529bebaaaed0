//! What a database on a server adds to a restore: a connection with TLS and SCRAM, made anew before the first answer.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use crac_testing::{lab::Lab, programs::program};

use super::{
    cluster::Cluster,
    plan::Plan,
    restore::count_criu,
    section::{Section, cells, number, table},
    starts::{Images, Program, Way},
};
use crate::{measure::Runs, shell};

const MIB: usize = 16;

/// What was measured.
#[derive(Debug, Default)]
struct Measured {
    sqlite: Way,
    native: Way,
    criu: Way,
    cold: Way,
    /// Connecting and one query, the first time in a new process.
    connect: Runs,
    /// Once more in the same process.
    connect_again: Runs,
}

pub(super) fn database(plan: &Plan) -> Result<Vec<Section>> {
    plan.say("restores with PostgreSQL");
    let cluster = match Cluster::start(plan) {
        Ok(cluster) => cluster,
        Err(reason) => {
            plan.leave_out("PostgreSQL", &format!("{reason:#}"))?;
            return Ok(Vec::new());
        }
    };
    let url = cluster.url();
    let service = || Program::web_server(MIB).with("--database", &url);
    let rounds = plan.rounds(MIB)?;
    let mut measured = Measured::default();
    let lab = plan.lab();
    let mut sqlite = Images::new(plan, Program::web_server(MIB), None);
    let mut native = Images::new(plan, service(), None);
    let mut by_criu = plan.criu.as_deref().map(|criu| Images::new(plan, service(), Some(criu)));
    for _ in 0..rounds.blocks {
        // A cold start with SQLite is measured elsewhere.
        sqlite.take(&mut Way::default())?;
        native.take(&mut measured.cold)?;
        let mut criu = None;
        if let Some(images) = &mut by_criu {
            match images.take(&mut measured.cold) {
                Ok(()) => criu = Some(&*images),
                Err(error) => {
                    measured.criu.failed += 1;
                    plan.criu_failed(&format!("{error:#}"))?;
                }
            }
        }
        for round in 0..=rounds.native {
            let timed = (sqlite.restore(&measured.sqlite), native.restore(&measured.native), connect(&lab, &url)?);
            let by_criu = criu.filter(|_| round <= rounds.criu).map(|images| images.restore(&measured.criu));
            // The first of each is a warm-up.
            if round > 0 {
                measured.sqlite.add(timed.0);
                measured.native.add(timed.1);
                measured.connect.add(timed.2[0]);
                measured.connect_again.add(timed.2[1]);
                by_criu.map_or(Ok(()), |timed| count_criu(plan, &mut measured.criu, timed))?;
            }
        }
    }
    let failed = measured.sqlite.failed + measured.native.failed;
    ensure!(failed == 0, "the native engine failed {failed} times with a database");
    Ok(vec![section(&measured)])
}

/// The first and the second time that a new process connects.
fn connect(lab: &Lab, url: &str) -> Result<[Duration; 2]> {
    let said = shell::output(lab.command(program("connect")).arg(url))?;
    let micros: [u64; 2] = serde_json::from_str(&said).context("what the program `connect` says")?;
    Ok(micros.map(Duration::from_micros))
}

fn section(measured: &Measured) -> Section {
    let Measured { sqlite, native, criu, cold, connect, connect_again } = measured;
    let rows = [
        ("native, SQLite", &sqlite.first, sqlite.failed),
        ("native, PostgreSQL", &native.first, native.failed),
        ("CRIU, PostgreSQL", &criu.first, criu.failed),
        ("cold start, PostgreSQL", &cold.first, cold.failed),
        ("connecting alone, new process", connect, 0),
        ("connecting alone, once more", connect_again, 0),
    ];
    let rows = rows.into_iter().filter(|(_, runs, failed)| runs.len() + failed > 0).map(|(name, runs, failed)| {
        let [min, median, max, times] = cells(runs, &native.first);
        [name.to_owned(), runs.len().to_string(), failed.to_string(), min, median, max, times]
    });
    let text = format!(
        "The service with {MIB} MiB and a PostgreSQL server on loopback that asks for TLS and SCRAM: a restored life has made its \
         connection anew before it gives its first answer. *Connecting alone* is what a client of the same library takes to connect \
         and ask once, measured within it, in turn with the rest.\n\n{}",
        table(["what", "runs", "failed", "min, ms", "median, ms", "max, ms", "x native, PostgreSQL"], &rows.collect::<Vec<_>>())
    );
    let more = native.first.median().saturating_sub(sqlite.first.median());
    let short = format!(
        "PostgreSQL with TLS and SCRAM adds {} ms to a restore; connecting takes a new process {} ms, and {} ms the second time.",
        number(more.as_secs_f64() * 1e3),
        number(connect.median().as_secs_f64() * 1e3),
        number(connect_again.median().as_secs_f64() * 1e3)
    );
    Section { title: "Reconnecting to PostgreSQL", short: vec![short], text, plots: Vec::new() }
}
