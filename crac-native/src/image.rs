//! Reading an image without running it.
//!
//! [`decode`] takes the front of the file, up to the end of the metadata, from whatever source: it is total (every input gives
//! a value or an error), bounded (it looks at each byte a bounded number of times and allocates no more than the input), and
//! accepts nothing that the stub would have to trust. [`verify`] also reads all page data.

mod contents;

use std::{
    fs::File,
    num::NonZero,
    os::unix::fs::FileExt,
    panic::resume_unwind,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, SystemTime},
};

pub use contents::{Library, Map, Rest, Sizes};
use crac_core::ImageId;

use crate::{
    descriptors,
    layout::{
        ActionRecord, BLOCK, Boot, FileRecord, HANDOVER_BYTES_MAX, Header, MAGIC, MappingRecord, ObjectRecord, PAGE, RangeRecord,
        RunRecord, STAGING_BYTES, Section, SettingRecord, Text, ThreadRecord, Trial, VERSION, advice, block_count, block_of,
        clock,
        descriptors::{DescriptorRecord, Memfd, kind, sound},
        downtime, place_data, run,
        xxh64::xxh64,
    },
    manifest::Manifest,
    record::{Record, records},
    stub::ELF_HEADER_BYTES,
};

/// The most bytes that may lie in front of the page data.
pub const FRONT_BYTES_MAX: u64 = 512 << 20;
/// The first address that a mapping cannot have.
const ADDRESSES_END: u64 = 0x7fff_ffff_f000;

/// What an image holds besides page data; every part is consistent with every other.
#[derive(Debug, Clone)]
pub struct Image {
    header: Header,
    manifest: Manifest,
    mappings: Vec<MappingRecord>,
    runs: Vec<RunRecord>,
    guards: Vec<RangeRecord>,
    files: Vec<(String, FileRecord)>,
    threads: Vec<ThreadRecord>,
    descriptors: Vec<DescriptorRecord>,
    descriptor_blob: Vec<u8>,
    settings: Vec<SettingRecord>,
    object_runs: Vec<RunRecord>,
    sums: Vec<u64>,
}

