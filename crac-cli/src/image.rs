//! Images, as the verbs see them: files of the native engine; directories of CRIU's are in `image/criu.rs`.

pub(crate) mod criu;

use std::{
    ffi::OsString,
    fs::File,
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use crac_native::{
    Executable, Manifest,
    image::{Image, ImageError, Library, Map, Rest, Sizes},
    restore::{Mismatch, Restore, Verdict},
};
use serde::Serialize;

use crate::{
    demands::Demands,
    exit::Exit,
    find::{Finding, Wanted},
    output, sealed, signature,
};

/// Why an image is not used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Reason {
    #[serde(skip)]
    pub(crate) exit: Exit,
    pub(crate) what: String,
}

impl From<Mismatch> for Reason {
    fn from(mismatch: Mismatch) -> Self {
        let exit = match mismatch.verdict {
            Verdict::StartCold => Exit::StartCold,
            Verdict::Untrusted => Exit::Untrusted,
            _ => Exit::Bug,
        };
        Self { exit, what: mismatch.what }
    }
}

impl From<ImageError> for Reason {
    fn from(error: ImageError) -> Self {
        let exit = match &error {
            ImageError::Version { .. } => Exit::StartCold,
            ImageError::Inconsistent { .. } => Exit::Bug,
            ImageError::Read(_) => Exit::Failed,
            _ => Exit::Untrusted,
        };
        Self { exit, what: error.to_string() }
    }
}

/// An image that fits, open.
#[derive(Debug)]
pub(crate) enum Fitting {
    Native(Box<Restore>),
    Criu(Box<crac_criu::restore::Restore>),
}

impl Fitting {
    /// The same, once all page data were checked, where they have checksums.
    ///
    /// # Errors
    ///
    /// What is damaged.
    pub(crate) fn verified(self) -> Result<Self, Vec<Reason>> {
        match &self {
            Self::Native(image) => image.verify().map_err(|mismatch| vec![Reason::from(mismatch)])?,
            Self::Criu(_) => {}
        }
        Ok(self)
    }

    /// Becomes the captured process, or its parent that ends like it. Returns only what stood in the way.
    pub(crate) fn exec(self, arguments: Vec<OsString>, environment: Vec<(OsString, OsString)>) -> Reason {
        match self {
            Self::Native(image) => {
                let error = image.exec(arguments, environment);
                let what = format!("it cannot be brought to life: {error}");
                Reason { exit: Exit::StartCold, what }
            }
            Self::Criu(image) => criu::become_it(*image, arguments, environment),
        }
    }
}

/// Opens the image at `path` if it meets the demands and fits this host, this user and, if given, the build of `program`.
///
/// # Errors
///
/// Every reason why not, the gravest first.
pub(crate) fn open(path: &Path, program: Option<&Path>, demands: &Demands) -> Result<Fitting, Vec<Reason>> {
    if criu::is_image(path) {
        if demands.are_for_native_images() {
            let what = "signature, build, age and encryption are not known of images of CRIU".into();
            return Err(vec![Reason { exit: Exit::Untrusted, what }]);
        }
        return criu::open(path, program).map(|image| Fitting::Criu(Box::new(image)));
    }
    let program = program.map(Executable::of).transpose().map_err(|error| {
        vec![Reason { exit: Exit::StartCold, what: format!("cannot tell the build of the program: {error}") }]
    })?;
    let file = open_plain(path, &demands.identities).map_err(|reason| match reason.exit {
        Exit::Failed => vec![Reason { exit: Exit::StartCold, ..reason }],
        _ => vec![reason],
    })?;
    // First: nothing of what is in the file is believed before.
    check_signature(path, &file, demands).map_err(|reason| vec![reason])?;
    let opened = Restore::open_file(path, file, program.as_ref());
    let image = opened.map_err(|mismatches| mismatches.into_iter().map(Reason::from).collect::<Vec<_>>())?;
    let age = SystemTime::now().duration_since(image.image().captured_at()).map_err(|error| error.duration());
    let unmet = demands.unmet(&image.image().manifest().executable.build_id, age);
    if !unmet.is_empty() {
        return Err(unmet.into_iter().map(|what| Reason { exit: Exit::StartCold, what }).collect());
    }
    Ok(Fitting::Native(Box::new(image)))
}

/// Opens the image at `path`, an encrypted one decrypted in memory. Others must not have been able to write what is decrypted:
/// anybody can encrypt to a recipient.
///
/// # Errors
///
/// If it cannot be opened, or not be decrypted.
pub(crate) fn open_plain(path: &Path, identities: &[PathBuf]) -> Result<File, Reason> {
    let file = open_file(path)?;
    if !sealed::is_sealed(&file) {
        return Ok(file);
    }
    if let Some(mismatch) = crac_native::restore::trust(&file).into_iter().next() {
        return Err(mismatch.into());
    }
    sealed::open(&file, identities).map_err(|what| Reason { exit: Exit::Untrusted, what })
}

