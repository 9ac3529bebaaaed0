//! Step "clear": what is needed later is put in a safe place, then the address space is emptied.

use crate::{
    Restore,
    layout::{HANDOVER_BYTES_MAX, Handover, PAGE, Step, kernel},
    report::{fail, fail_on},
    sys,
    syscall,
};

/// The first address that user space does not have, with four levels of page tables.
pub const ADDRESSES_END: u64 = 0x7fff_ffff_f000;
const PROT_READ_WRITE: usize = 3;
const MAP_PRIVATE: usize = 2;
const MAP_ANONYMOUS: usize = 0x20;
const MAP_FIXED_NOREPLACE: usize = 0x10_0000;
const F_DUPFD_CLOEXEC: usize = 1030;

/// Copies arguments and environment to the handover area, behind them a vector of the environment for the steps to come, and
/// moves the image's descriptor out of the way of the recorded ones.
pub fn hand_over(restore: &mut Restore, record: Handover, checked_ns: u64) {
    let (arguments, argument_bytes) = measure(restore.start.arguments);
    let (variables, variable_bytes) = measure(restore.start.environment);
    let strings_bytes = argument_bytes + variable_bytes;
    let vector_at = (size_of::<Handover>() as u64 + strings_bytes).next_multiple_of(8);
    let bytes = (vector_at + 8 * (variables + 1)).next_multiple_of(PAGE);
    if bytes > HANDOVER_BYTES_MAX {
        fail(Step::Clear, b"arguments and environment are too long", sys::Errno(7));
    }
    let at = restore.header.handover_at;
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
    if let Err(errno) = syscall!(sys::SYS_MMAP, at, bytes, PROT_READ_WRITE, flags, -1_isize, 0) {
        fail(Step::Clear, b"mapping the handover area", errno);
    }
    restore.handover = at as *mut Handover;
    let stat = sys::Stat::of(restore.image_fd).unwrap_or_default();
    let mut record = Handover {
        bytes,
        arguments: arguments as u32,
        variables: variables as u32,
        strings_bytes,
        image_device: stat.device,
        image_inode: stat.inode,
        ..record
    };
    if let Some(first) = record.steps_ns.get_mut(Step::Check as usize) {
        *first = checked_ns;
    }
    // SAFETY: freshly mapped, page aligned, large enough.
    unsafe { restore.handover.write(record) };
    let mut to = at + size_of::<Handover>() as u64;
    let mut slot = at + vector_at;
    to = copy(restore.start.arguments, to, None);
    copy(restore.start.environment, to, Some(&mut slot));
    let mut least = (restore.header.process.descriptor_max + 1).max(3);
    if !crate::objects::all(restore).is_empty() {
        // Behind the image's descriptor come those of shared memory, which must not hit what a supervisor has handed over.
        least = least.max(crate::descriptors::INHERITED_END);
    }
    crate::descriptors::make_room(least as u64);
    match syscall!(sys::SYS_FCNTL, restore.image_fd, F_DUPFD_CLOEXEC, least) {
        Ok(moved) => {
            crate::check::close(restore.image_fd);
            restore.image_fd = moved as i32;
        }
        Err(errno) => fail_on(Step::Clear, b"moving the image's descriptor to at least", least as u64, errno),
    }
}

/// The copied environment: pointers to strings, null at the end.
pub fn environment(restore: &Restore) -> *const *const u8 {
    // SAFETY: written by `hand_over`.
    let strings_bytes = unsafe { (*restore.handover).strings_bytes };
    let at = restore.header.handover_at + (size_of::<Handover>() as u64 + strings_bytes).next_multiple_of(8);
    at as *const *const u8
}

/// Moves the vdso to a safe place and unmaps everything else outside the zone.
pub fn unmap_everything_else(restore: &mut Restore) {
    let header = restore.header;
    let zone = [header.zone_start, header.zone_end];
    let vdso = restore.vdso.aside(restore.start.vdso, header.vdso.start, zone, header.staging_at);
    for [start, end] in kernel::outside(vdso, zone, ADDRESSES_END) {
        if start >= end {
            continue;
        }
        if let Err(errno) = syscall!(sys::SYS_MUNMAP, start, end - start) {
            fail(Step::Clear, b"unmapping the address space", errno);
        }
    }
}

/// How many strings there are, and how many bytes with their NULs.
fn measure(vector: *const *const u8) -> (u64, u64) {
    let (mut count, mut bytes) = (0, 0);
    loop {
        // SAFETY: the vector ends with a null.
        let text = unsafe { vector.wrapping_add(count as usize).read() };
        if text.is_null() {
            return (count, bytes);
        }
        bytes += length(text) + 1;
        count += 1;
    }
}

fn copy(vector: *const *const u8, mut to: u64, mut slots: Option<&mut u64>) -> u64 {
    let mut at = vector;
    loop {
        // SAFETY: the vector ends with a null.
        let text = unsafe { at.read() };
        if text.is_null() {
            return to;
        }
        let bytes = length(text) + 1;
        // SAFETY: `measure` has summed these lengths; the handover area is large enough and new.
        unsafe { core::ptr::copy_nonoverlapping(text, to as *mut u8, bytes as usize) };
        if let Some(slot) = slots.as_deref_mut() {
            // SAFETY: there is a slot for every variable and one for the null, which the kernel has written already.
            unsafe { (*slot as *mut u64).write(to) };
            *slot += 8;
        }
        to += bytes;
        at = at.wrapping_add(1);
    }
}

fn length(text: *const u8) -> u64 {
    let mut length = 0;
    // SAFETY: the kernel's strings end with a NUL.
    while unsafe { text.wrapping_add(length).read() } != 0 {
        length += 1;
    }
    length as u64
}
