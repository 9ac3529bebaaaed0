//! Handing a runtime to a context.

use std::{fmt, future::Future, sync::Arc};

use crac_core::{Attachment, Context};
use tokio::runtime::Handle;

use crate::{hold::TokioHold, root::Root};

/// Holds the runtime of `handle` in every round of the ambient context, until the guard is dropped.
///
/// Without an ambient context nothing happens. A runtime that is attached twice is held once.
pub fn attach(handle: &Handle) -> Attached {
    let hold = TokioHold::new(handle.clone());
    let attachment = Context::current().map(|context| context.attach(Arc::new(hold.clone())));
    Attached { hold, attachment }
}

/// Like [`attach`], for a context of one's own.
pub fn attach_in(context: &Context, handle: &Handle) -> Attached {
    attach_hold(context, TokioHold::new(handle.clone()))
}

/// Like [`attach_in`], for a hold that was configured.
pub fn attach_hold(context: &Context, hold: TokioHold) -> Attached {
    let attachment = context.attach(Arc::new(hold.clone()));
    Attached { hold, attachment: Some(attachment) }
}

/// Keeps a runtime attached; dropping it takes the runtime out. Inside a round that takes effect afterwards.
#[must_use = "dropping it takes the runtime out again"]
pub struct Attached {
    hold: TokioHold,
    attachment: Option<Attachment>,
}

impl Attached {
    /// Wraps a future for the runtime's `block_on`, whose thread is no worker: `runtime.block_on(attached.root(future))`.
    pub fn root<F: Future>(&self, future: F) -> Root<F> {
        self.hold.root(future)
    }

    /// Keeps it attached for the rest of the context's life.
    pub fn forever(self) {
        if let Some(attachment) = self.attachment {
            attachment.forever();
        }
    }
}

impl fmt::Debug for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attached").field("hold", &self.hold).finish_non_exhaustive()
    }
}
