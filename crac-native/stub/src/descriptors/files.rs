//! Files, directories, devices, pipes.

use super::{BROKEN, CHANGED, O_ACCMODE, O_APPEND, O_DIRECT, O_WRONLY, close_on_exec, detail, place, place_pair, set_status};
use crate::{
    layout::{
        DescriptorStep,
        descriptors::{DescriptorRecord, File, Found, Memfd, Pipe, find, identity},
    },
    report::{self, Decimal},
    sys::{self, Errno, Result, Stat},
    syscall,
};

/// Whether the file can be opened and is still what it was; says what is wrong. Nothing is created.
pub fn check(record: &DescriptorRecord, blob: &[u8]) -> Result<()> {
    let file: File = record.detail(blob).ok_or(BROKEN)?;
    match open_same(&file, record, blob, 0) {
        Ok(made) => {
            crate::check::close(made);
            Ok(())
        }
        Err(Errno(ENOENT)) if file.identity == identity::APPEND => Ok(()),
        Err(errno) => {
            say(file.path.of(blob).unwrap_or_default(), errno);
            Err(errno)
        }
    }
}

/// Opens a file at its path, if it is still what it was, at its position.
pub fn open(step: &DescriptorStep, record: &DescriptorRecord) -> Result<()> {
    let file: File = detail(step, record)?;
    let create = if file.identity == identity::APPEND { O_CREAT } else { 0 };
    let made = open_same(&file, record, step.blob, create)
        .inspect_err(|errno| say(file.path.of(step.blob).unwrap_or_default(), *errno))?;
    let is_path = record.status_flags as usize & O_PATH != 0;
    let is_data = matches!(file.mode & S_IFMT, S_IFREG | S_IFDIR);
    if file.position != 0 && is_data && !is_path {
        syscall!(sys::SYS_LSEEK, made, file.position, 0)?;
    }
    if record.status_flags as usize & O_NONBLOCK == 0 && !is_path {
        syscall!(sys::SYS_FCNTL, made, super::F_SETFL, record.status_flags & (O_APPEND | O_DIRECT | O_NOATIME))?;
    }
    place(made, record)
}

/// # Errors
///
/// [`CHANGED`] if it is not what it was.
fn open_same(file: &File, record: &DescriptorRecord, blob: &[u8], create: usize) -> Result<i32> {
    let path = file.path.of(blob).filter(|path| path.last() == Some(&0)).ok_or(BROKEN)?;
    // A file that was made with `O_TMPFILE` and linked later still has the flag for directories.
    let kept = if file.mode & S_IFMT == S_IFDIR { OPEN_FLAGS } else { OPEN_FLAGS & !O_DIRECTORY };
    let flags = record.status_flags as usize & kept | create | sys::O_NOCTTY | close_on_exec(record);
    // A FIFO that took the file's place would make us wait for its other end; the flag is put right later.
    let made = syscall!(sys::SYS_OPENAT, sys::AT_FDCWD, path.as_ptr(), flags | O_NONBLOCK, file.mode & 0o7777)? as i32;
    let stat = Stat::of(made)?;
    let found = Found {
        mode: stat.mode,
        device: stat.device,
        inode: stat.inode,
        device_number: stat.special_device,
        size: stat.size,
        modified: (stat.modified_s, stat.modified_ns as i64),
        born: born(made),
    };
    if !file.is_same(&found) {
        crate::check::close(made);
        return Err(CHANGED);
    }
    Ok(made)
}

/// When the inode was made; zero where the file system does not tell.
fn born(descriptor: i32) -> (i64, u32) {
    let mut stat = [0_u64; STATX_WORDS];
    let buffer = stat.as_mut_ptr();
    let asked = syscall!(sys::SYS_STATX, descriptor, c"".as_ptr(), AT_EMPTY_PATH, STATX_BTIME, buffer);
    match (asked, stat.first(), stat.get(STATX_BTIME_WORD..)) {
        (Ok(_), Some(mask), Some([seconds, nanoseconds, ..])) if *mask as usize & STATX_BTIME != 0 => {
            (*seconds as i64, *nanoseconds as u32)
        }
        _ => (0, 0),
    }
}

