extern crate self as crac;
#[path = "../stub.rs"]
#[allow(dead_code)]
pub mod __private;
#[allow(unused_imports)]
use crac_macros::main;

use std::time::Duration;

#[crac::main(
    name = "orders",
    flavor = "multi_thread",
    worker_threads = 4,
    image = "orders.crac",
    engine = "sim",
    policy = "crac.toml",
    hook_deadline = "500ms",
    drain_deadline = "20s",
    hold_deadline = "3s",
    checkpoint_deadline = "2m",
    restore_deadline = "1h",
    control = false,
    checkpoint_signal = "SIGUSR2",
    clock = "timens",
    downtime = "elapsed",
    image_form = "data-only",
)]
async fn main() {
    let config = crac::__private::arrived();
    assert!(config.package.is_some_and(|package| package.starts_with("crac-macros")), "{config:?}");
    assert!(config.version.is_some(), "{config:?}");
    let expected = crac::__private::MainConfig {
        package: config.package,
        version: config.version,
        name: Some("orders"),
        flavor: Some("multi_thread"),
        worker_threads: Some(4),
        image: Some("orders.crac"),
        engine: Some("sim"),
        policy: Some("crac.toml"),
        hook_deadline: Some(Duration::from_millis(500)),
        drain_deadline: Some(Duration::from_secs(20)),
        hold_deadline: Some(Duration::from_secs(3)),
        checkpoint_deadline: Some(Duration::from_secs(120)),
        restore_deadline: Some(Duration::from_secs(3600)),
        control: Some(false),
        checkpoint_signal: Some("SIGUSR2"),
        clock: Some("timens"),
        downtime: Some("elapsed"),
        image_form: Some("data-only"),
    };
    assert_eq!(config, expected);
}
