//! The engine as the coordinator sees it.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::clock::{Clock, Downtime};
use crate::form::ImageForm;
use crac_core::{CaptureRequest, Captured, Engine, EngineError, Mode, Needs};

/// Saves this process from inside: no privileges, no helper, nothing to install.
///
/// The image is one file, usually executable: running it is the restore. See [`Engine`] for what a capture promises, and the crate's
/// documentation for what can be saved.
///
/// * `Mode::Exit`: once the image is durable the process exits with status 0, without having run anything else.
/// * `Mode::Become`: the process executes the image, with the environment of its own start and no arguments - or its own program,
///   which restores the image, if that holds data alone ([`ImageForm`]). If the kernel refuses, the image is removed, the process goes
///   on, and the error says why.
/// * `Mode::Continue`: a copy of the process looks through its memory and writes the image; the process stands still for about as
///   long as a `fork` takes, and the call returns [`Captured::Underway`] when it runs again. Obstacles in memory are then found
///   by the wait. Memory with `MADV_DONTFORK` and writable shared memory are obstacles here.
/// * `Mode::Rehearse`: freeze and plan, all obstacles, nothing is written.
#[derive(Debug, Clone)]
pub struct NativeEngine {
    options: Options,
}

#[derive(Debug, Clone)]
#[cfg_attr(not(all(target_os = "linux", target_arch = "x86_64")), expect(dead_code, reason = "settings of another target"))]
pub(crate) struct Options {
    pub(crate) freeze_deadline: Duration,
    pub(crate) clock: Clock,
    pub(crate) downtime: Downtime,
    pub(crate) form: ImageForm,
    pub(crate) prefetch: bool,
    pub(crate) pagemap_scan: bool,
    pub(crate) kcmp: bool,
    pub(crate) duplicate_query: bool,
    /// Whether the image may be a file without a name until it is complete.
    pub(crate) nameless: bool,
    /// Whether `madvise` may count as intercepted.
    pub(crate) interposed: bool,
    /// How long a copy of the process may do nothing: a slow disk may take its time for the last `fsync`.
    pub(crate) copy_stall: Duration,
    /// Seccomp filters that were there before the engine.
    pub(crate) filters_at_start: u32,
    /// Landlock domains that were there before the engine.
    pub(crate) layers_at_start: u32,
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    pub(crate) fault: Option<crate::fault::Fault>,
}

impl NativeEngine {
    /// An engine with the usual settings. Make it early: seccomp filters that are installed and Landlock domains that are
    /// entered later count as this process's own, which a restored process cannot be given again.
    pub fn new() -> Self {
        Self {
            options: Options {
                freeze_deadline: Duration::from_secs(2),
                clock: Clock::default(),
                downtime: Downtime::default(),
                form: ImageForm::default(),
                prefetch: true,
                pagemap_scan: true,
                kcmp: true,
                duplicate_query: true,
                nameless: true,
                interposed: true,
                copy_stall: Duration::from_secs(300),
                filters_at_start: filters(),
                layers_at_start: layers(),
                #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
                fault: None,
            },
        }
    }

    /// How long threads may take to stop, 2 s if not set. A thread that takes longer is an obstacle.
    #[must_use]
    pub fn with_freeze_deadline(mut self, deadline: Duration) -> Self {
        self.options.freeze_deadline = deadline;
        self
    }

    /// How the monotonic clocks go on in a restored life, [`Clock::Auto`] if not set.
    #[must_use]
    pub fn with_clock(mut self, clock: Clock) -> Self {
        self.options.clock = clock;
        self
    }

    /// What the time between checkpoint and restore is to the monotonic clocks, [`Downtime::Frozen`] if not set. Without a meaning
    /// for [`Clock::None`].
    #[must_use]
    pub fn with_downtime(mut self, downtime: Downtime) -> Self {
        self.options.downtime = downtime;
        self
    }

    /// Whether images are programs themselves, [`ImageForm::Auto`] if not set. A request for a data-only one wins.
    #[must_use]
    pub fn with_image_form(mut self, form: ImageForm) -> Self {
        self.options.form = form;
        self
    }

    /// Whether a restored life reads its image ahead once its door is open, if that is on the disk rather than in the page cache;
    /// `true` if not set. It does so only if what is missing takes no more than half of the memory that is available, and if
    /// none of its memory is locked.
    #[must_use]
    pub fn with_prefetch(mut self, wanted: bool) -> Self {
        self.options.prefetch = wanted;
        self
    }

    /// Whether `PAGEMAP_SCAN` may be used (Linux 6.7); without it, page maps are read word by word. For tests.
    #[doc(hidden)]
    #[must_use]
    pub fn with_pagemap_scan(mut self, allowed: bool) -> Self {
        self.options.pagemap_scan = allowed;
        self
    }

    /// Whether `kcmp(2)` may be used to find duplicated descriptors; container sandboxes often forbid it. For tests.
    #[doc(hidden)]
    #[must_use]
    pub fn with_kcmp(mut self, allowed: bool) -> Self {
        self.options.kcmp = allowed;
        self
    }

