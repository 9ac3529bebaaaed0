//! An allocator of whole pages, for what is large; the rest is the system's.
#![expect(unsafe_code, reason = "an allocator")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    ptr,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};

const PAGE: usize = 4096;
/// Blocks of 1, 2, 4 ... 64 pages.
const SIZES: usize = 7;
/// So many of each size are kept when they are free.
const KEPT: usize = 256;

/// Addresses of free blocks by their size; zero: none. They read as zeros.
pub(crate) struct Pages([[AtomicUsize; KEPT]; SIZES]);

impl Pages {
    pub(crate) const fn new() -> Self {
        Self([const { [const { AtomicUsize::new(0) }; KEPT] }; SIZES])
    }

    /// Which size fits; the system's allocator has what is smaller or larger.
    fn size(layout: Layout) -> Option<usize> {
        let size = layout.size().div_ceil(PAGE).next_power_of_two().trailing_zeros() as usize;
        (layout.size() >= PAGE && layout.align() <= PAGE && size < SIZES).then_some(size)
    }

    fn take(&self, size: usize) -> *mut u8 {
        let free = self.0[size].iter().map(|place| place.swap(0, SeqCst)).find(|address| *address != 0);
        let address = free.unwrap_or_else(|| {
            let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            // SAFETY: a new mapping, somewhere.
            let mapped = unsafe { libc::mmap(ptr::null_mut(), PAGE << size, protection, flags, -1, 0) };
            if mapped == libc::MAP_FAILED { 0 } else { mapped.expose_provenance() }
        });
        ptr::with_exposed_provenance_mut(address)
    }

    /// Gives the content of a block back, and keeps its addresses.
    fn keep(&self, address: usize, size: usize) {
        // SAFETY: a block that was taken from here and is not used any more.
        let given_back = unsafe { libc::syscall(libc::SYS_madvise, address, PAGE << size, libc::MADV_DONTNEED) };
        if given_back != 0 {
            std::process::abort();
        }
        let is_kept = self.0[size].iter().any(|place| place.compare_exchange(0, address, SeqCst, SeqCst).is_ok());
        if !is_kept {
            // SAFETY: as above.
            unsafe { libc::munmap(ptr::with_exposed_provenance_mut(address), PAGE << size) };
        }
    }
}

// SAFETY: a block is in one place at a time, and as large and aligned as its size says.
unsafe impl GlobalAlloc for Pages {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match Self::size(layout) {
            Some(size) => self.take(size),
            // SAFETY: the caller's promise.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match Self::size(layout) {
            Some(size) => self.take(size),
            // SAFETY: the caller's promise.
            None => unsafe { System.alloc_zeroed(layout) },
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match Self::size(layout) {
            Some(size) => self.keep(block.expose_provenance(), size),
            // SAFETY: the caller's promise.
            None => unsafe { System.dealloc(block, layout) },
        }
    }
}
