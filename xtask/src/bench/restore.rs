//! Restore by either engine, against cold starts and against the floor; and the checkpoints before them.

use anyhow::{Result, anyhow, ensure};
use crac_testing::lab::Lab;

use super::{
    memory,
    plan::Plan,
    plot::{Look, Plot, Series},
    section::{Section, cells, list, number, table, times},
    starts::{self, Images, Program, REQUESTS, Taken, Way},
};
use crate::measure::Runs;

/// What the service has warmed up.
const SIZES: [usize; 5] = [0, 16, 256, 1024, 4096];
const QUICK_SIZES: [usize; 2] = [0, 16];
/// What is hoped for: to the first answer so many times as fast as CRIU, with so many MiB.
const AIMS: [(usize, f64); 2] = [(16, 10.0), (1024, 300.0)];

/// What was measured at one size.
#[derive(Debug, Default)]
struct Size {
    mib: usize,
    floor: Way,
    /// With nothing but a few starts of this kind right before.
    floor_at_once: Way,
    cold_start: Way,
    native: Way,
    native_at_once: Way,
    native_uncached: Way,
    populated: Way,
    populated_uncached: Way,
    eager: Way,
    eager_uncached: Way,
    criu: Way,
    criu_at_once: Way,
    criu_uncached: Way,
    native_image: Taken,
    criu_image: Taken,
}

/// Everything at all sizes: to the first answer, to the hundredth, to the last page; and the checkpoints.
pub(super) fn restore(plan: &Plan) -> Result<Vec<Section>> {
    let mut sizes = Vec::new();
    for mib in plan.sizes(&SIZES, &QUICK_SIZES)? {
        plan.say(&format!("starts with {mib} MiB"));
        sizes.push(measure(plan, mib)?);
    }
    Ok(sections(&sizes))
}

fn measure(plan: &Plan, mib: usize) -> Result<Size> {
    let rounds = plan.rounds(mib)?;
    let mut size = Size { mib, ..Size::default() };
    let lab = plan.lab();
    let mut native = Images::new(plan, Program::web_server(mib), None);
    let mut by_criu = plan.criu.as_deref().map(|criu| Images::new(plan, Program::web_server(mib), Some(criu)));
    for block in 0..rounds.blocks {
        // Whoever comes second finds the memory of a service that has just ended.
        let native_is_first = block.is_multiple_of(2);
        if native_is_first {
            native.take(&mut size.cold_start)?;
        }
        let is_taken = take_by_criu(plan, &mut by_criu, &mut size.cold_start)?;
        if !native_is_first {
            native.take(&mut size.cold_start)?;
        }
        let criu = by_criu.as_ref().filter(|_| is_taken);
        // Warms the page cache up, the file systems' caches of names, and CRIU's cache of kernel features.
        for warmed in
            [native.restore(&size.native), native.restore_populated(&size.populated), native.restore_eagerly(&size.eager)]
        {
            ensure!(warmed.is_ok(), "the native engine failed at {mib} MiB: {warmed:?}");
        }
        if let Some(Err(what)) = criu.map(|images| images.restore(&size.criu)) {
            plan.criu_failed(&what)?;
        }
        for round in 0..rounds.native {
            let are_all = round < rounds.criu;
            if are_all {
                memory::have_at_hand(mib);
                // Each that is counted follows another start, whose code is in the processor's caches.
                starts::floor(plan, &lab, &size.floor).map_err(|what| anyhow!(what))?;
            }
            size.floor.add(starts::floor(plan, &lab, &size.floor));
            let timed = native.restore(&size.native);
            size.native.add(timed);
            if are_all {
                let timed = native.restore_populated(&size.populated);
                size.populated.add(timed);
                let timed = native.restore_eagerly(&size.eager);
                size.eager.add(timed);
            }
            if let Some(images) = criu.filter(|_| are_all) {
                let timed = images.restore(&size.criu);
                count_criu(plan, &mut size.criu, timed)?;
            }
        }
        at_once(plan, &lab, &native, rounds.native, &mut size);
        if let Some(images) = criu.filter(|_| rounds.criu_at_once != 0) {
            // The first one comes after something else.
            for round in 0..=rounds.criu_at_once {
                let timed = images.restore_and_ask_once(&size.criu);
                if round > 0 || timed.is_err() {
                    count_criu(plan, &mut size.criu_at_once, timed)?;
                }
            }
        }
        for turn in 0..WAYS_UNCACHED * rounds.uncached {
            let way = way_uncached(block + turn / WAYS_UNCACHED, turn % WAYS_UNCACHED);
            uncached(plan, way, &native, criu, &mut size)?;
        }
    }
    let at_once = size.native_at_once.failed + size.floor_at_once.failed;
    let uncached = size.native_uncached.failed + size.populated_uncached.failed + size.eager_uncached.failed;
    let warm = size.native.failed + size.populated.failed + size.eager.failed + size.floor.failed;
    let failed = warm + uncached + at_once;
    ensure!(failed == 0, "the native engine or the floor failed {failed} times at {mib} MiB");
    size.native_image = native.taken;
    size.criu_image = by_criu.map(|images| images.taken).unwrap_or_default();
    Ok(size)
}

