//! The environment variables of the command, in one place.

/// Where control sockets are.
pub(crate) const RUN_DIR: &str = "CRAC_RUN_DIR";
/// Where control sockets are if the other does not say.
pub(crate) const XDG_RUNTIME_DIR: &str = "XDG_RUNTIME_DIR";
/// Which CRIU is taken.
pub(crate) const CRIU_PATH: &str = "CRAC_CRIU_PATH";
/// Set by `crac run` for a cold start: where the service puts its image.
pub(crate) const IMAGE: &str = "CRAC_IMAGE";
/// Set by `crac run` for a cold start: when the service takes an image by itself.
pub(crate) const CHECKPOINT_ON: &str = "CRAC_CHECKPOINT_ON";

/// When and how memory is fetched: `on` (eagerly), `populate`, `off` (lazily). Images read it, and so do services.
pub(crate) const EAGER: &str = "CRAC_EAGER";

/// Every variable with its meaning, as `crac --help` shows them.
pub(crate) const ALL: &[(&str, &str)] = &[
    (RUN_DIR, "where control sockets are, for the service and for this command"),
    (XDG_RUNTIME_DIR, "control sockets are in its directory `crac` if the former is not set"),
    (
        CRIU_PATH,
        "which CRIU restores images of the criu engine and saves from outside, rather than the one on PATH; the service reads it, too",
    ),
    (IMAGE, "set for the service by `crac run`: where it puts its image"),
    (EAGER, "`on`: images are restored as with --eager, also when they are executed themselves; `populate`: as with --populate"),
    (CHECKPOINT_ON, "set for the service by `crac run --checkpoint-on`: when it takes an image by itself"),
];
