//! Shared memory: made before the mappings that show it, sealed behind them, and given to descriptors at the end.

use crate::{
    Restore,
    layout::{ObjectRecord, RunRecord, Step},
    report::fail_on,
    sys::{self, Errno},
    syscall,
};

const MFD_CLOEXEC: usize = 1;
const MFD_ALLOW_SEALING: usize = 2;
const MFD_NOEXEC_SEAL: usize = 8;
const MFD_EXEC: usize = 0x10;
const F_ADD_SEALS: usize = 1033;
const F_SEAL_SEAL: u32 = 1;
const F_SEAL_WRITE: u32 = 8;
const EACCES: i32 = 13;
const EINVAL: i32 = 22;

/// The objects of the image.
pub fn all(restore: &Restore) -> &'static [ObjectRecord] {
    restore.table(restore.header.objects)
}

/// The descriptor of object `at`, until [`close`]: they follow that of the image.
pub fn descriptor(restore: &Restore, at: usize) -> i32 {
    restore.image_fd.wrapping_add(1).wrapping_add(at as i32)
}

/// Makes every object with its content.
pub fn make(restore: &Restore) {
    let objects = all(restore);
    if objects.is_empty() {
        return;
    }
    crate::descriptors::make_room(descriptor(restore, objects.len()) as u64);
    for (at, object) in objects.iter().enumerate() {
        if let Err(errno) = make_one(restore, at, object) {
            fail_on(Step::Memory, b"shared memory of bytes", object.size, errno);
        }
    }
}

fn make_one(restore: &Restore, at: usize, object: &ObjectRecord) -> sys::Result<()> {
    let name = restore.text(object.name);
    let flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
    let mut mode = object.mode;
    let made = match syscall!(sys::SYS_MEMFD_CREATE, name, flags | MFD_EXEC) {
        // Before Linux 6.3 all of them can be executed.
        Err(Errno(EINVAL)) => syscall!(sys::SYS_MEMFD_CREATE, name, flags)?,
        // Where `vm.memfd_noexec` is 2, none may be.
        Err(Errno(EACCES)) => {
            mode &= !0o111;
            syscall!(sys::SYS_MEMFD_CREATE, name, flags | MFD_NOEXEC_SEAL)?
        }
        made => made?,
    };
    let fd = descriptor(restore, at);
    if made as i32 != fd {
        syscall!(sys::SYS_DUP3, made, fd, sys::O_CLOEXEC)?;
        syscall!(sys::SYS_CLOSE, made)?;
    }
    syscall!(sys::SYS_FTRUNCATE, fd, object.size)?;
    for run in restore.table::<RunRecord>(restore.header.object_runs) {
        if run.protection as usize == at {
            copy(restore.image_fd, fd, run, object.size)?;
        }
    }
    syscall!(sys::SYS_FCHMOD, fd, mode)?;
    // A seal against writing has to come before the mappings, which would otherwise be made able to write.
    if object.seals & F_SEAL_WRITE != 0 { seal(fd, object) } else { Ok(()) }
}

/// Copies a run from the image. Its last page may reach beyond the end of the object.
fn copy(from: i32, to: i32, run: &RunRecord, size: u64) -> sys::Result<()> {
    let mut left = run.end.min(size).saturating_sub(run.start);
    let mut offset = run.data_offset;
    syscall!(sys::SYS_LSEEK, to, run.start, 0)?;
    while left > 0 {
        match syscall!(sys::SYS_SENDFILE, to, from, &raw mut offset, left)? {
            0 => return Err(Errno(5)),
            copied => left = left.saturating_sub(copied as u64),
        }
    }
    Ok(())
}

fn seal(fd: i32, object: &ObjectRecord) -> sys::Result<()> {
    // Without `MFD_ALLOW_SEALING` the memory has had this seal from the beginning.
    let seals = object.seals & !F_SEAL_SEAL;
    if seals != 0 {
        syscall!(sys::SYS_FCNTL, fd, F_ADD_SEALS, seals)?;
    }
    if object.seals & F_SEAL_SEAL != 0 {
        syscall!(sys::SYS_FCNTL, fd, F_ADD_SEALS, F_SEAL_SEAL)?;
    }
    Ok(())
}

/// Seals, behind the mappings, what may still be written by them.
pub fn seal_the_rest(restore: &Restore) {
    for (at, object) in all(restore).iter().enumerate().filter(|(_, object)| object.seals & F_SEAL_WRITE == 0) {
        if let Err(errno) = seal(descriptor(restore, at), object) {
            fail_on(Step::Memory, b"sealing shared memory of bytes", object.size, errno);
        }
    }
}

/// Gives up the objects: from now on they live by their mappings and descriptors.
pub fn close(restore: &Restore) {
    for at in 0..all(restore).len() {
        crate::check::close(descriptor(restore, at));
    }
}