/// Whether there is an image by CRIU now.
fn take_by_criu(plan: &Plan, images: &mut Option<Images>, cold: &mut Way) -> Result<bool> {
    let Some(images) = images else { return Ok(false) };
    match images.take(cold) {
        Ok(()) => Ok(true),
        Err(error) => plan.criu_failed(&format!("{error:#}")).map(|()| false),
    }
}

/// Restores and starts of the floor one right after the other, each asked once: what they have in common is in the processor's
/// caches. How long they are left alone before is what those before took.
fn at_once(plan: &Plan, lab: &Lab, native: &Images, rounds: usize, size: &mut Size) {
    for round in 0..=rounds {
        let floor = starts::floor(plan, lab, &size.floor);
        let restored = native.restore_and_ask_once(&size.native);
        // The first two come after something else.
        if round > 0 || floor.is_err() || restored.is_err() {
            size.floor_at_once.add(floor);
            size.native_at_once.add(restored);
        }
    }
}

/// How many ways there are with the page cache cold.
const WAYS_UNCACHED: usize = 4;

/// Which of them has a place in a round: none is always the first, or always behind the same.
fn way_uncached(round: usize, place: usize) -> usize {
    let place = (place + round / 2) % WAYS_UNCACHED;
    if round.is_multiple_of(2) { place } else { WAYS_UNCACHED - 1 - place }
}

/// A restore with the image dropped from the page cache, in one of these ways - if it really was dropped: not every file system
/// can do that.
fn uncached(plan: &Plan, way: usize, native: &Images, criu: Option<&Images>, size: &mut Size) -> Result<()> {
    type Restore = fn(&Images, &Way) -> Result<starts::Timed, String>;
    let (way, restore): (_, Restore) = match way {
        0 => (&mut size.native_uncached, Images::restore),
        1 => (&mut size.populated_uncached, Images::restore_populated),
        2 => (&mut size.eager_uncached, Images::restore_eagerly),
        _ => {
            let Some(images) = criu else { return Ok(()) };
            images.forget()?;
            memory::have_at_hand(size.mib);
            let timed = images.restore(&size.criu_uncached);
            return count_criu(plan, &mut size.criu_uncached, timed);
        }
    };
    native.forget()?;
    memory::have_at_hand(size.mib);
    let timed = restore(native, way);
    let fetched = timed.as_ref().map_or(u64::MAX, |timed| timed.fetched);
    // At least the state, all of which was read; what is around it is read in parts.
    if fetched == 0 || fetched < (size.mib as u64) << 19 {
        return plan.leave_out("the page cache cold", "this file system keeps what it is told to drop");
    }
    way.add(timed);
    Ok(())
}

pub(super) fn count_criu(plan: &Plan, way: &mut Way, timed: Result<starts::Timed, String>) -> Result<()> {
    let failure = timed.as_ref().err().cloned();
    way.add(timed);
    failure.map_or(Ok(()), |what| plan.criu_failed(&what))
}

