//! Step "check": everything that can be refused is refused here, all reasons at once, before anything is touched.

use crate::{
    Restore,
    fetch::{self, Fetch},
    layout::{
        Boot, EXIT_START_COLD, EXIT_UNTRUSTED, FileRecord, Header, MAGIC, PAGE, VERSION, clock, cpu, file,
        kernel::{self, Build},
        xxh64::{Xxh64, xxh64},
    },
    report::{self, Decimal},
    sys::{self, Stat},
    syscall,
    vdso::{self, Vdso},
};

/// The parts of the kernel's initial stack.
#[derive(Clone, Copy)]
pub struct Start {
    pub arguments: *const *const u8,
    pub argument_count: usize,
    pub environment: *const *const u8,
    pub page_size: u64,
    pub vdso: u64,
}

impl Start {
    /// Takes the initial stack apart (the System V ABI's process initialisation).
    pub fn read(stack: *const usize) -> Self {
        const AT_PAGESZ: usize = 6;
        const AT_SYSINFO_EHDR: usize = 33;
        // SAFETY: the kernel puts the count first.
        let argument_count = unsafe { stack.read() };
        let arguments = stack.wrapping_add(1);
        let environment = arguments.wrapping_add(argument_count + 1);
        let mut at = environment;
        // SAFETY: the environment ends with a null.
        while unsafe { at.read() } != 0 {
            at = at.wrapping_add(1);
        }
        let (mut page_size, mut vdso) = (0, 0);
        loop {
            at = at.wrapping_add(1);
            // SAFETY: pairs follow, the last of which has the key zero.
            let key = unsafe { at.read() };
            at = at.wrapping_add(1);
            // SAFETY: the value of the pair.
            let value = unsafe { at.read() };
            match key {
                0 => break,
                AT_PAGESZ => page_size = value as u64,
                AT_SYSINFO_EHDR => vdso = value as u64,
                _ => {}
            }
        }
        Self { arguments: arguments.cast(), argument_count, environment: environment.cast(), page_size, vdso }
    }
}

/// Opens the image and checks file, header and tables. Ends the process when they cannot be trusted.
pub fn open(boot: &Boot, start: Start) -> Restore {
    let is_launched = boot.launched_with != 0;
    let opened = match boot.launched_with.checked_sub(1) {
        Some(fd) => Ok(fd as usize),
        None => syscall!(sys::SYS_OPENAT, sys::AT_FDCWD, c"/proc/self/exe".as_ptr(), sys::O_RDONLY | sys::O_CLOEXEC, 0),
    };
    let fd = match opened {
        Ok(fd) => fd as i32,
        Err(errno) => report::exit(
            EXIT_START_COLD,
            &[b"the image cannot be opened as /proc/self/exe: errno ", Decimal::new(errno.0 as u64).bytes()],
        ),
    };
    let stat = Stat::of(fd).unwrap_or_default();
    let me = syscall!(sys::SYS_GETEUID).unwrap_or(usize::MAX);
    if stat.mode & 0o170_000 != 0o100_000 {
        report::exit(EXIT_UNTRUSTED, &[b"the image is not a regular file"]);
    }
    if stat.uid != 0 && stat.uid as usize != me {
        let owner = Decimal::new(u64::from(stat.uid));
        report::exit(EXIT_UNTRUSTED, &[b"the image belongs to user ", owner.bytes(), b", neither me nor root"]);
    }
    if stat.mode & 0o022 != 0 {
        report::exit(EXIT_UNTRUSTED, &[b"others may write the image; hint: chmod go-w"]);
    }
    if stat.size != boot.file_bytes || boot.metadata_bytes < PAGE || boot.metadata_bytes > stat.size {
        let (is, should) = (Decimal::new(stat.size), Decimal::new(boot.file_bytes));
        report::exit(EXIT_UNTRUSTED, &[b"the image has ", is.bytes(), b" bytes instead of ", should.bytes()]);
    }
    // SAFETY: the engine has told the kernel to map the metadata there, and the file is long enough to back it.
    let header = unsafe { &*(boot.metadata_at as *const Header) };
    if header.magic != MAGIC || header.version != VERSION || header.header_bytes as usize != size_of::<Header>() {
        report::exit(EXIT_UNTRUSTED, &[b"the image's header is not one of this version"]);
    }
    if header.metadata_at != boot.metadata_at
        || header.metadata_bytes != boot.metadata_bytes
        || header.file_bytes != boot.file_bytes
        || header_sum(header) != header.header_sum
        || tables_sum(header) != header.tables_sum
    {
        report::exit(EXIT_UNTRUSTED, &[b"the image's header or tables are damaged"]);
    }
    // Where mapped memory would come back with old bytes, nothing else will do.
    let fetch = if header.eager != 0 { Fetch::Eagerly } else { fetch::wanted(start.environment) };
    let vdso = Vdso::recorded(&header.vdso);
    Restore { header, start, handover: core::ptr::null_mut(), image_fd: fd, fetch, is_launched, vdso }
}

