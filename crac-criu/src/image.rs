//! An image: a directory with CRIU's files and `crac.json`.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, DirBuilder, File},
    io::{self, Read, Write},
    os::unix::{
        ffi::OsStringExt,
        fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::OnceLock,
    time::{SystemTime, UNIX_EPOCH},
};

use crac_core::{ImageId, ImageMetadata};
use crac_sys::proc::ProcessStatus;
use serde::{Deserialize, Serialize};
use twox_hash::XxHash64;

use crate::handover;

/// The file that makes a directory an image.
const MANIFEST: &str = "crac.json";
/// The file whose place the handover takes.
const HANDOVER: &str = "crac.handover";
/// What every directory of CRIU's holds.
const INVENTORY: &str = "inventory.img";
/// The version of the manifest.
const FORMAT: u32 = 1;
/// No manifest is longer.
const MANIFEST_BYTES_MAX: u64 = 16 << 20;

/// What an image says about itself to people and tools, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Manifest {
    /// Version of this form.
    pub format: u32,
    /// `criu`.
    pub engine: String,
    /// Name, identity and generation.
    pub service: ImageMetadata,
    /// The program of the service.
    pub executable: Executable,
    /// Seconds since 1970 at the capture.
    pub captured_s: u64,
    /// Host name at the capture.
    pub host: String,
    /// Kernel release and version at the capture.
    pub kernel: String,
    /// Process id at the capture; a restored life has the same.
    pub pid: u32,
    /// Thread ids at the capture; a restored life has the same.
    pub threads: Vec<i32>,
    /// Arguments of the first life, program name first.
    pub arguments: Vec<String>,
    /// User and group the service ran as, effective ids.
    pub user: [u32; 2],
    /// Version of CRIU that took the image.
    pub criu: String,
    /// Version of crac-criu that took the image.
    pub crac: String,
    /// Standard input, output and error in CRIU's words, as far as a restored life gets them anew.
    pub(crate) streams: [Option<String>; 3],
    /// The empty file in whose place a restored life finds what it is told, in CRIU's words.
    pub(crate) handover: String,
    /// Unix connections that come back dead: inodes.
    pub(crate) severed: Vec<u64>,
    /// Whether TCP connections come back dead.
    pub(crate) tcp_close: bool,
}

/// A program file, as it was at the capture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Executable {
    /// Where it lay.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// Checksum (XXH64) of the file, 16 hexadecimal digits: tells one build from another.
    pub build_id: String,
}

/// Why something is no image that can be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// It cannot be read.
    #[error("{what} cannot be read: {source}")]
    Read {
        /// Which file.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// The manifest is not understood.
    #[error("{MANIFEST} is not understood: {0}")]
    Manifest(String),
    /// A later crac wrote it.
    #[error("the image has version {0}, this crac reads {FORMAT}")]
    Version(u32),
    /// CRIU's part is not there.
    #[error("{0} is missing: the image is not whole")]
    NotWhole(&'static str),
}

/// An image, read.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Image {
    /// The directory.
    pub path: PathBuf,
    /// What it says about itself.
    pub manifest: Manifest,
    /// What it takes on disk.
    pub disk_bytes: u64,
    /// Memory that comes from the image.
    pub data_bytes: u64,
}

/// Whether the thing at `path` is, or claims to be, an image of this engine.
pub fn is_image(path: &Path) -> bool {
    path.join(MANIFEST).symlink_metadata().is_ok()
}

impl Image {
    /// Reads the image at `path` without running it.
    ///
    /// # Errors
    ///
    /// [`ImageError`].
    pub fn read(path: &Path) -> Result<Self, ImageError> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |source| ImageError::Read { what, source }
        };
        let file = File::open(path.join(MANIFEST)).map_err(failed(MANIFEST))?;
        let mut text = String::new();
        file.take(MANIFEST_BYTES_MAX).read_to_string(&mut text).map_err(failed(MANIFEST))?;
        let manifest = parse(&text)?;
        if !path.join(INVENTORY).is_file() {
            return Err(ImageError::NotWhole(INVENTORY));
        }
        let (mut disk_bytes, mut data_bytes) = (0, 0);
        for entry in fs::read_dir(path).map_err(failed("the directory"))?.flatten() {
            let Ok(found) = entry.metadata() else { continue };
            disk_bytes += found.blocks() * 512;
            if entry.file_name().as_encoded_bytes().starts_with(b"pages-") {
                data_bytes += found.len();
            }
        }
        Ok(Self { path: path.to_owned(), manifest, disk_bytes, data_bytes })
    }
}