/// Looks through all of the plain image open at `file`.
///
/// # Errors
///
/// If it is none, or damaged.
pub(crate) fn find(file: &File, wanted: Wanted) -> Result<Vec<Finding>, Reason> {
    let image = Image::read(file)?;
    wanted.find(file, &image).map_err(|error| Reason { exit: Exit::Failed, what: format!("it cannot be read: {error}") })
}

fn check_signature(path: &Path, file: &File, demands: &Demands) -> Result<(), Reason> {
    let Some(key) = &demands.verify_key else { return Ok(()) };
    let signature = demands.signature.clone().unwrap_or_else(|| signature::beside(path));
    signature::verify(file, key, &signature).map_err(|what| Reason { exit: Exit::Untrusted, what })
}

/// What an image of either engine says about itself.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Inspected {
    Native(Box<Inspection>),
    Criu(Box<criu::Inspection>),
}

impl Inspected {
    /// For people; with `maps` every mapping of a native image, too.
    pub(crate) fn print(&self, maps: bool) {
        match self {
            Self::Native(inspection) => inspection.print(maps),
            Self::Criu(inspection) => inspection.print(),
        }
    }

    /// What a verification has found, in one line.
    pub(crate) fn verified(&self) -> String {
        match self {
            Self::Native(inspection) => inspection.verified(),
            Self::Criu(inspection) => inspection.verified(),
        }
    }
}

