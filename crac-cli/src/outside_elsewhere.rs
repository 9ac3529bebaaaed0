//! Twin of `outside.rs` for systems and processors without the CRIU engine.

use std::{path::Path, time::Instant};

use crac_core::Mode;

use crate::{checkpoint::Account, exit::Exit, failure::Failure, services::Endpoint};

pub(crate) fn checkpoint(_: &Endpoint, _: Mode, _: &Path, _: Instant) -> Result<Account, Failure> {
    Err(unsupported())
}

pub(crate) fn rehearse(_: &Endpoint, _: Instant) -> Result<Account, Failure> {
    Err(unsupported())
}

fn unsupported() -> Failure {
    let what = format!("nothing is saved from outside on {} and {}", std::env::consts::OS, std::env::consts::ARCH);
    Failure::new(Exit::Refused, what).hint("run the service on x86_64 Linux")
}
