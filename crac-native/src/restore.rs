//! What `crac restore` and `crac run` need: look at an image, say whether it fits, become it.

use std::{
    ffi::{CString, OsStr, OsString},
    fmt,
    fs::File,
    os::{
        fd::AsFd,
        unix::{
            ffi::OsStrExt,
            fs::{FileExt, MetadataExt, OpenOptionsExt},
        },
    },
    path::{Path, PathBuf},
    ptr,
};

use crac_sys::process;

use crate::{
    exec, facts,
    image::{self, Image, ImageError},
    launch,
    layout::{EXIT_BUG, EXIT_START_COLD, EXIT_UNTRUSTED, FileRecord, cpu, file, kernel, setting, xxh64::xxh64},
    manifest::Executable,
};

/// What to do about an image that does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Verdict {
    /// It is a good image for another host, user or build: start the service cold.
    StartCold,
    /// It is damaged, or its file cannot be trusted.
    Untrusted,
    /// It contradicts itself: a bug.
    Bug,
}

impl Verdict {
    /// The exit status that says so.
    pub const fn exit_code(self) -> i32 {
        match self {
            Verdict::StartCold => EXIT_START_COLD,
            Verdict::Untrusted => EXIT_UNTRUSTED,
            Verdict::Bug => EXIT_BUG,
        }
    }
}

/// One reason why an image is not restored here.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mismatch {
    /// What to do about it.
    pub verdict: Verdict,
    /// What was expected and what was found.
    pub what: String,
}

