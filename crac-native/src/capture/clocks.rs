//! How the clocks of the life to come go on: decided before anything is stopped.

use crate::{
    clock::{
        Clock,
        layer::{self, Layer},
    },
    engine::Options,
};

/// How the clocks go on in the life to come.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClockPlan {
    /// Never [`Clock::Auto`].
    pub(super) kind: Clock,
    /// What covers absolute waits; with a proxy only.
    pub(super) layer: Option<&'static Layer>,
    /// A proxy stands in the vdso's place in this life already.
    is_proxied: bool,
    /// Why there is no proxy although one was asked for.
    pub(super) missing: Option<&'static str>,
}

impl ClockPlan {
    /// Decides, and prepares the process where that is its first capture.
    pub(super) fn make(options: &Options) -> Self {
        // A life that sees shifted clocks goes on seeing them.
        let is_proxied = layer::is_proxied();
        let wanted = match options.clock {
            Clock::None if is_proxied => Clock::Proxy,
            wanted => wanted,
        };
        let plain = |kind| Self { kind, layer: None, is_proxied, missing: None };
        match wanted {
            Clock::Auto | Clock::Proxy => match layer::prepare(options.freeze_deadline) {
                Ok(layer) => Self { layer: Some(layer), ..plain(Clock::Proxy) },
                Err(missing) if wanted == Clock::Proxy => Self { missing: Some(missing), ..plain(Clock::Proxy) },
                Err(missing) => {
                    tracing::warn!(missing, "a restored life will see the clocks of its host: they cannot be continued");
                    plain(Clock::None)
                }
            },
            wanted => plain(wanted),
        }
    }

    /// Whether the image gets a copy of the vdso that this life does not have.
    pub(super) fn needs_stand_in(&self) -> bool {
        self.layer.is_some() && !self.is_proxied
    }
}
