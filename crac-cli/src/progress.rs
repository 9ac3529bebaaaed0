//! What a round looks like while it runs, on a terminal.

use std::time::Duration;

use crac_core::{RoundProgress, control::ControlReply};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// One line on standard error that says how far a round is; nothing if that is no terminal.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    pub(crate) fn new() -> Self {
        // Hidden by itself where standard error is no terminal.
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.enable_steady_tick(Duration::from_millis(100));
        Self { bar }
    }

    /// Shows what `reply` tells.
    pub(crate) fn show(&self, reply: &ControlReply) {
        match reply {
            ControlReply::Progress(progress) => self.bar.set_message(words(progress)),
            ControlReply::Frozen { threads } => self.bar.set_message(format!("{threads} threads stopped")),
            ControlReply::Ready(_) => self.bar.set_message("it stands still; CRIU saves it"),
            ControlReply::Planned { bytes } => {
                self.bar.set_length(*bytes);
                if let Ok(style) = ProgressStyle::with_template("{spinner} writing {bar:30} {bytes} of {total_bytes}") {
                    self.bar.set_style(style);
                }
            }
            ControlReply::Written { bytes } => self.bar.set_position(*bytes),
            ControlReply::Durable { .. } | ControlReply::Report(_) | ControlReply::Denied { .. } => self.bar.finish_and_clear(),
            _ => {}
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn words(progress: &RoundProgress) -> String {
    match progress {
        RoundProgress::Shut => "the door is shut".into(),
        RoundProgress::Before { resource, phase } => format!("letting go: {resource} ({phase})"),
        RoundProgress::Hold => "stopping the runtimes".into(),
        RoundProgress::Audit => "looking for what cannot be saved".into(),
        RoundProgress::Capture => "capturing".into(),
        RoundProgress::After { resource, phase } => format!("coming back: {resource} ({phase})"),
        RoundProgress::Open => "the door is open".into(),
        _ => "under way".into(),
    }
}