impl From<ImageError> for Mismatch {
    fn from(error: ImageError) -> Self {
        let verdict = match &error {
            ImageError::Version { .. } | ImageError::Read(_) => Verdict::StartCold,
            ImageError::Inconsistent { .. } => Verdict::Bug,
            _ => Verdict::Untrusted,
        };
        Self { verdict, what: error.to_string() }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// An image that can be restored: its file stays open, so that what is executed is what was checked.
#[derive(Debug)]
pub struct Restore {
    path: PathBuf,
    file: File,
    image: Image,
}

impl Restore {
    /// Opens and checks the image at `path`: the file, the image, and whether both fit this host, this user and, if given, the
    /// program it is to replace.
    ///
    /// # Errors
    ///
    /// Every reason at once, the worst verdict first.
    pub fn open(path: &Path, program: Option<&Executable>) -> Result<Self, Vec<Mismatch>> {
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
            .open(path)
            .map_err(|error| format!("the image {} cannot be opened: {error}", path.display()))
            .map_err(|what| vec![Mismatch { verdict: Verdict::StartCold, what }])?;
        Self::open_file(path, file, program)
    }

    /// As [`open`](Self::open), of a file that is open already, for reading alone; `path` is what it is called.
    ///
    /// # Errors
    ///
    /// Every reason at once, the worst verdict first.
    pub fn open_file(path: &Path, file: File, program: Option<&Executable>) -> Result<Self, Vec<Mismatch>> {
        let mut mismatches = trust(&file);
        if !mismatches.is_empty() {
            return Err(mismatches);
        }
        let image = Image::read(&file).map_err(|error| vec![Mismatch::from(error)])?;
        mismatches.extend(host(&image));
        mismatches.extend(privileges(&image));
        mismatches.extend(limits(&image));
        mismatches.extend(files(&image));
        mismatches.extend(code(&file, &image));
        let changed = image.changed_files().into_iter();
        mismatches.extend(changed.map(|what| Mismatch { verdict: Verdict::StartCold, what }));
        mismatches.extend(program.and_then(|program| build(&image, program)));
        mismatches.sort_by_key(|mismatch| std::cmp::Reverse(mismatch.verdict));
        if mismatches.is_empty() { Ok(Self { path: path.to_owned(), file, image }) } else { Err(mismatches) }
    }

    /// What is in the image.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Reads and checks all page data, as an eager restore does on its way, where it is too late for another choice.
    ///
    /// # Errors
    ///
    /// A part that is damaged, or cannot be read.
    pub fn verify(&self) -> Result<(), Mismatch> {
        image::verify_data(&self.file, &self.image).map_err(Mismatch::from)
    }

    /// Becomes the captured process: does not return unless the kernel refuses.
    ///
    /// `arguments` (without a program name) and `environment` reach the service as its `Restoration`. With `CRAC_EAGER=on` in the
    /// environment, all page data are read into memory and checked before the process runs, rather than mapped; with
    /// `CRAC_EAGER=populate` they are mapped, and fetched before it runs. An image that may not
    /// be executed where it lies, and a data-only one, is restored by the calling program itself, which must have no other thread then.
    /// If that fails the process is good for nothing but to end or to execute another program.
    pub fn exec(
        self,
        arguments: impl IntoIterator<Item = OsString>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> std::io::Error {
        self.become_it(arguments, environment, false)
    }

    /// As [`exec`](Self::exec), without executing anything.
    pub(crate) fn launch(
        self,
        arguments: impl IntoIterator<Item = OsString>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> std::io::Error {
        self.become_it(arguments, environment, true)
    }

    fn become_it(
        self,
        arguments: impl IntoIterator<Item = OsString>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        launched: bool,
    ) -> std::io::Error {
        let text = |text: &OsStr| CString::new(text.as_bytes()).map_err(std::io::Error::from);
        let arguments = std::iter::once(self.path.clone().into_os_string()).chain(arguments);
        let arguments = arguments.map(|argument| text(&argument)).collect::<Result<Vec<_>, _>>();
        let environment = environment.into_iter().map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            text(&name)
        });
        let (arguments, environment) = match (arguments, environment.collect::<Result<Vec<_>, _>>()) {
            (Ok(arguments), Ok(environment)) => (arguments, environment),
            (Err(error), _) | (_, Err(error)) => return error,
        };
        if !launched && !launch::is_needed(&self.file, &self.image) {
            let error = exec::exec(self.file.as_fd(), &arguments, &environment);
            // A security policy that this program is subject to as well, but not stopped by.
            if error.kind() != std::io::ErrorKind::PermissionDenied {
                return error;
            }
        }
        launch::launch(&self.file, &self.image, &arguments, &environment)
    }
}

/// Whether the file can be trusted to be what its owner made: it belongs to this user or to root, and others may not write it.
pub fn trust(file: &File) -> Vec<Mismatch> {
    let untrusted = |what: String| Mismatch { verdict: Verdict::Untrusted, what };
    let found = match file.metadata() {
        Ok(found) => found,
        Err(error) => return vec![untrusted(format!("the image cannot be looked at: {error}"))],
    };
    let mut reasons = Vec::new();
    if !found.is_file() {
        reasons.push(untrusted("the image is not a regular file".into()));
    }
    let me = process::user_ids().map_or(u32::MAX, |[_, effective, _]| effective);
    if ![0, me].contains(&found.uid()) {
        reasons.push(untrusted(format!("the image belongs to user {}, neither me ({me}) nor root", found.uid())));
    }
    if found.mode() & 0o022 != 0 {
        reasons.push(untrusted("others may write the image; hint: chmod go-w".into()));
    }
    reasons
}

fn host(image: &Image) -> Vec<Mismatch> {
    let cold = |what: String| Mismatch { verdict: Verdict::StartCold, what };
    let header = image.header();
    let mut reasons = Vec::new();
    if u64::from(header.page_size) != crate::layout::PAGE {
        reasons.push(cold(format!("pages have {} bytes in the image", header.page_size)));
    }
    if !cpu::fits(&header.cpu, &cpu::current()) {
        reasons.push(cold("this processor lacks features, or keeps registers, other than the one of the checkpoint".into()));
    }
    let [.., code_bytes] = header.vdso.bytes;
    let is_recorded = |code: &[u8]| xxh64(code) == header.vdso.code_sum && code.len() as u64 == code_bytes;
    let same_vdso = exec::vdso().is_some_and(is_recorded);
    if let Err(what) = kernel::fit(header.clock, header.kernel, facts::kernel_version(), same_vdso) {
        reasons.push(cold(format!("{what} ({})", image.manifest().kernel)));
    }
    if !process::can_set_memory_map() {
        reasons.push(cold("this kernel was built without CONFIG_CHECKPOINT_RESTORE".into()));
    }
    let host_clocks = header.clock == crate::layout::clock::HOST;
    for (clock, name, recorded) in [
        (libc::CLOCK_MONOTONIC, "monotonic", header.captured_monotonic_ns),
        (libc::CLOCK_BOOTTIME, "boot", header.captured_boottime_ns),
    ] {
        if host_clocks && facts::clock_ns(clock) < recorded {
            reasons.push(cold(format!(
                "the {name} clock would run backwards: this host is another one, or was started after the checkpoint"
            )));
        }
    }
    reasons
}

fn privileges(image: &Image) -> Vec<Mismatch> {
    let cold = |what: String| Mismatch { verdict: Verdict::StartCold, what };
    let recorded = &image.header().privileges;
    let text = std::fs::read("/proc/self/status").unwrap_or_default();
    let Ok(here) = crac_sys::proc::ProcessStatus::parse(&text) else {
        return vec![cold("/proc/self/status cannot be read".into())];
    };
    let mut reasons = Vec::new();
    for (what, recorded, here) in [("user", recorded.uid, here.users), ("group", recorded.gid, here.groups)] {
        if recorded != here[..3] {
            reasons.push(cold(format!("the service ran as {what} {}, this is {}", recorded[1], here[1])));
        }
    }
    let [_, permitted, ..] = here.capabilities;
    if recorded.permitted & !permitted != 0 {
        let missing = recorded.permitted & !permitted;
        reasons.push(cold(format!("the service had capabilities that are missing here: {missing:#x}")));
    }
    let filters = here.seccomp_filters.unwrap_or(if here.seccomp == 0 { 0 } else { u32::MAX });
    if recorded.seccomp != 0 && filters < recorded.seccomp_filters {
        reasons.push(cold(format!("the service ran under {} seccomp filter(s), here are {filters}", recorded.seccomp_filters)));
    }
    if recorded.landlock_layers > crate::landlock::layers() {
        reasons.push(cold("the service ran in Landlock domains that are missing here".into()));
    }
    reasons
}

/// Resource limits that the service has set, and that may not be set here.
fn limits(image: &Image) -> Vec<Mismatch> {
    const CAP_SYS_RESOURCE: u64 = 24;
    let privileges = &image.header().privileges;
    if privileges.effective >> CAP_SYS_RESOURCE & 1 == 1 {
        return Vec::new();
    }
    let set = image.settings().iter().filter(|record| record.kind == setting::LIMIT);
    let (count, [_, most]) = (image.threads().len(), process::limit(libc::RLIMIT_NPROC).unwrap_or([0, u64::MAX]));
    let threads = privileges.is_too_little(most, count as u64).then(|| Mismatch {
        verdict: Verdict::StartCold,
        what: format!("the service has {count} threads, and the limit of processes (RLIMIT_NPROC) is {most}"),
    });
    let reasons = set.filter_map(|record| {
        let [resource, soft, hard, _] = record.values;
        let [_, here] = process::limit(u32::try_from(resource).ok()?).unwrap_or_default();
        let what = format!("the service had set resource limit {resource} to {soft}, here it may be at most {here}");
        (soft > hard.min(here)).then_some(Mismatch { verdict: Verdict::StartCold, what })
    });
    reasons.chain(threads).collect()
}

fn files(image: &Image) -> Vec<Mismatch> {
    let mut reasons = Vec::new();
    for (path, record) in image.file_records() {
        let what = match std::fs::metadata(path) {
            Err(error) => format!("the mapped file {path} cannot be found: {error}"),
            Ok(found) => {
                let modified = (found.mtime(), found.mtime_nsec() as u64);
                if record.is_same(found.dev(), found.ino(), found.size(), modified) || has_text(path, record) {
                    continue;
                }
                format!("the mapped file {path} has changed since the checkpoint")
            }
        };
        reasons.push(Mismatch { verdict: Verdict::StartCold, what });
    }
    reasons
}

/// Whether the program or library at `path` has the code of the recorded one.
fn has_text(path: &str, record: &FileRecord) -> bool {
    /// More would be something else than code.
    const TEXT_BYTES_MAX: u64 = 4 << 30;
    if record.flags & file::TEXT == 0 || record.text_bytes == 0 || record.text_bytes > TEXT_BYTES_MAX {
        return false;
    }
    let mut text = vec![0; record.text_bytes as usize];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut text, record.text_offset));
    read.is_ok() && xxh64(&text) == record.text_sum
}

