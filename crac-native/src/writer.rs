//! The image file: nameless until it is complete and on the disk, then at the target in one step.
#![expect(unsafe_code, reason = "writes the process's own memory as it stands")]

use std::{
    ffi::{CStr, CString},
    fmt::Write,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    ptr,
};

use crac_core::EngineError;
use crac_sys::{Errno, fs, process};

use crate::{
    arena::Arena,
    fault::{Fault, Point},
    form::ImageForm,
    layout::{BLOCK, HUGE_PAGE, PAGE, RunRecord, xxh64::Xxh64},
    owners::Owners,
    text::FixedText,
};

/// Owner only: an image holds the memory of a service.
const MODE: u32 = 0o700;
/// The same for one that is not executed.
const DATA_MODE: u32 = 0o600;
/// Bytes handed to the kernel at once, so that the page cache can keep them in one folio.
const PIECE: u64 = HUGE_PAGE;

/// A file on its way to the target.
#[derive(Debug)]
pub(crate) struct ImageFile {
    directory: OwnedFd,
    file: Option<OwnedFd>,
    target: CString,
    /// Name beside the target, while there is one.
    aside: FixedText<64>,
    has_aside: bool,
    /// Whether the target has been replaced.
    published: bool,
    /// Whether the target is a file in memory that somebody holds for us: it has no name to appear under.
    held: bool,
    pub(crate) fault: Option<Fault>,
    /// Bytes of data written, without holes.
    pub(crate) written: u64,
}

impl ImageFile {
    /// Creates a file in the directory of `target`, so that everything that can go wrong with the place does so early.
    ///
    /// Without `nameless`, or where the filesystem has no such files, it is called `.crac-*.tmp` until it is complete; a process
    /// that is killed then leaves it behind.
    pub(crate) fn create(target: &Path, nameless: bool, data_only: bool, fault: Option<Fault>) -> Result<Self, EngineError> {
        let error =
            |source: io::Error, hint: &str| EngineError::Write { path: target.to_owned(), source, hint: format!("hint: {hint}") };
        let name = target.file_name().and_then(|name| CString::new(name.as_bytes()).ok());
        let (Some(name), Some(parent)) = (name, target.parent()) else {
            return Err(error(io::ErrorKind::InvalidInput.into(), "give the path of a file"));
        };
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let parent = CString::new(parent.as_os_str().as_bytes())
            .map_err(|_| error(io::ErrorKind::InvalidInput.into(), "give a path without a NUL"))?;
        let directory = fs::open(&parent, libc::O_RDONLY | libc::O_DIRECTORY, 0)
            .map_err(|errno| error(errno.into(), "create the directory first, or choose another with --image"))?;
        let hint = "choose a directory this user may write to with --image";
        Fault::check(fault, Point::Open).map_err(|errno| error(errno.into(), hint))?;
        if target.starts_with("/proc") {
            let file =
                held(target).map_err(|errno| error(errno.into(), "only a memfd of the same user can be written to there"))?;
            return Ok(Self {
                directory,
                file: Some(file),
                target: name,
                aside: FixedText::new(),
                has_aside: false,
                published: false,
                held: true,
                fault,
                written: 0,
            });
        }
        if !data_only && fs::is_noexec(directory.as_fd()) {
            let source = Errno::new(libc::EACCES).into();
            let hint =
                "the filesystem is mounted noexec and the image is to be a program; choose another directory, or `data-only`";
            return Err(error(source, hint));
        }
        let mode = if data_only { DATA_MODE } else { MODE };
        let mut image = Self {
            directory,
            file: None,
            target: name,
            aside: FixedText::new(),
            has_aside: false,
            published: false,
            held: false,
            fault,
            written: 0,
        };
        let opened = match nameless {
            true => fs::open_at(image.directory.as_raw_fd(), c".", libc::O_TMPFILE | libc::O_RDWR, mode),
            false => Err(Errno::new(libc::EOPNOTSUPP)),
        };
        match opened {
            Ok(file) => image.file = Some(file),
            Err(errno) if [libc::EOPNOTSUPP, libc::EISDIR, libc::ENOENT].contains(&errno.number()) => {
                image.draw_aside().map_err(|errno| error(errno.into(), hint))?;
                let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
                let file = fs::open_at(image.directory.as_raw_fd(), image.aside_name(), flags, mode);
                image.file = Some(file.map_err(|errno| error(errno.into(), hint))?);
                image.has_aside = true;
            }
            Err(errno) => return Err(error(errno.into(), hint)),
        }
        // The umask has been applied; an image is its owner's to use in any case.
        fs::set_mode(image.fd(), mode).map_err(|errno| error(errno.into(), hint))?;
        Ok(image)
    }

