//! What is private to a thread and repeats in every clone: the generators of well-known crates.

use crac_core::Context;

/// Makes the thread generators of the crates whose features are on fresh, on every held thread of each restored life: `rand` 0.9
/// and 0.10 (`rand09`, `rand010`), `fastrand`.
///
/// The generator of a thread that has none yet is seeded from the kernel when it is first used, restored or not.
pub fn sweep_generators(context: &Context) {
    #[cfg(feature = "rand010")]
    register(context, "rand 0.10", || reseeded("rand 0.10", rand::rng().reseed()));
    #[cfg(feature = "rand09")]
    register(context, "rand 0.9", || reseeded("rand 0.9", rand09::rng().reseed()));
    #[cfg(feature = "fastrand")]
    register(context, "fastrand", || reseeded("fastrand", kernel_seed().map(fastrand::seed)));
    // Without any of the features there is nothing to register.
    let _ = context;
}

/// Runs `work` here and now, too: what it looks up when it first runs (the C library's `getrandom`, features of the processor) is
/// then known in every image, and no restored life waits for it.
#[cfg(any(feature = "rand09", feature = "rand010", feature = "fastrand"))]
fn register(context: &Context, name: &str, work: impl Fn() + Send + Sync + 'static) {
    work();
    context.on_sweep(name, work);
}

/// A generator that could not be made fresh draws what other clones draw: that must not pass silently.
#[cfg(any(feature = "rand09", feature = "rand010", feature = "fastrand"))]
fn reseeded<E: std::fmt::Display>(generator: &str, result: Result<(), E>) {
    if let Err(error) = result {
        tracing::error!(generator, %error, "a thread generator could not be reseeded: its numbers repeat in other clones");
    }
}

/// 64 bits from getrandom(2).
#[cfg(feature = "fastrand")]
fn kernel_seed() -> rustix::io::Result<u64> {
    let mut seed = [0; 8];
    // Up to 256 bytes come whole (getrandom(2)).
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())?;
    Ok(u64::from_ne_bytes(seed))
}
