//! Steps "memory" and "kernel": the captured address space.

use crate::{
    Restore,
    check::{self, Files},
    eager,
    fetch::{self, Fetch},
    layout::{FileRecord, MappingRecord, RangeRecord, RunRecord, Step, advice, kernel::Build, run},
    objects,
    report::{fail, fail_on},
    sys,
    syscall,
};

pub const MAP_PRIVATE: usize = 2;
const MAP_FIXED: usize = 0x10;
pub const MAP_ANONYMOUS: u32 = 0x20;
const PROT_WRITE: u32 = 2;
const PROT_EXEC: u32 = 4;
const O_RDWR: usize = 2;
const MADV_POPULATE_WRITE: usize = 23;
const MADV_GUARD_INSTALL: usize = 102;
const PR_SET_MM: usize = 35;
const PR_SET_MM_MAP: usize = 14;

/// Maps everything: mappings first, page data over them, then advice and guards.
pub fn map(restore: &Restore, files: &Files) {
    let file_records = restore.table::<FileRecord>(restore.header.files);
    let mappings = restore.table::<MappingRecord>(restore.header.mappings);
    objects::make(restore);
    for mapping in mappings {
        let bytes = mapping.end - mapping.start;
        let mapped = if mapping.flags & MAP_ANONYMOUS != 0 {
            map_at(mapping.start, bytes, mapping.protection, mapping.flags, -1, 0)
        } else if mapping.advice & advice::OBJECT != 0 {
            let fd = objects::descriptor(restore, mapping.file as usize);
            map_at(mapping.start, bytes, mapping.protection, mapping.flags, fd, mapping.file_offset)
        } else {
            let at = mapping.file as usize;
            match (files.kept(at), file_records.get(at)) {
                (Some(fd), _) => map_at(mapping.start, bytes, mapping.protection, mapping.flags, fd, mapping.file_offset),
                (None, Some(record)) => match check::open_unchanged(restore, record) {
                    Ok(fd) => {
                        let mapped =
                            map_at(mapping.start, bytes, mapping.protection, mapping.flags, fd, mapping.file_offset);
                        check::close(fd);
                        mapped
                    }
                    Err(_) => Err(sys::Errno(2)),
                },
                (None, None) => Err(sys::Errno(9)),
            }
        };
        if let Err(errno) = mapped {
            fail_on(Step::Memory, b"mapping at", mapping.start, errno);
        }
    }
    objects::seal_the_rest(restore);
    for fd in files.fds.iter().filter(|fd| **fd >= 0) {
        check::close(*fd);
    }
    match restore.fetch {
        Fetch::Eagerly => {
            eager::lay_out(restore);
            advise(restore);
            eager::fill(restore);
        }
        Fetch::Populated => {
            map_data(restore);
            // Before the advice, which may be against reading ahead.
            fetch::populate(restore);
            advise(restore);
            copy_data(restore);
        }
        Fetch::Lazily => {
            map_data(restore);
            advise(restore);
            copy_data(restore);
        }
    }
    crate::settings::lock(restore);
    for guard in restore.table::<RangeRecord>(restore.header.guards) {
        if let Err(errno) = syscall!(sys::SYS_MADVISE, guard.start, guard.end - guard.start, MADV_GUARD_INSTALL) {
            fail_on(Step::Memory, b"guard region at", guard.start, errno);
        }
    }
}

/// Maps page data over the mappings, but for those that are copied.
fn map_data(restore: &Restore) {
    for data in restore.table::<RunRecord>(restore.header.runs).iter().filter(|data| data.flags & run::COPY == 0) {
        let done = if is_written(restore, data) {
            write_code(restore, data)
        } else {
            let bytes = data.end - data.start;
            map_at(data.start, bytes, data.protection, MAP_PRIVATE as u32, restore.image_fd, data.data_offset)
        };
        if let Err(errno) = done {
            fail_on(Step::Memory, b"page data at", data.start, errno);
        }
    }
}

/// Reads the page data that are copied. After the advice, which may be against huge pages.
fn copy_data(restore: &Restore) {
    for data in restore.table::<RunRecord>(restore.header.runs).iter().filter(|data| data.flags & run::COPY != 0) {
        let bytes = data.end - data.start;
        // All pages at once; where that fails they are made as they are read.
        let _ = syscall!(sys::SYS_MADVISE, data.start, bytes, MADV_POPULATE_WRITE);
        if let Err(errno) = read_all(restore.image_fd, data.start, bytes, data.data_offset) {
            fail_on(Step::Memory, b"page data at", data.start, errno);
        }
    }
}

