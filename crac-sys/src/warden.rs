//! Runs a program that is no child of this process, guarded by a warden that outlives a stop of this process.
//!
//! ```text
//!  this process ──fork──► first ──fork──► warden ──fork──► exec PROGRAM
//!        │                  └ ends at once    │                │
//!        │                                    ├── waits for ───┘   kills it when the deadline has passed, or when this
//!        │                                    │                   process has dropped its end of the tether
//!        │                                    ├── PROGRAM succeeded: sync and rename what it wrote, else remove it if nobody
//!        │                                    │   holds the tether any more
//!        └◄── tether: how it ended ───────────┴── tells the good end to a third party; continues a process (SIGCONT)
//! ```
//!
//! A checkpointer that stops the whole process cannot be watched, and what it wrote cannot be made durable, from inside.
#![expect(unsafe_code, reason = "runs in copies of the process, by system calls alone")]

use std::{
    ffi::CString,
    io::{self, Read},
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    process::Command,
    time::Duration,
};

use crate::{
    errno::{Errno, Result},
    fs, process,
    raw::syscall,
};

/// What the warden does beside waiting.
#[derive(Debug)]
pub struct Orders {
    /// When the program is killed.
    pub deadline: Duration,
    /// What is published once the program has succeeded.
    pub publish: Option<Publish>,
    /// Who else is told of a good end.
    pub told: Option<Told>,
    /// Which process is continued at the end (`SIGCONT`), however it ended.
    pub resume: Option<i32>,
}

/// A third party, at the other end of a stream, that says nothing as long as it agrees.
#[derive(Debug)]
pub struct Told {
    /// The stream. What has come from there before publishing keeps the warden from it, and so does its end.
    pub stream: RawFd,
    /// What is written to it once all is well, before the process is continued.
    pub text: Vec<u8>,
}

/// A directory that gets its final name.
#[derive(Debug)]
pub struct Publish {
    /// Absolute. Every file in it is made durable first.
    pub from: CString,
    /// Absolute, on the same filesystem. What has that name is replaced in one step, and removed afterwards.
    pub to: CString,
    /// The directory of both.
    pub parent: CString,
}

/// How a guarded program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With success, and published if that was ordered.
    Well,
    /// With another wait status (`wait(2)`).
    Badly(i32),
    /// It was killed at its deadline.
    Late,
    /// With success, but publishing failed; `ECANCELED` if the third party did not agree any longer.
    Unpublished(Errno),
    /// Nobody knows: the warden itself was ended.
    Unknown,
}

/// This process's end of the tether. Dropping it has the program killed, if it still runs, and keeps the warden from publishing: it
/// removes then what was to be published.
#[derive(Debug)]
pub struct Tether {
    hear: std::io::PipeReader,
    _hold: std::io::PipeWriter,
}

impl Tether {
    /// The descriptor that becomes readable when the program has ended.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.hear.as_fd()
    }

    /// How it ended; blocks until it has.
    pub fn ended(&mut self) -> Ended {
        let mut record = [0; RECORD];
        match self.hear.read_exact(&mut record) {
            Ok(()) => decode(record),
            Err(_) => Ended::Unknown,
        }
    }
}

/// Starts `command` outside of this process's family.
///
/// It leads a session of its own, and inherits what [`Command`] and the close-on-exec flags say. The copies share this
/// process's memory until one side writes to it.
///
/// # Errors
///
/// If a copy cannot be made or the program cannot be executed.
pub fn spawn(command: &mut Command, orders: Orders) -> io::Result<Tether> {
    let (hear, tell) = std::io::pipe()?;
    let (watch, hold) = std::io::pipe()?;
    let [tell_number, watch_number] = [tell.as_raw_fd(), watch.as_raw_fd()];
    let branch = move || {
        new_session()?;
        // SAFETY: this copy has one thread, and uses system calls and its own stack from here on.
        if unsafe { process::fork() }? != 0 {
            process::exit_group(0);
        }
        // SAFETY: as above.
        let program = unsafe { process::fork() }?;
        if program == 0 {
            return Ok(());
        }
        guard(program, [tell_number, watch_number], &orders)
    };
    // SAFETY: the closure runs in the copy, where it uses system calls alone; nothing is allocated or locked.
    unsafe { command.pre_exec(branch) };
    let mut first = command.spawn()?;
    first.wait()?;
    Ok(Tether { hear, _hold: hold })
}

