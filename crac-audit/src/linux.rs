//! The audit of Linux: puts the parts together.

use std::io;

use crac_core::{Action, Obstacle, Policy};

use crate::{AuditError, Thread, descriptors, owner::Clues, processes};

pub(crate) fn audit(policy: &Policy, own: &[i32]) -> Result<Vec<Obstacle>, AuditError> {
    let threads = processes::threads()?;
    let open = descriptors::open(own)?;
    let clues = Clues { listeners: descriptors::listeners(&open), threads };
    let mut found = descriptors::obstacles(&open, policy, &clues)?;
    found.extend(processes::children(&clues.threads));
    found.extend(processes::tracer()?);
    found.extend(processes::breakpoints()?);
    found.retain(|obstacle| policy.decide(obstacle.kind, &obstacle.subject) != Action::Keep);
    Ok(found)
}

pub(crate) fn threads() -> Result<Vec<Thread>, AuditError> {
    processes::threads()
}

pub(crate) fn epoll_instances() -> Result<usize, AuditError> {
    descriptors::epoll_instances(&descriptors::open(&[])?)
}

pub(crate) fn unreadable(path: &str) -> impl FnOnce(io::Error) -> AuditError {
    move |source| AuditError::Unreadable { path: path.to_owned(), source }
}