    /// Whether `F_DUPFD_QUERY` may be used for the same purpose (Linux 6.10). For tests.
    #[doc(hidden)]
    #[must_use]
    pub fn with_duplicate_query(mut self, allowed: bool) -> Self {
        self.options.duplicate_query = allowed;
        self
    }

    /// Whether `O_TMPFILE` may be used; not every filesystem has it. For tests.
    #[doc(hidden)]
    #[must_use]
    pub fn with_nameless_file(mut self, allowed: bool) -> Self {
        self.options.nameless = allowed;
        self
    }

    /// Whether `madvise` may count as intercepted; it is not where crac is not part of the executable. For tests.
    #[doc(hidden)]
    #[must_use]
    pub fn with_interposition(mut self, allowed: bool) -> Self {
        self.options.interposed = allowed;
        self
    }

    /// How long a copy of the process may do nothing in continue mode before it is given up, 5 minutes if not set. For tests.
    #[doc(hidden)]
    #[must_use]
    pub fn with_copy_stall(mut self, limit: Duration) -> Self {
        self.options.copy_stall = limit;
        self
    }

    /// Makes a point of the capture fail, `POINT[:NTH[:HOW]]`; see [`FAULT_POINTS`](crate::FAULT_POINTS). For tests.
    ///
    /// # Errors
    ///
    /// When `fault` names none.
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    #[doc(hidden)]
    pub fn with_fault(mut self, fault: &str) -> Result<Self, crate::NotAFault> {
        self.options.fault = Some(fault.parse()?);
        Ok(self)
    }
}

impl Default for NativeEngine {
    fn default() -> Self {
        Self::new()
    }
}

impl Engine for NativeEngine {
    fn needs(&self) -> Needs {
        Needs::new("native", &[Mode::Exit, Mode::Become, Mode::Continue, Mode::Rehearse]).with_leaves_out_undumpable(true)
    }

    fn capture(&self, request: CaptureRequest<'_>) -> Result<Captured, EngineError> {
        match request.mode {
            Mode::Exit | Mode::Become | Mode::Continue | Mode::Rehearse => capture(&self.options, &request),
            mode => Err(EngineError::Unsupported {
                engine: "native",
                what: format!("mode {mode}"),
                instead: "checkpoint with exit, become or continue".into(),
            }),
        }
    }

    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    fn spread(&self) {
        crate::confined::spread();
    }

    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    fn settle(&self) {
        crate::resumed::settle();
        if self.options.prefetch {
            crate::prefetch::begin();
        }
    }
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn capture(options: &Options, request: &CaptureRequest<'_>) -> Result<Captured, EngineError> {
    if cfg!(not(target_env = "gnu")) {
        return Err(EngineError::Unsupported {
            engine: "native",
            what: "this C library".into(),
            instead: "build for x86_64-unknown-linux-gnu".into(),
        });
    }
    // The engine's state in the process is one; a second capture at the same time would be a mistake of the caller.
    static BUSY: AtomicBool = AtomicBool::new(false);
    struct Busy;
    impl Drop for Busy {
        fn drop(&mut self) {
            // In a restored life as well: it begins inside the capture.
            BUSY.store(false, Ordering::Release);
        }
    }
    if BUSY.swap(true, Ordering::Acquire) {
        return Err(EngineError::Failed {
            what: "cannot capture: another capture of this process is under way".into(),
            hint: "hint: ask the coordinator, which takes one request at a time".into(),
        });
    }
    crate::prefetch::end(options.freeze_deadline);
    let outcome = crate::capture::capture(options, request, Busy);
    match &outcome {
        Ok(Captured::Restored(life)) => tracing::debug!(image = %life.image_id, generation = life.generation, "restored"),
        Ok(Captured::Underway(_)) => tracing::debug!(mode = %request.mode, "a copy of the process writes the image"),
        Ok(Captured::Original(report)) => tracing::debug!(mode = %request.mode, bytes = report.bytes, "looked at everything"),
        Err(error) => tracing::debug!(mode = %request.mode, %error, "not captured"),
    }
    outcome
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn capture(options: &Options, _request: &CaptureRequest<'_>) -> Result<Captured, EngineError> {
    tracing::debug!(?options, "capture asked for on an unsupported target");
    Err(EngineError::Unsupported {
        engine: "native",
        what: format!("{} on {}", std::env::consts::OS, std::env::consts::ARCH),
        instead: "run the service on x86_64 Linux, or use the sim engine in tests".into(),
    })
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
use crate::landlock::layers;

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn layers() -> u32 {
    0
}

/// How many seccomp filters are in force; 0 where the kernel does not tell.
pub(crate) fn filters() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let value = |label| status.lines().find_map(|line| line.strip_prefix(label)?.trim().parse().ok());
    value("Seccomp_filters:").unwrap_or_else(|| value("Seccomp:").map_or(0, |mode: u32| u32::from(mode != 0)))
}
