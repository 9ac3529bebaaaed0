//! Images encrypted with age (age-encryption.org): their plain form exists in memory alone.

use std::{
    ffi::CString,
    fs::{File, Permissions},
    io::{self, BufReader, BufWriter, Seek, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    str::FromStr,
};

use age::{DecryptError, Decryptor, Encryptor, Identity, Recipient, x25519};
use rustix::{
    fs::{MemfdFlags, memfd_create},
    io::Errno,
};

use crate::{exit::Exit, failure::Failure};

/// How an encrypted file begins.
const MAGIC: &[u8] = b"age-encryption.org/v1\n";

/// Whether what is open at `file` is encrypted.
pub(crate) fn is_sealed(file: &File) -> bool {
    let mut start = [0; MAGIC.len()];
    file.read_exact_at(&mut start, 0).is_ok() && start == MAGIC
}

/// An empty file in memory, which only this user can open and which may be executed where any may.
///
/// # Errors
///
/// As memfd_create(2).
pub(crate) fn in_memory() -> io::Result<File> {
    let name = CString::new("crac-image")?;
    let (memfd, mode) = match memfd_create(&name, MemfdFlags::CLOEXEC | MemfdFlags::EXEC) {
        // Where `vm.memfd_noexec` is 2.
        Err(Errno::ACCESS) => (memfd_create(&name, MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL)?, 0o600),
        // Before Linux 6.3 all of them may be executed.
        Err(_) => (memfd_create(&name, MemfdFlags::CLOEXEC)?, 0o700),
        Ok(memfd) => (memfd, 0o700),
    };
    let file = File::from(memfd);
    file.set_permissions(Permissions::from_mode(mode))?;
    Ok(file)
}

/// The path under which another process of this user can open `file`.
pub(crate) fn path_of(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()))
}

/// Decrypts `file` into memory with one of the identities in the files `identities`.
///
/// # Errors
///
/// Why that is not possible, in words.
pub(crate) fn open(file: &File, identities: &[PathBuf]) -> Result<File, String> {
    if identities.is_empty() {
        return Err("the image is encrypted; give the file with the identity to decrypt it with --identity".into());
    }
    let mut known: Vec<Box<dyn Identity>> = Vec::new();
    for path in identities {
        let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let identity = x25519::Identity::from_str(line)
                .map_err(|error| format!("{} holds a line that is no X25519 identity: {error}", path.display()))?;
            known.push(Box::new(identity));
        }
    }
    let failed = |error: io::Error| format!("the image cannot be decrypted: {error}");
    let mut source = file.try_clone().map_err(failed)?;
    source.rewind().map_err(failed)?;
    let decryptor = Decryptor::new_buffered(BufReader::new(source)).map_err(|error| words(&error))?;
    let mut reader = decryptor.decrypt(known.iter().map(|identity| &**identity)).map_err(|error| words(&error))?;
    let plain = in_memory().map_err(|error| format!("there is no memory for the decrypted image: {error}"))?;
    copy_sparse(&mut reader, &plain).map_err(failed)?;
    Ok(plain)
}

/// What went wrong. The library's own words come from files that are not always there.
fn words(error: &DecryptError) -> String {
    let what = match error {
        DecryptError::NoMatchingKeys => "none of the identities belongs to one of its recipients",
        DecryptError::Io(error) => return format!("the image cannot be decrypted: {error}"),
        _ => "it is damaged, or encrypted otherwise than to X25519 recipients",
    };
    format!("the image cannot be decrypted: {what}")
}

/// Copies all of `reader`; pages of zeros become holes.
fn copy_sparse(reader: &mut impl io::Read, to: &File) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    let mut at = 0;
    loop {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match reader.read(rest) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if filled == 0 {
            return to.set_len(at);
        }
        for page in buffer.get(..filled).unwrap_or_default().chunks(4096) {
            if page.iter().any(|byte| *byte != 0) {
                to.write_all_at(page, at)?;
            }
            at += page.len() as u64;
        }
    }
}

