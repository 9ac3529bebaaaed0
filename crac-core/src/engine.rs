//! The seam to the mechanism: how a process is saved and comes back.
//!
//! An [`Engine`] saves the whole process; the [coordinator](crate::Context) has let go of everything before and brings it back
//! afterwards. Engines: [`SimEngine`](crate::SimEngine) (both ways in one process, for tests), `crac-native` (in-process,
//! the default), `crac-criu`, and those outside this repository.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    lineage::{ImageId, InstanceId},
    listeners::Listeners,
    obstacle::Obstacle,
    outside::Outside,
    policy::Policy,
};

/// A mechanism that saves this process.
///
/// # What an implementor owes
///
/// * [`capture`](Engine::capture) is called on the coordinator's own thread, never on a runtime thread, at most once at a time.
///   Every attached runtime is held meanwhile. It may block.
/// * It returns **twice** where the mechanism does so: [`Captured::Original`] or [`Captured::Underway`] in the process that was
///   captured, [`Captured::Restored`] in each process that comes back. A mechanism that ends the original (`Mode::Exit`, `Mode::Become`)
///   returns only in the restored life. Whoever gets that calls [`spread`](Engine::spread) and [`settle`](Engine::settle), as the
///   coordinator does.
/// * An error means that nothing has changed: the original runs on as before, no partial image is left at the target path.
/// * All obstacles are found before anything is touched and are returned together ([`EngineError::Refused`]).
/// * With [`Mode::Rehearse`] everything up to the plan is done and nothing is captured.
/// * With [`CaptureRequest::outside`] it captures nothing itself: it says that the process is ready and stands still until the outside
///   says how it ended. Only engines that say so ([`Needs::outside`]) are asked for that.
/// * It does not call back into the coordinator. It may call [`CaptureRequest::watch`] at any time.
pub trait Engine: Send + Sync + 'static {
    /// What the engine is and what it needs others to do for it.
    fn needs(&self) -> Needs;

    /// Saves the process as `request` says.
    ///
    /// # Errors
    ///
    /// [`EngineError`]; the process is then as it was before the call.
    fn capture(&self, request: CaptureRequest<'_>) -> Result<Captured, EngineError>;

    /// Lets a restored life use all the processors that it may.
    ///
    /// Until then an engine may keep it on the one where it was restored: threads that do little but wake each other are
    /// faster there. Called on the coordinator's thread: before the first hook that is not [brief](crate::ResourceOptions::brief), when
    /// hooks take longer than a few milliseconds, at the latest behind the open door, where the first requests have what is left
    /// of these milliseconds.
    fn spread(&self) {}

    /// Gives back what is left of a restore. Called in a restored life once its door is open, on the coordinator's thread, so that
    /// no first answer waits for it.
    fn settle(&self) {}
}

/// What an engine is, and what it wants from the audit and the adapters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Needs {
    /// Name in reports, metadata and on the command line: `native`, `criu`, `sim`.
    pub engine: &'static str,
    /// Whether the audit must account for descriptors and connections (a VM keeps them, so it needs none).
    pub descriptors: bool,
    /// Whether sockets survive in a restored life, so that adapters need not close and rebind them.
    pub keeps_sockets: bool,
    /// Whether memory with `MADV_DONTDUMP` is left out of images and comes back as zeros.
    pub leaves_out_undumpable: bool,
    /// Whether the snapshot may also be taken from outside ([`CaptureRequest::outside`]).
    pub outside: bool,
    /// The modes the engine offers.
    pub modes: &'static [Mode],
}

impl Needs {
    /// The needs of an engine called `engine` that saves this process alone.
    pub const fn new(engine: &'static str, modes: &'static [Mode]) -> Self {
        Self { engine, descriptors: true, keeps_sockets: false, leaves_out_undumpable: false, outside: false, modes }
    }

    /// Sets [`Needs::descriptors`].
    #[must_use]
    pub const fn with_descriptors(mut self, descriptors: bool) -> Self {
        self.descriptors = descriptors;
        self
    }

    /// Sets [`Needs::leaves_out_undumpable`].
    #[must_use]
    pub const fn with_leaves_out_undumpable(mut self, leaves_out_undumpable: bool) -> Self {
        self.leaves_out_undumpable = leaves_out_undumpable;
        self
    }

    /// Sets [`Needs::outside`].
    #[must_use]
    pub const fn with_outside(mut self, outside: bool) -> Self {
        self.outside = outside;
        self
    }

