//! Checkpoints that the service asks for by itself: when it is ready, after a while, upon a signal.

use std::{io, time::Duration};

use crac_core::{CheckpointError, CheckpointRequest, Completed, Context, Mode};
use tokio::{
    runtime::Handle,
    signal::unix::{SignalKind, signal},
    task::AbortHandle,
};

/// When a service takes an image by itself, once in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum When {
    /// As soon as it is ready: [`Context::mark_ready`], or all its listeners accept.
    Ready,
    /// So long after its start.
    After(Duration),
}

/// Asks for a checkpoint in `mode` as soon as `when` says. Only in the life that was started: a restored one has its image.
///
/// The result is logged; the service serves on whatever it is. Aborting the returned handle takes the request back as long as it
/// has not been made.
pub fn checkpoint_when(context: &Context, runtime: &Handle, when: When, mode: Mode) -> AbortHandle {
    let context = context.clone();
    let task = runtime.spawn(async move {
        match when {
            When::Ready => context.readied().await,
            When::After(time) => tokio::time::sleep(time).await,
        }
        if context.generation() == 0 {
            ask(&context, mode, "readiness").await;
        }
    });
    task.abort_handle()
}

/// Asks for a checkpoint in `mode` each time that the process gets `kind`. Aborting the returned handle ends that.
///
/// # Errors
///
/// If the signal cannot be listened to: it is one of those that nobody may handle, or the system says no.
pub fn checkpoint_on_signal(context: &Context, runtime: &Handle, kind: SignalKind, mode: Mode) -> io::Result<AbortHandle> {
    let context = context.clone();
    let mut signals = {
        let _entered = runtime.enter();
        signal(kind)?
    };
    let task = runtime.spawn(async move {
        while signals.recv().await.is_some() {
            ask(&context, mode, "signal").await;
        }
    });
    Ok(task.abort_handle())
}

/// The signal called `name`, such as `SIGUSR2`, if it is one that may ask for checkpoints.
pub fn signal_named(name: &str) -> Option<SignalKind> {
    Some(match name {
        "SIGHUP" => SignalKind::hangup(),
        "SIGINT" => SignalKind::interrupt(),
        "SIGQUIT" => SignalKind::quit(),
        "SIGTERM" => SignalKind::terminate(),
        "SIGUSR1" => SignalKind::user_defined1(),
        "SIGUSR2" => SignalKind::user_defined2(),
        "SIGWINCH" => SignalKind::window_change(),
        "SIGPWR" => SignalKind::from_raw(rustix::process::Signal::POWER.as_raw()),
        _ => return None,
    })
}

async fn ask(context: &Context, mode: Mode, trigger: &str) {
    match context.checkpoint(CheckpointRequest::new(mode)).await {
        Ok(Completed::Restored(life, _)) => {
            tracing::info!(trigger, generation = life.generation(), "the service has become its image")
        }
        Ok(_) => tracing::info!(trigger, "the checkpoint was taken"),
        Err(CheckpointError::Aborted(report)) => {
            // Whoever started the service with an image in mind has to learn why there is none, also without a subscriber.
            eprintln!("crac: {report}");
        }
        Err(error) => eprintln!("crac: {error}"),
    }
}