/// Opens shared memory once more, as it was open.
pub fn memfd(step: &DescriptorStep, record: &DescriptorRecord) -> Result<()> {
    let memfd: Memfd = detail(step, record)?;
    let at = step.objects.iter().position(|object| object.inode == memfd.inode).ok_or(BROKEN)?;
    // `/proc/self/fd/` and the number.
    let mut path = [0_u8; 40];
    let number = Decimal::new(step.object_fd.wrapping_add(at as i32) as u64);
    for (place, byte) in path.iter_mut().zip(b"/proc/self/fd/".iter().chain(number.bytes())) {
        *place = *byte;
    }
    let flags = record.status_flags as usize & OPEN_FLAGS & !O_DIRECTORY | close_on_exec(record);
    let made = syscall!(sys::SYS_OPENAT, sys::AT_FDCWD, path.as_ptr(), flags, 0)? as i32;
    syscall!(sys::SYS_LSEEK, made, memfd.position, 0)?;
    place(made, record)?;
    set_status(record)
}

/// Makes a pipe with what was in it.
pub fn pipe(step: &DescriptorStep, record: &DescriptorRecord) -> Result<()> {
    let pipe: Pipe = detail(step, record)?;
    let content = pipe.content.of(step.blob).ok_or(BROKEN)?;
    let mut ends = [0_i32; 2];
    syscall!(sys::SYS_PIPE2, ends.as_mut_ptr(), close_on_exec(record))?;
    let [reader, writer] = ends;
    // The default is good enough if this user may not have as much any more, unless the content does not fit: then the write
    // below says so.
    let _ = syscall!(sys::SYS_FCNTL, writer, F_SETPIPE_SZ, pipe.capacity);
    syscall!(sys::SYS_FCNTL, writer, super::F_SETFL, O_NONBLOCK)?;
    write_all(writer, content)?;
    syscall!(sys::SYS_FCNTL, writer, super::F_SETFL, 0)?;
    if record.status_flags & O_ACCMODE == O_WRONLY {
        place_pair(writer, reader, record, None)?;
        return set_status(record);
    }
    let partner = find(step.records, pipe.partner);
    place_pair(reader, writer, record, partner)?;
    set_status(record)?;
    partner.map_or(Ok(()), set_status)
}

fn write_all(to: i32, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        let written = syscall!(sys::SYS_WRITE, to, bytes.as_ptr(), bytes.len())?;
        bytes = bytes.get(written..).unwrap_or_default();
    }
    Ok(())
}

fn say(path: &[u8], errno: Errno) {
    let path = path.split_last().map_or(path, |(_, path)| path);
    if errno == CHANGED {
        report::say(&[b"the open file ", path, b" has changed since the checkpoint"]);
    } else {
        let number = Decimal::new(errno.0 as u64);
        report::say(&[b"the open file ", path, b" cannot be opened: errno ", number.bytes()]);
    }
}

const ENOENT: i32 = 2;
const S_IFMT: u32 = 0o170_000;
const S_IFREG: u32 = 0o100_000;
const S_IFDIR: u32 = 0o040_000;
const O_CREAT: usize = 0o100;
const O_NONBLOCK: usize = 0o4000;
const O_DIRECTORY: usize = 0o200_000;
const O_NOATIME: u32 = 0o1_000_000;
const O_PATH: usize = 0o10_000_000;
/// Access mode, `O_APPEND`, `O_DSYNC`, `O_DIRECT`, `O_LARGEFILE`, `O_DIRECTORY`, `O_NOFOLLOW`, `O_NOATIME`, `O_SYNC`, `O_PATH`.
const OPEN_FLAGS: usize =
    0o3 | 0o2000 | 0o10_000 | 0o40_000 | 0o100_000 | 0o200_000 | 0o400_000 | 0o1_000_000 | 0o4_010_000 | 0o10_000_000;
const F_SETPIPE_SZ: usize = 1031;
const AT_EMPTY_PATH: usize = 0x1000;
const STATX_BTIME: usize = 0x800;
/// `struct statx` is 256 bytes: the mask of what is filled comes first, the time of birth at byte 80.
const STATX_WORDS: usize = 32;
const STATX_BTIME_WORD: usize = 10;
