//! Memory that another machine changes meanwhile: copied to and from, never referred to.
#![expect(unsafe_code, reason = "maps a device")]

use std::{
    fs::File,
    os::fd::AsRawFd,
    path::Path,
    ptr::{self, NonNull},
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

/// The memory of a PCI device, mapped for as long as this exists.
#[derive(Debug)]
pub(super) struct Shared {
    start: NonNull<u8>,
    len: usize,
}

impl Shared {
    /// Maps the file of a device's memory below `/sys`.
    pub(super) fn map(path: &Path) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("{}: {error}", path.display());
        let file = File::options().read(true).write(true).open(path).map_err(failed)?;
        let len = file.metadata().map_err(failed)?.len() as usize;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, where the kernel finds room.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(failed(std::io::Error::last_os_error()));
        }
        let start = NonNull::new(start.cast()).ok_or("a mapping at the address zero")?;
        Ok(Self { start, len })
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Copies `bytes` to `at`.
    pub(super) fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at <= self.len && bytes.len() <= self.len - at, "inside the memory");
        // SAFETY: inside the mapping; nothing in this process refers to it.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.as_ptr().wrapping_add(at), bytes.len()) };
    }

    /// Copies `bytes` bytes from `at`.
    pub(super) fn read(&self, at: usize, bytes: usize) -> Vec<u8> {
        assert!(at <= self.len && bytes <= self.len - at, "inside the memory");
        let mut read = vec![0; bytes];
        // SAFETY: inside the mapping; the vector is as long, and its own.
        unsafe { ptr::copy_nonoverlapping(self.start.as_ptr().wrapping_add(at), read.as_mut_ptr(), bytes) };
        read
    }

    /// The word at `at`, by which one side tells the other that what it has written before is whole.
    pub(super) fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at <= self.len - 8, "inside the memory");
        // SAFETY: inside the mapping, which lives as long, and aligned, for a mapping begins at a page.
        unsafe { AtomicU64::from_ptr(self.start.as_ptr().wrapping_add(at).cast()) }
    }

    pub(super) fn set(&self, at: usize, value: u64) {
        self.word(at).store(value, SeqCst);
    }
}