impl Image {
    /// Reads and decodes the front of an image file.
    ///
    /// # Errors
    ///
    /// [`ImageError`].
    pub fn read(file: &File) -> Result<Self, ImageError> {
        let mut boot = [0; (ELF_HEADER_BYTES as usize) + size_of::<Boot>()];
        file.read_exact_at(&mut boot, 0).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => ImageError::NotAnImage,
            _ => ImageError::Read(error),
        })?;
        let boot = read_boot(&boot)?;
        let found = file.metadata().map_err(ImageError::Read)?.len();
        if found != boot.file_bytes {
            return Err(ImageError::Size { found, expected: boot.file_bytes });
        }
        let front = front_bytes(&boot)?;
        let mut bytes = vec![0; front];
        file.read_exact_at(&mut bytes, 0).map_err(ImageError::Read)?;
        decode(&bytes)
    }

    /// What the image says about itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The image's identity.
    pub fn id(&self) -> ImageId {
        ImageId(self.header.image_id)
    }

    /// Generation of the captured life.
    pub fn generation(&self) -> u64 {
        self.header.generation
    }

    /// Wall-clock time of the capture.
    pub fn captured_at(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_nanos(self.header.captured_realtime_ns)
    }

    /// Size of the file in bytes, holes included.
    pub fn file_bytes(&self) -> u64 {
        self.header.file_bytes
    }

    /// Where header, manifest and tables begin in the file.
    pub fn metadata_offset(&self) -> u64 {
        self.header.metadata_offset
    }

    /// Bytes of header, manifest and tables.
    pub fn metadata_bytes(&self) -> u64 {
        self.header.metadata_bytes
    }

    /// Where the page data begin in the file.
    pub fn data_offset(&self) -> u64 {
        self.header.data_offset
    }

    /// Bytes of memory that come from the image.
    pub fn data_bytes(&self) -> u64 {
        self.runs.iter().chain(&self.object_runs).map(|run| run.end - run.start).sum()
    }

    /// How many mappings the restored process gets, at most.
    pub fn mapping_count(&self) -> usize {
        self.mappings.len() + self.runs.len()
    }

    /// Guard regions that are installed again.
    pub fn guard_count(&self) -> usize {
        self.guards.len()
    }

    /// Whether memory that holds code is in the image: changed text, or code made at run time.
    pub(crate) fn has_code(&self) -> bool {
        self.runs.iter().any(|run| run.protection & libc::PROT_EXEC as u32 != 0)
    }

    /// Whether some memory is writable and executable at once.
    pub(crate) fn has_writable_code(&self) -> bool {
        let both = (libc::PROT_WRITE | libc::PROT_EXEC) as u32;
        let protections =
            self.mappings.iter().map(|mapping| mapping.protection).chain(self.runs.iter().map(|run| run.protection));
        protections.into_iter().any(|protection| protection & both == both)
    }

    /// How many descriptors are restored.
    pub fn descriptor_count(&self) -> usize {
        self.descriptors.len()
    }

    /// The descriptors that are restored: number and what it is.
    pub fn descriptors(&self) -> impl Iterator<Item = (i32, String)> + '_ {
        self.descriptors.iter().map(|record| (record.number, descriptors::describe(record, &self.descriptor_blob)))
    }

    /// What is wrong with the files that were open; nothing if all are what they were.
    pub(crate) fn changed_files(&self) -> Vec<String> {
        descriptors::changed_files(&self.descriptors, &self.descriptor_blob)
    }

    /// The threads: id in the captured life and name, the main thread first.
    pub fn threads(&self) -> impl ExactSizeIterator<Item = (i32, String)> + '_ {
        self.threads.iter().map(|thread| {
            let name = thread.name.split(|byte| *byte == 0).next().unwrap_or_default();
            (thread.tid, String::from_utf8_lossy(name).into_owned())
        })
    }

    /// Paths of files that must be unchanged at the restore because the image refers to them.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|(path, _)| path.as_str())
    }

    pub(crate) fn settings(&self) -> &[SettingRecord] {
        &self.settings
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    pub(crate) fn file_records(&self) -> &[(String, FileRecord)] {
        &self.files
    }
}

/// Why bytes are not an image that can be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The magic is missing: some other file.
    #[error("this is not an image of crac")]
    NotAnImage,
    /// Written by another version of the format.
    #[error("the image has format version {found}, this program reads version {VERSION}")]
    Version {
        /// The version found.
        found: u32,
    },
    /// Cut off, or something was added.
    #[error("the image has {found} bytes instead of {expected}")]
    Size {
        /// Bytes found.
        found: u64,
        /// Bytes the image says it has.
        expected: u64,
    },
    /// A checksum does not match.
    #[error("{what} of the image is damaged: its checksum does not match")]
    Damaged {
        /// Which part.
        what: String,
    },
    /// The parts contradict each other although their checksums match.
    #[error("the image contradicts itself: {what}")]
    Inconsistent {
        /// What is wrong.
        what: &'static str,
    },
    /// The file cannot be read.
    #[error("the image cannot be read: {0}")]
    Read(#[source] std::io::Error),
}

