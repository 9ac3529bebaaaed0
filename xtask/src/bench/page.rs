//! `docs/benchmarks.md`: what was measured last, and how.

use anyhow::{Context as _, Result};

use super::{
    restore::{self, Size, Taken, Way},
    sizes,
};
use crate::{
    measure::{machine, ms},
    workspace,
};

const PAGE: &str = "docs/benchmarks.md";
const WARM_MIB: [usize; 5] = [0, 16, 256, 1024, 4096];

/// Measures everything and writes the page.
pub(crate) fn page() -> Result<()> {
    let (criu, why_not) = restore::prepare()?;
    let mut measured = Vec::new();
    for mib in sizes(&WARM_MIB)? {
        eprintln!("measuring {mib} MiB");
        measured.push(restore::measure(mib, criu.as_deref())?);
    }
    let text = render(&machine(), &restore::method()?, why_not.as_deref(), &measured);
    let path = workspace::root().join(PAGE);
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    println!("written: {PAGE}");
    Ok(())
}

fn render(machine: &str, method: &str, without_criu: Option<&str>, sizes: &[Size]) -> String {
    let mut text = format!("{HEAD}\n{machine}.\n\n{METHOD}\n{method}.\n\n");
    if let Some(reason) = without_criu {
        text.push_str(&format!("CRIU was not measured: {reason}.\n\n"));
    }
    text.push_str(FIRST);
    for size in sizes {
        for (name, way) in size.ways() {
            text.push_str(&start(size, name, way));
        }
    }
    text.push_str(IMAGES);
    for size in sizes {
        text.push_str(&image(size.mib, "native", &size.native_image));
        text.extend(size.criu_image.as_ref().map(|taken| image(size.mib, "CRIU", taken)));
    }
    text
}

fn start(size: &Size, name: &str, way: &Way) -> String {
    let [first, all] = [(&way.first, &size.native.first), (&way.all, &size.native.all)].map(|(runs, native)| runs.times(native));
    let (hundredth, last, last_ratio) = if name == "floor" {
        ("-".to_owned(), "-".to_owned(), "-".to_owned())
    } else {
        (ms(way.hundredth.median()), ms(way.all.median()), format!("{all:.2}"))
    };
    let runs = [way.first.min(), way.first.median(), way.first.max()].map(ms);
    let failed = if way.failed > 0 { format!(" ({} failed)", way.failed) } else { String::new() };
    format!(
        "| {} | {name}{failed} | {} | {} | {} | {first:.2} | {hundredth} | {last} | {last_ratio} |\n",
        size.mib, runs[0], runs[1], runs[2]
    )
}

fn image(mib: usize, engine: &str, taken: &Taken) -> String {
    let ratio = taken.took.as_secs_f64() / taken.plain_write.as_secs_f64();
    let on_disk = taken.bytes as f64 / f64::from(1 << 20);
    format!("| {mib} | {engine} | {on_disk:.1} | {} | {} | {ratio:.2} |\n", ms(taken.took), ms(taken.plain_write))
}

const HEAD: &str = "\
# Benchmarks

Written by `cargo xtask bench`, which anybody can run; one machine, one run. Ratios are within the run: what is compared was measured in
turn. Absolute numbers are those of a small virtual machine.

## Machine
";

const METHOD: &str = "\
## Method

The service is `examples/web-server` with so many MiB of warmed-up state and a SQLite database, to which a restored life reconnects before it
answers. *Floor* is a static program that binds, answers, and does nothing else. *Native* executes the image; *CRIU* is `crac restore` of an
image that CRIU took of the same service, with CRIU's cache of kernel features warm. *Page cache cold* means that the image was dropped from the page
cache before (`posix_fadvise(2)`). *Cold start* is the service without an image. Times run from the start of the process to the first
answer (polled every 50 µs), to the hundredth over one more connection, and until every page of the warmed-up state was read. A start that does
not answer is counted as failed.
";

const FIRST: &str = "\
## From start to answers

Milliseconds; `x` is the median as a multiple of the native engine's with a warm page cache.

| MiB | start | first 200: min | median | max | x | 100th | last page | x |
|---:|---|---:|---:|---:|---:|---:|---:|---:|
";

const IMAGES: &str = "
## Checkpoints

From the beginning of the capture until the image is durable, in milliseconds, against writing and syncing as many bytes to a file. One each.

| MiB | engine | on disk, MiB | took | plain write | x |
|---:|---|---:|---:|---:|---:|
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Runs;
    use std::time::Duration;

    fn way(ms: u64) -> Way {
        let mut runs = Runs::default();
        runs.add(Duration::from_millis(ms));
        Way { first: runs.clone(), hundredth: runs.clone(), all: runs, failed: 0 }
    }

    #[test]
    fn ratios_are_to_the_native_engine_and_failures_are_told() {
        let taken = Taken { took: Duration::from_millis(30), bytes: 3 << 20, plain_write: Duration::from_millis(10) };
        let size =
            Size { mib: 16, native: way(2), criu: Some(Way { failed: 1, ..way(100) }), native_image: taken, ..Size::default() };
        let text = render("a machine", "so many runs", None, &[size]);
        assert!(text.contains("| 16 | CRIU (1 failed) | 100.00 | 100.00 | 100.00 | 50.00 | 100.00 | 100.00 | 50.00 |"), "{text}");
        assert!(text.contains("| 16 | native | 3.0 | 30.00 | 10.00 | 3.00 |"), "{text}");
        assert!(!text.contains("was not measured"));
        assert!(render("", "", Some("no root"), &[]).contains("CRIU was not measured: no root"));
    }
}
