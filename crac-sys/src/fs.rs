//! Files, directories and descriptors.
#![expect(unsafe_code, reason = "system calls and descriptors received from the kernel")]

use std::{
    ffi::CStr,
    mem::MaybeUninit,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use crate::{
    errno::{Errno, Result},
    raw::syscall,
};

/// Opens `path` relative to the working directory (`openat(2)`). `O_CLOEXEC` is added.
pub fn open(path: &CStr, flags: i32, mode: u32) -> Result<OwnedFd> {
    open_at(libc::AT_FDCWD, path, flags, mode)
}

/// Opens `path` relative to the directory `dir` (`openat(2)`). `O_CLOEXEC` is added.
pub fn open_at(dir: RawFd, path: &CStr, flags: i32, mode: u32) -> Result<OwnedFd> {
    let args = [dir as usize, path.as_ptr() as usize, (flags | libc::O_CLOEXEC) as usize, mode as usize, 0, 0];
    // SAFETY: openat reads the NUL-terminated path, which outlives the call.
    let fd = unsafe { syscall(libc::SYS_openat, args) }?;
    // SAFETY: the kernel has just handed this descriptor out and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Reads at the descriptor's position (`read(2)`); 0 means end of file. `EINTR` is retried.
pub fn read(fd: BorrowedFd<'_>, into: &mut [u8]) -> Result<usize> {
    loop {
        let args = [fd.as_raw_fd() as usize, into.as_mut_ptr() as usize, into.len(), 0, 0, 0];
        // SAFETY: read writes at most `into.len()` bytes into the exclusively borrowed buffer.
        match unsafe { syscall(libc::SYS_read, args) } {
            Err(errno) if errno.number() == libc::EINTR => {}
            done => return done,
        }
    }
}

/// Reads at `offset` (`pread(2)`); 0 means end of file. `EINTR` is retried.
pub fn read_at(fd: BorrowedFd<'_>, into: &mut [u8], offset: u64) -> Result<usize> {
    loop {
        let args = [fd.as_raw_fd() as usize, into.as_mut_ptr() as usize, into.len(), offset as usize, 0, 0];
        // SAFETY: pread64 writes at most `into.len()` bytes into the exclusively borrowed buffer.
        match unsafe { syscall(libc::SYS_pread64, args) } {
            Err(errno) if errno.number() == libc::EINTR => {}
            done => return done,
        }
    }
}

/// Writes at the descriptor's position once (`write(2)`).
pub fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize> {
    let args = [fd.as_raw_fd() as usize, bytes.as_ptr() as usize, bytes.len(), 0, 0, 0];
    // SAFETY: write only reads the borrowed buffer.
    unsafe { syscall(libc::SYS_write, args) }
}

/// Writes all of `bytes` at `offset` (`pwrite(2)`).
///
/// # Errors
///
/// The first error; `ENOSPC` if the kernel stops taking bytes without saying why.
pub fn write_all_at(fd: BorrowedFd<'_>, bytes: &[u8], offset: u64) -> Result<()> {
    // SAFETY: the range is that of a live slice.
    unsafe { write_memory_at(fd, bytes.as_ptr() as usize, bytes.len(), offset) }
}

/// Writes the `len` bytes of memory at `address` to `offset` (`pwrite(2)`), without forming a reference to them.
///
/// # Errors
///
/// As [`write_all_at`]; `EFAULT` where the range is not mapped and readable.
///
/// # Safety
///
/// Nobody minds that these bytes are read as they stand, written to or not.
pub unsafe fn write_memory_at(fd: BorrowedFd<'_>, address: usize, len: usize, offset: u64) -> Result<()> {
    let mut done = 0;
    while done < len {
        let args = [fd.as_raw_fd() as usize, address + done, len - done, offset as usize + done, 0, 0];
        // SAFETY: pwrite64 only reads; the kernel answers EFAULT for what cannot be read.
        match unsafe { syscall(libc::SYS_pwrite64, args) } {
            Ok(0) => return Err(Errno::new(libc::ENOSPC)),
            Ok(written) => done += written,
            Err(errno) if errno.number() == libc::EINTR => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// What `fstat(2)` says about an open descriptor.
pub fn stat(fd: BorrowedFd<'_>) -> Result<libc::stat> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    let args = [fd.as_raw_fd() as usize, stat.as_mut_ptr() as usize, 0, 0, 0, 0];
    // SAFETY: fstat fills the whole structure, which is the kernel's own layout on this architecture.
    unsafe { syscall(libc::SYS_fstat, args) }?;
    // SAFETY: the call succeeded, so the structure is filled.
    Ok(unsafe { stat.assume_init() })
}

/// What `stat(2)` says about `path`, following symbolic links.
pub fn stat_path(path: &CStr) -> Result<libc::stat> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    let args = [libc::AT_FDCWD as usize, path.as_ptr() as usize, stat.as_mut_ptr() as usize, 0, 0, 0];
    // SAFETY: newfstatat reads the NUL-terminated path and fills the whole structure.
    unsafe { syscall(libc::SYS_newfstatat, args) }?;
    // SAFETY: the call succeeded, so the structure is filled.
    Ok(unsafe { stat.assume_init() })
}

/// Reads the target of the symbolic link `path` below `dir` (`readlinkat(2)`); the bytes carry no NUL and may be cut off.
pub fn read_link_at<'b>(dir: RawFd, path: &CStr, into: &'b mut [u8]) -> Result<&'b [u8]> {
    let args = [dir as usize, path.as_ptr() as usize, into.as_mut_ptr() as usize, into.len(), 0, 0];
    // SAFETY: readlinkat writes at most `into.len()` bytes into the exclusively borrowed buffer.
    let len = unsafe { syscall(libc::SYS_readlinkat, args) }?;
    Ok(into.get(..len).unwrap_or_default())
}

/// Fills `into` with directory entries (`getdents64(2)`); 0 means the end. [`DirEntries`] takes them apart.
pub fn read_dir(dir: BorrowedFd<'_>, into: &mut [u8]) -> Result<usize> {
    let args = [dir.as_raw_fd() as usize, into.as_mut_ptr() as usize, into.len(), 0, 0, 0];
    // SAFETY: getdents64 writes at most `into.len()` bytes into the exclusively borrowed buffer.
    unsafe { syscall(libc::SYS_getdents64, args) }
}

/// The names in a buffer filled by [`read_dir`].
#[derive(Debug, Clone)]
pub struct DirEntries<'b> {
    rest: &'b [u8],
}

impl<'b> DirEntries<'b> {
    /// The entries in the part of the buffer that was filled.
    pub fn new(filled: &'b [u8]) -> Self {
        Self { rest: filled }
    }
}

impl<'b> Iterator for DirEntries<'b> {
    type Item = &'b CStr;

    fn next(&mut self) -> Option<&'b CStr> {
        // struct linux_dirent64: u64 inode, i64 offset, u16 length of the record, u8 type, the NUL-terminated name.
        let length = u16::from_ne_bytes(self.rest.get(16..18)?.try_into().ok()?);
        let record = self.rest.get(..usize::from(length))?;
        self.rest = self.rest.get(usize::from(length)..)?;
        CStr::from_bytes_until_nul(record.get(19..)?).ok()
    }
}