/// The warden's whole life.
fn guard(program: i32, [tell, watch]: [RawFd; 2], orders: &Orders) -> ! {
    // Signals of the service are not for its copy; their handlers would act on its behalf.
    let _ = crate::signal::set_mask(crate::signal::SignalSet::MAX);
    let third = orders.told.as_ref().map_or(watch, |told| told.stream);
    let ended = match opened(program, [tell, watch, third]) {
        Ok(pidfd) => watch_over(program, &pidfd, [watch, third], orders),
        Err(errno) => {
            let _ = process::kill(program);
            Ended::Unpublished(errno)
        }
    };
    // SAFETY: the number belongs to the pipe that `spawn` made, and this copy owns it.
    let tell = unsafe { OwnedFd::from_raw_fd(tell) };
    use std::os::fd::AsFd;
    if let (Some(publish), true) = (&orders.publish, ended != Ended::Well && wait_for([watch, -1], Duration::ZERO)) {
        // Nobody else does it. What cannot be removed has no name that anybody looks for.
        let _ = remove(publish);
    }
    // A service that is gone cannot be told.
    let _ = fs::write(tell.as_fd(), &encode(ended));
    if let (Some(told), Ended::Well) = (&orders.told, ended) {
        tell_third(told);
    }
    if let Some(pid) = orders.resume {
        // It may be gone.
        let _ = send(pid, libc::SIGCONT);
    }
    process::exit_group(0)
}

/// Lets go of everything of the service's, and opens what is needed to wait.
fn opened(program: i32, kept: [RawFd; 3]) -> Result<OwnedFd> {
    // SAFETY: this copy of the process uses none of the others.
    unsafe { fs::close_all_but(kept) }?;
    // SAFETY: integers only.
    let number = unsafe { syscall(libc::SYS_pidfd_open, [program as usize, 0, 0, 0, 0, 0]) }?;
    // SAFETY: the kernel has just made it, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(number as RawFd) })
}

fn watch_over(program: i32, pidfd: &OwnedFd, [watch, third]: [RawFd; 2], orders: &Orders) -> Ended {
    let now = || process::clock(libc::CLOCK_MONOTONIC).unwrap_or_default();
    let end = now() + orders.deadline;
    let mut is_late = false;
    loop {
        let left = end.saturating_sub(now());
        if wait_for([pidfd.as_raw_fd(), watch], left) {
            break;
        }
        if left.is_zero() {
            is_late = true;
            break;
        }
    }
    if !wait_for([pidfd.as_raw_fd(), -1], Duration::ZERO) {
        // It can be killed as long as it is not reaped, which only we do.
        let _ = process::kill(program);
    }
    match (reap(program), is_late) {
        (_, true) => Ended::Late,
        (Ok(0), false) => match orders.publish.as_ref().map_or(Ok(()), |order| publish(order, [watch, third])) {
            Ok(()) => Ended::Well,
            Err(errno) => Ended::Unpublished(errno),
        },
        (Ok(status), false) => Ended::Badly(status),
        (Err(_), false) => Ended::Unknown,
    }
}

/// Whether one of the descriptors has something to tell within `limit`.
fn wait_for(numbers: [RawFd; 2], limit: Duration) -> bool {
    let mut watched = numbers.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    let limit = libc::timespec { tv_sec: limit.as_secs() as i64, tv_nsec: i64::from(limit.subsec_nanos()) };
    let args = [watched.as_mut_ptr() as usize, watched.len(), std::ptr::from_ref(&limit) as usize, 0, 8, 0];
    // SAFETY: ppoll reads and writes the two records and reads the limit, all of which outlive the call.
    matches!(unsafe { syscall(libc::SYS_ppoll, args) }, Ok(ready) if ready > 0)
}

/// Tells the good end to the third party, which may be gone.
fn tell_third(told: &Told) {
    let Told { stream, text } = told;
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    let args = [*stream as usize, text.as_ptr() as usize, text.len(), flags as usize, 0, 0];
    // SAFETY: sendto reads the text, which outlives the call; without an address.
    let _ = unsafe { syscall(libc::SYS_sendto, args) };
}

fn reap(program: i32) -> Result<i32> {
    let mut status = 0_i32;
    let args = [program as usize, std::ptr::from_mut(&mut status) as usize, libc::__WALL as usize, 0, 0, 0];
    // SAFETY: wait4 stores one integer at the address given.
    unsafe { syscall(libc::SYS_wait4, args) }.map(|_| status)
}

