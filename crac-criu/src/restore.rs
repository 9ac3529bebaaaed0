//! What `crac restore` and `crac run` need: look at an image, say whether it fits, bring it back.

use std::{
    ffi::OsString,
    fmt,
    fs::{self, DirBuilder, File},
    io::{self, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::{DirBuilderExt, MetadataExt},
    },
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use rustix::{
    fs::{MemfdFlags, memfd_create},
    io::fcntl_dupfd_cloexec,
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
    process::{Pid, Signal, WaitOptions, geteuid, kill_process, waitpid},
};

use crate::{
    capture::{CPU_CHECKS, common_options},
    handover::Handover,
    image::{self, Executable, Image, ImageError, Manifest},
    program::{Criu, CriuError},
    rpc::{InheritFd, Kind, Options, Request},
    worker::{Worker, io_error},
};

const LOG: &str = "restore.log";
/// Above the standard streams, and above what programs expect to inherit.
const DESCRIPTOR_MIN: i32 = 10;
/// Bits of `CapEff`.
const CAP_SETPCAP: u64 = 1 << 8;
const CAP_CHECKPOINT_RESTORE: u64 = 1 << 40;
const CAP_SYS_RESOURCE: u64 = 1 << 24;

/// What to do about an image that does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Verdict {
    /// It is a good image for another host, user, build or moment: start the service cold.
    StartCold,
    /// It is damaged, or its files cannot be trusted.
    Untrusted,
}

/// One reason why an image is not restored here.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mismatch {
    /// What to do about it.
    pub verdict: Verdict,
    /// What was expected and what was found.
    pub what: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// An image that can be restored.
#[derive(Debug)]
pub struct Restore {
    image: Image,
    dir: File,
}

/// A restored process: a child of this one.
#[derive(Debug)]
pub struct Living {
    pid: Pid,
}

impl Restore {
    /// Looks at the image at `path`: its files, its manifest, and whether both fit this host, this user, this moment and, if
    /// given, the program it is to replace. CRIU looks at the rest: processor, programs and libraries, mounts.
    ///
    /// # Errors
    ///
    /// Every reason at once, the gravest first.
    pub fn open(path: &Path, program: Option<&Path>) -> Result<Self, Vec<Mismatch>> {
        let one = |verdict, what| vec![Mismatch { verdict, what }];
        let dir = File::open(path).map_err(|error| one(Verdict::StartCold, format!("it cannot be opened: {error}")))?;
        let mut found = trust(path);
        if !found.is_empty() {
            return Err(found);
        }
        let image = Image::read(path).map_err(|error| {
            let verdict = match error {
                ImageError::Version(_) | ImageError::Read { .. } => Verdict::StartCold,
                _ => Verdict::Untrusted,
            };
            one(verdict, error.to_string())
        })?;
        found.extend(privileges(&image.manifest));
        found.extend(ids(&image.manifest));
        found.extend(build(&image.manifest, program));
        found.sort_by_key(|mismatch| std::cmp::Reverse(mismatch.verdict));
        if found.is_empty() { Ok(Self { image, dir }) } else { Err(found) }
    }

    /// What is in the image.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Brings the process back as a child of this one, under its old process id; it ends when this thread does.
    ///
    /// `arguments` (without a program name) and `environment` reach the service as its `Restoration`, the standard streams of
    /// this process take the place of its own. Blocks for as long as CRIU takes, at most for `limit`.
    ///
    /// # Errors
    ///
    /// [`CriuError`]; nothing half alive is left.
    pub fn bring_back(
        self,
        criu: &Criu,
        arguments: Vec<OsString>,
        environment: Vec<(OsString, OsString)>,
        limit: Duration,
    ) -> Result<Living, CriuError> {
        let mut arguments = arguments;
        if !arguments.is_empty() {
            arguments.insert(0, self.image.path.clone().into_os_string());
        }
        let handover = Handover { args: arguments, env: environment, command: std::process::id() };
        let given = Given::prepare(&self.image.manifest, &handover).map_err(io_error("prepare what the restored life gets"))?;
        let work = WorkDir::new().map_err(io_error("make a directory for CRIU's log"))?;
        let before = children();
        let descriptors: Vec<_> = given.0.iter().map(|(_, descriptor)| descriptor.as_fd()).collect();
        let mut worker = Worker::start(criu, &descriptors)?;
        criu.greet_within(&mut worker.conversation, limit)?;
        let mut order = Request::new(Kind::Restore);
        order.options = Some(Options {
            images_dir_fd: self.dir.as_raw_fd(),
            work_dir_fd: Some(work.dir.as_raw_fd()),
            log_file: Some(LOG.to_owned()),
            log_level: Some(2),
            rst_sibling: Some(true),
            inherit_fd: given.0.iter().map(|(key, fd)| InheritFd { key: key.clone(), fd: fd.as_raw_fd() }).collect(),
            tcp_close: self.image.manifest.tcp_close.then_some(true),
            cpu_cap: Some(CPU_CHECKS),
            ..common_options()
        });
        let answer = worker.conversation.ask(criu, &order, "finish the restore", limit);
        let failure = match answer {
            Ok(answer) => match answer.restore.and_then(|restored| Pid::from_raw(restored.pid)) {
                Some(pid) if answer.success => {
                    worker.end();
                    return Ok(Living { pid });
                }
                _ => Criu::failure("restore the process", &work.log(), answer.message.as_deref()),
            },
            Err(error) => error,
        };
        drop(worker);
        end_all_but(&before);
        Err(failure)
    }
}