/// Whether memory that holds code can be brought back.
fn code(file: &File, image: &Image) -> Vec<Mismatch> {
    let cold = |what: String| Mismatch { verdict: Verdict::StartCold, what };
    let mut reasons = Vec::new();
    if image.has_writable_code()
        && let Err(errno) = exec::map_writable_code()
    {
        let why = "the service has memory that is writable and executable at once, which is refused here";
        reasons.push(cold(format!("{why} (MemoryDenyWriteExecute=?): {errno}")));
    }
    if launch::is_needed(file, image) {
        reasons.extend(launch::obstacles(image).into_iter().map(cold));
    }
    reasons
}

fn build(image: &Image, program: &Executable) -> Option<Mismatch> {
    let recorded = &image.manifest().executable;
    (recorded.build_id != program.build_id).then(|| Mismatch {
        verdict: Verdict::StartCold,
        what: format!(
            "the image was made from another build of {}: {}, not {}",
            program.path.display(),
            recorded.build_id,
            program.build_id
        ),
    })
}

/// Null-terminated vectors of addresses, as exec takes them.
pub(crate) fn vector(texts: &[CString]) -> Vec<*const libc::c_char> {
    texts.iter().map(|text| text.as_ptr()).chain(std::iter::once(ptr::null())).collect()
}