/// Moves the position of `fd` (`lseek(2)`).
pub fn seek(fd: BorrowedFd<'_>, offset: i64, whence: i32) -> Result<u64> {
    // SAFETY: lseek touches no memory.
    unsafe { syscall(libc::SYS_lseek, [fd.as_raw_fd() as usize, offset as usize, whence as usize, 0, 0, 0]) }.map(|at| at as u64)
}

/// Sets the length of a file (`ftruncate(2)`).
pub fn set_len(fd: BorrowedFd<'_>, len: u64) -> Result<()> {
    // SAFETY: ftruncate touches no memory.
    unsafe { syscall(libc::SYS_ftruncate, [fd.as_raw_fd() as usize, len as usize, 0, 0, 0, 0]) }.map(drop)
}

/// Sets the permission bits (`fchmod(2)`).
pub fn set_mode(fd: BorrowedFd<'_>, mode: u32) -> Result<()> {
    // SAFETY: fchmod touches no memory.
    unsafe { syscall(libc::SYS_fchmod, [fd.as_raw_fd() as usize, mode as usize, 0, 0, 0, 0]) }.map(drop)
}

/// Waits until the file, with its metadata, is on the disk (`fsync(2)`).
pub fn sync(fd: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: fsync touches no memory.
    unsafe { syscall(libc::SYS_fsync, [fd.as_raw_fd() as usize, 0, 0, 0, 0, 0]) }.map(drop)
}

