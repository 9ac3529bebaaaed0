//! What CRIU can do here. Nothing of it is needed unless a service wants that engine.

use std::path::Path;

use super::{Check, trial};
use crate::image::criu;

const ADVICE: &str = "nothing, unless the criu engine is wanted: install CRIU 4.2 or later, or set CRAC_CRIU_PATH";
const ADVICE_PRIVILEGES: &str =
    "nothing, unless the criu engine is wanted: it needs root, or the capabilities CAP_CHECKPOINT_RESTORE and CAP_SETPCAP";
const ADVICE_TRIAL: &str = "nothing, unless the criu engine is wanted: follow what it says";

/// The checks, each of which makes sense if the one before has found something. `criu check` is not asked: it is content with
/// versions that cannot save a process with a socket.
pub(super) fn all(dir: &Path) -> Vec<Check> {
    let found = criu::program().and_then(|criu| criu.version().map(|version| (criu, version)));
    let privileges = privileges();
    let trial = match (&found, &privileges) {
        (Ok((criu, _)), Ok(_)) => trial::hold_criu(dir, criu.path()),
        _ => Err("not tried".to_owned()),
    };
    let version = found.map(|(criu, version)| format!("{version} at {}", criu.path().display()));
    let version = version.map_err(|error| error.to_string().split("; hint: ").next().unwrap_or_default().to_owned());
    vec![
        Check::useful("criu", version, ADVICE),
        Check::useful("criu-privileges", privileges, ADVICE_PRIVILEGES),
        Check::useful("criu-trial", trial, ADVICE_TRIAL),
    ]
}

fn privileges() -> Result<String, String> {
    crac_criu::restore::missing_privileges().map_or_else(|| Ok("enough to save and restore processes of this user".into()), Err)
}
