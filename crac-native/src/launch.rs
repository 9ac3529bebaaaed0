//! Restores where an image may not be executed: the stub is started from the file of a program that may be.
//!
//! Every program with this crate in it carries the stub: the `crac` command, and each service. In a process with nothing but its
//! main thread the stub is put where the image wants it - its code mapped from the program's own file, the rest copied -, the
//! image's metadata beside it, and called as the kernel would call it. Nothing of the image is mapped executable, here or by the stub.
//!
//! The descriptor of the image goes on to the stub, so what was checked is what is used.
#![expect(unsafe_code, reason = "replaces the process by the stub, and runs before main")]

use std::{
    ffi::{CStr, CString, OsStr, OsString},
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
    ptr, slice,
};

use crac_sys::{
    fs,
    mem::{self, PAGE_SIZE},
    proc::{Mapping, MappingName},
    process, signal,
};

use crate::{
    arch, exec,
    image::Image,
    layout::{Boot, EXIT_START_COLD, FileRecord, MAGIC, file},
    restore::{Restore, Verdict, vector},
    stub::Stub,
};

/// Name under which a service executes its own program so that it restores an image: the descriptor's number and the image's path
/// follow.
pub(crate) const RESTORER: &CStr = c"crac-restorer";

/// Whether the image open at `file` can only be restored like this.
pub(crate) fn is_needed(file: &File, image: &Image) -> bool {
    let has_permission = file.metadata().is_ok_and(|found| found.mode() & 0o111 != 0);
    image.manifest().data_only || !has_permission || fs::is_noexec(file.as_fd())
}

/// Why the code in the image, or that it refers to, cannot come back in such a way here; nothing if it can.
pub(crate) fn obstacles(image: &Image) -> Vec<String> {
    let mut obstacles = Vec::new();
    if image.has_code()
        && let Err(why) = write_code()
    {
        let hint = "hint: checkpoint with clock = \"none\" or \"timens\", which leaves the C library's code as it is";
        obstacles.push(format!("memory that holds code cannot be brought back: {why}; {hint}"));
    }
    for (path, record) in image.file_records().iter().filter(|(_, record)| record.flags & file::TEXT != 0) {
        if let Err(error) = map_code(path, record) {
            obstacles.push(format!("the code of {path} may not be executed: {error}"));
        }
    }
    obstacles
}

/// Tries whether this process can write to memory that is executable and not writable.
fn write_code() -> Result<(), String> {
    let flags = libc::MAP_PRIVATE;
    let page = mem::map_anonymous(PAGE_SIZE, libc::PROT_READ | libc::PROT_EXEC, flags)
        .map_err(|errno| format!("executable memory is refused: {errno}"))?;
    let written = File::options()
        .write(true)
        .open("/proc/self/mem")
        .and_then(|memory| fs::write_all_at(memory.as_fd(), &[1], page as u64).map_err(io::Error::from))
        .map_err(|error| format!("this kernel does not let a process write to its own code: {error}"));
    // SAFETY: the page of this function.
    let unmapped = unsafe { mem::unmap(page, PAGE_SIZE) };
    debug_assert!(unmapped.is_ok(), "a mapping of our own can be unmapped");
    written
}

/// Tries whether the code of a program or library may be mapped.
fn map_code(path: &str, record: &FileRecord) -> io::Result<()> {
    let file = File::open(path)?;
    let protection = libc::PROT_READ | libc::PROT_EXEC;
    // SAFETY: a mapping at a free address of the kernel's choice.
    let at = unsafe { mem::map(0, PAGE_SIZE, protection, libc::MAP_PRIVATE, file.as_raw_fd(), record.text_offset) }?;
    // SAFETY: the mapping from above, which nobody else knows.
    Ok(unsafe { mem::unmap(at, PAGE_SIZE) }?)
}

/// Becomes the process in `image`, which is open at `file`. Returns only what stands in the way; this process is then of no use but
/// to end, or to execute another program.
pub(crate) fn launch(file: &File, image: &Image, arguments: &[CString], environment: &[CString]) -> io::Error {
    match prepare(file, image, arguments, environment) {
        Ok(start) => jump(&start),
        Err(error) => error,
    }
}

/// Where the stub begins, and what it finds on its stack.
struct Start {
    entry: u64,
    /// Argument count, arguments, environment and auxiliary vector, as the kernel leaves them (System V ABI, process initialisation).
    stack: Vec<usize>,
}