/// Gives advice again.
pub fn advise(restore: &Restore) {
    let mappings = restore.table::<MappingRecord>(restore.header.mappings);
    for mapping in mappings.iter().filter(|mapping| mapping.advice != 0) {
        for (_, number) in advice::NUMBERS.iter().filter(|(bit, _)| mapping.advice & bit != 0) {
            // Advice about huge or mergeable pages may be refused by a kernel without them; wiping must not be.
            let given = syscall!(sys::SYS_MADVISE, mapping.start, mapping.end - mapping.start, *number);
            if let (Err(errno), true) = (given, mapping.advice & advice::WIPE_ON_FORK != 0) {
                fail_on(Step::Memory, b"advice for the mapping at", mapping.start, errno);
            }
        }
    }
}

/// Puts the vdso where the captured process, or the proxy in it, finds it, and tells the kernel where heap, stack, arguments and environment are.
pub fn tell_kernel(restore: &Restore) {
    /// `struct prctl_mm_map`.
    #[repr(C)]
    struct MmMap {
        addresses: [u64; 11],
        auxv: u64,
        auxv_bytes: u32,
        exe_fd: i32,
    }
    let header = restore.header;
    let at = restore.vdso.settle(header.vdso.start);
    if restore.vdso.build == Build::Other {
        // SAFETY: the handover area is mapped, and nobody else uses it yet.
        let handover = unsafe { &mut *restore.handover };
        (handover.vdso_at, handover.vdso_bytes) = (restore.vdso.code_in(at), restore.vdso.code_bytes());
    }
    let auxv = restore.table::<u8>(header.auxv);
    let map = MmMap {
        addresses: header.process.mm,
        auxv: auxv.as_ptr() as u64,
        auxv_bytes: auxv.len() as u32,
        exe_fd: -1,
    };
    if let Err(errno) = syscall!(sys::SYS_PRCTL, PR_SET_MM, PR_SET_MM_MAP, &raw const map, size_of::<MmMap>(), 0) {
        fail(Step::Kernel, b"setting the memory map", errno);
    }
}

pub fn map_at(start: u64, bytes: u64, protection: u32, flags: u32, fd: i32, offset: u64) -> sys::Result<()> {
    let at = syscall!(sys::SYS_MMAP, start, bytes, protection, flags as usize | MAP_FIXED, fd as isize, offset)?;
    if at as u64 == start { Ok(()) } else { Err(sys::Errno(17)) }
}

/// Whether page data are code that [`write_code`] brings back.
pub fn is_written(restore: &Restore, data: &RunRecord) -> bool {
    restore.is_launched && data.flags & run::COPY == 0 && data.protection & PROT_EXEC != 0
}

/// Writes executable page data by way of `/proc/self/mem`: into the mapping of a file whose text was changed there, or into
/// anonymous memory. Nothing is writable and executable meanwhile, and no file but the original one is mapped executable.
pub fn write_code(restore: &Restore, data: &RunRecord) -> sys::Result<()> {
    let mappings = restore.table::<MappingRecord>(restore.header.mappings);
    if !mappings.iter().any(|mapping| mapping.start <= data.start && data.end <= mapping.end) {
        let flags = MAP_PRIVATE as u32 | MAP_ANONYMOUS;
        map_at(data.start, data.end - data.start, data.protection, flags, -1, 0)?;
    }
    let memory = syscall!(sys::SYS_OPENAT, sys::AT_FDCWD, c"/proc/self/mem".as_ptr(), O_RDWR | sys::O_CLOEXEC, 0)?;
    let mut piece = [0_u8; 16 * 1024];
    let (mut at, mut offset) = (data.start, data.data_offset);
    while at < data.end {
        let wanted = (data.end - at).min(piece.len() as u64);
        let read = syscall!(sys::SYS_PREAD64, restore.image_fd, piece.as_mut_ptr(), wanted, offset)?;
        if read == 0 || syscall!(sys::SYS_PWRITE64, memory, piece.as_ptr(), read, at)? != read {
            return Err(sys::Errno(5));
        }
        at += read as u64;
        offset += read as u64;
    }
    check::close(memory as i32);
    Ok(())
}

/// Reads page data into memory that is already mapped, writable or not.
pub fn read_all(fd: i32, start: u64, bytes: u64, offset: u64) -> sys::Result<()> {
    let mut done = 0;
    while done < bytes {
        match syscall!(sys::SYS_PREAD64, fd, start + done, bytes - done, offset + done)? {
            0 => return Err(sys::Errno(5)),
            read => done += read as u64,
        }
    }
    Ok(())
}
