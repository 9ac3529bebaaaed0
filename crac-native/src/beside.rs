//! Continue mode: a copy of the process looks at its memory and writes the image while the process goes on.
//!
//! ```text
//! frozen ──► clone ──► thaw ──► Captured::Underway ──► the door opens ──► wait: watch the copy, in the running process ──► reap
//!              │                                                            │
//!              └─► the copy: closes all other descriptors, waits            └─► scans its pages, writes, publishes, ends
//! ```
//!
//! The copy waits until somebody waits for it, which is when the door is open: on a machine with few processors the threads that
//! have been thawed would otherwise stand behind it until its time slice ends. Whoever holds the `Underway` waits, or gives the copy
//! up by dropping it, or ends, and the copy with it: one of them comes.
//!
//! The copy shares pages with the original until one of them writes, so the pause is that of a `fork`, not of the disk. The two
//! talk through a record in the arena, which is shared memory. The copy is no child that the service would notice: it has no
//! signal at its end and only a wait for all kinds of children finds it. It ends with the thread that made it, and the kernel
//! takes it, not the service, when memory runs out.
#![expect(unsafe_code, reason = "makes a copy of the process and reads a record that both share")]

use std::{
    os::fd::AsFd,
    path::PathBuf,
    ptr, slice,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use crac_core::{CaptureProgress, CaptureReport, CaptureWatch, EngineError, ObstacleKind, Stage, Underway};
use crac_sys::{
    Errno, fs, futex,
    proc::{Mapping, MappingName, SmapsEntry},
    process,
};

use crate::{
    arena::{Arena, Zeroable},
    capture::{Stop, stopped},
    facts,
    findings::{ObstacleSink, read_obstacles},
    writer::ImageFile,
};

/// How often the copy is looked at.
const LOOK: Duration = Duration::from_millis(2);
/// Room for the obstacles that the copy finds.
const FINDINGS_BYTES: usize = 64 * 1024;

/// What the copy tells: counters, then the outcome.
#[derive(Debug, Default)]
#[repr(C)]
struct Told {
    planned: AtomicU64,
    written: AtomicU64,
    on_disk: AtomicU64,
    /// One of the constants below.
    outcome: AtomicU64,
    errno: AtomicU64,
    /// Address and length of the failed step's name: a constant of the program, at the same place in both.
    what: [AtomicU64; 2],
    /// Bytes of the obstacles, behind this record.
    findings: AtomicU64,
    /// Of [`Fault::arrivals`](crate::fault::Fault::arrivals).
    arrivals: AtomicU64,
    /// Told to the copy: whether it may begin.
    may_begin: AtomicU32,
}

const PUBLISHED: u64 = 1;
const NOT_READ: u64 = 2;
const NOT_WRITTEN: u64 = 3;
const REFUSED: u64 = 4;

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct ToldRoom([u8; size_of::<Told>() + FINDINGS_BYTES]);

// SAFETY: bytes.
unsafe impl Zeroable for ToldRoom {}

/// What the copy does: looks and writes. It is given the file, its counters, and a sink for obstacles it leaves behind.
type Save<'s> = dyn FnMut(&mut ImageFile, &Reporter<'_>) -> Result<(), Stop> + 's;

/// How the copy tells how far it is.
#[derive(Debug)]
pub(crate) struct Reporter<'t> {
    told: &'t Told,
    findings: *mut u8,
}

impl Reporter<'_> {
    pub(crate) fn planned(&self, bytes: u64) {
        self.told.planned.store(bytes, SeqCst);
    }

    pub(crate) fn written(&self, bytes: u64) {
        self.told.written.store(bytes, SeqCst);
    }

    pub(crate) fn refused(&self, obstacles: &ObstacleSink<'_>) {
        // SAFETY: the room behind the record, `FINDINGS_BYTES` long, which the original reads only once this process has ended.
        let room = unsafe { slice::from_raw_parts_mut(self.findings, FINDINGS_BYTES) };
        self.told.findings.store(obstacles.write_to(room) as u64, SeqCst);
    }
}

/// A copy of the process at work.
#[derive(Debug)]
pub(crate) struct Copy {
    pid: i32,
    /// Address of the [`ToldRoom`], in the arena.
    told_at: usize,
}

