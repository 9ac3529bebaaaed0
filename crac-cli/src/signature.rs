//! Signatures over whole images: Ed25519ph (RFC 8032) over the SHA-512 of every byte, in a file beside the image.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use ed25519_dalek::{
    Signature, SigningKey, VerifyingKey,
    pkcs8::{DecodePrivateKey, DecodePublicKey, EncodePrivateKey, EncodePublicKey, spki::der::pem::LineEnding},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha512};

use crate::{exit::Exit, failure::Failure};

/// Keeps a signature of an image from meaning anything elsewhere.
const CONTEXT: &[u8] = b"crac image v1";
/// The longest signature or key file that is read, in bytes.
const SMALL_MAX: u64 = 16 * 1024;

/// A signature file.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    algorithm: String,
    /// 128 hexadecimal digits.
    signature: String,
}

/// Where the signature of `image` is, unless somebody says otherwise.
pub(crate) fn beside(image: &Path) -> PathBuf {
    let mut name = image.as_os_str().to_owned();
    name.push(".sig");
    name.into()
}

/// Writes a new key pair: the secret key to `path`, readable by its owner alone, the public one beside it as `.pub`.
///
/// # Errors
///
/// If one of them is there already or cannot be written.
pub(crate) fn generate(path: &Path) -> Result<PathBuf, Failure> {
    let mut secret = [0; 32];
    let mut filled = 0;
    while let Some(rest) = secret.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())
            .map_err(|errno| Failure::new(Exit::Failed, format!("the kernel gives no random bytes: {errno}")))?;
    }
    let key = SigningKey::from_bytes(&secret);
    let text = |error: &dyn std::fmt::Display| Failure::new(Exit::Bug, format!("cannot write down a key: {error}"));
    let private = key.to_pkcs8_pem(LineEnding::LF).map_err(|error| text(&error))?;
    let public = key.verifying_key().to_public_key_pem(LineEnding::LF).map_err(|error| text(&error))?;
    let mut public_path = path.as_os_str().to_owned();
    public_path.push(".pub");
    let public_path = PathBuf::from(public_path);
    create(path, 0o600, private.as_bytes())?;
    create(&public_path, 0o644, public.as_bytes())?;
    Ok(public_path)
}

/// Signs what is open at `image` and puts the signature at `path`.
///
/// # Errors
///
/// If the key cannot be used or something cannot be read or written.
pub(crate) fn sign(image: &File, key: &Path, path: &Path) -> Result<(), Failure> {
    let unusable = |error: &dyn std::fmt::Display| {
        Failure::new(Exit::Failed, format!("cannot use the key {}: {error}", key.display()))
            .hint("`crac keygen` makes one; any Ed25519 key in PKCS#8 PEM will do")
    };
    let text = read_small(key).map_err(|error| unusable(&error))?;
    let secret = SigningKey::from_pkcs8_pem(&text).map_err(|error| unusable(&error))?;
    let digest = digest(image).map_err(|error| Failure::new(Exit::Failed, format!("cannot read the image: {error}")))?;
    let signature = secret.sign_prehashed(digest, Some(CONTEXT)).map_err(|error| unusable(&error))?;
    let signature = signature.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let record = serde_json::to_vec(&Record { algorithm: "ed25519ph".into(), signature })
        .map_err(|error| Failure::new(Exit::Bug, format!("cannot write down a signature: {error}")))?;
    // A signature of an earlier image of that name is of no use any more.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Failure::new(Exit::Failed, format!("cannot replace {}: {error}", path.display())))
        }
        _ => create(path, 0o644, &record),
    }
}

/// Whether the signature at `path` is that of `key` over every byte of what is open at `image`.
///
/// # Errors
///
/// Why not, or why that cannot be told.
pub(crate) fn verify(image: &File, key: &Path, path: &Path) -> Result<(), String> {
    let text = read_small(key).map_err(|error| format!("the key {} cannot be read: {error}", key.display()))?;
    let key = VerifyingKey::from_public_key_pem(&text)
        .map_err(|error| format!("the key {} is no Ed25519 public key in PEM: {error}", key.display()))?;
    let text = read_small(path).map_err(|error| format!("the signature {} cannot be read: {error}", path.display()))?;
    let record: Record =
        serde_json::from_str(&text).map_err(|error| format!("the signature {} is none: {error}", path.display()))?;
    let signature = (record.algorithm == "ed25519ph").then(|| bytes_of(&record.signature)).flatten();
    let signature = signature.ok_or_else(|| format!("the signature {} is of a kind this crac does not know", path.display()))?;
    let digest = digest(image).map_err(|error| format!("the image cannot be read: {error}"))?;
    key.verify_prehashed_strict(digest, Some(CONTEXT), &Signature::from_bytes(&signature))
        .map_err(|_| format!("the signature {} is not that of this key over this image", path.display()))
}

fn digest(file: &File) -> io::Result<Sha512> {
    let (mut digest, mut buffer, mut at) = (Sha512::new(), vec![0; 1 << 20], 0);
    loop {
        match file.read_at(&mut buffer, at)? {
            0 => return Ok(digest),
            read => {
                digest.update(buffer.get(..read).unwrap_or_default());
                at += read as u64;
            }
        }
    }
}

fn bytes_of(digits: &str) -> Option<[u8; 64]> {
    let mut bytes = [0; 64];
    if digits.len() != 128 || !digits.is_ascii() {
        return None;
    }
    for (byte, at) in bytes.iter_mut().zip((0..128).step_by(2)) {
        *byte = u8::from_str_radix(digits.get(at..at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

fn read_small(path: &Path) -> io::Result<String> {
    use io::Read;
    let mut text = String::new();
    File::open(path)?.take(SMALL_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// Creates a file that is not there yet.
fn create(path: &Path, mode: u32, content: &[u8]) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::new(Exit::Failed, format!("cannot write {}: {error}", path.display()));
    let mut file = File::options().write(true).create_new(true).mode(mode).open(path).map_err(failed)?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_these_bytes_and_this_key_alone() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let mine = generate(&at("key")).unwrap();
        let other = generate(&at("other")).unwrap();
        assert!(generate(&at("key")).is_err(), "a key is never overwritten");
        std::fs::write(at("image"), vec![7_u8; 3 << 20]).unwrap();
        let image = File::options().read(true).write(true).open(at("image")).unwrap();
        let signature = beside(&at("image"));
        sign(&image, &at("key"), &signature).unwrap();
        sign(&image, &at("key"), &signature).unwrap();
        assert_eq!(verify(&image, &mine, &signature), Ok(()));
        assert!(verify(&image, &other, &signature).unwrap_err().contains("not that of this key"));
        assert!(verify(&image, &at("key"), &signature).is_err(), "a secret key is no public one");
        image.write_all_at(&[8], 2_999_999).unwrap();
        assert!(verify(&image, &mine, &signature).unwrap_err().contains("not that of this key"));
        std::fs::write(&signature, "{}").unwrap();
        assert!(verify(&image, &mine, &signature).unwrap_err().contains("is none"));
        assert!(verify(&image, &mine, &at("nothing")).unwrap_err().contains("cannot be read"));
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(at("key").metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn digits_are_checked() {
        assert_eq!(bytes_of(&"0f".repeat(64)), Some([15; 64]));
        assert!(
            bytes_of(&"0f".repeat(63)).is_none() && bytes_of(&"0g".repeat(64)).is_none() && bytes_of(&"é".repeat(64)).is_none()
        );
    }
}
