//! Systems without an audit: whoever asks is told.

use crac_core::{Obstacle, Policy};

use crate::{AuditError, Thread};

pub(crate) fn audit(_policy: &Policy, _own: &[i32]) -> Result<Vec<Obstacle>, AuditError> {
    Err(AuditError::Unsupported)
}

pub(crate) fn threads() -> Result<Vec<Thread>, AuditError> {
    Err(AuditError::Unsupported)
}

pub(crate) fn epoll_instances() -> Result<usize, AuditError> {
    Err(AuditError::Unsupported)
}