    /// The descriptors in use: not part of the process that is saved.
    pub(crate) fn descriptors(&self) -> [RawFd; 2] {
        [self.directory.as_raw_fd(), self.file.as_ref().map_or(-1, AsRawFd::as_raw_fd)]
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_ref().map_or(self.directory.as_fd(), AsFd::as_fd)
    }

    /// Draws a name beside the target if there is none yet. A capture in a copy draws it before, so that the original knows what
    /// to remove.
    pub(crate) fn draw_aside(&mut self) -> Result<(), Errno> {
        if !self.aside.as_bytes().is_empty() {
            return Ok(());
        }
        let mut random = [0; 8];
        process::random(&mut random)?;
        self.aside = FixedText::new();
        write!(self.aside, ".crac-{:016x}.tmp\0", u64::from_ne_bytes(random)).map_err(|_| Errno::new(libc::ENAMETOOLONG))
    }

    fn aside_name(&self) -> &CStr {
        CStr::from_bytes_until_nul(self.aside.as_bytes()).unwrap_or_default()
    }

    /// Sets the size: everything not written is a hole.
    pub(crate) fn set_len(&mut self, bytes: u64) -> Result<(), Errno> {
        Fault::check(self.fault, Point::Write)?;
        fs::set_len(self.fd(), bytes)
    }

    /// Writes bytes that were made for the image.
    pub(crate) fn write(&mut self, bytes: &[u8], offset: u64) -> Result<(), Errno> {
        Fault::check(self.fault, Point::Write)?;
        self.written += bytes.len() as u64;
        fs::write_all_at(self.fd(), bytes, offset)
    }

    /// Writes the memory of a run, adds it to the checksums and notes how much of it there is. Where most pages are zeros, they
    /// become holes.
    ///
    /// # Errors
    ///
    /// Of the file, or `EFAULT` and `EIO` for memory that cannot be read.
    pub(crate) fn write_run(
        &mut self,
        run: &mut RunRecord,
        reader: &mut Reader<'_>,
        indirect: bool,
        owners: &mut Owners<'_>,
        sums: &mut Sums<'_>,
        step: &mut dyn FnMut(u64),
    ) -> Result<(), Errno> {
        let is_writable = run.protection & libc::PROT_WRITE as u32 != 0;
        self.write_from(run, reader, sums, step, &mut |reader, at, bytes| {
            let memory = reader.memory;
            // SAFETY: the caller's plan says that this part of the run is mapped, and nobody runs who could change that.
            let piece = unsafe { reader.piece(at, bytes, indirect) }?;
            if is_writable {
                owners.look(at, piece, &mut |at, into| match fs::read_at(memory, into, at)? {
                    read if read == into.len() => Ok(()),
                    _ => Err(Errno::new(libc::EFAULT)),
                })?;
            }
            Ok(piece)
        })
    }

    /// Writes a run of shared memory, as [`write_run`](Self::write_run) does.
    ///
    /// # Errors
    ///
    /// As of [`write_run`](Self::write_run).
    pub(crate) fn write_shared(
        &mut self,
        run: &mut RunRecord,
        source: Source,
        reader: &mut Reader<'_>,
        sums: &mut Sums<'_>,
        step: &mut dyn FnMut(u64),
    ) -> Result<(), Errno> {
        let start = run.start;
        self.write_from(run, reader, sums, step, &mut |reader, at, bytes| match source {
            Source::Descriptor(number) => reader.file_piece(number, at, bytes),
            // SAFETY: through the kernel, which answers with an error where nothing is mapped.
            Source::Address(address) => unsafe { reader.piece(address + (at - start), bytes, true) },
        })
    }