/// Unless the process has let go of the tether meanwhile, or the third party has said something.
fn publish(order: &Publish, agreed: [RawFd; 2]) -> Result<()> {
    use std::os::fd::AsFd;
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    let parent = fs::open(&order.parent, flags, 0)?;
    let dir = fs::open(&order.from, flags, 0)?;
    each(&dir, |name| fs::sync(fs::open_at(dir.as_raw_fd(), name, libc::O_RDONLY | libc::O_NOFOLLOW, 0)?.as_fd()))?;
    fs::sync(dir.as_fd())?;
    if wait_for(agreed, Duration::ZERO) {
        return Err(Errno::new(libc::ECANCELED));
    }
    let replaced = match rename(order, 0) {
        Err(errno) if [libc::ENOTEMPTY, libc::EEXIST, libc::ENOTDIR].contains(&errno.number()) => {
            rename(order, libc::RENAME_EXCHANGE).map(|()| true)
        }
        other => other.map(|()| false),
    }?;
    fs::sync(parent.as_fd())?;
    if replaced {
        // The image is there, whether or not what it has replaced can be removed.
        let _ = remove(order);
    }
    Ok(())
}

fn rename(order: &Publish, flags: u32) -> Result<()> {
    let here = libc::AT_FDCWD as usize;
    let args = [here, order.from.as_ptr() as usize, here, order.to.as_ptr() as usize, flags as usize, 0];
    // SAFETY: renameat2 reads two NUL-terminated paths that outlive the call.
    unsafe { syscall(libc::SYS_renameat2, args) }.map(drop)
}

/// Removes what is now called `from`: a directory of files, or a file.
fn remove(order: &Publish) -> Result<()> {
    use std::os::fd::AsFd;
    let here = libc::AT_FDCWD as usize;
    let unlink = |flags: i32| {
        // SAFETY: unlinkat reads a NUL-terminated path that outlives the call.
        unsafe { syscall(libc::SYS_unlinkat, [here, order.from.as_ptr() as usize, flags as usize, 0, 0, 0]) }.map(drop)
    };
    match fs::open(&order.from, libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC, 0) {
        Err(errno) if errno.number() == libc::ENOTDIR => unlink(0),
        Err(errno) => Err(errno),
        Ok(dir) => {
            each(&dir, |name| match fs::remove_at(dir.as_fd(), name) {
                // Somebody else removes it, too.
                Err(errno) if errno.number() == libc::ENOENT => Ok(()),
                removed => removed,
            })?;
            unlink(libc::AT_REMOVEDIR)
        }
    }
}

/// Does `act` with each name in `dir`.
fn each(dir: &OwnedFd, mut act: impl FnMut(&std::ffi::CStr) -> Result<()>) -> Result<()> {
    use std::os::fd::AsFd;
    let mut buffer = [0; 4096];
    loop {
        match fs::read_dir(dir.as_fd(), &mut buffer)? {
            0 => return Ok(()),
            filled => {
                let names = fs::DirEntries::new(buffer.get(..filled).unwrap_or_default());
                names.filter(|name| ![&b"."[..], b".."].contains(&name.to_bytes())).try_for_each(&mut act)?;
            }
        }
    }
}

fn new_session() -> Result<()> {
    // SAFETY: no arguments.
    unsafe { syscall(libc::SYS_setsid, [0; 6]) }.map(drop)
}

fn send(pid: i32, signal: i32) -> Result<()> {
    // SAFETY: sends a signal.
    unsafe { syscall(libc::SYS_kill, [pid as usize, signal as usize, 0, 0, 0, 0]) }.map(drop)
}

const RECORD: usize = 8;

fn encode(ended: Ended) -> [u8; RECORD] {
    let (kind, value) = match ended {
        Ended::Well => (0, 0),
        Ended::Badly(status) => (1, status),
        Ended::Late => (2, 0),
        Ended::Unpublished(errno) => (3, errno.number()),
        Ended::Unknown => (4, 0),
    };
    let mut record = [0; RECORD];
    record[..4].copy_from_slice(&i32::to_le_bytes(kind));
    record[4..].copy_from_slice(&value.to_le_bytes());
    record
}