impl Size {
    /// Every way with its name.
    fn ways(&self) -> [(&'static str, &Way); 10] {
        [
            ("floor", &self.floor),
            ("native", &self.native),
            ("native, populated", &self.populated),
            ("native, eager", &self.eager),
            ("CRIU", &self.criu),
            ("native, page cache cold", &self.native_uncached),
            ("native, populated, page cache cold", &self.populated_uncached),
            ("native, eager, page cache cold", &self.eager_uncached),
            ("CRIU, page cache cold", &self.criu_uncached),
            ("cold start", &self.cold_start),
        ]
    }
}

fn sections(sizes: &[Size]) -> Vec<Section> {
    let mut first = answers(
        sizes,
        |way| &way.first,
        Plot { name: "first-answer", title: "From start to the first answer", ..plot(sizes, |way| &way.first) },
    );
    let by_criu = against_criu("To", sizes, |size| times(&size.criu.first, &size.native.first));
    first.short = [by_criu, against_the_rest(sizes)].into_iter().flatten().collect();
    let hundredth = answers(
        sizes,
        |way| &way.hundredth,
        Plot { name: "hundredth-answer", title: "From start to the hundredth answer", ..plot(sizes, |way| &way.hundredth) },
    );
    let mut last = answers(
        sizes,
        |way| &way.all,
        Plot { name: "last-page", title: "From start until every page was read", ..plot(sizes, |way| &way.all) },
    );
    last.short = to_the_last_page(sizes).into_iter().collect();
    vec![first, in_succession(sizes), hundredth, last, images(sizes)]
}

/// One question about all ways.
fn answers(sizes: &[Size], runs: impl Fn(&Way) -> &Runs, plot: Plot) -> Section {
    let mut rows = Vec::new();
    for size in sizes {
        for (name, way) in size.ways() {
            if runs(way).len() + way.failed == 0 || (runs(way).len() == 0 && name == "floor") {
                continue;
            }
            let [min, median, max, times] = cells(runs(way), runs(&size.native));
            let counts = [runs(way).len(), way.failed].map(|count| count.to_string());
            let [counted, failed] = counts;
            rows.push([size.mib.to_string(), name.to_owned(), counted, failed, min, median, max, times]);
        }
    }
    let text = table(["MiB", "start", "runs", "failed", "min, ms", "median, ms", "max, ms", "x native"], &rows);
    Section { title: plot.title, text, plots: vec![plot], ..Section::default() }
}

/// The first answer where nothing else ran before.
fn in_succession(sizes: &[Size]) -> Section {
    let rows = sizes.iter().flat_map(|size| {
        let ways = [("floor", &size.floor_at_once), ("native", &size.native_at_once), ("CRIU", &size.criu_at_once)];
        ways.map(|(name, way)| (name, size, way))
    });
    let rows = rows.filter(|(_, _, way)| way.first.len() + way.failed != 0).map(|(name, size, way)| {
        let [min, median, max, times] = cells(&way.first, &size.native_at_once.first);
        let [runs, failed] = [way.first.len(), way.failed].map(|count| count.to_string());
        [size.mib.to_string(), name.to_owned(), runs, failed, min, median, max, times]
    });
    let rows: Vec<_> = rows.collect();
    let text = format!(
        "As above, but nothing runs between a start of the floor and one from the image: each is asked once and ended, and the next \
         begins; and so it goes with restores by CRIU, up to 1 GiB. Their code, the kernel's, and the pages of the image are warm in the processor's \
         caches then, where above some milliseconds of other work come before each start.\n\n{}",
        table(["MiB", "start", "runs", "failed", "min, ms", "median, ms", "max, ms", "x native"], &rows)
    );
    let ratio = by_size(sizes, |size| times(&size.native_at_once.first, &size.floor_at_once.first));
    let took = by_size(sizes, |size| Some(size.native_at_once.first.median().as_secs_f64() * 1e3));
    let short = took.zip(ratio).map(|(took, ratio)| {
        format!("One right after the other, a restore by the native engine takes to the first answer {took} (in ms); as many times as long as the floor: {ratio}.")
    });
    let by_criu = against_criu("One restore right after the other, to", sizes, |size| {
        times(&size.criu_at_once.first, &size.native_at_once.first)
    });
    Section {
        title: "From start to the first answer, in quick succession",
        short: [short, by_criu].into_iter().flatten().collect(),
        text,
        plots: Vec::new(),
    }
}

fn plot(sizes: &[Size], runs: impl Fn(&Way) -> &Runs) -> Plot {
    let series = |name, look, way: fn(&Size) -> &Way| Series::new(name, look, sizes.iter().map(|size| runs(way(size))));
    let all = vec![
        series("CRIU", Look::Criu, |size| &size.criu),
        series("CRIU, page cache cold", Look::Criu, |size| &size.criu_uncached).dashed(),
        series("cold start", Look::Cold, |size| &size.cold_start),
        series("native", Look::Native, |size| &size.native),
        series("native, page cache cold", Look::Native, |size| &size.native_uncached).dashed(),
        series("populated", Look::Populated, |size| &size.populated),
        series("populated, page cache cold", Look::Populated, |size| &size.populated_uncached).dashed(),
        series("floor", Look::Floor, |size| &size.floor),
    ];
    Plot { name: "", title: "", axis: "warmed-up state, MiB", categories: categories(sizes), series: all }
}

fn categories(sizes: &[Size]) -> Vec<String> {
    sizes.iter().map(|size| size.mib.to_string()).collect()
}

/// A sentence about each size, unless there is nothing to say.
fn by_size(sizes: &[Size], ratio: impl Fn(&Size) -> Option<f64>) -> Option<String> {
    let parts: Vec<String> =
        sizes.iter().filter_map(|size| Some(format!("{} with {} MiB", number(ratio(size)?), size.mib))).collect();
    (!parts.is_empty()).then(|| list(&parts))
}

fn against_criu(when: &str, sizes: &[Size], ratio: impl Fn(&Size) -> Option<f64>) -> Option<String> {
    let aims = AIMS.iter().filter_map(|(mib, aim)| {
        let reached = ratio(sizes.iter().find(|size| size.mib == *mib)?)?;
        let verdict = if reached >= *aim { "reached" } else { "missed" };
        Some(format!("{aim} with {mib} MiB: {verdict}"))
    });
    let aims: Vec<String> = aims.collect();
    let aims = if aims.is_empty() { String::new() } else { format!(" (aims: {})", aims.join(", ")) };
    Some(format!(
        "{when} the first answer CRIU takes as many times as long as the native engine: {}{aims}.",
        by_size(sizes, &ratio)?
    ))
}

fn against_the_rest(sizes: &[Size]) -> Option<String> {
    let cold = by_size(sizes, |size| times(&size.cold_start.first, &size.native.first))?;
    let floor = by_size(sizes, |size| times(&size.native.first, &size.floor.first))?;
    Some(format!(
        "A cold start takes as many times as long as a restore by the native engine: {cold}. Such a restore takes as many \
         times as long as the floor: {floor}."
    ))
}

fn to_the_last_page(sizes: &[Size]) -> Option<String> {
    let against = |native: fn(&Size) -> &Way, native_uncached: fn(&Size) -> &Way| {
        let warm = by_size(sizes, |size| times(&size.criu.all, &native(size).all))?;
        let uncached = by_size(sizes, |size| times(&size.criu_uncached.all, &native_uncached(size).all));
        let uncached = uncached.map_or_else(String::new, |uncached| format!("; with the page cache cold {uncached}"));
        Some(format!("{warm}{uncached}"))
    };
    let lazy = against(|size| &size.native, |size| &size.native_uncached)?;
    let others = [
        ("a populated", against(|size| &size.populated, |size| &size.populated_uncached)),
        ("an eager", against(|size| &size.eager, |size| &size.eager_uncached)),
    ];
    let others = others.into_iter().filter_map(|(name, ratios)| Some(format!(" Compared with {name} restore: {}.", ratios?)));
    let populated = by_size(sizes, |size| times(&size.native_uncached.all, &size.populated_uncached.all));
    let populated = populated.map_or_else(String::new, |ratios| {
        format!(" With the page cache cold a lazy restore takes as many times as long as a populated one: {ratios}.")
    });
    let others: String = others.collect();
    Some(format!("Until the last page is read CRIU takes as many times as long: {lazy}.{others}{populated}"))
}

fn images(sizes: &[Size]) -> Section {
    let mut rows = Vec::new();
    for size in sizes {
        for (name, taken) in [("native", &size.native_image), ("CRIU", &size.criu_image)] {
            if taken.took.len() + taken.failed == 0 {
                continue;
            }
            let [min, median, max, times] = cells(&taken.took, &taken.plain_write);
            let plain = cells(&taken.plain_write, &taken.plain_write)[1].clone();
            let on_disk = number(taken.bytes as f64 / f64::from(1 << 20));
            let [runs, failed] = [taken.took.len(), taken.failed].map(|count| count.to_string());
            rows.push([size.mib.to_string(), name.to_owned(), runs, failed, on_disk, min, median, max, plain, times]);
        }
    }
    let head = [
        "MiB",
        "engine",
        "runs",
        "failed",
        "on disk, MiB",
        "min, ms",
        "median, ms",
        "max, ms",
        "plain write, ms",
        "x plain write",
    ];
    let series = |name, look, runs: fn(&Size) -> &Runs| Series::new(name, look, sizes.iter().map(runs));
    let plot = Plot {
        name: "checkpoint",
        title: "Checkpoint, until the image is durable",
        axis: "warmed-up state, MiB",
        categories: categories(sizes),
        series: vec![
            series("native", Look::Native, |size| &size.native_image.took),
            series("CRIU", Look::Criu, |size| &size.criu_image.took),
            series("plain write, as dd", Look::Floor, |size| &size.native_image.plain_write),
        ],
    };
    let text = format!(
        "From the beginning of the capture until the image is durable and the service has ended. *Plain write* is what writing as many \
         bytes to a file of the same file system and `fsync` take, as `dd bs=2M conv=fsync` does. Memory is at hand before each (see \
         above), and the plain write comes right behind and right before the checkpoint in turn.\n\n{}",
        table(head, &rows)
    );
    let ratio = by_size(sizes, |size| times(&size.native_image.took, &size.native_image.plain_write));
    let short = ratio.map(|ratio| format!("A checkpoint takes as many times as long as writing as many bytes: {ratio}."));
    Section { title: "Checkpoints", short: short.into_iter().collect(), text, plots: vec![plot] }
}

/// What the times of this part mean.
pub(super) fn method() -> String {
    format!(
        "The service is `examples/web-server` with so many MiB of warmed-up state in memory and a SQLite database, to which a restored life \
         reconnects before it answers. *Native* executes the image, whose memory is mapped and read where it is touched; *populated* does \
         so with `CRAC_EAGER=populate`, which has all of it fetched and mapped before the service runs; *eager* with `CRAC_EAGER=on`, which \
         has all of it read into memory of the process's own, in huge pages, and checked, as CRIU does in small ones without checking; \
         *CRIU* is `crac restore` of an image that CRIU took of the same service. *Cold start* is the service without an image: it warms \
         the state up. *Floor* is a static program that binds, answers, and does nothing else. Times run from the moment in which the \
         program is executed (noted by the one that executes it, `benches/static/begin.rs`) to the first answer with 200 (asked for every \
         50 µs, the first time after three quarters of what the fastest start so far took), to the {REQUESTS}th, over one more \
         connection, and until `GET /warm` has read every page of the state.\n\n\
         In turn: a start and a checkpoint by each engine (native first, then CRIU first, and so on), one restore by each that is not \
         counted, then floor, native, populated, eager, CRIU, floor, native ..., then floor and native in quick succession, and CRIU \
         likewise, then restores in each way, in turn, with the image dropped from the page cache before each (`posix_fadvise(2)`; that a \
         life of the native engine's then fetches its state from the disk is checked; programs and libraries stay in the cache); and \
         again from the beginning. CRIU's cache of kernel features is warm. Where the host of a virtual machine has taken free \
         memory back - large blocks, as a rule -, whoever gets it again waits at the first touch, seconds for a GiB, and without a page \
         fault of the machine's own. So before each cold start, checkpoint (of those below, not in continue mode), plain write and \
         restore with the page cache cold, and before each round of all the others, the client takes three times as much as the state \
         and some more, 4 GiB at most, writes to it, and gives it back. With 4096 MiB that is less than they need. A start that is not answered \
         within a minute, or a refused checkpoint, is counted as failed."
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn runs(ms: u64) -> Runs {
        let mut runs = Runs::default();
        runs.add(Duration::from_millis(ms));
        runs
    }

    fn way(ms: u64) -> Way {
        Way { first: runs(ms), hundredth: runs(ms + 1), all: runs(ms + 2), ..Way::default() }
    }

    fn size(mib: usize, native: u64, criu: u64) -> Size {
        let native_image = Taken { took: runs(30), bytes: 3 << 20, plain_write: runs(10), failed: 0 };
        let floor = Way { hundredth: Runs::default(), all: Runs::default(), ..way(1) };
        let (floor_at_once, native_at_once, criu_at_once) = (way(2), way(4), way(400));
        let size = Size { floor_at_once, native_at_once, criu_at_once, populated: way(2 * native), ..Size::default() };
        Size { mib, floor, native: way(native), criu: Way { failed: 1, ..way(criu) }, native_image, ..size }
    }

    #[test]
    fn ratios_are_to_the_native_engine_and_failures_are_told() {
        let [first, at_once, hundredth, last, images] = <[Section; 5]>::try_from(sections(&[size(16, 2, 100)])).unwrap();
        assert!(first.text.contains("| 16 | CRIU | 1 | 1 | 100 | 100 | 100 | 50.0 |"), "{}", first.text);
        assert!(first.text.contains("| 16 | floor | 1 | 0 | 1.00 | 1.00 | 1.00 | 0.50 |"), "{}", first.text);
        assert!(!first.text.contains("page cache cold"), "{}", first.text);
        assert!(at_once.text.contains("| 16 | floor | 1 | 0 | 2.00 | 2.00 | 2.00 | 0.50 |"), "{}", at_once.text);
        assert!(at_once.text.contains("| 16 | CRIU | 1 | 0 | 400 | 400 | 400 | 100 |"), "{}", at_once.text);
        assert!(
            at_once.short.iter().any(|said| said.contains("CRIU takes as many times as long as the native engine: 100 with 16"))
        );
        assert!(hundredth.text.contains("| 16 | native | 1 | 0 | 3.00 |") && !hundredth.text.contains("floor"));
        assert!(last.text.contains("| 16 | CRIU | 1 | 1 | 102 |"), "{}", last.text);
        let short = &last.short[0];
        assert!(short.contains("long: 25.5 with 16 MiB. Compared with a populated restore: 17.0 with 16 MiB."), "{short}");
        assert!(images.text.contains("| 16 | native | 1 | 0 | 3.00 | 30.0 | 30.0 | 30.0 | 10.0 | 3.00 |"), "{}", images.text);
    }

    #[test]
    fn no_way_is_always_first_or_always_behind_the_same() {
        let rounds: Vec<Vec<_>> =
            (0..4).map(|round| (0..WAYS_UNCACHED).map(|place| way_uncached(round, place)).collect()).collect();
        for way in 0..WAYS_UNCACHED {
            assert!(rounds.iter().all(|round| round.contains(&way)), "{rounds:?}");
            let mut before: Vec<_> =
                rounds.iter().flat_map(|round| round.windows(2)).filter(|two| two[1] == way).map(|two| two[0]).collect();
            before.dedup();
            assert!(before.len() > 1, "{rounds:?}");
        }
        assert_ne!(rounds[0][0], rounds[1][0]);
    }

    #[test]
    fn aims_are_judged_by_what_was_measured() {
        let ratio = |size: &Size| times(&size.criu.first, &size.native.first);
        let said = against_criu("To", &[size(16, 2, 100), size(1024, 2, 400)], ratio).unwrap();
        assert!(said.contains("50.0 with 16 MiB and 200 with 1024 MiB"), "{said}");
        assert!(said.contains("10 with 16 MiB: reached, 300 with 1024 MiB: missed"), "{said}");
        assert_eq!(against_criu("To", &[Size { criu: Way::default(), ..size(16, 2, 1) }], ratio), None);
    }
}