/// The checksum of the header with its own field zero.
fn header_sum(header: &Header) -> u64 {
    let copy = Header { header_sum: 0, ..*header };
    // SAFETY: a plain record without padding.
    xxh64(unsafe { core::slice::from_raw_parts((&raw const copy).cast::<u8>(), size_of::<Header>()) })
}

fn tables_sum(header: &Header) -> u64 {
    let tables = (header as *const Header as u64 + size_of::<Header>() as u64) as *const u8;
    // SAFETY: the metadata is `metadata_bytes` long, which was compared with what the kernel has mapped.
    let bytes = unsafe { core::slice::from_raw_parts(tables, header.metadata_bytes as usize - size_of::<Header>()) };
    Xxh64::new().finish(bytes)
}

/// Compares the host and the user with what the image was made for; ends the process with all mismatches.
pub fn host(restore: &mut Restore) {
    let (header, start) = (restore.header, &restore.start);
    let mut fits = true;
    let mut refuse = |parts: &[&[u8]]| {
        report::say(parts);
        fits = false;
    };
    if start.page_size != u64::from(header.page_size) {
        refuse(&[b"pages have another size here"]);
    }
    if !is_same_boot(&header.boot_id) && !cpu::fits(&header.cpu, &cpu::current()) {
        refuse(&[b"this processor lacks features, or keeps registers, other than the one of the checkpoint"]);
    }
    let mut own = Vdso::recorded(&header.vdso);
    match kernel::fit(header.clock, header.kernel, kernel_version(), vdso::is_recorded(start.vdso, &header.vdso)) {
        Ok(Build::Same) => {}
        Ok(Build::Other) => match Vdso::of_another_build(start.vdso) {
            Some(found) => own = found,
            None => refuse(&[b"this kernel's vdso is not where or as large as is known of vdsos"]),
        },
        Err(what) => refuse(&[what.as_bytes()]),
    }
    if !can_set_memory_map() {
        refuse(&[b"this kernel was built without CONFIG_CHECKPOINT_RESTORE"]);
    }
    if header.clock == clock::HOST
        && (sys::clock_ns(sys::CLOCK_MONOTONIC) < header.captured_monotonic_ns
            || sys::clock_ns(sys::CLOCK_BOOTTIME) < header.captured_boottime_ns)
    {
        refuse(&[b"the monotonic clock would run backwards (another host, or it was started again)"]);
    }
    crate::process::check_privileges(restore, &mut refuse);
    crate::settings::check(restore, &mut refuse);
    if !fits {
        report::end(EXIT_START_COLD);
    }
    restore.vdso = own;
}

/// Whether the kernel is the very one that ran at the checkpoint: then the processor is, too.
fn is_same_boot(recorded: &cpu::BootId) -> bool {
    let Ok(fd) = syscall!(sys::SYS_OPENAT, sys::AT_FDCWD, cpu::BOOT_ID.as_ptr(), sys::O_RDONLY | sys::O_CLOEXEC, 0) else {
        return false;
    };
    let mut here = [0; size_of::<cpu::BootId>()];
    let filled = syscall!(sys::SYS_READ, fd, here.as_mut_ptr(), cpu::BOOT_ID_BYTES);
    close(fd as i32);
    filled == Ok(cpu::BOOT_ID_BYTES) && here == *recorded
}