/// Reads a manifest's text; total over any text.
pub(crate) fn parse(text: &str) -> Result<Manifest, ImageError> {
    /// What every version has.
    #[derive(Deserialize)]
    struct Versioned {
        format: u32,
    }
    let not_understood = |error: serde_json::Error| ImageError::Manifest(error.to_string());
    match serde_json::from_str(text).map_err(not_understood)? {
        Versioned { format: FORMAT } => serde_json::from_str(text).map_err(not_understood),
        Versioned { format } => Err(ImageError::Version(format)),
    }
}

impl Executable {
    /// Looks at the program at `path`. Reads the whole file.
    ///
    /// # Errors
    ///
    /// What reading the file says.
    pub fn of(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let mut sum = XxHash64::with_seed(0);
        let mut buffer = vec![0; 256 * 1024];
        let mut bytes = 0;
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                read => {
                    bytes += read as u64;
                    std::hash::Hasher::write(&mut sum, &buffer[..read]);
                }
            }
        }
        Ok(Self { path: path.to_owned(), bytes, build_id: format!("{:016x}", std::hash::Hasher::finish(&sum)) })
    }

    /// The program of this process, looked at once.
    pub(crate) fn own() -> io::Result<&'static Self> {
        static OWN: OnceLock<Executable> = OnceLock::new();
        if let Some(own) = OWN.get() {
            return Ok(own);
        }
        let own = Self::of_process(std::process::id())?;
        Ok(OWN.get_or_init(|| own))
    }

    /// The program of the process `pid`.
    pub(crate) fn of_process(pid: u32) -> io::Result<Self> {
        // The link leads to the running file even when its name now belongs to another build.
        let link = PathBuf::from(format!("/proc/{pid}/exe"));
        let mut found = Self::of(&link)?;
        found.path = fs::read_link(link)?;
        Ok(found)
    }
}

/// An image in the making: a directory aside of its final place.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) aside: PathBuf,
    pub(crate) parent: PathBuf,
}

