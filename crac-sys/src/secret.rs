//! Memory that is not to be found later: outside of images and core dumps while it is used, zero once it is not.
#![expect(unsafe_code, reason = "maps, overwrites, and hands memory of another allocator on")]

use std::{
    alloc::{GlobalAlloc, Layout},
    fmt, ptr,
    sync::atomic::{Ordering, compiler_fence},
};

use crate::{errno::Result, mem};

/// Bytes in a mapping of their own that core dumps and images leave out (`MADV_DONTDUMP`, madvise(2)). Zero once dropped.
///
/// In a life that was restored from an image the bytes are zeros until they are set again.
pub struct SecretBytes {
    at: usize,
    mapped: usize,
    len: usize,
}

impl SecretBytes {
    /// Copies `bytes` into a fresh mapping.
    ///
    /// # Errors
    ///
    /// `ENOMEM` when the kernel gives no memory, `EINVAL` when it cannot leave it out.
    pub fn new(bytes: &[u8]) -> Result<Self> {
        let mapped = bytes.len().next_multiple_of(mem::PAGE_SIZE).max(mem::PAGE_SIZE);
        let at = mem::map_anonymous(mapped, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE)?;
        let this = Self { at, mapped, len: bytes.len() };
        // SAFETY: the mapping is new and ours; this advice does not change its content.
        unsafe { mem::advise(at, mapped, libc::MADV_DONTDUMP) }?;
        // SAFETY: at least `bytes.len()` bytes are mapped there, writable, and nobody else knows of them.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), ptr::with_exposed_provenance_mut(at), bytes.len()) };
        Ok(this)
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `len` bytes were written there, and the mapping lives as long as `self`.
        unsafe { std::slice::from_raw_parts(ptr::with_exposed_provenance(self.at), self.len) }
    }

    /// Overwrites the bytes with zeros.
    pub fn wipe(&mut self) {
        // SAFETY: the mapping is ours, writable, and borrowed exclusively.
        let all = unsafe { std::slice::from_raw_parts_mut(ptr::with_exposed_provenance_mut(self.at), self.mapped) };
        wipe(all);
    }
}

impl Drop for SecretBytes {
    fn drop(&mut self) {
        self.wipe();
        // SAFETY: the mapping is ours, and nobody can have borrowed from it any more.
        let unmapped = unsafe { mem::unmap(self.at, self.mapped) };
        debug_assert!(unmapped.is_ok(), "a mapping of our own can be unmapped");
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretBytes").field("len", &self.len).finish_non_exhaustive()
    }
}

/// Overwrites `bytes` with zeros, also when nobody reads them any more.
pub fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    // Nothing is moved over this point, and the compiler cannot know that nobody looks.
    std::hint::black_box(bytes);
    compiler_fence(Ordering::SeqCst);
}

/// An allocator that overwrites memory with zeros when it is freed, so that what was freed before a checkpoint is not in the
/// image. Costs the writing.
///
/// ```
/// use std::alloc::System;
///
/// use crac_sys::secret::Zeroising;
///
/// #[global_allocator]
/// static ALLOCATOR: Zeroising<System> = Zeroising(System);
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Zeroising<A>(
    /// Who allocates.
    pub A,
);

// SAFETY: memory comes from `A` and goes back to it with the same layout; it is written to only while it is ours.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Zeroising<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller gives back `layout.size()` bytes that nobody uses any more.
        wipe(unsafe { std::slice::from_raw_parts_mut(at, layout.size()) });
        // SAFETY: the caller's promise.
        unsafe { self.0.dealloc(at, layout) }
    }

    // Growing is left to the default: allocate, copy, free. The allocator's own might leave the old bytes behind.
}

#[cfg(test)]
mod tests {
    use std::{alloc::System, sync::Mutex};

    use super::*;

    #[test]
    fn secrets_are_kept_out_of_dumps_and_wiped() {
        let mut secret = SecretBytes::new(b"a password").unwrap();
        assert_eq!(secret.as_slice(), b"a password");
        let smaps = std::fs::read("/proc/self/smaps").unwrap();
        let entries: Vec<_> = crate::proc::SmapsEntries::of(&smaps).map(core::result::Result::unwrap).collect();
        let entry =
            entries.iter().find(|entry| entry.mapping.start <= secret.at as u64 && (secret.at as u64) < entry.mapping.end);
        assert!(entry.unwrap().flags.contains(b"dd"));
        assert!(!format!("{secret:?}").contains("password"));
        secret.wipe();
        assert_eq!(secret.as_slice(), [0; 10]);
        assert!(SecretBytes::new(&[7; 10_000]).unwrap().as_slice().iter().all(|byte| *byte == 7));
    }

    /// Looks at what it is given back.
    struct Looking(Mutex<Vec<bool>>);

    // SAFETY: all is the system's allocator.
    unsafe impl GlobalAlloc for Looking {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            // SAFETY: the caller's promise.
            unsafe { System.alloc(layout) }
        }

        unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
            // SAFETY: still allocated.
            let bytes = unsafe { std::slice::from_raw_parts(at, layout.size()) };
            self.0.lock().unwrap().push(bytes.iter().all(|byte| *byte == 0));
            // SAFETY: the caller's promise.
            unsafe { System.dealloc(at, layout) }
        }
    }

    #[test]
    fn freed_and_outgrown_memory_is_zero() {
        let allocator = Zeroising(Looking(Mutex::default()));
        let layout = Layout::array::<u8>(100).unwrap();
        // SAFETY: not of size zero.
        let at = unsafe { allocator.alloc(layout) };
        // SAFETY: 100 bytes of ours.
        unsafe { ptr::write_bytes(at, 7, 100) };
        // SAFETY: allocated above with this layout.
        let at = unsafe { allocator.realloc(at, layout, 4000) };
        // SAFETY: grown to 4000 bytes, of which the first 100 were written.
        assert_eq!(unsafe { at.wrapping_add(99).read() }, 7);
        // SAFETY: allocated above with this size.
        unsafe { allocator.dealloc(at, Layout::array::<u8>(4000).unwrap()) };
        assert_eq!(*allocator.0.0.lock().unwrap(), [true, true]);
    }
}