/// Decodes the front of an image: everything up to the page data.
///
/// # Errors
///
/// [`ImageError`]; never panics.
pub fn decode(bytes: &[u8]) -> Result<Image, ImageError> {
    let boot = read_boot(bytes)?;
    let front = front_bytes(&boot)?;
    let bytes = bytes.get(..front).ok_or(ImageError::Size { found: bytes.len() as u64, expected: boot.file_bytes })?;
    let (stub, metadata) = bytes
        .split_at_checked(usize::try_from(boot.metadata_offset).unwrap_or(usize::MAX))
        .ok_or(ImageError::Inconsistent { what: "the metadata lies outside the file" })?;
    let header = Header::read(metadata).ok_or(ImageError::Damaged { what: "the header".into() })?;
    if header.magic != MAGIC {
        return Err(ImageError::Damaged { what: "the header".into() });
    }
    if header.version != VERSION {
        return Err(ImageError::Version { found: header.version });
    }
    let damaged = |what: &str| Err(ImageError::Damaged { what: what.into() });
    let blank = Header { header_sum: 0, ..header };
    if header.header_bytes as usize != size_of::<Header>() || xxh64(blank.bytes()) != header.header_sum {
        return damaged("the header");
    }
    if xxh64(metadata.get(size_of::<Header>()..).unwrap_or_default()) != header.tables_sum {
        return damaged("a table");
    }
    if xxh64(stub) != header.front_sum {
        return damaged("the restorer");
    }
    assemble(header, &boot, metadata)
}