/// Those who can decrypt an image, and the file it goes to: made before the service is asked for anything.
pub(crate) struct Envelope {
    encryptor: Encryptor,
    file: tempfile::NamedTempFile,
    path: PathBuf,
}

impl Envelope {
    /// Makes an envelope at `path` for `recipients` (`age1...`).
    ///
    /// # Errors
    ///
    /// If one of them is none, or there is no place for the file.
    pub(crate) fn new(path: &Path, recipients: &[String]) -> Result<Self, Failure> {
        let recipients = recipients.iter().map(|text| {
            x25519::Recipient::from_str(text).map_err(|error| {
                Failure::new(Exit::Usage, format!("`{text}` is not the recipient of an age X25519 identity: {error}"))
                    .hint("it begins with age1; `age-keygen` makes one")
            })
        });
        let recipients = recipients.collect::<Result<Vec<_>, _>>()?;
        let failed =
            |error: &dyn std::fmt::Display| Failure::new(Exit::Failed, format!("cannot write {}: {error}", path.display()));
        let encryptor = Encryptor::with_recipients(recipients.iter().map(|recipient| recipient as &dyn Recipient))
            .map_err(|_| failed(&"it cannot be encrypted to these recipients"))?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file =
            tempfile::Builder::new().prefix(".crac-").suffix(".tmp").tempfile_in(parent).map_err(|error| failed(&error))?;
        Ok(Self { encryptor, file, path: path.to_owned() })
    }

    /// Encrypts all of `plain` and puts it in its place, durably; returns how many bytes that are.
    ///
    /// # Errors
    ///
    /// As the system says; nothing is left behind then.
    pub(crate) fn seal(self, plain: &File) -> io::Result<u64> {
        let mut source = plain.try_clone()?;
        source.rewind()?;
        let mut writer = self.encryptor.wrap_output(BufWriter::with_capacity(1 << 20, self.file.as_file()))?;
        io::copy(&mut BufReader::with_capacity(1 << 20, source), &mut writer)?;
        writer.finish()?.flush()?;
        self.file.as_file().sync_all()?;
        let sealed = self.file.persist(&self.path).map_err(|error| error.error)?;
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent)?.sync_all()?;
        Ok(sealed.metadata()?.len())
    }
}

#[cfg(test)]
mod tests {
    use age::secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn only_the_recipient_opens_an_envelope() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let [mine, other] = ["mine", "other"].map(|name| {
            let identity = x25519::Identity::generate();
            std::fs::write(at(name), format!("# a comment\n{}\n", identity.to_string().expose_secret())).unwrap();
            identity.to_public().to_string()
        });
        let plain = in_memory().unwrap();
        plain.write_all_at(b"front", 0).unwrap();
        plain.write_all_at(b"back", 300_000).unwrap();
        let sealed = at("image.age");
        assert!(Envelope::new(&sealed, &["age1nobody".into()]).is_err());
        Envelope::new(&sealed, &[mine]).unwrap().seal(&plain).unwrap();
        let file = File::open(&sealed).unwrap();
        assert!(is_sealed(&file) && !is_sealed(&plain));
        assert!(!std::fs::read(&sealed).unwrap().windows(5).any(|window| window == b"front"));
        let opened = open(&file, &[at("mine")]).unwrap();
        assert_eq!(opened.metadata().unwrap().len(), 300_004);
        let mut back = [0; 4];
        opened.read_exact_at(&mut back, 300_000).unwrap();
        assert_eq!(&back, b"back");
        assert!(open(&file, &[at("other")]).unwrap_err().contains("cannot be decrypted"), "{other}");
        assert!(open(&file, &[]).unwrap_err().contains("--identity"));
        let mut bytes = std::fs::read(&sealed).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(at("changed"), bytes).unwrap();
        assert!(open(&File::open(at("changed")).unwrap(), &[at("mine")]).is_err(), "a changed envelope is refused");
    }
}