/// The release of the running kernel, as `uname(2)` has it.
fn kernel_version() -> u32 {
    const RELEASE: usize = 2 * 65;
    let mut names = [0_u8; 6 * 65];
    if syscall!(sys::SYS_UNAME, names.as_mut_ptr()).is_err() {
        return 0;
    }
    kernel::version(names.iter().skip(RELEASE).copied())
}

/// Whether the kernel can be told where a process's parts are: only if it was built with `CONFIG_CHECKPOINT_RESTORE`.
fn can_set_memory_map() -> bool {
    const PR_SET_MM: usize = 35;
    const PR_SET_MM_MAP_SIZE: usize = 15;
    let mut size = 0_u32;
    syscall!(sys::SYS_PRCTL, PR_SET_MM, PR_SET_MM_MAP_SIZE, &raw mut size, 0, 0).is_ok()
}

/// The referenced files, open, in the order of their records.
pub struct Files {
    /// As many as there are bits of stack for; more are opened again when they are mapped.
    pub fds: [i32; Files::KEPT],
}

impl Files {
    pub const KEPT: usize = 256;

    /// The descriptor of file `at`, if it was kept.
    pub fn kept(&self, at: usize) -> Option<i32> {
        self.fds.get(at).copied().filter(|fd| *fd >= 0)
    }
}

/// Opens every referenced file and compares it with what it was.
pub fn files(restore: &Restore) -> Files {
    let mut files = Files { fds: [-1; Files::KEPT] };
    let mut fits = true;
    for (at, record) in restore.table::<FileRecord>(restore.header.files).iter().enumerate() {
        match open_unchanged(restore, record) {
            Ok(fd) => match files.fds.get_mut(at) {
                Some(kept) => *kept = fd,
                None => close(fd),
            },
            Err(what) => {
                let path = restore.text(record.path);
                // SAFETY: `text` has checked that the bytes are inside the text section.
                let path = unsafe { core::slice::from_raw_parts(path as *const u8, record.path.len as usize) };
                report::say(&[b"the mapped file ", path, b" ", what]);
                fits = false;
            }
        }
    }
    if !fits {
        report::end(EXIT_START_COLD);
    }
    files
}

/// Opens the file of `record` if it is still the same one.
pub fn open_unchanged(restore: &Restore, record: &FileRecord) -> Result<i32, &'static [u8]> {
    let path = restore.text(record.path);
    let access = if record.flags & file::WRITTEN != 0 { sys::O_RDWR } else { sys::O_RDONLY };
    let fd = syscall!(sys::SYS_OPENAT, sys::AT_FDCWD, path, access | sys::O_CLOEXEC | sys::O_NOCTTY, 0)
        .map_err(|_| &b"cannot be opened"[..])? as i32;
    let stat = Stat::of(fd).unwrap_or_default();
    let is_same = record.is_same(stat.device, stat.inode, stat.size, (stat.modified_s, stat.modified_ns));
    if is_same || has_text(fd, stat.size, record) {
        return Ok(fd);
    }
    close(fd);
    Err(b"has changed since the checkpoint")
}

/// Whether the program or library open at `fd`, `size` bytes long, has the code of the recorded one.
fn has_text(fd: i32, size: u64, record: &FileRecord) -> bool {
    const PROT_READ: usize = 1;
    const MAP_PRIVATE: usize = 2;
    let is_inside = record.text_offset.checked_add(record.text_bytes).is_some_and(|end| end <= size);
    if record.flags & file::TEXT == 0 || record.text_bytes == 0 || !is_inside {
        return false;
    }
    match syscall!(sys::SYS_MMAP, 0, record.text_bytes, PROT_READ, MAP_PRIVATE, fd as isize, record.text_offset) {
        Ok(at) => {
            // SAFETY: mapped just now, and the file is that long.
            let text = unsafe { core::slice::from_raw_parts(at as *const u8, record.text_bytes as usize) };
            let is_same = xxh64(text) == record.text_sum;
            // A mapping of our own can be unmapped.
            let _ = syscall!(sys::SYS_MUNMAP, at, record.text_bytes);
            is_same
        }
        Err(_) => false,
    }
}

pub fn close(fd: i32) {
    // A descriptor of our own; close(2) gives it up whatever it answers.
    let _ = syscall!(sys::SYS_CLOSE, fd);
}