/// Puts the checked parts together.
fn assemble(header: Header, boot: &Boot, metadata: &[u8]) -> Result<Image, ImageError> {
    let wrong = |what| ImageError::Inconsistent { what };
    let ensure = |is: bool, what| if is { Ok(()) } else { Err(wrong(what)) };
    let section = |section: Section| {
        let start = usize::try_from(section.offset).ok()?;
        metadata.get(start..start.checked_add(usize::try_from(section.bytes).ok()?)?)
    };
    let outside = "a table lies outside the metadata";
    ensure(
        header.metadata_offset == boot.metadata_offset
            && header.metadata_bytes == boot.metadata_bytes
            && header.metadata_at == boot.metadata_at
            && header.file_bytes == boot.file_bytes
            && boot.launched_with == 0
            && header.metadata_offset.checked_add(header.metadata_bytes) == Some(header.data_offset),
        "header and restorer disagree",
    )?;
    let zone = header
        .zone_start
        .checked_add(header.metadata_at.wrapping_sub(header.zone_start))
        .filter(|at| *at == header.metadata_at && *at > header.zone_start)
        .and_then(|at| at.checked_add(header.metadata_bytes))
        .filter(|at| *at == header.staging_at)
        .and_then(|at| at.checked_add(STAGING_BYTES))
        .filter(|at| *at == header.handover_at)
        .and_then(|at| at.checked_add(HANDOVER_BYTES_MAX))
        .filter(|at| *at == header.zone_end && *at < ADDRESSES_END);
    ensure(zone.is_some() && header.zone_start.is_multiple_of(PAGE), "the restorer's address range")?;
    let vdso_bytes = header.vdso.bytes.iter().try_fold(0_u64, |sum, bytes| sum.checked_add(*bytes));
    ensure(
        vdso_bytes.is_some_and(|bytes| bytes > 0 && bytes <= STAGING_BYTES)
            && header.vdso.bytes.iter().all(|bytes| bytes.is_multiple_of(PAGE))
            && header.vdso.start.is_multiple_of(PAGE),
        "the vdso's place",
    )?;

    let mappings: Vec<MappingRecord> = records(section(header.mappings).ok_or(wrong(outside))?).ok_or(wrong(outside))?;
    let runs: Vec<RunRecord> = records(section(header.runs).ok_or(wrong(outside))?).ok_or(wrong(outside))?;
    let guards: Vec<RangeRecord> = records(section(header.guards).ok_or(wrong(outside))?).ok_or(wrong(outside))?;
    let files: Vec<FileRecord> = records(section(header.files).ok_or(wrong(outside))?).ok_or(wrong(outside))?;
    let threads: Vec<ThreadRecord> = records(section(header.threads).ok_or(wrong(outside))?).ok_or(wrong(outside))?;
    let actions: Vec<ActionRecord> = records(section(header.actions).ok_or(wrong(outside))?).ok_or(wrong(outside))?;
    let descriptors: Vec<DescriptorRecord> = records(section(header.descriptors).ok_or(wrong(outside))?).ok_or(wrong(outside))?;
    let settings: Vec<SettingRecord> = records(section(header.settings).ok_or(wrong(outside))?).ok_or(wrong(outside))?;
    let objects: Vec<ObjectRecord> = records(section(header.objects).ok_or(wrong(outside))?).ok_or(wrong(outside))?;
    let object_runs: Vec<RunRecord> = records(section(header.object_runs).ok_or(wrong(outside))?).ok_or(wrong(outside))?;
    let sums: Vec<u64> = records(section(header.sums).ok_or(wrong(outside))?).ok_or(wrong(outside))?;
    let owners: Vec<u64> = records(section(header.owners).ok_or(wrong(outside))?).ok_or(wrong(outside))?;
    ensure(owners.iter().all(|at| *at == 0 || has_mutex(&runs, *at)), "the place of a held mutex")?;
    let descriptor_blob = section(header.descriptor_blob).ok_or(wrong(outside))?;
    ensure(sound(&descriptors, descriptor_blob), "the descriptors")?;
    let greatest = descriptors.last().map_or(-1, |record| record.number);
    ensure(header.process.descriptor_max >= greatest, "the greatest descriptor")?;
    let auxv = section(header.auxv).ok_or(wrong(outside))?;
    ensure(auxv.len().is_multiple_of(16), "the auxiliary vector")?;
    let text = section(header.text).ok_or(wrong(outside))?;
    let text_at = |at: Text| {
        let (start, len) = (at.offset as usize, at.len as usize);
        let bytes = text.get(start..start.checked_add(len)?)?;
        (text.get(start + len) == Some(&0) && !bytes.contains(&0)).then(|| String::from_utf8_lossy(bytes).into_owned())
    };

    let free = |start: u64, end: u64| end <= header.zone_start || start >= header.zone_end;
    let ranges_fit = |ranges: &mut dyn Iterator<Item = (u64, u64)>| {
        let mut behind = 0;
        let mut fit = true;
        for (start, end) in ranges {
            fit &=
                start >= behind && start < end && end <= ADDRESSES_END && start.is_multiple_of(PAGE) && end.is_multiple_of(PAGE);
            fit &= free(start, end);
            behind = end;
        }
        fit
    };
    ensure(ranges_fit(&mut mappings.iter().map(|mapping| (mapping.start, mapping.end))), "the mappings' addresses")?;
    ensure(ranges_fit(&mut runs.iter().map(|run| (run.start, run.end))), "the runs' addresses")?;
    ensure(ranges_fit(&mut guards.iter().map(|guard| (guard.start, guard.end))), "the guards' addresses")?;
    ensure(header.clock <= clock::TIME_NAMESPACE && header.downtime <= downtime::ELAPSED, "the clocks")?;
    let vdso_end = header.vdso.start.saturating_add(vdso_bytes.unwrap_or(0));
    let is_apart = |start: u64, end: u64| end <= header.vdso.start || vdso_end <= start;
    let mut taken =
        mappings.iter().map(|mapping| (mapping.start, mapping.end)).chain(runs.iter().map(|run| (run.start, run.end)));
    let is_alone = taken.all(|(start, end)| is_apart(start, end));
    ensure(free(header.vdso.start, vdso_end) && vdso_end <= ADDRESSES_END && is_alone, "the vdso's place")?;
    for mapping in &mappings {
        let anonymous = mapping.flags & libc::MAP_ANONYMOUS as u32 != 0;
        let referred = if mapping.advice & advice::OBJECT != 0 { objects.len() } else { files.len() };
        ensure(anonymous || (mapping.file as usize) < referred, "a mapping's file")?;
        ensure(mapping.protection <= 7 && mapping.flags & libc::MAP_FIXED as u32 == 0, "a mapping's flags")?;
    }
    // Where the page data of a run ends, if they are where they belong.
    let behind = |run: &RunRecord, free_at: u64| {
        let at = place_data(run.start, run.end, free_at).filter(|at| *at == run.data_offset && at.is_multiple_of(PAGE))?;
        at.checked_add(run.end - run.start)
    };
    let mut data_at = header.data_offset;
    for record in &runs {
        ensure(record.protection <= 7 && record.flags & !(run::COPY | run::ANONYMOUS) == 0, "a run's flags")?;
        data_at = behind(record, data_at).ok_or(wrong("a run's place in the file"))?;
    }
    ensure(
        runs.iter().chain(&object_runs).all(|run| run.end.checked_sub(run.start).is_some_and(|bytes| run.data_bytes <= bytes)),
        "how much there is in a run",
    )?;
    for record in &object_runs {
        let whole = record.start.is_multiple_of(PAGE) && record.end.is_multiple_of(PAGE) && record.start < record.end;
        ensure(whole && record.end <= i64::MAX as u64 && (record.protection as usize) < objects.len(), "a run of shared memory")?;
        ensure(record.flags == 0, "the flags of shared memory")?;
        data_at = behind(record, data_at).ok_or(wrong("the place of shared memory in the file"))?;
    }
    ensure(data_at == header.file_bytes, "the size of the page data")?;
    ensure(sums.len() as u64 == block_count(header.data_offset, data_at), "the checksums of the page data")?;
    ensure(header.eager <= 1 && header.reserved == 0, "the way to restore")?;
    ensure(objects.iter().all(|object| text_at(object.name).is_some()), "the name of shared memory")?;
    ensure(
        descriptors.iter().filter(|record| record.kind == kind::MEMFD).all(|record| {
            let detail = record.detail::<Memfd>(descriptor_blob);
            detail.is_some_and(|detail| objects.iter().any(|object| object.inode == detail.inode))
        }),
        "a memfd's memory",
    )?;
    ensure(!threads.is_empty(), "there is no thread")?;
    ensure(
        settings.iter().all(|record| record.tid == 0 || threads.iter().any(|thread| thread.tid == record.tid)),
        "a setting's thread",
    )?;
    ensure(
        threads.iter().all(|thread| {
            thread.resume_sp > PAGE
                && thread.resume_sp < ADDRESSES_END
                && thread.resume_ip < ADDRESSES_END
                && thread.name[15] == 0
        }),
        "a thread's state",
    )?;
    ensure(
        actions.is_sorted_by_key(|action| action.signal) && actions.iter().all(|action| (1..=64).contains(&action.signal)),
        "the signals' dispositions",
    )?;
    text_at(header.process.working_directory).ok_or(wrong("the working directory"))?;
    let files = files.into_iter().map(|file| Some((text_at(file.path)?, file))).collect::<Option<Vec<_>>>();
    let manifest = section(header.manifest).ok_or(wrong(outside))?;
    Ok(Image {
        manifest: serde_json::from_slice(manifest).map_err(|_| wrong("the manifest"))?,
        mappings,
        runs,
        guards,
        files: files.ok_or(wrong("a file's path"))?,
        threads,
        descriptors,
        descriptor_blob: descriptor_blob.to_vec(),
        settings,
        object_runs,
        sums,
        header,
    })
}

