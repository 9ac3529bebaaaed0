//! The main job, shown: a service starts, warms up, serves, is checkpointed, and comes back; then twice at once.

use std::{
    collections::HashSet,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use crac_testing::{
    http,
    lab::{Lab, Service, free_addr},
    programs::{program, take_from},
};

use crate::{
    measure::{machine, ms},
    shell, workspace,
};

/// How much the service warms up: enough to feel its start.
const WARM_MIB: &str = "256";

/// From nothing, on a small machine.
const BUILD_DEADLINE: Duration = Duration::from_secs(20 * 60);

pub(crate) fn run() -> Result<()> {
    build_release()?;
    let lab = Lab::new();
    let image = lab.file("web-server.crac");

    println!("\nstarting web-server cold, warming {WARM_MIB} MiB");
    let addr = free_addr();
    let mut command = lab.command(program("web-server"));
    command.args(["--listen", &addr.to_string(), "--warm-mib", WARM_MIB]);
    let (mut service, cold) = Service::timed(command, addr, "/");

    println!("traffic");
    for order in 1..=20 {
        ensure!(service.get("/counter").body.trim() == order.to_string(), "the counter counts");
        let answer = http::exchange(addr, "POST", "/orders", &format!("order {order}"));
        ensure!(answer.is_ok_and(|answer| answer.status < 300), "an order is taken");
    }
    let warm = service.get("/warm/12345").body;

    println!("crac checkpoint web-server --image web-server.crac");
    let begun = Instant::now();
    let said = lab.crac_ok(["checkpoint", "web-server", "--image", "web-server.crac", "--json"]);
    let checkpoint = begun.elapsed();
    ensure!(service.wait().success(), "the service exits with 0 once its image is safe");
    let outcome: serde_json::Value = serde_json::from_str(&said).context("crac checkpoint --json")?;

    println!("crac restore web-server.crac");
    let (restored, back) = restore(&lab, &image, addr);
    ensure!(restored.get("/counter").body.trim() == "21", "the counter goes on where it was");
    ensure!(restored.get("/warm/12345").body == warm, "the cache is as it was");
    let orders = restored.get("/orders").body;
    ensure!(orders.contains("order 1") && orders.contains("order 20"), "the orders are there");
    let instance = restored.get("/instance").json();
    ensure!(instance["generation"] == 1 && instance["restored"] == true, "it knows that it was restored: {instance}");
    drop(restored);

    println!("two clones of the same image on ports of their own");
    let clones: Vec<_> = (0..2).map(|_| restore(&lab, &image, free_addr())).collect();
    let mut drawn = HashSet::new();
    for (clone, _) in &clones {
        ensure!(clone.get("/counter").body.trim() == "21", "each clone has the state");
        for _ in 0..16 {
            let random = clone.get("/random").json();
            for generator in ["rand", "uuid", "fast"] {
                ensure!(drawn.insert(random[generator].to_string()), "the clones draw different numbers: {generator} repeats");
            }
        }
    }

    let size = image.metadata()?;
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let part = |name: &str| outcome[name].as_u64().map_or_else(|| "-".to_owned(), |us| ms(Duration::from_micros(us)) + " ms");
    println!("\n{}", machine());
    println!("  cold start, exec to first answer      {:>10} ms", ms(cold));
    println!(
        "  restore, exec to first answer         {:>10} ms   ({:.0} x faster)",
        ms(back),
        cold.as_secs_f64() / back.as_secs_f64()
    );
    for (number, (_, time)) in clones.iter().enumerate() {
        println!("  clone {}, exec to first answer         {:>10} ms", number + 1, ms(*time));
    }
    println!("  checkpoint, the whole command         {:>10} ms", ms(checkpoint));
    println!("    of it drain and hold                {:>13}", part("down_us"));
    println!("    of it capture, until durable        {:>13}", part("elapsed_us"));
    println!("  image, on disk                        {:>13}", mib(size.blocks() * 512));
    println!("\neverything held: state kept, orders kept, {} random draws of two clones all different", drawn.len());
    Ok(())
}

/// Builds the service and the command as a user would run them.
pub(crate) fn build_release() -> Result<()> {
    build_release_of(&["crac-cli", "web-server"])
}

/// Builds the programs of `packages` as they are shipped, and has them used.
pub(crate) fn build_release_of(packages: &[&str]) -> Result<()> {
    let mut build = shell::cargo(["build", "--release", "--bins"]);
    build.args(packages.iter().flat_map(|package| ["--package", package]));
    shell::run(&mut build, BUILD_DEADLINE)?;
    take_from(&workspace::metadata()?.target_directory.join("release"));
    Ok(())
}

/// Restores `image` at `addr`; how long it took until the first answer.
pub(crate) fn restore(lab: &Lab, image: &Path, addr: std::net::SocketAddr) -> (Service, Duration) {
    let mut command = lab.command(program("crac"));
    command.arg("restore").arg(image).args(["--", "--listen", &addr.to_string()]);
    // Whoever asks in vain, again and again, holds up what it waits for: on a small machine for milliseconds.
    Service::timed_after(Duration::from_millis(2), command, addr, "/")
}