impl Draft {
    /// Makes the directory for the image that will be at `path`.
    pub(crate) fn new(path: &Path, id: ImageId) -> io::Result<Self> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let parent = path.parent().unwrap_or(Path::new("/")).to_owned();
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{id}"));
        let aside = parent.join(hidden);
        DirBuilder::new().mode(0o700).create(&aside)?;
        Ok(Self { aside, parent })
    }

    /// Makes the handover's file, which is empty unless this is a restored life.
    pub(crate) fn make_handover(&self) -> io::Result<File> {
        let empty = self.aside.join(HANDOVER);
        File::options().write(true).create_new(true).mode(0o600).open(&empty)?;
        File::open(empty)
    }

    /// The handover's file in CRIU's words.
    pub(crate) fn handover_key(&self) -> String {
        handover::key(self.aside.join(HANDOVER).as_os_str())
    }

    pub(crate) fn write_manifest(&self, manifest: &Manifest) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(manifest)?;
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(self.aside.join(MANIFEST))?;
        file.write_all(&text)
    }

    /// CRIU's log of the capture, as far as it was written.
    pub(crate) fn log(&self, name: &str) -> String {
        let bytes = fs::read(self.aside.join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Removes it. Nothing is there any more if it was published.
    pub(crate) fn discard(self) {
        // What cannot be removed has no name that anybody looks for.
        let _ = fs::remove_dir_all(&self.aside);
    }
}

impl Manifest {
    /// Of this process, before it is captured.
    pub(crate) fn of_this(service: ImageMetadata, criu: String) -> io::Result<Self> {
        Self::of(std::process::id(), Executable::own()?.clone(), service, criu)
    }

    /// Of the process `pid`, which runs `executable`, before it is captured.
    pub(crate) fn of(pid: u32, executable: Executable, service: ImageMetadata, criu: String) -> io::Result<Self> {
        let line = |path: &str| fs::read_to_string(path).map(|text| text.trim_end().to_owned());
        let arguments = fs::read(format!("/proc/{pid}/cmdline"))?;
        let threads = fs::read_dir(format!("/proc/{pid}/task"))?.flatten();
        let status = fs::read(format!("/proc/{pid}/status"))?;
        let status = ProcessStatus::parse(&status).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let user = [status.users[1], status.groups[1]];
        Ok(Self {
            format: FORMAT,
            engine: "criu".to_owned(),
            service,
            executable,
            captured_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            host: line("/proc/sys/kernel/hostname")?,
            kernel: line("/proc/version")?,
            pid,
            threads: threads.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect(),
            arguments: arguments
                .split(|byte| *byte == 0)
                .filter(|argument| !argument.is_empty())
                .map(|argument| OsString::from_vec(argument.to_vec()).to_string_lossy().into_owned())
                .collect(),
            user,
            criu,
            crac: env!("CARGO_PKG_VERSION").to_owned(),
            streams: [None, None, None],
            handover: String::new(),
            severed: Vec::new(),
            tcp_close: false,
        })
    }
}

/// Every file of the image at `path` with its owner and mode, the directory first.
pub(crate) fn files(path: &Path) -> io::Result<Vec<(OsString, fs::Metadata)>> {
    let mut found = vec![(OsStr::new(".").to_owned(), path.symlink_metadata()?)];
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        found.push((entry.file_name(), entry.metadata()?));
    }
    Ok(found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest::of_this(ImageMetadata::new("orders", ImageId([7; 16]), 3, None), "4.2.1".to_owned()).unwrap()
    }

    #[test]
    fn a_manifest_says_who_is_captured() {
        let manifest = manifest();
        assert_eq!(manifest.pid, std::process::id());
        assert!(manifest.threads.contains(&(std::process::id() as i32)));
        assert_eq!(parse(&serde_json::to_string(&manifest).unwrap()).unwrap(), manifest);
    }

    #[test]
    fn what_is_no_manifest_is_told_from_a_later_one() {
        assert!(matches!(parse("{}"), Err(ImageError::Manifest(_))));
        assert!(matches!(parse("rubbish"), Err(ImageError::Manifest(_))));
        assert!(matches!(parse("{\"format\":9}"), Err(ImageError::Version(9))));
        assert!(matches!(parse("{\"format\":1}"), Err(ImageError::Manifest(_))));
    }

    #[test]
    fn a_directory_is_an_image_when_both_parts_are_there() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_image(dir.path()));
        let draft = Draft::new(&dir.path().join("web.crac"), ImageId([1; 16])).unwrap();
        draft.write_manifest(&manifest()).unwrap();
        assert!(is_image(&draft.aside));
        assert!(matches!(Image::read(&draft.aside), Err(ImageError::NotWhole(_))));
        fs::write(draft.aside.join(INVENTORY), "x").unwrap();
        fs::write(draft.aside.join("pages-1.img"), [0; 5000]).unwrap();
        let image = Image::read(&draft.aside).unwrap();
        assert_eq!((image.data_bytes, image.manifest.service.generation), (5000, 3));
        assert_eq!(draft.aside.metadata().unwrap().mode() & 0o777, 0o700);
        draft.discard();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn builds_are_told_apart_by_their_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("program");
        fs::write(&file, "").unwrap();
        // The checksum of nothing, by the definition of XXH64.
        assert_eq!(Executable::of(&file).unwrap().build_id, "ef46db3751d8e999");
        fs::write(&file, "x").unwrap();
        assert_ne!(Executable::of(&file).unwrap().build_id, "ef46db3751d8e999");
    }
}