impl Copy {
    /// Makes the copy, in which `save` runs. Every other thread is stopped.
    ///
    /// # Errors
    ///
    /// `ENOMEM` or `EAGAIN` when the kernel does not give another process.
    pub(crate) fn start(arena: &Arena, image: &mut ImageFile, save: &mut Save<'_>) -> Result<Self, Stop> {
        let room = arena.zeroed::<ToldRoom>(1).map_err(|errno| ("reserving a record", errno))?;
        let told_at = room.as_mut_ptr().expose_provenance();
        image.draw_aside().map_err(|errno| ("naming the image", errno))?;
        let original = process::pid();
        // SAFETY: the copy uses system calls, the arena and its own copy of what this thread holds; the other threads' memory
        // is only read, and nothing of the C library is called.
        let pid = unsafe { process::fork() }.map_err(|errno| ("copying the process", errno))?;
        if pid == 0 {
            in_copy(original, told_at, image, save);
        }
        Ok(Self { pid, told_at })
    }

    /// Gives the copy up.
    fn kill(&self) {
        // One that has just ended by itself is as good.
        let _ = process::kill(self.pid);
    }
}

/// The record at `at`.
///
/// # Safety
///
/// `at` is the address of a [`ToldRoom`] in an arena that outlives `'a`.
unsafe fn told<'a>(at: usize) -> &'a Told {
    // SAFETY: zeroed, aligned and large enough; zeroes are valid counters, and both sides use them through atomics only.
    unsafe { &*ptr::with_exposed_provenance::<Told>(at) }
}

/// The life of the copy.
fn in_copy(original: i32, told_at: usize, image: &mut ImageFile, save: &mut Save<'_>) -> ! {
    // SAFETY: the arena is never unmapped in the copy.
    let told = unsafe { told(told_at) };
    let findings = ptr::with_exposed_provenance_mut(told_at + size_of::<Told>());
    let outcome = write_beside(original, image, told, &Reporter { told, findings }, save);
    let (what, errno, outcome) = match outcome {
        Ok(()) => ("", Errno::new(0), PUBLISHED),
        Err(Stop::Refused) => ("", Errno::new(0), REFUSED),
        Err(Stop::System((what, errno))) => (what, errno, NOT_READ),
        Err(Stop::Write((what, errno))) => (what, errno, NOT_WRITTEN),
        Err(Stop::Exec(errno)) => ("executing the image", errno, NOT_WRITTEN),
    };
    told.what[0].store(what.as_ptr().addr() as u64, SeqCst);
    told.what[1].store(what.len() as u64, SeqCst);
    told.errno.store(errno.number() as u64, SeqCst);
    told.on_disk.store(image.bytes_on_disk(), SeqCst);
    told.arrivals.store(image.fault.map_or(0, |fault| u64::from(fault.arrivals())), SeqCst);
    told.outcome.store(outcome, SeqCst);
    process::exit_group(0)
}

fn write_beside(
    original: i32,
    image: &mut ImageFile,
    told: &Told,
    reporter: &Reporter<'_>,
    save: &mut Save<'_>,
) -> Result<(), Stop> {
    process::end_with_parent(original).map_err(|errno| ("binding the copy to the process", errno))?;
    // SAFETY: this is the copy's only thread, and it uses the image's descriptors alone. Connections of the service would
    // otherwise stay open until the copy ends.
    unsafe { fs::close_all_but(image.descriptors()) }.map_err(|errno| ("closing descriptors", errno))?;
    // Where it is forbidden, the kernel chooses by size as it always does.
    let _ = fs::open(c"/proc/self/oom_score_adj", libc::O_WRONLY, 0).and_then(|file| fs::write_all_at(file.as_fd(), b"1000", 0));
    // Ends with the original if that does not come to tell.
    while told.may_begin.load(SeqCst) == 0 {
        futex::wait_shared(&told.may_begin, 0, None);
    }
    save(image, reporter)?;
    let published = image.publish();
    if published.is_err() {
        image.retract();
    }
    published.map_err(|errno| Stop::Write(("making the image durable", errno)))
}

