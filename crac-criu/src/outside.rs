//! The half of a capture from outside that is outside: what `crac checkpoint --outside` does to a process that stands still for it.
//!
//! The process says little about itself, and may be anybody's: who it is and what it runs is looked up, and of what it says only names
//! of its own pipes, sockets and terminals are handed to CRIU (`stand.rs`). CRIU is guarded by a warden, which outlives this command: it
//! kills CRIU when this command is ended or late, names a complete image, tells a process that ends with its image so, and lets it go on.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crac_core::{ImageId, Ready, Word};
use crac_sys::{
    proc::ProcessStatus,
    process,
    warden::{Ended, Orders, Publish, Tether, Told},
};

use crate::{
    capture::{DUMP, LOG, NOT_TEXT, PUBLISH_MAX, Stats, disk_bytes, dump_order},
    image::{Draft, Executable, Manifest},
    program::{Criu, CriuError},
    restore::{may_ask_for_limits, missing_privileges_for},
    rpc::{Kind, Response},
    stand::Particulars,
    worker,
};

/// Namespaces that a process and whoever saves it have in common: what CRIU is told about one makes no sense in the other.
const SHARED: [&str; 6] = ["mnt", "pid", "net", "ipc", "uts", "user"];

/// A process that can be saved from here.
#[derive(Debug)]
pub struct Candidate {
    criu: Criu,
    version: String,
    pid: u32,
}

/// What is ready to save a process, before that process lets go of anything.
#[derive(Debug)]
pub struct Prepared {
    candidate: Candidate,
    image: PathBuf,
    draft: Option<Draft>,
    executable: Executable,
}

/// A process that CRIU has read, and whose image is made durable.
#[derive(Debug)]
pub struct Dumped {
    prepared: Prepared,
    tether: Option<Tether>,
    ordered: Instant,
    limit: Duration,
    exits: bool,
}

/// An image that is durable under its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Taken {
    /// Bytes on disk.
    pub bytes: u64,
    /// From the order to CRIU until the image was durable.
    pub elapsed: Duration,
    /// While CRIU, or in exit mode the way to the durable image, kept all threads still.
    pub frozen: Duration,
}

impl Candidate {
    /// Looks whether the process `pid` can be saved by `criu` from here. `user` is the user who it has to be of: process ids, and what
    /// they run, change.
    ///
    /// # Errors
    ///
    /// What stands in the way, and what to do.
    pub fn look(criu: Criu, pid: u32, user: u32) -> Result<Self, CriuError> {
        let refused = |what: String, hint: &str| Err(CriuError::Refused { what, hint: hint.to_owned() });
        let status = fs::read(format!("/proc/{pid}/status")).map_err(worker::io_error("look at the process"))?;
        let users = ProcessStatus::parse(&status).map(|status| status.users);
        if users.as_ref().map(|users| users[..3].iter().all(|found| *found == user)) != Ok(true) {
            let what = format!("process {pid} is not, or not only, of user {user}, who serves its control socket");
            return refused(
                what,
                "name the service by another process id; a program with the privileges of somebody else is not saved",
            );
        }
        let apart: Vec<_> = SHARED.into_iter().filter(|name| !is_shared(pid, name)).collect();
        if !apart.is_empty() {
            let what = format!("process {pid} is in other namespaces than this command: {}", apart.join(", "));
            let hint = format!("run this command in there: `nsenter --all --target {pid} crac checkpoint --outside ...`");
            return refused(what, &hint);
        }
        if let Some(what) = missing_privileges_for(user) {
            return refused(what, "run this command as root");
        }
        if user != rustix::process::getuid().as_raw() && !may_ask_for_limits() {
            // prlimit(2)
            let what =
                format!("root without CAP_SYS_RESOURCE may not ask for the limits of a process of user {user}, and CRIU has to");
            return refused(
                what,
                "run this command where root has it: on the host, or in a container with `--cap-add SYS_RESOURCE`",
            );
        }
        let version = criu.version()?;
        Ok(Self { criu, version, pid })
    }

    /// Does all that takes time: reads the program, makes the directory beside `image`.
    ///
    /// # Errors
    ///
    /// If `image` cannot be written there, or the program cannot be read.
    pub fn prepare(self, image: &Path) -> Result<Prepared, CriuError> {
        let executable = Executable::of_process(self.pid).map_err(worker::io_error("read the program of the service"))?;
        let mut id = [0; 16];
        // The kernel's generator does not fail once it is seeded.
        let _ = process::random(&mut id);
        let draft = Draft::new(image, ImageId(id)).map_err(|source| CriuError::Refused {
            what: format!("cannot write the image {}: {source}", image.display()),
            hint: "images need a directory that exists and may be written to".into(),
        })?;
        Ok(Prepared { candidate: self, image: image.to_owned(), draft: Some(draft), executable })
    }
}