fn decode(record: [u8; RECORD]) -> Ended {
    let word = |at: usize| record.get(at..).and_then(|bytes| bytes.first_chunk()).map_or(0, |word| i32::from_le_bytes(*word));
    match (word(0), word(4)) {
        (0, _) => Ended::Well,
        (1, status) => Ended::Badly(status),
        (2, _) => Ended::Late,
        (3, number) => Ended::Unpublished(Errno::new(number)),
        _ => Ended::Unknown,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use std::{os::unix::ffi::OsStrExt, path::Path, time::Instant};

    const LONG: Duration = Duration::from_secs(60);

    fn sh(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    fn orders(deadline: Duration) -> Orders {
        Orders { deadline, publish: None, told: None, resume: None }
    }

    fn path(path: &Path) -> CString {
        CString::new(path.as_os_str().as_bytes()).unwrap()
    }

    #[test]
    fn a_program_is_no_child_and_its_end_is_told() {
        // As a child it would be reaped by this process.
        let mut tether = spawn(&mut sh("exit 0"), orders(LONG)).unwrap();
        assert_eq!(tether.ended(), Ended::Well);
        let mut tether = spawn(&mut sh("exit 3"), orders(LONG)).unwrap();
        assert_eq!(tether.ended(), Ended::Badly(3 << 8));
    }

    #[test]
    fn a_program_that_does_not_end_is_killed_in_time() {
        let mut tether = spawn(&mut sh("exec sleep 600"), orders(Duration::from_millis(20))).unwrap();
        assert_eq!(tether.ended(), Ended::Late);
    }

    #[test]
    fn a_dropped_tether_kills_the_program() {
        let (mut hear, tell) = std::io::pipe().unwrap();
        let mut command = sh("echo $$; exec sleep 600");
        command.stdout(tell);
        let tether = spawn(&mut command, orders(LONG)).unwrap();
        drop(command);
        let begun = Instant::now();
        drop(tether);
        // Its end of the pipe closes when it has ended.
        let mut said = String::new();
        hear.read_to_string(&mut said).unwrap();
        assert!(begun.elapsed() < LONG);
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error_of_the_start() {
        let error = spawn(&mut Command::new("/no/such/program"), orders(LONG)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_a_program_wrote_replaces_what_was_there() {
        let dir = std::env::temp_dir().join(format!("crac-warden-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let [from, to] = ["new", "image"].map(|name| dir.join(name));
        let order = || Publish { from: path(&from), to: path(&to), parent: path(&dir) };
        std::fs::write(&to, "an old file").unwrap();
        for round in ["one", "two"] {
            std::fs::create_dir(&from).unwrap();
            let mut command = sh(&format!("echo {round} > {}/content", from.display()));
            let mut tether = spawn(&mut command, Orders { publish: Some(order()), ..orders(LONG) }).unwrap();
            assert_eq!(tether.ended(), Ended::Well);
            assert_eq!(std::fs::read_to_string(to.join("content")).unwrap().trim(), round);
            assert!(!from.exists(), "what was replaced is removed");
        }
        let mut tether = spawn(&mut sh("exit 0"), Orders { publish: Some(order()), ..orders(LONG) }).unwrap();
        assert_eq!(tether.ended(), Ended::Unpublished(Errno::new(libc::ENOENT)));
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn who_stands_still_is_told_and_who_has_spoken_keeps_the_name_away() {
        let dir = std::env::temp_dir().join(format!("crac-warden-told-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let [from, to] = ["new", "image"].map(|name| dir.join(name));
        for agrees in [true, false] {
            std::fs::create_dir(&from).unwrap();
            let (near, mut far) = std::os::unix::net::UnixStream::pair().unwrap();
            if !agrees {
                std::io::Write::write_all(&mut far, b"no").unwrap();
            }
            let told = Told { stream: near.as_raw_fd(), text: b"well".to_vec() };
            let publish = Publish { from: path(&from), to: path(&to), parent: path(&dir) };
            let orders = Orders { publish: Some(publish), told: Some(told), ..orders(LONG) };
            let mut tether = spawn(&mut sh("exit 0"), orders).unwrap();
            let ended = tether.ended();
            drop(near);
            let mut said = String::new();
            far.read_to_string(&mut said).ok();
            assert_eq!((to.exists(), said.as_str()), (agrees, if agrees { "well" } else { "" }), "{ended:?}");
            assert_eq!(ended == Ended::Unpublished(Errno::new(libc::ECANCELED)), !agrees);
            assert!(agrees || from.exists(), "whoever holds the tether looks at it first");
            std::fs::remove_dir_all(if agrees { &to } else { &from }).unwrap();
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_was_written_for_nobody_is_removed() {
        let dir = std::env::temp_dir().join(format!("crac-warden-nobody-{}", std::process::id()));
        let from = dir.join("new");
        std::fs::create_dir_all(&from).unwrap();
        let publish = Publish { from: path(&from), to: path(&dir.join("image")), parent: path(&dir) };
        let (mut hear, tell) = std::io::pipe().unwrap();
        let mut command = sh(&format!("echo half > {}/content; echo written; exec sleep 600", from.display()));
        command.stdout(tell);
        let tether = spawn(&mut command, Orders { publish: Some(publish), ..orders(LONG) }).unwrap();
        drop(command);
        let mut word = [0; 8];
        hear.read_exact(&mut word).unwrap();
        let Tether { hear: mut record, _hold: hold } = tether;
        drop(hold);
        let mut told = Vec::new();
        record.read_to_end(&mut told).unwrap();
        assert!(!from.exists() && !dir.join("image").exists());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