    /// Sets [`Needs::keeps_sockets`].
    #[must_use]
    pub const fn with_keeps_sockets(mut self, keeps_sockets: bool) -> Self {
        self.keeps_sockets = keeps_sockets;
        self
    }
}

/// What becomes of the process once the image is safe on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Mode {
    /// The process is gone with exit status 0 and has run nothing since the capture.
    Exit,
    /// The same process executes the image: same pid, and the proof that the image works.
    Become,
    /// The process goes on.
    Continue,
    /// Everything but the capture: all obstacles are reported, nothing is written.
    Rehearse,
}

impl Mode {
    /// Whether the original process ends with a successful capture.
    pub const fn ends_original(self) -> bool {
        match self {
            Mode::Exit | Mode::Become => true,
            Mode::Continue | Mode::Rehearse => false,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Mode::Exit => "exit",
            Mode::Become => "become",
            Mode::Continue => "continue",
            Mode::Rehearse => "rehearse",
        })
    }
}

/// One order to an engine.
#[derive(Debug)]
#[non_exhaustive]
pub struct CaptureRequest<'a> {
    /// Where the image goes; absolute. Its directory exists or the engine says so.
    pub image: PathBuf,
    /// What becomes of the process.
    pub mode: Mode,
    /// What goes into the image's metadata.
    pub metadata: ImageMetadata,
    /// What to do about things that cannot be saved as they are.
    pub policy: &'a Policy,
    /// Descriptors of this round itself (control connection, ...): left alone in the original, absent in the restored life.
    pub own_descriptors: Vec<i32>,
    /// Whether the image is to hold data alone, for an engine whose images are programs otherwise.
    pub data_only: bool,
    /// Who is told how far the capture is.
    pub watch: Arc<dyn CaptureWatch>,
    /// Who takes the snapshot in the engine's place.
    pub outside: Option<Arc<dyn Outside>>,
}

impl<'a> CaptureRequest<'a> {
    /// A request without own descriptors and without a watcher.
    pub fn new(image: PathBuf, mode: Mode, metadata: ImageMetadata, policy: &'a Policy) -> Self {
        let (own_descriptors, watch) = (Vec::new(), Arc::new(Unwatched));
        Self { image, mode, metadata, policy, own_descriptors, data_only: false, watch, outside: None }
    }

    /// Sets [`CaptureRequest::own_descriptors`].
    #[must_use]
    pub fn own_descriptors(mut self, descriptors: Vec<i32>) -> Self {
        self.own_descriptors = descriptors;
        self
    }

    /// Sets [`CaptureRequest::data_only`].
    #[must_use]
    pub fn data_only(mut self, data_only: bool) -> Self {
        self.data_only = data_only;
        self
    }

    /// Sets [`CaptureRequest::watch`].
    #[must_use]
    pub fn watch(mut self, watch: Arc<dyn CaptureWatch>) -> Self {
        self.watch = watch;
        self
    }

    /// Sets [`CaptureRequest::outside`].
    #[must_use]
    pub fn outside(mut self, outside: Option<Arc<dyn Outside>>) -> Self {
        self.outside = outside;
        self
    }
}

/// What is recorded about a service in its image, readable without running it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ImageMetadata {
    /// The service's name.
    pub name: String,
    /// Identity of the image to write.
    pub image_id: ImageId,
    /// The image that this life came from, if any.
    pub parent: Option<ImageId>,
    /// Generation of the life that is captured; a life restored from the image has this plus one.
    pub generation: u64,
}

impl ImageMetadata {
    /// Metadata of an image of `name`, taken in `generation`.
    pub fn new(name: impl Into<String>, image_id: ImageId, generation: u64, parent: Option<ImageId>) -> Self {
        Self { name: name.into(), image_id, parent, generation }
    }
}

/// Who is told about the progress of a capture.
///
/// # What an implementor owes
///
/// The call comes **while every other thread of the process may be stopped anywhere**, also inside the allocator or with a
/// lock of the C library held. It must not allocate, free, lock, log or panic. Writing prepared bytes to a descriptor is fine.
pub trait CaptureWatch: Send + Sync {
    /// The capture has reached `progress`.
    fn reached(&self, progress: CaptureProgress);
}

/// How far a capture is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CaptureProgress {
    /// All other threads are stopped; in `Mode::Continue` it is told when they go on again, so that they do not wait for it.
    Frozen {
        /// How many threads, the capturing one included.
        threads: usize,
    },
    /// The plan is made; this many bytes of page data will be written.
    Planned {
        /// Bytes of page data.
        bytes: u64,
    },
    /// This many bytes are written.
    Written {
        /// Bytes so far.
        bytes: u64,
    },
    /// The image is complete and durable under its final name. In `Mode::Exit` and `Mode::Become` this is the last call.
    Durable {
        /// Size of the image in bytes that take room on disk.
        bytes: u64,
        /// Time since the capture began.
        elapsed: Duration,
        /// How long all threads stood still: until the image was durable or, in `Mode::Continue`, until they ran again.
        frozen: Duration,
    },
}