    fn write_from(
        &mut self,
        run: &mut RunRecord,
        reader: &mut Reader<'_>,
        sums: &mut Sums<'_>,
        step: &mut dyn FnMut(u64),
        read: &mut Read<'_>,
    ) -> Result<(), Errno> {
        let before = self.written;
        let mut at = run.start;
        while at < run.end {
            let bytes = (PIECE - at % PIECE).min(run.end - at);
            let piece = read(reader, at, bytes)?;
            sums.add(run.data_offset + (at - run.start), piece);
            Fault::check(self.fault, Point::Write)?;
            self.write_piece(piece, run.data_offset + (at - run.start))?;
            at += bytes;
            step(self.written);
        }
        run.data_bytes = self.written - before;
        Ok(())
    }

    /// Writes whole pages. If most of them are zeros, those become holes; a few are written, because a hole would tear the folio that
    /// the page cache keeps the piece in, and cost page faults.
    fn write_piece(&mut self, piece: &[u8], offset: u64) -> Result<(), Errno> {
        let (pages, rest) = piece.as_chunks::<{ PAGE as usize }>();
        debug_assert!(rest.is_empty(), "pieces are whole pages");
        if 2 * pages.iter().filter(|page| is_zero(*page)).count() <= pages.len() {
            self.written += piece.len() as u64;
            return fs::write_all_at(self.fd(), piece, offset);
        }
        let mut at = offset;
        for part in pages.chunk_by(|page, next| is_zero(page) == is_zero(next)) {
            let bytes = part.as_flattened();
            if !part.first().is_some_and(|page| is_zero(page)) {
                self.written += bytes.len() as u64;
                fs::write_all_at(self.fd(), bytes, at)?;
            }
            at += bytes.len() as u64;
        }
        Ok(())
    }

    /// Makes the file durable and puts it at the target.
    pub(crate) fn publish(&mut self) -> Result<(), Errno> {
        Fault::check(self.fault, Point::Sync)?;
        fs::sync(self.fd())?;
        if self.held {
            return Ok(());
        }
        if !self.link_to_target()? {
            Fault::check(self.fault, Point::Rename)?;
            fs::rename_at(self.directory.as_fd(), self.aside_name(), &self.target)?;
            self.has_aside = false;
        }
        self.published = true;
        Fault::check(self.fault, Point::Name)?;
        fs::sync(self.directory.as_fd())
    }

    /// Gives a nameless file its name at once, if nothing has that name; else one beside it, and answers no.
    fn link_to_target(&mut self) -> Result<bool, Errno> {
        if self.has_aside {
            return Ok(false);
        }
        Fault::check(self.fault, Point::Link)?;
        match fs::link_nameless(self.fd(), self.directory.as_fd(), &self.target) {
            Err(errno) if errno.number() == libc::EEXIST => {}
            linked => return linked.map(|()| true),
        }
        self.draw_aside()?;
        fs::link_nameless(self.fd(), self.directory.as_fd(), self.aside_name())?;
        self.has_aside = true;
        Ok(false)
    }

    /// Bytes the file takes on the disk.
    pub(crate) fn bytes_on_disk(&self) -> u64 {
        fs::stat(self.fd()).map_or(0, |stat| u64::try_from(stat.st_blocks).unwrap_or(0) * 512)
    }

    /// Gives up the right to write, without which the kernel does not execute a file, and opens it for that.
    pub(crate) fn reopen_to_execute(&mut self) -> Result<OwnedFd, Errno> {
        Fault::check(self.fault, Point::Exec)?;
        let written = fs::stat(self.fd())?;
        self.file = None;
        let file = fs::open_at(self.directory.as_raw_fd(), &self.target, libc::O_RDONLY | libc::O_NOFOLLOW, 0)?;
        let found = fs::stat(file.as_fd())?;
        if (written.st_dev, written.st_ino) == (found.st_dev, found.st_ino) { Ok(file) } else { Err(Errno::new(libc::ESTALE)) }
    }