/// What the running process holds while the copy works.
pub(crate) struct Beside<B> {
    /// The copy's record lies in it.
    pub(crate) _arena: Arena,
    pub(crate) copy: Copy,
    pub(crate) image: ImageFile,
    pub(crate) path: PathBuf,
    pub(crate) watch: Arc<dyn CaptureWatch>,
    pub(crate) stages: Vec<Stage>,
    pub(crate) began: Duration,
    /// How long all threads stood still.
    pub(crate) frozen: Duration,
    pub(crate) seen: Progress,
    /// How long the copy may do nothing.
    pub(crate) stall: Duration,
    /// Set once the copy is gone.
    pub(crate) reaped: bool,
    /// Kept until the end: there is one capture at a time.
    pub(crate) _busy: B,
}

/// What was last heard of the copy, and when that was news.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    planned: u64,
    written: u64,
    since: Duration,
}

impl<B> Beside<B> {
    fn told(&self) -> &Told {
        // SAFETY: the record lies in the arena that is a field of `self`.
        unsafe { told(self.copy.told_at) }
    }

    /// Lets the copy begin, if it has not been let before.
    fn begin(&self) {
        let may_begin = &self.told().may_begin;
        if may_begin.swap(1, SeqCst) == 0 {
            // Cannot fail for a word of our own.
            let _ = futex::wake_all_shared(may_begin);
        }
    }

    /// Tells the watcher what is new.
    fn look(&mut self) {
        let (planned, written) = (self.told().planned.load(SeqCst), self.told().written.load(SeqCst));
        if planned != self.seen.planned {
            self.watch.reached(CaptureProgress::Planned { bytes: planned });
        }
        if written != self.seen.written {
            self.watch.reached(CaptureProgress::Written { bytes: written });
        }
        let now = facts::now();
        if self.seen.since.is_zero() || (planned, written) != (self.seen.planned, self.seen.written) {
            self.seen = Progress { planned, written, since: now };
        } else if now.saturating_sub(self.seen.since) > self.stall {
            self.copy.kill();
            self.seen.since = now;
        }
    }

    fn end(&mut self) -> Result<CaptureReport, EngineError> {
        self.look();
        if let Some(fault) = self.image.fault {
            fault.arrived(self.told().arrivals.load(SeqCst) as u32);
        }
        let outcome = match self.told().outcome.load(SeqCst) {
            PUBLISHED => Ok(self.told().on_disk.load(SeqCst)),
            // Ended between its last step and saying so.
            0 if self.image.is_published() => Ok(self.image.bytes_on_disk()),
            REFUSED => {
                let bytes = (self.told().findings.load(SeqCst) as usize).min(FINDINGS_BYTES);
                let findings = ptr::with_exposed_provenance::<u8>(self.copy.told_at + size_of::<Told>());
                // SAFETY: the room behind the record, in our arena; the copy, which wrote it, has ended.
                let obstacles = read_obstacles(unsafe { slice::from_raw_parts(findings, bytes) });
                self.image.clean_up();
                return Err(EngineError::Refused(obstacles));
            }
            outcome @ (NOT_READ | NOT_WRITTEN) => {
                let errno = Errno::new(self.told().errno.load(SeqCst) as i32);
                let [start, len] = [&self.told().what[0], &self.told().what[1]].map(|word| word.load(SeqCst) as usize);
                // SAFETY: written by the copy from a `&'static str`, which lies at the same address in this process.
                let what = unsafe { slice::from_raw_parts(ptr::with_exposed_provenance::<u8>(start), len) };
                let problem = (str::from_utf8(what).unwrap_or("writing the image"), errno);
                Err(if outcome == NOT_READ { Stop::System(problem) } else { Stop::Write(problem) })
            }
            _ => {
                self.image.clean_up();
                return Err(EngineError::Failed {
                    what: format!("cannot capture: the copy of the process that was to write {} was ended", self.path.display()),
                    hint: "hint: was memory short? A copy takes as much as the service changes until the image is written".into(),
                });
            }
        };
        match outcome {
            Ok(bytes) => {
                let elapsed = facts::now().saturating_sub(self.began);
                self.watch.reached(CaptureProgress::Durable { bytes, elapsed, frozen: self.frozen });
                let mut report = CaptureReport::default();
                (report.bytes, report.stages) = (bytes, std::mem::take(&mut self.stages));
                Ok(report)
            }
            Err(stop) => {
                self.image.clean_up();
                Err(stopped(stop, &self.path))
            }
        }
    }
}