/// A watcher that does nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unwatched;

impl CaptureWatch for Unwatched {
    fn reached(&self, _progress: CaptureProgress) {}
}

impl fmt::Debug for dyn CaptureWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CaptureWatch")
    }
}

/// A capture that did not fail: the two worlds in which the call returns.
#[derive(Debug)]
#[must_use = "the two worlds go on differently"]
pub enum Captured {
    /// This is still the process that was captured (or rehearsed).
    Original(CaptureReport),
    /// This is still the process that was captured, and it may run on; the image is being written beside it.
    Underway(Box<dyn Underway>),
    /// This is a process that came back from an image.
    Restored(Restoration),
}

/// A capture whose image is written while the process runs on ([`Mode::Continue`]).
///
/// # What an implementor owes
///
/// Everything that is saved was read, or fixed, before [`Engine::capture`] returned. Until [`wait`](Underway::wait) has said that
/// the image is durable there is none under its name, and if it says why there is none, nothing is left behind. When it is
/// dropped before its end, the capture is given up. [`CaptureProgress::Written`] and [`CaptureProgress::Durable`] are told
/// during the wait, with the process running.
pub trait Underway: Send {
    /// Waits for the end of the capture, at most for `limit`; `None` if it has not ended then. Not called again after the end. The
    /// first call lets the capture begin, if that competes with the process for processors: the door is open then.
    fn wait(&mut self, limit: Duration) -> Option<Result<CaptureReport, EngineError>>;
}

impl fmt::Debug for dyn Underway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Underway")
    }
}

/// What a capture took.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CaptureReport {
    /// Bytes the image takes on disk; in a rehearsal, the estimate.
    pub bytes: u64,
    /// Named stages and their durations, in order.
    pub stages: Vec<Stage>,
}

/// A named stretch of time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// What was done.
    pub name: String,
    /// How long it took.
    pub took: Duration,
}

/// What the engine knows about a life that has just come back.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Restoration {
    /// The image this life came from.
    pub image_id: ImageId,
    /// Fresh randomness from the kernel, drawn in this life.
    pub instance_id: InstanceId,
    /// Generation of this life.
    pub generation: u64,
    /// Time since the capture by the wall clock; zero if that clock went backwards.
    pub asleep_wall: Duration,
    /// How far this process's monotonic clock moved between capture and restore.
    pub asleep_monotonic: Duration,
    /// The arguments of the restore, program name first; empty if none were given.
    pub args: Vec<std::ffi::OsString>,
    /// The environment of the restore.
    pub env: Vec<(std::ffi::OsString, std::ffi::OsString)>,
    /// Listening sockets that a supervisor handed to this life and the engine has no other use for.
    pub listeners: Listeners,
    /// Named stages of the restore and their durations, as far as the engine measured them.
    pub stages: Vec<Stage>,
}

impl Restoration {
    /// A restoration of `image_id` with nothing else known.
    pub fn new(image_id: ImageId, instance_id: InstanceId, generation: u64) -> Self {
        Self {
            image_id,
            instance_id,
            generation,
            asleep_wall: Duration::ZERO,
            asleep_monotonic: Duration::ZERO,
            args: Vec::new(),
            env: Vec::new(),
            listeners: Listeners::default(),
            stages: Vec::new(),
        }
    }
}

/// Why a capture did not happen. The process is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// Something in the process cannot be saved; all of it is listed.
    #[error("{} obstacle(s) stand in the way of the checkpoint", .0.len())]
    Refused(Vec<Obstacle>),
    /// The engine does not do this here.
    #[error("the {engine} engine does not support {what}; {instead}")]
    Unsupported {
        /// The engine's name.
        engine: &'static str,
        /// What was asked for.
        what: String,
        /// What to do instead.
        instead: String,
    },
    /// The image could not be written.
    #[error("cannot write the image {}: {source}; {hint}", path.display())]
    Write {
        /// The image's path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
        /// What to do.
        hint: String,
    },
    /// The capture failed for another reason.
    #[error("{what}; {hint}")]
    Failed {
        /// What was attempted and what was found.
        what: String,
        /// What to do.
        hint: String,
    },
}