    /// Whether a copy has put the file at the target, where it belongs once it is whole and on the disk. Makes the name durable.
    pub(crate) fn is_published(&mut self) -> bool {
        let own = fs::stat(self.fd());
        let found = fs::open_at(self.directory.as_raw_fd(), &self.target, libc::O_PATH | libc::O_NOFOLLOW, 0)
            .and_then(|file| fs::stat(file.as_fd()));
        let same = matches!((own, found), (Ok(own), Ok(found)) if (own.st_dev, own.st_ino) == (found.st_dev, found.st_ino));
        same && fs::sync(self.directory.as_fd()).is_ok()
    }

    /// Removes what a copy that failed may have left beside the target.
    pub(crate) fn clean_up(&mut self) {
        self.has_aside = !self.held && !self.aside.as_bytes().is_empty();
    }

    /// Takes back an image that a copy may have published.
    pub(crate) fn withdraw(&mut self) {
        self.published = !self.held && self.is_published();
        self.retract();
    }

    /// Takes back an image that was published and turned out not to work.
    pub(crate) fn retract(&mut self) {
        if self.published {
            // The caller reports why the image is of no use; that it could not be removed as well would hide that.
            let _ = fs::remove_at(self.directory.as_fd(), &self.target);
            self.published = false;
        }
    }
}

/// Whether an image at `target` is to hold data alone.
pub(crate) fn is_data_only(target: &Path, form: ImageForm) -> bool {
    match form {
        ImageForm::Program => false,
        ImageForm::DataOnly => true,
        // Somebody holds a memfd there, and knows what to do with it.
        ImageForm::Auto if target.starts_with("/proc") => false,
        ImageForm::Auto => {
            let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let directory = CString::new(parent.as_os_str().as_bytes()).ok();
            let opened = directory.and_then(|directory| fs::open(&directory, libc::O_PATH | libc::O_DIRECTORY, 0).ok());
            opened.is_some_and(|directory| fs::is_noexec(directory.as_fd()))
        }
    }
}

/// Opens the memfd that another process of this user, or root, holds at `/proc/PID/fd/N`, and empties it.
fn held(target: &Path) -> Result<OwnedFd, Errno> {
    let path = CString::new(target.as_os_str().as_bytes()).map_err(|_| Errno::new(libc::EINVAL))?;
    let file = fs::open(&path, libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK, 0)?;
    // Seals exist for files in memory alone.
    fs::fcntl(file.as_raw_fd(), libc::F_GET_SEALS, 0)?;
    fs::set_len(file.as_fd(), 0)?;
    Ok(file)
}

impl Drop for ImageFile {
    fn drop(&mut self) {
        if self.has_aside {
            // Nothing refers to the name, which says what it is; an error would hide the one that led here.
            let _ = fs::remove_at(self.directory.as_fd(), self.aside_name());
        }
    }
}

/// The checksums of page data in the making: data are added in the order in which they lie in the file.
#[derive(Debug)]
pub(crate) struct Sums<'a> {
    sums: &'a mut [u64],
    complete: usize,
    current: Xxh64,
    /// Where in the file the next byte lies.
    at: u64,
}

impl<'a> Sums<'a> {
    /// Sums that are put into `sums`, which has a place for every block, of data from `data_offset` on.
    pub(crate) fn new(sums: &'a mut [u64], data_offset: u64) -> Self {
        Self { sums, complete: 0, current: Xxh64::new(), at: data_offset }
    }

