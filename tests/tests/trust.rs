//! Images that have to be signed, young, of one build, or are encrypted.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    ffi::{OsStr, OsString},
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
};

use age::{secrecy::ExposeSecret, x25519::Identity};
use crac_testing::lab::{Lab, Service, free_addr, text};

const START_COLD: i32 = 20;
const UNTRUSTED: i32 = 21;

fn checkpoint(lab: &Lab, service: &mut Service, image: &Path, more: &[&OsStr]) {
    let pid = service.pid().to_string();
    let args = ["checkpoint".as_ref(), pid.as_ref(), "--image".as_ref(), image.as_os_str()];
    lab.crac_ok(args.into_iter().chain(more.iter().copied()));
    assert!(service.wait().success(), "{}", service.output());
}

/// Restores with more options before the arguments of the service.
fn restore(lab: &Lab, image: &Path, options: &[&OsStr]) -> Service {
    let addr = free_addr();
    let mut command = lab.command(crac_testing::programs::program("crac"));
    command.arg("restore").arg(image).args(options).args(["--", "--listen", &addr.to_string()]);
    Service::start(command, addr).answering()
}

/// What is said about an image that must be refused with `code`.
fn refused(lab: &Lab, image: &Path, options: &[&OsStr], code: i32) -> String {
    let args: Vec<OsString> =
        ["restore".as_ref(), image.as_os_str()].iter().chain(options).map(|arg| (*arg).to_owned()).collect();
    let output = lab.crac(&args);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    said
}

#[test]
fn a_signed_image_is_restored_and_a_changed_one_is_not() {
    let lab = Lab::new();
    let mut service = lab.web_server(&[]);
    service.get("/counter");
    let image = lab.file("web.crac");
    checkpoint(&lab, &mut service, &image, &[]);
    lab.crac_ok(["keygen", "key"]);
    lab.crac_ok(["keygen", "other"]);
    assert_eq!(lab.crac(["keygen", "key"]).status.code(), Some(1), "a key is never overwritten");
    let by = |key: &str| lab.file(key).into_os_string();
    let (mine, other) = (by("key.pub"), by("other.pub"));
    assert!(refused(&lab, &image, &["--verify-key".as_ref(), &mine], UNTRUSTED).contains("signature"), "not signed yet");

    lab.crac_ok(["sign".as_ref(), "--key".as_ref(), by("key").as_os_str(), image.as_os_str()]);
    assert_eq!(restore(&lab, &image, &["--verify-key".as_ref(), &mine]).get("/counter").body.trim(), "2");
    lab.crac_ok(["verify".as_ref(), image.as_os_str(), "--verify-key".as_ref(), mine.as_os_str()]);
    assert!(refused(&lab, &image, &["--verify-key".as_ref(), &other], UNTRUSTED).contains("not that of this key"));

    // The last byte of page data, which a restore does not look at by itself.
    let file = std::fs::File::options().read(true).write(true).open(&image).unwrap();
    let at = file.metadata().unwrap().len() - 1;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    drop(file);
    assert!(refused(&lab, &image, &["--verify-key".as_ref(), &mine], UNTRUSTED).contains("not that of this key"));
}

#[test]
fn age_and_build_of_an_image_may_be_demanded() {
    let lab = Lab::new();
    let mut service = lab.web_server(&[]);
    let image = lab.file("web.crac");
    checkpoint(&lab, &mut service, &image, &[]);
    let found: serde_json::Value =
        serde_json::from_str(&lab.crac_ok(["inspect".as_ref(), "--json".as_ref(), image.as_os_str()])).unwrap();
    let build = found["manifest"]["executable"]["build_id"].as_str().unwrap();
    restore(&lab, &image, &["--require-build-id".as_ref(), build.as_ref(), "--max-age".as_ref(), "1h".as_ref()]).get("/");
    assert!(refused(&lab, &image, &["--require-build-id".as_ref(), "0".as_ref()], START_COLD).contains("build"));
    assert!(refused(&lab, &image, &["--max-age".as_ref(), "1ms".as_ref()], START_COLD).contains("old"));
}