/// What an image says about itself.
#[derive(Debug, Serialize)]
pub(crate) struct Inspection {
    pub(crate) file: PathBuf,
    pub(crate) image_id: String,
    /// Of the life that was captured; a restored one has one more.
    pub(crate) generation: u64,
    pub(crate) manifest: Manifest,
    /// Length of the file, holes included.
    pub(crate) file_bytes: u64,
    /// What it takes on disk.
    pub(crate) disk_bytes: u64,
    /// Memory that comes from the image.
    pub(crate) data_bytes: u64,
    pub(crate) metadata_offset: u64,
    pub(crate) metadata_bytes: u64,
    pub(crate) data_offset: u64,
    pub(crate) mappings: usize,
    pub(crate) guards: usize,
    pub(crate) sizes: Sizes,
    pub(crate) maps: Vec<Map>,
    /// Programs and libraries whose code is in the image.
    pub(crate) libraries: Vec<Library>,
    pub(crate) descriptors: Vec<Descriptor>,
    pub(crate) threads: Vec<Thread>,
    /// Files that have to be what they were.
    pub(crate) files: Vec<String>,
    /// Whether it could be restored here and now.
    pub(crate) fits: bool,
    /// Why not.
    pub(crate) reasons: Vec<Reason>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Descriptor {
    pub(crate) number: i32,
    pub(crate) what: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct Thread {
    /// In the life that was captured.
    pub(crate) tid: i32,
    pub(crate) name: String,
}

/// Reads the image at `path` without running it.
///
/// # Errors
///
/// If it is none, or damaged.
pub(crate) fn inspect(path: &Path, identities: &[PathBuf]) -> Result<Inspected, Reason> {
    if criu::is_image(path) {
        return criu::inspect(path).map(|inspection| Inspected::Criu(Box::new(inspection)));
    }
    let file = open_plain(path, identities)?;
    describe(path, &file, &Image::read(&file)?).map(|inspection| Inspected::Native(Box::new(inspection)))
}

/// Reads every byte of the image at `path`.
///
/// # Errors
///
/// If it is none, or damaged.
pub(crate) fn verify(path: &Path, demands: &Demands) -> Result<Inspected, Reason> {
    if criu::is_image(path) {
        return inspect(path, &[]);
    }
    let file = open_plain(path, &demands.identities)?;
    check_signature(path, &file, demands)?;
    let image = crac_native::image::verify(&file)?;
    describe(path, &file, &image).map(|inspection| Inspected::Native(Box::new(inspection)))
}

fn open_file(path: &Path) -> Result<File, Reason> {
    // Whatever it is, opening it does nothing and does not wait.
    let flags = (rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::NONBLOCK).bits() as i32;
    let failed = |error: io::Error| Reason { exit: Exit::Failed, what: format!("cannot open it: {error}") };
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.is_file() {
        Ok(file)
    } else {
        Err(Reason { exit: Exit::Untrusted, what: "it is not a regular file".into() })
    }
}

fn describe(path: &Path, file: &File, image: &Image) -> Result<Inspection, Reason> {
    let failed = |error: io::Error| Reason { exit: Exit::Failed, what: format!("cannot look at it: {error}") };
    let opened = file.try_clone().map_err(failed).map(|file| Restore::open_file(path, file, None))?;
    let reasons: Vec<Reason> = opened.err().unwrap_or_default().into_iter().map(Reason::from).collect();
    Ok(Inspection {
        file: path.to_owned(),
        image_id: image.id().to_string(),
        generation: image.generation(),
        manifest: image.manifest().clone(),
        file_bytes: image.file_bytes(),
        disk_bytes: file.metadata().map_err(failed)?.blocks() * 512,
        data_bytes: image.data_bytes(),
        metadata_offset: image.metadata_offset(),
        metadata_bytes: image.metadata_bytes(),
        data_offset: image.data_offset(),
        mappings: image.mapping_count(),
        guards: image.guard_count(),
        sizes: image.sizes(),
        maps: image.maps(),
        libraries: image.libraries(file).map_err(failed)?,
        descriptors: image.descriptors().map(|(number, what)| Descriptor { number, what }).collect(),
        threads: image.threads().map(|(tid, name)| Thread { tid, name }).collect(),
        files: image.files().map(str::to_owned).collect(),
        fits: reasons.is_empty(),
        reasons,
    })
}

/// What the monotonic clocks show in a life restored from an image, in words.
fn clocks(clock: &str, downtime: &str) -> String {
    match clock {
        "none" => "those of the host".to_owned(),
        clock => format!("go on from where they stood ({clock}); downtime {downtime}"),
    }
}

impl Inspection {
    /// For people; with `maps` every mapping, too.
    fn print(&self, maps: bool) {
        let manifest = &self.manifest;
        let field = |name: &str, value: &dyn std::fmt::Display| output::line(format_args!("{name:<14}{value}"));
        field("image", &self.file.display());
        field("service", &manifest.service.name);
        field("image id", &self.image_id);
        field("generation", &self.generation);
        if let Some(parent) = manifest.service.parent {
            field("parent", &parent);
        }
        field("program", &format_args!("{} (build {})", manifest.executable.path.display(), manifest.executable.build_id));
        field("arguments", &manifest.arguments.join(" "));
        field("captured", &format_args!("{}, on {}, process {}", utc(manifest.captured_s), manifest.host, manifest.pid));
        field("kernel", &manifest.kernel);
        let form =
            if manifest.data_only { "data alone; code is that of the files below" } else { "a program, with all code in it" };
        field("form", &form);
        field("clocks", &clocks(&manifest.clock, &manifest.downtime));
        let sizes = [self.disk_bytes, self.file_bytes, self.data_bytes].map(output::mib);
        field("size", &format_args!("{} on disk, {} long, {} of memory", sizes[0], sizes[1], sizes[2]));
        let sizes = [self.sizes.anonymous, self.sizes.files, self.sizes.referenced, self.sizes.zeros].map(output::mib);
        field("memory", &format_args!("{} mappings, {} guard regions", self.mappings, self.guards));
        field("  embedded", &format_args!("{} of heap and stacks, {} of programs and files", sizes[0], sizes[1]));
        field("  elsewhere", &format_args!("{} in files that are referred to, {} zeros", sizes[2], sizes[3]));
        if maps {
            self.maps.iter().for_each(|map| output::line(format_args!("  {}", line_of(map))));
        }
        field("libraries", &self.libraries.len());
        for library in &self.libraries {
            let (name, id) = (library.name.as_deref().unwrap_or("?"), library.build_id.as_deref().unwrap_or("-"));
            output::line(format_args!("  {:<14x}{id:<42}{name}", library.start));
        }
        field("threads", &self.threads.len());
        self.threads.iter().for_each(|thread| output::line(format_args!("  {:<12}{}", thread.tid, thread.name)));
        field("descriptors", &self.descriptors.len());
        self.descriptors
            .iter()
            .for_each(|descriptor| output::line(format_args!("  {:<12}{}", descriptor.number, descriptor.what)));
        if !self.files.is_empty() {
            field("needs files", &self.files.join(", "));
        }
        if self.fits {
            field("fits here", &"yes");
        } else {
            field("fits here", &"no");
            self.reasons.iter().for_each(|reason| output::line(format_args!("  {}", reason.what)));
        }
    }

    /// What a verification has found, in one line.
    fn verified(&self) -> String {
        let (file, data) = (self.file.display(), output::mib(self.data_bytes));
        format!("{file}: header, manifest, tables and {data} of page data are as they were written")
    }
}

fn line_of(map: &Map) -> String {
    let backing = match &map.rest {
        Rest::File { path, offset } => format!("{path} from {offset:#x}"),
        _ => map.label.clone().unwrap_or_default(),
    };
    let line = format!("{:012x}-{:012x} {} {:>12} {backing}", map.start, map.end, map.protection, output::mib(map.embedded));
    line.trim_end().to_owned()
}

/// Seconds since 1970 as date and time of day, UTC.
fn utc(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years begin in March here, so that the leap day is the last of its year; 400 of them have 146 097 days.
    let day = days + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, year) = if month < 10 { (month + 3, era * 400 + year) } else { (month - 9, era * 400 + year + 1) };
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_become_dates() {
        assert_eq!(utc(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(utc(951_782_399), "2000-02-28 23:59:59 UTC");
        assert_eq!(utc(951_868_799), "2000-02-29 23:59:59 UTC");
        assert_eq!(utc(1_795_444_023), "2026-11-23 14:27:03 UTC");
        assert_eq!(utc(4_107_542_400), "2100-03-01 00:00:00 UTC");
    }
}
