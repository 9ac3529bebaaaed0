//! Continue mode: a copy of the process writes the image while the process goes on.
//!
//! ```text
//! frozen ──► clone ──► thaw, watch the copy ──────────────────► reap ──► Captured::Original
//!              │
//!              └─► the copy: closes all other descriptors, writes, publishes, ends
//! ```
//!
//! The copy shares pages with the original until one of them writes, so the pause is that of a `fork`, not of the disk. The two
//! talk through a record in the arena, which is shared memory. The copy is no child that the service would notice: it has no
//! signal at its end and only a wait for all kinds of children finds it. It ends with the thread that made it.
#![expect(unsafe_code, reason = "makes a copy of the process and reads a record that both share")]

use std::{
    sync::atomic::{AtomicU64, Ordering::SeqCst},
    time::Duration,
};

use crac_core::CaptureWatch;
use crac_sys::{Errno, fs, futex, process};

use crate::{
    arena::{Arena, Zeroable},
    facts::{self, Problem},
    writer::ImageFile,
};

/// How long the copy may do nothing: a slow disk may take its time for the last `fsync`.
const STALL: Duration = Duration::from_secs(300);

/// What the copy tells: counters, then the outcome.
#[derive(Debug, Default)]
#[repr(C)]
struct Told {
    written: AtomicU64,
    on_disk: AtomicU64,
    /// 0 unknown, 1 published, 2 failed.
    outcome: AtomicU64,
    errno: AtomicU64,
    /// Address and length of the failed step's name: a constant of the program, at the same place in both.
    what: [AtomicU64; 2],
}

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct ToldRoom([u64; 8]);
const _: () = assert!(size_of::<Told>() <= size_of::<ToldRoom>());

// SAFETY: integers.
unsafe impl Zeroable for ToldRoom {}

/// Writes the image; the second argument is told how many bytes are written.
type Save<'s> = dyn FnMut(&mut ImageFile, &mut dyn FnMut(u64)) -> Result<(), Problem> + 's;

/// A copy of the process at work.
#[derive(Debug)]
pub(crate) struct Copy<'a> {
    pid: i32,
    told: &'a Told,
}

impl<'a> Copy<'a> {
    /// Makes the copy, in which `save` runs. Every other thread is stopped.
    ///
    /// # Errors
    ///
    /// `ENOMEM` or `EAGAIN` when the kernel does not give another process.
    pub(crate) fn start(arena: &'a Arena, image: &mut ImageFile, save: &mut Save<'_>) -> Result<Self, Problem> {
        let room = arena.zeroed::<ToldRoom>(1).map_err(|errno| ("reserving a record", errno))?;
        // SAFETY: zeroed, aligned and large enough; zeroes are valid counters, and both sides use it through atomics only.
        let told: &'a Told = unsafe { &*room.as_ptr().cast::<Told>() };
        image.draw_aside().map_err(|errno| ("naming the image", errno))?;
        // SAFETY: the copy uses system calls, the arena and its own copy of what this thread holds; the other threads' memory
        // is only read, and nothing of the C library is called.
        let pid = unsafe { process::fork() }.map_err(|errno| ("copying the process", errno))?;
        if pid == 0 {
            let outcome = in_copy(image, told, save);
            if let Err((what, errno)) = outcome {
                told.what[0].store(what.as_ptr().addr() as u64, SeqCst);
                told.what[1].store(what.len() as u64, SeqCst);
                told.errno.store(errno.number() as u64, SeqCst);
            }
            told.on_disk.store(image.bytes_on_disk(), SeqCst);
            told.outcome.store(if outcome.is_ok() { 1 } else { 2 }, SeqCst);
            process::exit_group(0);
        }
        Ok(Self { pid, told })
    }

    /// Waits for the end of the copy; the process runs meanwhile. Returns the bytes the image takes on the disk.
    ///
    /// # Errors
    ///
    /// What failed in the copy, or `ETIMEDOUT` when it had to be given up, or `ESRCH` when somebody ended it.
    pub(crate) fn wait(self, watch: &dyn CaptureWatch) -> Result<u64, Problem> {
        let (mut written, mut progress) = (0, facts::now());
        let never = std::sync::atomic::AtomicU32::new(0);
        // A copy that is no child any more was reaped by a service that waits for all kinds of children.
        while !process::reap(self.pid).unwrap_or(true) {
            futex::wait(&never, 0, Some(Duration::from_millis(2)));
            let now = self.told.written.load(SeqCst);
            if now != written {
                (written, progress) = (now, facts::now());
                watch.reached(crac_core::CaptureProgress::Written { bytes: now });
            }
            if facts::now().saturating_sub(progress) > STALL {
                // It ends with the next look; a copy that has just ended by itself is as good.
                let _ = process::kill(self.pid);
                progress = facts::now();
            }
        }
        match self.told.outcome.load(SeqCst) {
            1 => Ok(self.told.on_disk.load(SeqCst)),
            2 => {
                let errno = Errno::new(self.told.errno.load(SeqCst) as i32);
                let [start, len] = [&self.told.what[0], &self.told.what[1]].map(|word| word.load(SeqCst) as usize);
                // SAFETY: written by the copy from a `&'static str`, which lies at the same address in this process.
                let what = unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance::<u8>(start), len) };
                Err((str::from_utf8(what).unwrap_or("writing the image"), errno))
            }
            _ => Err(("waiting for the copy of the process, which was ended", Errno::new(libc::ESRCH))),
        }
    }
}

fn in_copy(image: &mut ImageFile, told: &Told, save: &mut Save<'_>) -> Result<(), Problem> {
    process::end_with_parent().map_err(|errno| ("binding the copy to the process", errno))?;
    // SAFETY: this is the copy's only thread, and it uses the image's descriptors alone. Connections of the service would
    // otherwise stay open until the copy ends.
    unsafe { fs::close_all_but(image.descriptors()) }.map_err(|errno| ("closing descriptors", errno))?;
    save(image, &mut |written| told.written.store(written, SeqCst))?;
    image.publish().map_err(|errno| ("making the image durable", errno))
}