impl<B: Send> Underway for Beside<B> {
    fn wait(&mut self, limit: Duration) -> Option<Result<CaptureReport, EngineError>> {
        let deadline = facts::now() + limit;
        self.begin();
        loop {
            // A copy that is no child any more was reaped by a service that waits for all kinds of children.
            if process::reap(self.copy.pid).unwrap_or(true) {
                self.reaped = true;
                return Some(self.end());
            }
            self.look();
            let left = deadline.saturating_sub(facts::now());
            if left.is_zero() {
                return None;
            }
            std::thread::sleep(left.min(LOOK));
        }
    }
}

impl<B> Drop for Beside<B> {
    fn drop(&mut self) {
        if !self.reaped {
            self.copy.kill();
            while !process::reap(self.copy.pid).unwrap_or(true) {
                std::thread::sleep(LOOK);
            }
            self.image.clean_up();
            // Whoever gives a capture up counts on no image, however far it was.
            self.image.withdraw();
        }
    }
}

/// Refuses what the running process would go on changing while the copy reads it: memory that both share.
pub(crate) fn refuse_what_changes<'e>(shared: impl Iterator<Item = &'e Mapping<'e>>, obstacles: &mut ObstacleSink<'_>) {
    for mapping in shared {
        let (start, end) = (mapping.start, mapping.end);
        obstacles.push(
            ObstacleKind::MemoryShared,
            format_args!("mapping {start:#x}-{end:#x} would change while it is copied, and the mode is continue"),
        );
    }
}

/// Refuses what the original has, as its `maps` says, and a copy of it, whose mappings are `entries`, has not.
pub(crate) fn refuse_what_is_missing(maps: &[u8], entries: &[SmapsEntry<'_>], obstacles: &mut ObstacleSink<'_>) {
    let mut entries = entries.iter().map(|entry| &entry.mapping).peekable();
    for mapping in Mapping::all(maps).flatten().filter(|mapping| mapping.name() != MappingName::Vsyscall) {
        let mut reached = mapping.start;
        // Both are sorted by address. What ends behind this mapping may also cover the next one.
        while let Some(entry) = entries.next_if(|entry| entry.end <= mapping.end) {
            if entry.start <= reached && reached < entry.end {
                reached = entry.end;
            }
        }
        let is_covered = reached >= mapping.end || entries.peek().is_some_and(|entry| entry.start <= reached);
        if !is_covered {
            let (start, end) = (mapping.start, mapping.end);
            obstacles.push(
                ObstacleKind::MemoryOther,
                format_args!("mapping {start:#x}-{end:#x} is not copied to children (MADV_DONTFORK), and the mode is continue"),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGINAL: &str = "\
1000-3000 rw-p 00000000 00:00 0 
3000-5000 r--p 00000000 00:00 0 
9000-c000 rw-p 00000000 00:00 0 
d000-e000 rw-p 00000000 00:00 0 
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]
";

    fn missing(copy: &str) -> Vec<String> {
        let smaps: String = copy.lines().map(|line| format!("{line}\nVmFlags: rd\n")).collect();
        let entries: Vec<_> = crac_sys::proc::SmapsEntries::of(smaps.as_bytes()).map(Result::unwrap).collect();
        let arena = Arena::new().unwrap();
        let mut sink = ObstacleSink::new(&arena);
        refuse_what_is_missing(ORIGINAL.as_bytes(), &entries, &mut sink);
        sink.into_obstacles().iter().map(|obstacle| obstacle.subject.split(' ').nth(1).unwrap().to_owned()).collect()
    }

    #[test]
    fn what_a_copy_does_not_have_is_found_however_the_kernel_splits_it() {
        assert_eq!(missing(ORIGINAL), [""; 0]);
        let merged =
            "1000-5000 rw-p 00000000 00:00 0 \n8000-a000 rw-p 0 00:00 0 \na000-c000 rw-p 0 00:00 0 \nd000-e000 rw-p 0 00:00 0 ";
        assert_eq!(missing(merged), [""; 0]);
        assert_eq!(missing("1000-3000 rw-p 0 00:00 0 \n9000-c000 rw-p 0 00:00 0 \nd000-e000 rw-p 0 00:00 0 "), ["0x3000-0x5000"]);
        assert_eq!(missing("1000-5000 rw-p 0 00:00 0 \n9000-b000 rw-p 0 00:00 0 "), ["0x9000-0xc000", "0xd000-0xe000"]);
    }
}