fn prepare(file: &File, image: &Image, arguments: &[CString], environment: &[CString]) -> io::Result<Start> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("this process has other threads"));
    }
    if let Some(obstacle) = obstacles(image).into_iter().next() {
        return Err(io::Error::other(obstacle));
    }
    let header = image.header();
    let vdso = exec::vdso().ok_or_else(|| io::Error::other("this process has no vdso"))?;
    let mut stub = Stub::load().ok_or_else(|| io::Error::other("the restorer in this program is not of the expected form"))?;
    let boot = Boot {
        magic: MAGIC,
        metadata_at: header.metadata_at,
        metadata_offset: header.metadata_offset,
        metadata_bytes: header.metadata_bytes,
        file_bytes: header.file_bytes,
        launched_with: file.as_raw_fd() as u64 + 1,
    };
    stub.relocate(header.zone_start, &boot);
    let (zone, zone_bytes) = (header.zone_start as usize, (header.zone_end - header.zone_start) as usize);
    let reserve = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: the kernel maps it only where nothing is.
    unsafe { mem::map(zone, zone_bytes, libc::PROT_NONE, reserve, -1, 0) }.map_err(|errno| {
        io::Error::other(format!("the addresses of the restorer, from {zone:#x} on, are taken here: {errno}"))
    })?;
    for part in stub.parts() {
        let (at, bytes) = (zone + part.offset as usize, part.bytes as usize);
        match part.code_at {
            Some(code) => map_own_code(code, at, bytes)?,
            None => {
                let content = stub.bytes.get(part.offset as usize..).unwrap_or_default();
                copy_to(at, bytes, content.get(..bytes.min(content.len())).unwrap_or_default(), part.writable)?;
            }
        }
    }
    let (at, bytes) = (header.metadata_at as usize, header.metadata_bytes as usize);
    let (flags, offset) = (libc::MAP_PRIVATE | libc::MAP_FIXED, header.metadata_offset);
    // SAFETY: inside of the zone, which this function has reserved; the decoder has checked that it is.
    unsafe { mem::map(at, bytes, libc::PROT_READ, flags, file.as_raw_fd(), offset) }?;
    let staging = header.staging_at as usize;
    // SAFETY: the rest of the zone, in which nothing has been put.
    unsafe { mem::unmap(staging, zone + zone_bytes - staging) }?;

    let mut stack = vec![arguments.len()];
    stack.extend(vector(arguments).iter().map(|text| text.expose_provenance()));
    stack.extend(vector(environment).iter().map(|text| text.expose_provenance()));
    let (page_size, vdso_at) = (libc::AT_PAGESZ as usize, libc::AT_SYSINFO_EHDR as usize);
    stack.extend([page_size, PAGE_SIZE, vdso_at, vdso.as_ptr().expose_provenance(), 0, 0]);
    Ok(Start { entry: stub.entry(header.zone_start), stack })
}

/// Maps `bytes` of this program at `code` once more, at `at`, from the file it was started from.
fn map_own_code(code: usize, at: usize, bytes: usize) -> io::Result<()> {
    let maps = std::fs::read("/proc/self/maps")?;
    let mut mappings = Mapping::all(&maps).flatten();
    let found = mappings.find(|mapping| mapping.start as usize <= code && code + bytes <= mapping.end as usize);
    let found = found.ok_or_else(|| io::Error::other("the restorer in this program is not mapped in one piece"))?;
    let own_path = match found.name() {
        MappingName::File { path, .. } => PathBuf::from(OsStr::from_bytes(path)),
        _ => PathBuf::new(),
    };
    let offset = found.offset + (code as u64 - found.start);
    let (protection, flags) = (libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_FIXED);
    // SAFETY: the embedded stub, which is never written to.
    let wanted = unsafe { slice::from_raw_parts(ptr::with_exposed_provenance::<u8>(code), bytes) };
    // The link leads to the running file even when its name is another's by now; a library is found by its name.
    for path in [Path::new("/proc/self/exe"), &own_path] {
        let Ok(file) = File::open(path) else { continue };
        if file.metadata()?.len() < offset + bytes as u64 {
            continue;
        }
        // SAFETY: inside of the zone, which the caller has reserved.
        unsafe { mem::map(at, bytes, protection, flags, file.as_raw_fd(), offset) }?;
        // SAFETY: mapped just now, and the file is that long.
        if unsafe { slice::from_raw_parts(ptr::with_exposed_provenance::<u8>(at), bytes) } == wanted {
            return Ok(());
        }
    }
    Err(io::Error::other("the file that this program was started from cannot be found"))
}