/// Gives the nameless file `fd` the name `name` in `dir` (`linkat(2)` through `/proc/self/fd`).
pub fn link_nameless(fd: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    let mut from = *b"/proc/self/fd/\0\0\0\0\0\0\0\0\0\0\0\0";
    let mut digits = [0_u8; 10];
    let (mut number, mut at) = (fd.as_raw_fd(), digits.len());
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    from[14..][..digits.len() - at].copy_from_slice(&digits[at..]);
    let args = [
        libc::AT_FDCWD as usize,
        from.as_ptr() as usize,
        dir.as_raw_fd() as usize,
        name.as_ptr() as usize,
        libc::AT_SYMLINK_FOLLOW as usize,
        0,
    ];
    // SAFETY: linkat reads two NUL-terminated paths that outlive the call.
    unsafe { syscall(libc::SYS_linkat, args) }.map(drop)
}

/// Renames `from` to `to` within `dir`, replacing `to` (`renameat(2)`).
pub fn rename_at(dir: BorrowedFd<'_>, from: &CStr, to: &CStr) -> Result<()> {
    let dir = dir.as_raw_fd() as usize;
    // SAFETY: renameat reads two NUL-terminated paths that outlive the call.
    unsafe { syscall(libc::SYS_renameat, [dir, from.as_ptr() as usize, dir, to.as_ptr() as usize, 0, 0]) }.map(drop)
}

/// Removes the file `name` from `dir` (`unlinkat(2)`).
pub fn remove_at(dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    // SAFETY: unlinkat reads a NUL-terminated path that outlives the call.
    unsafe { syscall(libc::SYS_unlinkat, [dir.as_raw_fd() as usize, name.as_ptr() as usize, 0, 0, 0, 0]) }.map(drop)
}

/// `fcntl(2)` with an integer argument. The number of the descriptor is enough, so that descriptors of others can be looked at.
pub fn fcntl(fd: RawFd, command: i32, argument: usize) -> Result<usize> {
    // SAFETY: with an integer argument fcntl touches no memory. Commands that take a pointer would misread the integer; the
    // kernel answers EFAULT for an address that is not the caller's to write.
    unsafe { syscall(libc::SYS_fcntl, [fd as usize, command as usize, argument, 0, 0, 0]) }
}

/// Whether programs on this filesystem cannot be executed (`fstatfs(2)`, `ST_NOEXEC`).
pub fn is_noexec(fd: BorrowedFd<'_>) -> bool {
    const ST_NOEXEC: u64 = 8;
    /// `struct statfs` is 15 words on this architecture; the flags are the eleventh.
    const WORDS: usize = 15;
    const _: () = assert!(size_of::<libc::statfs>() == 8 * WORDS);
    let mut words = [0_u64; WORDS];
    // SAFETY: fstatfs fills one structure of that size.
    let answer = unsafe { syscall(libc::SYS_fstatfs, [fd.as_raw_fd() as usize, words.as_mut_ptr() as usize, 0, 0, 0, 0]) };
    answer.is_ok() && words[10] & ST_NOEXEC != 0
}

/// Closes every descriptor but those given (`close_range(2)`, Linux 5.9).
///
/// # Safety
///
/// Nobody in this process uses the others any more.
pub unsafe fn close_all_but<const N: usize>(mut kept: [RawFd; N]) -> Result<()> {
    kept.sort_unstable();
    let mut first = 0;
    for stop in kept.iter().map(|kept| *kept as usize).chain([u32::MAX as usize + 1]) {
        if first < stop {
            // SAFETY: the caller's promise.
            unsafe { syscall(libc::SYS_close_range, [first, stop - 1, 0, 0, 0, 0]) }?;
        }
        first = stop + 1;
    }
    Ok(())
}

/// Which kind of filesystem the file lies on (`fstatfs(2)`): `TMPFS_MAGIC` for memory.
pub fn filesystem(fd: RawFd) -> Result<i64> {
    let mut stat = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: fstatfs fills the structure.
    unsafe { syscall(libc::SYS_fstatfs, [fd as usize, stat.as_mut_ptr() as usize, 0, 0, 0, 0]) }?;
    // SAFETY: all-zero is a valid value, and the call has filled it.
    Ok(unsafe { stat.assume_init() }.f_type)
}

/// The next data (`SEEK_DATA`) or hole (`SEEK_HOLE`) from `offset` on; nothing if there is none (`lseek(2)`).
///
/// The file's own offset is changed.
pub fn next_part(fd: RawFd, offset: u64, whence: i32) -> Result<Option<u64>> {
    // SAFETY: integers.
    match unsafe { syscall(libc::SYS_lseek, [fd as usize, offset as usize, whence as usize, 0, 0, 0]) } {
        Ok(at) => Ok(Some(at as u64)),
        Err(errno) if errno.number() == libc::ENXIO => Ok(None),
        Err(errno) => Err(errno),
    }
}
