//! Tests that cannot run here say so by name.

/// Says that the test `name` is skipped because of `reason`; under `CRAC_NO_SKIP=1`, as in CI, that is a failure.
pub fn skip(name: &str, reason: &str) {
    assert!(std::env::var_os("CRAC_NO_SKIP").is_none_or(|value| value != "1"), "{name} may not be skipped here: {reason}");
    eprintln!("SKIP: {name}: {reason}");
}