impl Prepared {
    /// Has CRIU dump the process, which has just said `ready` over the stream `service` and says nothing as long as it stands still.
    /// It goes on then, or if it `exits` is left stopped until its image is durable.
    ///
    /// Blocks for at most `limit`; CRIU is killed then. A `service` that says something is not captured any more.
    ///
    /// # Errors
    ///
    /// [`CriuError`]; there is no image then, and the process runs.
    pub fn dump(self, ready: &Ready, exits: bool, limit: Duration, service: BorrowedFd<'_>) -> Result<Dumped, CriuError> {
        let Candidate { criu, version, pid } = &self.candidate;
        let Some(draft) = &self.draft else { unreachable!("it is there until it is dropped") };
        let particulars = Particulars::read(&ready.particulars).ok_or_else(|| CriuError::Refused {
            what: format!("process {pid} said about itself what this crac does not understand"),
            hint: "use the crac command of the version that the service is built with".into(),
        })?;
        let mut manifest = Manifest::of(*pid, self.executable.clone(), ready.service.clone(), version.clone())
            .map_err(worker::io_error("look at the process"))?;
        let Particulars { external, streams, severed, tcp_close, handover } = particulars;
        (manifest.streams, manifest.severed) = (streams, severed);
        (manifest.tcp_close, manifest.handover) = (tcp_close, handover);
        draft.write_manifest(&manifest).map_err(worker::io_error("write into the image's directory"))?;
        let id = i32::try_from(*pid).unwrap_or(0);
        let order = dump_order(id, draft, external, tcp_close, exits).ok_or_else(|| CriuError::Refused {
            what: format!("cannot write the image {}", self.image.display()),
            hint: NOT_TEXT.into(),
        })?;

        let publish = Publish { from: c_path(&draft.aside)?, to: c_path(&self.image)?, parent: c_path(&draft.parent)? };
        let told = exits.then(|| Told { stream: service.as_raw_fd(), text: durable_line() });
        let orders = Orders { deadline: limit, publish: Some(publish), told, resume: exits.then_some(id) };
        let ordered = Instant::now();
        let (conversation, tether) = worker::start_guarded(criu, orders)?;
        let mut dumped = Dumped { tether: Some(tether), ordered, limit, exits, prepared: self };
        // A CRIU that has ended cannot be told; the tether says how it ended.
        let _ = conversation.tell(&order);
        dumped.listen(&conversation, service)?;
        Ok(dumped)
    }
}

impl Dumped {
    /// Waits until CRIU has said that it is done.
    fn listen(&mut self, conversation: &worker::Conversation, service: BorrowedFd<'_>) -> Result<(), CriuError> {
        // The warden kills CRIU at the deadline, and tells so.
        let deadline = self.ordered + self.limit + PUBLISH_MAX;
        let readable = |descriptors: &[BorrowedFd<'_>], deadline| {
            worker::readable(descriptors, deadline).map_err(worker::io_error("wait for CRIU"))
        };
        let now = Instant::now;
        let criu = &self.prepared.candidate.criu;
        let Some(tether) = &mut self.tether else { return Ok(()) };
        readable(&[conversation.descriptor(), tether.descriptor(), service], deadline)?;
        let answer = if readable(&[conversation.descriptor()], now())? { conversation.hear(criu)? } else { None };
        if answer.as_ref().is_some_and(|answer| answer.success && answer.kind == Kind::Dump as i32) {
            // One that has ended with its image closes the stream, too; whether it still stood still the warden has looked at.
            return if !self.exits && readable(&[service], now())? { Err(self.gone_on()) } else { Ok(()) };
        }
        if answer.is_none() && !readable(&[tether.descriptor()], now())? && readable(&[service], now())? {
            return Err(self.gone_on());
        }
        if !readable(&[tether.descriptor()], deadline)? {
            return Err(self.late());
        }
        let ended = tether.ended();
        Err(self.failure(ended, answer.as_ref()))
    }