impl Living {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Sends it a signal, given by number; nothing if there is no such signal or process.
    pub fn signal(&self, signal: i32) {
        if let Some(signal) = Signal::from_named_raw(signal) {
            // It may have ended.
            let _ = kill_process(self.pid, signal);
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// If it is no child of this process any more.
    pub fn wait(&self) -> io::Result<ExitStatus> {
        loop {
            match waitpid(Some(self.pid), WaitOptions::empty()) {
                Ok(Some((_, status))) => return Ok(std::os::unix::process::ExitStatusExt::from_raw(status.as_raw())),
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// Descriptors that take the place of others, with CRIU's names of those.
struct Given(Vec<(String, OwnedFd)>);

impl Given {
    fn prepare(manifest: &Manifest, handover: &Handover) -> io::Result<Self> {
        let memory = memfd_create("crac-handover", MemfdFlags::CLOEXEC)?;
        File::from(memory.try_clone()?).write_all(&handover.encode())?;
        let mut given = vec![(manifest.handover.clone(), above(memory.as_fd())?)];
        let own = [above(io::stdin().as_fd())?, above(io::stdout().as_fd())?, above(io::stderr().as_fd())?];
        for (key, own) in manifest.streams.iter().zip(own) {
            // Streams that were the same thing stay the same thing.
            if let Some(key) = key.as_ref().filter(|key| !given.iter().any(|(other, _)| other == *key)) {
                given.push((key.clone(), own));
            }
        }
        for inode in &manifest.severed {
            let (dead, _) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
            given.push((format!("socket:[{inode}]"), above(dead.as_fd())?));
        }
        Ok(Self(given))
    }
}

fn above(descriptor: std::os::fd::BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(fcntl_dupfd_cloexec(descriptor, DESCRIPTOR_MIN)?)
}

/// A private directory for CRIU's log; removed when dropped.
struct WorkDir {
    path: PathBuf,
    dir: File,
}

impl WorkDir {
    fn new() -> io::Result<Self> {
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random[..], rustix::rand::GetRandomFlags::empty())?;
        let path = std::env::temp_dir().join(format!("crac-criu-{:016x}", u64::from_ne_bytes(random)));
        DirBuilder::new().mode(0o700).create(&path)?;
        let dir = File::open(&path)?;
        Ok(Self { path, dir })
    }

    fn log(&self) -> String {
        let bytes = fs::read(self.path.join(LOG)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        // A directory left behind in the temporary directory harms nobody.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Whether the files can be trusted to be what their owner made.
fn trust(path: &Path) -> Vec<Mismatch> {
    let untrusted = |what: String| Mismatch { verdict: Verdict::Untrusted, what };
    let files = match image::files(path) {
        Ok(files) => files,
        Err(error) => return vec![untrusted(format!("it cannot be looked at: {error}"))],
    };
    let me = geteuid().as_raw();
    let mut found = Vec::new();
    for (name, metadata) in files {
        let name = if name == "." { "the directory".to_owned() } else { format!("its file {}", name.display()) };
        if metadata.is_symlink() {
            found.push(untrusted(format!("{name} is a link")));
        }
        if ![0, me].contains(&metadata.uid()) {
            found.push(untrusted(format!("{name} belongs to user {}, neither me ({me}) nor root", metadata.uid())));
        }
        if metadata.mode() & 0o022 != 0 && !metadata.is_symlink() {
            found.push(untrusted(format!("others may write {name}; hint: chmod -R go-w")));
        }
    }
    found
}

fn privileges(manifest: &Manifest) -> Option<Mismatch> {
    lacks(manifest.user[0], geteuid().as_raw(), effective()).map(|what| Mismatch { verdict: Verdict::StartCold, what })
}

/// What this process lacks to save itself with CRIU, and to restore processes of its own user.
pub fn missing_privileges() -> Option<String> {
    let me = geteuid().as_raw();
    lacks(me, me, effective())
}

/// The capabilities in force.
fn effective() -> u64 {
    let text = fs::read("/proc/self/status").unwrap_or_default();
    crac_sys::proc::ProcessStatus::parse(&text).map_or(0, |status| status.capabilities[2])
}

/// What this process lacks to save or restore processes of `user` with CRIU.
pub(crate) fn missing_privileges_for(user: u32) -> Option<String> {
    lacks(user, geteuid().as_raw(), effective())
}

/// Whether this process may ask for the limits of processes of other users.
pub(crate) fn may_ask_for_limits() -> bool {
    effective() & CAP_SYS_RESOURCE != 0
}

/// What user `me` with these effective capabilities lacks to restore a process of `user`.
fn lacks(user: u32, me: u32, effective: u64) -> Option<String> {
    let needed = CAP_SETPCAP | CAP_CHECKPOINT_RESTORE;
    if me == 0 {
        None
    } else if user != me {
        Some(format!("the service ran as user {user}, this is {me}"))
    } else if effective & needed != needed {
        // Without the second of them CRIU waits for ever.
        Some("CRIU needs root, or CAP_CHECKPOINT_RESTORE and CAP_SETPCAP".to_owned())
    } else {
        None
    }
}

/// Whether the process id and the thread ids are free.
fn ids(manifest: &Manifest) -> Option<Mismatch> {
    let taken = |id: &&i32| Path::new(&format!("/proc/{id}")).exists();
    let pid = i32::try_from(manifest.pid).unwrap_or(0);
    let id = std::iter::once(&pid).chain(&manifest.threads).find(taken)?;
    let name = fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
    let what = format!(
        "the id {id} of the service is taken here by `{}`; hint: restore in a process id namespace of its own: `unshare --pid \
         --fork --kill-child --mount-proc crac restore ...`",
        name.trim_end()
    );
    Some(Mismatch { verdict: Verdict::StartCold, what })
}

fn build(manifest: &Manifest, program: Option<&Path>) -> Option<Mismatch> {
    let cold = |what| Some(Mismatch { verdict: Verdict::StartCold, what });
    let recorded = &manifest.executable;
    // The process is restored from its own program's file, so that has to be what it was.
    for path in [Some(recorded.path.as_path()), program].into_iter().flatten() {
        match Executable::of(path) {
            Err(error) => return cold(format!("the program {} cannot be read: {error}", path.display())),
            Ok(found) if found.build_id != recorded.build_id => {
                return cold(format!(
                    "the image was made from another build of {}: {}, not {}",
                    path.display(),
                    recorded.build_id,
                    found.build_id
                ));
            }
            Ok(_) => {}
        }
    }
    None
}

/// The children of this process.
fn children() -> Vec<i32> {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>()).collect()
}

/// Ends what a failed restore has left half made.
fn end_all_but(before: &[i32]) {
    for pid in children().into_iter().filter(|pid| !before.contains(pid)).filter_map(Pid::from_raw) {
        // Both fail only if it has ended meanwhile.
        let _ = kill_process(pid, Signal::KILL);
        let _ = waitpid(Some(pid), WaitOptions::empty());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crac_core::{ImageId, ImageMetadata};

    fn manifest() -> Manifest {
        Manifest::of_this(ImageMetadata::new("orders", ImageId([7; 16]), 3, None), "4.2.1".to_owned()).unwrap()
    }

    #[test]
    fn privileges_that_are_missing_are_named() {
        assert_eq!(lacks(1000, 0, 0), None, "root restores everybody");
        assert!(lacks(1000, 1001, u64::MAX).unwrap().contains("user 1000"));
        assert!(lacks(1000, 1000, CAP_CHECKPOINT_RESTORE).unwrap().contains("CAP_SETPCAP"));
        assert_eq!(lacks(1000, 1000, CAP_CHECKPOINT_RESTORE | CAP_SETPCAP), None);
    }

    #[test]
    fn ids_in_use_are_found_and_free_ones_are_not() {
        let mut manifest = manifest();
        assert!(ids(&manifest).unwrap().what.contains("unshare --pid"), "this process has them");
        manifest.pid = i32::MAX as u32;
        manifest.threads.clear();
        assert_eq!(ids(&manifest), None);
    }

    #[test]
    fn another_build_is_found() {
        let manifest = manifest();
        assert_eq!(build(&manifest, Some(&manifest.executable.path)), None);
        assert!(build(&manifest, Some(Path::new("/bin/sh"))).unwrap().what.contains("another build"));
        assert!(build(&manifest, Some(Path::new("/no/program"))).unwrap().what.contains("cannot be read"));
    }

    #[test]
    fn files_that_others_may_write_are_not_trusted() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(trust(dir.path()), []);
        let file = dir.path().join("pages-1.img");
        fs::write(&file, "x").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o622)).unwrap();
        std::os::unix::fs::symlink("x", dir.path().join("core-1.img")).unwrap();
        let found: Vec<_> = trust(dir.path()).iter().map(ToString::to_string).collect();
        assert!(found.iter().any(|what| what.contains("pages-1.img")), "{found:?}");
        assert!(found.iter().any(|what| what.contains("is a link")), "{found:?}");
    }

    #[test]
    fn equal_streams_are_given_once() {
        let mut manifest = manifest();
        manifest.handover = "x/handover".to_owned();
        manifest.streams = [None, Some("pipe:[1]".to_owned()), Some("pipe:[1]".to_owned())];
        manifest.severed = vec![7];
        let given = Given::prepare(&manifest, &Handover::default()).unwrap();
        let keys: Vec<_> = given.0.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["x/handover", "pipe:[1]", "socket:[7]"]);
    }
}
