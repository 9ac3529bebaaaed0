//! What threads cost a restore: each is made anew.

use anyhow::{Result, ensure};

use super::{
    plan::Plan,
    plot::{Look, Plot, Series},
    restore::count_criu,
    section::{Section, cells, list, number, table, times},
    starts::{self, Images, Program, Way},
};

/// Threads of the service besides those of its runtime.
const THREADS: [usize; 5] = [0, 10, 100, 400, 800];
const QUICK_THREADS: [usize; 2] = [10, 100];
const MIB: usize = 16;

/// What was measured with so many threads.
#[derive(Debug, Default)]
struct Count {
    threads: usize,
    floor: Way,
    native: Way,
    criu: Way,
    cold: Way,
}

pub(super) fn threads(plan: &Plan) -> Result<Vec<Section>> {
    let counts = if plan.quick { &QUICK_THREADS[..] } else { &THREADS };
    let measured: Result<Vec<Count>> = counts.iter().map(|threads| measure(plan, *threads)).collect();
    Ok(vec![section(&measured?)])
}

fn measure(plan: &Plan, threads: usize) -> Result<Count> {
    plan.say(&format!("starts with {threads} threads"));
    let rounds = plan.rounds(MIB)?;
    let mut count = Count { threads, ..Count::default() };
    let lab = plan.lab();
    let mut native = Images::new(plan, Program::pause(MIB, threads), None);
    let mut by_criu = plan.criu.as_deref().map(|criu| Images::new(plan, Program::pause(MIB, threads), Some(criu)));
    for _ in 0..rounds.blocks {
        native.take(&mut count.cold)?;
        let mut criu = None;
        if let Some(images) = &mut by_criu {
            match images.take(&mut count.cold) {
                Ok(()) => criu = Some(&*images),
                Err(error) => {
                    count.criu.failed += 1;
                    plan.criu_failed(&format!("{error:#}"))?;
                }
            }
        }
        for round in 0..=rounds.native {
            let timed = (starts::floor(plan, &lab, &count.floor), native.restore(&count.native));
            let by_criu = criu.filter(|_| round <= rounds.criu).map(|images| images.restore(&count.criu));
            // The first of each is a warm-up.
            if round > 0 {
                count.floor.add(timed.0);
                count.native.add(timed.1);
                by_criu.map_or(Ok(()), |timed| count_criu(plan, &mut count.criu, timed))?;
            }
        }
    }
    let failed = count.native.failed + count.floor.failed;
    ensure!(failed == 0, "the native engine or the floor failed {failed} times with {threads} threads");
    Ok(count)
}

impl Count {
    fn ways(&self) -> [(&'static str, &Way); 4] {
        [("floor", &self.floor), ("native", &self.native), ("CRIU", &self.criu), ("cold start", &self.cold)]
    }
}

fn section(counts: &[Count]) -> Section {
    let mut rows = Vec::new();
    for count in counts {
        for (name, way) in count.ways().into_iter().filter(|(_, way)| way.first.len() + way.failed > 0) {
            let [min, median, max, times] = cells(&way.first, &count.native.first);
            let [runs, failed] = [way.first.len(), way.failed].map(|count| count.to_string());
            rows.push([count.threads.to_string(), name.to_owned(), runs, failed, min, median, max, times]);
        }
    }
    let series = |name, look, way: fn(&Count) -> &Way| Series::new(name, look, counts.iter().map(|count| &way(count).first));
    let plot = Plot {
        name: "threads",
        title: "From start to the first answer, by threads",
        axis: "threads besides those of the runtime",
        categories: counts.iter().map(|count| count.threads.to_string()).collect(),
        series: vec![
            series("CRIU", Look::Criu, |count| &count.criu),
            series("native", Look::Native, |count| &count.native),
            series("cold start", Look::Cold, |count| &count.cold),
            series("floor", Look::Floor, |count| &count.floor),
        ],
    };
    let text = format!(
        "A service of its own (`benches/src/bin/pause.rs`) with {MIB} MiB of heap and so many threads that wait for a condition variable; \
         each is there again, with its stack and its thread-locals, before the first answer.\n\n{}",
        table(["threads", "start", "runs", "failed", "min, ms", "median, ms", "max, ms", "x native"], &rows)
    );
    Section { title: "Threads", short: short(counts).into_iter().collect(), text, plots: vec![plot] }
}

fn short(counts: &[Count]) -> Option<String> {
    let fewest = counts.iter().find(|count| count.native.first.len() > 0)?;
    let parts = counts.iter().filter(|count| count.threads > fewest.threads);
    let parts: Vec<String> = parts
        .filter_map(|count| Some(format!("{} with {}", number(times(&count.native.first, &fewest.native.first)?), count.threads)))
        .collect();
    (!parts.is_empty()).then(|| {
        format!(
            "Beside {} threads, a restore by the native engine takes as many times as long with more of them: {}.",
            fewest.threads,
            list(&parts)
        )
    })
}