    /// Waits until the image is durable under its name; at most for the rest of the time it has, and some minutes for the disk.
    ///
    /// # Errors
    ///
    /// [`CriuError`]; there is no image then.
    pub fn publish(mut self) -> Result<Taken, CriuError> {
        let Some(tether) = &mut self.tether else { unreachable!("it is there until it is dropped") };
        let deadline = self.ordered + self.limit + PUBLISH_MAX;
        if !worker::readable(&[tether.descriptor()], deadline).map_err(worker::io_error("wait for the disk"))? {
            return Err(self.late());
        }
        let ended = tether.ended();
        if ended != Ended::Well {
            return Err(self.failure(ended, None));
        }
        let image = &self.prepared.image;
        let elapsed = self.ordered.elapsed();
        let frozen = if self.exits { elapsed } else { Duration::from_micros(Stats::read(image).frozen_us.into()) };
        Ok(Taken { bytes: disk_bytes(image), elapsed, frozen })
    }

    fn failure(&self, ended: Ended, answer: Option<&Response>) -> CriuError {
        let criu = &self.prepared.candidate.criu;
        let log = self.prepared.draft.as_ref().map(|draft| draft.log(LOG)).unwrap_or_default();
        match (ended, answer) {
            (Ended::Late, _) => self.late(),
            (Ended::Unpublished(errno), _) if errno.number() == CANCELED => self.gone_on(),
            (Ended::Unpublished(errno), _) => CriuError::Refused {
                what: format!("cannot write the image {}: {}", self.prepared.image.display(), io::Error::from(errno)),
                hint: "choose another directory or free some space".into(),
            },
            (Ended::Badly(status), None) if status & 0x7f != 0 => CriuError::Refused {
                what: format!("{} was killed by signal {}", criu.path().display(), status & 0x7f),
                hint: "find out who ended it; the kernel's log says whether memory was short".into(),
            },
            (Ended::Badly(status), None) if log.is_empty() => {
                criu.nonsense(format!("ended with wait status {status:#x} without a word"))
            }
            _ => Criu::failure("dump the process", &log, answer.and_then(|answer| answer.message.as_deref())),
        }
    }

    fn late(&self) -> CriuError {
        CriuError::Late { path: self.prepared.candidate.criu.path().to_owned(), what: DUMP, limit: self.limit }
    }

    fn gone_on(&self) -> CriuError {
        CriuError::Refused {
            what: format!("process {} does not stand still any longer: there is no image", self.prepared.candidate.pid),
            hint: "see whether it still runs; if it was not captured in time, give it longer (--timeout, CRAC_CRIU_DEADLINE of the service)"
                .into(),
        }
    }
}

impl Drop for Dumped {
    fn drop(&mut self) {
        // First the tether, then the draft: CRIU is not to write to what is removed. The warden removes what it writes meanwhile.
        self.tether = None;
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if let Some(draft) = self.draft.take() {
            draft.discard();
        }
    }
}

/// What a process that ends with its image is told by the warden.
fn durable_line() -> Vec<u8> {
    let mut line = serde_json::to_vec(&Word::Durable { bytes: None }).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Whether this process is in the same namespace. One that cannot be looked at is another one.
fn is_shared(pid: u32, name: &str) -> bool {
    let [own, other] =
        ["self".to_owned(), pid.to_string()].map(|process| fs::read_link(format!("/proc/{process}/ns/{name}")).ok());
    own.is_some() && own == other
}

fn c_path(path: &Path) -> Result<CString, CriuError> {
    CString::new(path.as_os_str().as_bytes()).map_err(|error| worker::io_error("name the image")(io::Error::from(error)))
}

/// `ECANCELED`
const CANCELED: i32 = 125;

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn none() -> Criu {
        Criu::find(Some(Path::new("/bin/true"))).unwrap()
    }

    #[test]
    fn a_process_of_somebody_else_than_its_socket_is_not_saved() {
        let me = rustix::process::geteuid().as_raw();
        let error = Candidate::look(none(), std::process::id(), me + 1).unwrap_err().to_string();
        assert!(error.contains("is not, or not only, of user"), "{error}");
        // With the right one something else stands in the way: privileges or, for root, a CRIU that is none.
        let error = Candidate::look(none(), std::process::id(), me).unwrap_err().to_string();
        assert!(error.contains("CRIU needs root") || error.contains("/bin/true ended"), "{error}");
        assert!(Candidate::look(none(), i32::MAX as u32, me).is_err());
    }

    #[test]
    fn who_ends_with_the_image_is_told_in_the_words_of_the_protocol() {
        assert_eq!(durable_line(), b"{\"say\":\"durable\"}\n");
    }

    #[test]
    fn this_process_shares_its_namespaces_with_itself() {
        assert!(SHARED.iter().all(|name| is_shared(std::process::id(), name)));
        assert!(!is_shared(i32::MAX as u32, "mnt"));
    }
}