/// Whether a mutex of the C library can be at `at` in the memory of the runs.
fn has_mutex(runs: &[RunRecord], at: u64) -> bool {
    const MUTEX_BYTES: u64 = 40;
    let Some(end) = at.checked_add(MUTEX_BYTES) else { return false };
    at.is_multiple_of(8) && runs.iter().any(|run| run.start <= at && end <= run.end)
}

/// Checks every byte of an image file, page data too. Reads all of it, with as many threads as there are processors.
///
/// # Errors
///
/// [`ImageError`]; a part that is wrong.
pub fn verify(file: &File) -> Result<Image, ImageError> {
    let image = Image::read(file)?;
    verify_data(file, &image)?;
    Ok(image)
}

/// Checks the page data of `image`, which was read from `file`.
pub(crate) fn verify_data(file: &File, image: &Image) -> Result<(), ImageError> {
    let next = AtomicU64::new(0);
    let check = || {
        let mut buffer = vec![0; BLOCK as usize];
        loop {
            let number = next.fetch_add(1, Relaxed);
            let Some(sum) = image.sums.get(usize::try_from(number).unwrap_or(usize::MAX)) else { return Ok(()) };
            let (start, end) = block_of(image.header.data_offset, image.header.file_bytes, number);
            let block = &mut buffer[..(end - start) as usize];
            file.read_exact_at(block, start).map_err(ImageError::Read)?;
            if xxh64(block) != *sum {
                return Err(ImageError::Damaged { what: format!("page data (bytes {start} to {end} of the file)") });
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(image.sums.len());
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map_while(|_| std::thread::Builder::new().spawn_scoped(scope, check).ok()).collect();
        let own = check();
        let all = others.into_iter().map(|other| other.join().unwrap_or_else(|panic| resume_unwind(panic)));
        all.fold(own, Result::and)
    })
}

/// Has the restores of an image in memory fail, or stop, where `trial` says.
#[doc(hidden)]
pub fn set_trial(bytes: &mut [u8], trial: Trial) {
    let Some(metadata) = read_boot(bytes).ok().and_then(|boot| bytes.get_mut(boot.metadata_offset as usize..)) else { return };
    let Some(header) = Header::read(metadata) else { return };
    if let Some(place) = metadata.get_mut(..size_of::<Header>()) {
        place.copy_from_slice(Header { trial, ..header }.bytes());
    }
    reseal(bytes);
}

/// Makes the checksums of changed bytes right again, so that tests and the fuzzer get past them.
#[doc(hidden)]
pub fn reseal(bytes: &mut [u8]) {
    let Ok(boot) = read_boot(bytes) else { return };
    let Ok(front) = front_bytes(&boot) else { return };
    let Some(bytes) = bytes.get_mut(..front) else { return };
    let Some((stub, metadata)) = bytes.split_at_mut_checked(boot.metadata_offset as usize) else { return };
    let Some(mut header) = Header::read(metadata) else { return };
    (header.magic, header.version, header.header_bytes) = (MAGIC, VERSION, size_of::<Header>() as u32);
    header.tables_sum = xxh64(metadata.get(size_of::<Header>()..).unwrap_or_default());
    header.front_sum = xxh64(stub);
    header.header_sum = 0;
    header.header_sum = xxh64(header.bytes());
    if let Some(place) = metadata.get_mut(..size_of::<Header>()) {
        place.copy_from_slice(header.bytes());
    }
}

fn read_boot(bytes: &[u8]) -> Result<Boot, ImageError> {
    let is_elf = bytes.starts_with(b"\x7fELF");
    let boot = bytes.get(ELF_HEADER_BYTES as usize..).and_then(Boot::read);
    boot.filter(|boot| is_elf && boot.magic == MAGIC).ok_or(ImageError::NotAnImage)
}

/// Bytes in front of the page data, within bounds.
fn front_bytes(boot: &Boot) -> Result<usize, ImageError> {
    let damaged = || ImageError::Damaged { what: "the restorer".into() };
    let front = boot.metadata_offset.checked_add(boot.metadata_bytes).ok_or_else(damaged)?;
    let whole = boot.metadata_offset.is_multiple_of(PAGE) && boot.metadata_bytes.is_multiple_of(PAGE);
    let fits = whole
        && boot.metadata_offset >= 2 * PAGE
        && boot.metadata_bytes >= PAGE
        && front <= FRONT_BYTES_MAX
        && front <= boot.file_bytes;
    if fits { usize::try_from(front).map_err(|_| damaged()) } else { Err(damaged()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mutex_lies_inside_of_a_run_and_none_at_the_end_of_all_addresses() {
        let runs = [RunRecord { start: PAGE, end: 2 * PAGE, ..RunRecord::default() }];
        assert!(has_mutex(&runs, PAGE) && has_mutex(&runs, 2 * PAGE - 40));
        // The last one used to overflow.
        for at in [PAGE - 8, PAGE + 4, 2 * PAGE - 32, u64::MAX - 7] {
            assert!(!has_mutex(&runs, at), "{at:#x}");
        }
    }
}