/// Puts `content` and zeros behind it into `bytes` of new memory at `at`.
fn copy_to(at: usize, bytes: usize, content: &[u8], writable: bool) -> io::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: inside of the zone, which the caller has reserved.
    unsafe { mem::map(at, bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) }?;
    // SAFETY: freshly mapped, and no shorter than the content.
    unsafe { ptr::copy_nonoverlapping(content.as_ptr(), ptr::with_exposed_provenance_mut(at), content.len().min(bytes)) };
    if !writable {
        // SAFETY: as above; nobody else knows of it.
        unsafe { mem::protect(at, bytes, libc::PROT_READ) }?;
    }
    Ok(())
}

/// Leaves this program for the stub.
fn jump(start: &Start) -> io::Error {
    // What executing a program would end: signals, and what the kernel writes into memory that is about to go. All else the stub
    // sets anew for the main thread, as it does for the others.
    if let Err(errno) = signal::set_mask(u64::MAX) {
        return errno.into();
    }
    if let Some((address, bytes)) = process::fs_base().ok().and_then(|base| arch::rseq_area(base as u64)) {
        // SAFETY: the area that the C library has registered for this thread; nothing of it is used from here on.
        let unregistered = unsafe { process::unregister_rseq(address as usize, bytes, arch::RSEQ_SIGNATURE) };
        if let Err(errno) = unregistered {
            return io::Error::other(format!("giving up the restartable sequences of this thread: {errno}"));
        }
    }
    // SAFETY: the stub is mapped there, and what it takes for its initial stack lives until it unmaps it.
    unsafe { arch::enter(start.stack.as_ptr(), start.entry) }
}

/// Runs before `main`, in every program with this crate in it: whoever is called [`RESTORER`] restores an image.
#[cfg(target_env = "gnu")]
#[used]
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn(i32, *const *const libc::c_char, *const *const libc::c_char) = {
    extern "C" fn at_start(count: i32, arguments: *const *const libc::c_char, _: *const *const libc::c_char) {
        // SAFETY: glibc calls these functions with the arguments of the program, which end with a null.
        let argument = |at: usize| unsafe { arguments.wrapping_add(at).read() };
        if count < 3 || arguments.is_null() {
            return;
        }
        // SAFETY: an argument, NUL-terminated, which nobody changes.
        let text = |at: usize| unsafe { CStr::from_ptr(argument(at)) };
        if text(0) != RESTORER {
            return;
        }
        // SAFETY: only asks.
        let is_secure = unsafe { libc::getauxval(libc::AT_SECURE) } != 0;
        let number = text(1).to_str().ok().and_then(|number| number.parse().ok()).filter(|_| !is_secure);
        // Whoever calls a program so has opened the image for it.
        let Some(number) = number.filter(|number| fs::fcntl(*number, libc::F_GETFD, 0).is_ok()) else { return };
        // SAFETY: open, and nobody in this program knows of it yet.
        let file = unsafe { File::from_raw_fd(number) };
        restore_as_program(&OsString::from(OsStr::from_bytes(text(2).to_bytes())), file);
    }
    at_start
};

/// The life of a program that was called [`RESTORER`].
fn restore_as_program(path: &OsStr, file: File) -> ! {
    let status = match Restore::open_file(Path::new(path), file, None) {
        Ok(restore) => {
            let error = restore.launch([], std::env::vars_os());
            eprintln!("crac: cannot restore: {error}");
            EXIT_START_COLD
        }
        Err(mismatches) => {
            mismatches.iter().for_each(|mismatch| eprintln!("crac: cannot restore: {mismatch}"));
            mismatches.first().map_or(Verdict::Bug, |gravest| gravest.verdict).exit_code()
        }
    };
    process::exit_group(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_of_the_stub_is_mapped_once_more_from_the_file_of_this_program() {
        let stub = Stub::load().unwrap();
        let part = stub.parts().find(|part| part.code_at.is_some()).unwrap();
        let (code, bytes) = (part.code_at.unwrap(), part.bytes as usize);
        let at = mem::map_anonymous(bytes, libc::PROT_NONE, libc::MAP_PRIVATE).unwrap();
        map_own_code(code, at, bytes).unwrap();
        let maps = std::fs::read("/proc/self/maps").unwrap();
        let found = Mapping::all(&maps).flatten().find(|mapping| mapping.start as usize == at).unwrap();
        assert!(found.execute && !found.write);
        let own = std::env::current_exe().unwrap();
        assert!(matches!(found.name(), MappingName::File { path, deleted: false } if path == own.as_os_str().as_bytes()));
        // SAFETY: mapped just now, for this test alone.
        unsafe { mem::unmap(at, bytes) }.unwrap();
    }
}