/// Writes an identity; the file, and the recipient that belongs to it.
fn identity(lab: &Lab, name: &str) -> (PathBuf, OsString) {
    let identity = Identity::generate();
    std::fs::write(lab.file(name), identity.to_string().expose_secret()).unwrap();
    (lab.file(name), identity.to_public().to_string().into())
}

#[test]
fn an_encrypted_image_is_plain_in_memory_alone() {
    let lab = Lab::new();
    let mut service = lab.web_server(&[]);
    service.get("/counter");
    let (key, recipient) = identity(&lab, "identity");
    let (other, _) = identity(&lab, "other");
    let images = lab.file("images");
    std::fs::create_dir(&images).unwrap();
    let image = images.join("web.crac.age");
    checkpoint(&lab, &mut service, &image, &["--encrypt-to".as_ref(), &recipient]);
    let bytes = std::fs::read(&image).unwrap();
    // Every plain image holds the names of its threads, and of the libraries in it.
    for plain in [&b"crac-coord"[..], b"tokio-rt-worker", b"libc.so"] {
        assert!(!bytes.windows(plain.len()).any(|window| window == plain));
    }
    assert_eq!(std::fs::read_dir(&images).unwrap().count(), 1, "nothing else is left");
    assert_eq!(image.metadata().unwrap().permissions().mode() & 0o077, 0);

    assert!(refused(&lab, &image, &[], UNTRUSTED).contains("--identity"));
    assert!(refused(&lab, &image, &["--identity".as_ref(), other.as_os_str()], UNTRUSTED).contains("decrypted"));
    let with_key = ["--identity".as_ref(), key.as_os_str()];
    let mut second = restore(&lab, &image, &with_key);
    assert_eq!(second.get("/counter").body.trim(), "2");

    // The next generation came from memory, and is written there again; signed in its plain form.
    let image = images.join("second.crac.age");
    checkpoint(&lab, &mut second, &image, &["--encrypt-to".as_ref(), &recipient]);
    lab.crac_ok(["keygen", "sign"]);
    let sign = ["sign".as_ref(), "--key".as_ref(), lab.file("sign").as_os_str().to_owned().as_os_str(), image.as_os_str()]
        .map(OsStr::to_owned);
    lab.crac_ok(sign.iter().map(OsString::as_os_str).chain(with_key));
    let public = lab.file("sign.pub");
    let third = restore(&lab, &image, &[with_key[0], with_key[1], "--verify-key".as_ref(), public.as_os_str()]);
    assert_eq!(third.get("/counter").body.trim(), "3");
    assert_eq!(third.get("/instance").json()["generation"], 2);
    lab.crac_ok(["verify".as_ref(), image.as_os_str(), with_key[0], with_key[1]]);

    // Anybody can encrypt to a recipient: an envelope that others may write is no better than such an image.
    std::fs::set_permissions(&image, std::fs::Permissions::from_mode(0o622)).unwrap();
    assert!(refused(&lab, &image, &with_key, UNTRUSTED).contains("others may write"));
}

#[test]
fn a_service_that_goes_on_may_have_an_encrypted_image() {
    let lab = Lab::new();
    let mut service = lab.web_server(&[]);
    let (key, recipient) = identity(&lab, "identity");
    let image = lab.file("web.crac.age");
    let pid = service.pid().to_string();
    lab.crac_ok([
        "checkpoint".as_ref(),
        pid.as_ref(),
        "--continue".as_ref(),
        "--image".as_ref(),
        image.as_os_str(),
        "--encrypt-to".as_ref(),
        &recipient,
    ]);
    assert!(service.is_running());
    let restored = restore(&lab, &image, &["--identity".as_ref(), key.as_os_str()]);
    assert_eq!(restored.get("/counter").body.trim(), "1");
}