    /// Adds whole pages that lie at `offset`. What was left out before them is a hole.
    fn add(&mut self, offset: u64, bytes: &[u8]) {
        static ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];
        while self.at < offset {
            self.add_next(&ZEROS);
        }
        self.add_next(bytes);
    }

    fn add_next(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = usize::try_from(BLOCK - self.at % BLOCK).unwrap_or(usize::MAX);
            let (part, behind) = bytes.split_at(room.min(bytes.len()));
            let rest = self.current.blocks(part);
            debug_assert!(rest.is_empty(), "pages are whole blocks of the sum");
            (self.at, bytes) = (self.at + part.len() as u64, behind);
            if self.at.is_multiple_of(BLOCK) {
                self.complete();
            }
        }
    }

    fn complete(&mut self) {
        if let Some(place) = self.sums.get_mut(self.complete) {
            *place = self.current.finish(&[]);
        }
        (self.complete, self.current) = (self.complete + 1, Xxh64::new());
    }

    /// All checksums, once everything was added.
    pub(crate) fn finish(mut self) -> &'a [u64] {
        if !self.at.is_multiple_of(BLOCK) {
            self.complete();
        }
        debug_assert_eq!(self.complete, self.sums.len(), "every block has been added");
        self.sums
    }
}

/// Reads a piece of so many bytes at an address or offset.
type Read<'f> = dyn for<'r> FnMut(&'r mut Reader<'_>, u64, u64) -> Result<&'r [u8], Errno> + 'f;

/// Where the content of shared memory is read.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Source {
    /// A memfd, at the run's offsets.
    Descriptor(RawFd),
    /// A mapping: where the run starts.
    Address(u64),
}

/// Reads the memory of runs into a buffer, so that what is summed and what is written are the same bytes: the capturing
/// thread's own stack and counters change meanwhile.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    /// `/proc/self/mem`.
    memory: BorrowedFd<'a>,
    buffer: &'a mut [u8],
    /// Bytes that take the place of those at an address.
    pub(crate) instead: Option<(u64, &'a [u8])>,
}

impl<'a> Reader<'a> {
    /// A reader with a buffer from the arena.
    pub(crate) fn new(arena: &'a Arena, memory: BorrowedFd<'a>) -> Result<Self, Errno> {
        Ok(Self { memory, buffer: arena.zeroed::<u8>(PIECE as usize)?, instead: None })
    }

    /// Reads a piece. `indirect` goes through the kernel: for memory without read permission, and for mappings of files, which
    /// may have become shorter.
    ///
    /// # Safety
    ///
    /// Without `indirect` the range is mapped and readable.
    unsafe fn piece(&mut self, at: u64, bytes: u64, indirect: bool) -> Result<&[u8], Errno> {
        let buffer = self.buffer.get_mut(..bytes as usize).ok_or(Errno::new(libc::EINVAL))?;
        if let Some((_, other)) = self.instead.filter(|(start, _)| *start == at) {
            buffer.copy_from_slice(other.get(..bytes as usize).ok_or(Errno::new(libc::EINVAL))?);
            return Ok(buffer);
        }
        if !indirect {
            let from = ptr::with_exposed_provenance::<u8>(at as usize);
            // SAFETY: the caller's promise; the buffer is the arena's, which is not part of any run. What this thread itself
            // changes meanwhile may come out either way.
            unsafe { ptr::copy_nonoverlapping(from, buffer.as_mut_ptr(), buffer.len()) };
            return Ok(buffer);
        }
        let mut done = 0;
        while done < buffer.len() {
            match fs::read_at(self.memory, &mut buffer[done..], at + done as u64)? {
                0 => return Err(Errno::new(libc::EFAULT)),
                read => done += read,
            }
        }
        Ok(buffer)
    }
}

impl Reader<'_> {
    /// Reads a piece of a file; zeros beyond its end.
    fn file_piece(&mut self, number: RawFd, offset: u64, bytes: u64) -> Result<&[u8], Errno> {
        let buffer = self.buffer.get_mut(..bytes as usize).ok_or(Errno::new(libc::EINVAL))?;
        buffer.fill(0);
        // SAFETY: a descriptor of the process, which stands still.
        let file = unsafe { BorrowedFd::borrow_raw(number) };
        let mut done = 0;
        while done < buffer.len() {
            match fs::read_at(file, &mut buffer[done..], offset + done as u64)? {
                0 => break,
                read => done += read,
            }
        }
        Ok(buffer)
    }
}

fn is_zero(page: &[u8]) -> bool {
    // Most pages differ from zero within their first words.
    page.as_chunks::<16>().0.iter().all(|chunk| u128::from_ne_bytes(*chunk) == 0)
}
