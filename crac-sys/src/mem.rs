//! Memory mappings.
#![expect(unsafe_code, reason = "system calls that map and unmap memory")]

use std::{
    arch::asm,
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};

use crate::{
    errno::{Errno, Result},
    raw::syscall,
};

/// Size of a page on this architecture.
pub const PAGE_SIZE: usize = 4096;

/// Maps `len` bytes of anonymous memory at an address of the kernel's choice (`mmap(2)`), shared or private by `flags`.
pub fn map_anonymous(len: usize, protection: i32, flags: i32) -> Result<usize> {
    let flags = (flags | libc::MAP_ANONYMOUS) & !(libc::MAP_FIXED | libc::MAP_GROWSDOWN);
    // SAFETY: without MAP_FIXED the kernel picks an unused range, so nobody's memory is replaced.
    unsafe { syscall(libc::SYS_mmap, [0, len, protection as usize, flags as usize, usize::MAX, 0]) }
}

/// `mmap(2)` with everything chosen by the caller.
///
/// # Safety
///
/// With `MAP_FIXED` the range is the caller's to replace.
pub unsafe fn map(address: usize, len: usize, protection: i32, flags: i32, fd: i32, offset: u64) -> Result<usize> {
    let args = [address, len, protection as usize, flags as usize, fd as usize, offset as usize];
    // SAFETY: the caller's promise.
    unsafe { syscall(libc::SYS_mmap, args) }
}

/// Unmaps a range (`munmap(2)`).
///
/// # Safety
///
/// Nobody uses the range any more.
pub unsafe fn unmap(address: usize, len: usize) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { syscall(libc::SYS_munmap, [address, len, 0, 0, 0, 0]) }.map(drop)
}

/// Moves a mapping to `to`, replacing what is there (`mremap(2)`).
///
/// # Safety
///
/// Nobody uses either range.
pub unsafe fn remap(address: usize, len: usize, to: usize) -> Result<()> {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: the caller's promise.
    unsafe { syscall(libc::SYS_mremap, [address, len, len, flags as usize, to, 0]) }.map(drop)
}

/// Gives advice about a range (`madvise(2)`).
///
/// # Safety
///
/// Some advice discards contents; the caller owns the range.
pub unsafe fn advise(address: usize, len: usize, advice: i32) -> Result<()> {
    let returned: usize;
    // SAFETY: as in `syscall`; what the call does to memory is the caller's promise. The number of this call is not to be seen in front
    // of the instruction: crac-native looks for that in programs, and this one knows what it does.
    unsafe {
        asm!(
            "inc eax",
            "syscall",
            inlateout("rax") libc::SYS_madvise as usize - 1 => returned,
            in("rdi") address, in("rsi") len, in("rdx") advice as usize,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    Errno::check(returned).map(drop)
}

/// Changes what may be done with mapped memory (`mprotect(2)`).
///
/// # Safety
///
/// The range is the caller's, and nobody relies on what it gives up.
pub unsafe fn protect(address: usize, len: usize, protection: i32) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { syscall(libc::SYS_mprotect, [address, len, protection as usize, 0, 0, 0]) }.map(drop)
}

/// Page categories of [`pagemap_scan`] (`PAGE_IS_*` in `linux/fs.h`).
pub mod category {
    /// The page belongs to a file or to shared memory.
    pub const FILE: u64 = 1 << 2;
    /// The page is in memory.
    pub const PRESENT: u64 = 1 << 3;
    /// The page is in swap.
    pub const SWAPPED: u64 = 1 << 4;
    /// The page is the kernel's shared page of zeros.
    pub const ZERO: u64 = 1 << 5;
    /// The page is part of a guard region (Linux 6.15).
    pub const GUARD: u64 = 1 << 8;
}

/// A run of pages of one category combination (`struct page_region`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PageRegion {
    /// First address.
    pub start: u64,
    /// Address behind the last byte.
    pub end: u64,
    /// `category` bits, as far as asked for.
    pub categories: u64,
}

/// Asks which pages of a range are in one of the categories `any_of` (`PAGEMAP_SCAN`, Linux 6.7; `pagemap` in the kernel's
/// admin guide); the regions tell the categories of `tell`.
///
/// Returns how many regions were filled and where the walk stopped; it is not at `end` when `regions` was full.
///
/// # Errors
///
/// `ENOTTY` where the kernel has no such call, `EINVAL` where it does not know a category.
pub fn pagemap_scan(
    pagemap: BorrowedFd<'_>,
    start: usize,
    end: usize,
    any_of: u64,
    tell: u64,
    regions: &mut [PageRegion],
) -> Result<(usize, usize)> {
    /// `struct pm_scan_arg`.
    #[repr(C)]
    struct ScanArgument {
        size: u64,
        flags: u64,
        start: u64,
        end: u64,
        walk_end: u64,
        vec: u64,
        vec_len: u64,
        max_pages: u64,
        category_inverted: u64,
        category_mask: u64,
        category_anyof_mask: u64,
        return_mask: u64,
    }
    /// `_IOWR('f', 16, struct pm_scan_arg)`.
    const PAGEMAP_SCAN: usize = 0xc060_6610;
    const _: () = assert!(size_of::<ScanArgument>() == 0x60);
    let mut argument = ScanArgument {
        size: size_of::<ScanArgument>() as u64,
        flags: 0,
        start: start as u64,
        end: end as u64,
        walk_end: 0,
        vec: regions.as_mut_ptr() as u64,
        vec_len: regions.len() as u64,
        max_pages: 0,
        category_inverted: 0,
        category_mask: 0,
        category_anyof_mask: any_of,
        return_mask: tell,
    };
    let args = [pagemap.as_raw_fd() as usize, PAGEMAP_SCAN, ptr::from_mut(&mut argument) as usize, 0, 0, 0];
    // SAFETY: the argument has the kernel's layout and names the exclusively borrowed `regions`, with its true length.
    let filled = unsafe { syscall(libc::SYS_ioctl, args) }?;
    Ok((filled, argument.walk_end as usize))
}

/// A mapping as [`query`] tells it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mapped {
    /// First address.
    pub start: u64,
    /// Address behind the last byte.
    pub end: u64,
    /// `PROT_*`.
    pub protection: i32,
    /// Major and minor number of the file's device; zero for anonymous memory.
    pub device: (u32, u32),
    /// The file's inode; zero for anonymous memory.
    pub inode: u64,
}

/// The mapping that holds `address`, or the next one above (`PROCMAP_QUERY` on `/proc/self/maps`, Linux 6.11).
///
/// # Errors
///
/// `ENOENT` if there is none, `ENOTTY` where the kernel has no such call.
pub fn query(maps: BorrowedFd<'_>, address: u64) -> Result<Mapped> {
    /// `struct procmap_query`.
    #[repr(C)]
    #[derive(Default)]
    struct Query {
        size: u64,
        flags: u64,
        address: u64,
        start: u64,
        end: u64,
        vma_flags: u64,
        page_size: u64,
        offset: u64,
        inode: u64,
        major: u32,
        minor: u32,
        name_size: u32,
        build_id_size: u32,
        name: u64,
        build_id: u64,
    }
    /// `_IOWR('f', 17, struct procmap_query)`.
    const PROCMAP_QUERY: usize = 0xc068_6611;
    const _: () = assert!(size_of::<Query>() == 0x68);
    const COVERING_OR_NEXT: u64 = 0x10;
    let mut query = Query { size: size_of::<Query>() as u64, flags: COVERING_OR_NEXT, address, ..Query::default() };
    let args = [maps.as_raw_fd() as usize, PROCMAP_QUERY, ptr::from_mut(&mut query) as usize, 0, 0, 0];
    // SAFETY: the structure has the kernel's layout and says its own size; without name and build id buffers nothing else is
    // written.
    unsafe { syscall(libc::SYS_ioctl, args) }?;
    Ok(Mapped {
        start: query.start,
        end: query.end,
        // The first three VMA flags have the values of PROT_READ, PROT_WRITE and PROT_EXEC.
        protection: (query.vma_flags & 7) as i32,
        device: (query.major, query.minor),
        inode: query.inode,
    })
}

/// Reads `len` bytes at `address` in, as touching them would, so that the next who touches them does not wait (`MADV_POPULATE_READ`,
/// Linux 5.14). Blocks until they are there. What lies there stays as it is.
///
/// # Errors
///
/// `ENOMEM` and `EFAULT` where nothing is mapped, or what is may not be read or cannot be; `EINVAL` on an older kernel.
pub fn populate(address: usize, len: usize) -> Result<()> {
    // SAFETY: this advice discards nothing and changes no content, whosever the range is.
    unsafe { advise(address, len, libc::MADV_POPULATE_READ) }
}

/// For each page of `len` bytes at `address` whether it is in memory, in the lowest bit (`mincore(2)`).
pub fn resident(address: usize, len: usize, into: &mut [u8]) -> Result<()> {
    if into.len() < len.div_ceil(PAGE_SIZE) {
        return Err(crate::Errno::new(libc::EINVAL));
    }
    // SAFETY: the call stores a byte for each page, for all of which there is room.
    unsafe { syscall(libc::SYS_mincore, [address, len, into.as_mut_ptr() as usize, 0, 0, 0]) }.map(drop)
}
