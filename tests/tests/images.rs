//! An image that is not what it should be is refused before anything is touched, with the reason.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Output,
};

use crac_testing::{
    lab::{Lab, release, text},
    skip::skip,
};

const START_COLD: i32 = 20;
const UNTRUSTED: i32 = 21;

struct Taken {
    lab: Lab,
    image: PathBuf,
    inspected: serde_json::Value,
}

/// One image of a small service.
fn taken() -> Taken {
    let lab = Lab::new();
    let mut service = lab.web_server(&["--warm-mib", "0"]);
    let image = lab.file("web.crac");
    lab.crac_ok(["checkpoint".as_ref(), service.pid().to_string().as_ref(), "--image".as_ref(), image.as_os_str()]);
    assert!(service.wait().success());
    let inspected = serde_json::from_str(&lab.crac_ok(["inspect".as_ref(), "--json".as_ref(), image.as_os_str()])).unwrap();
    Taken { lab, image, inspected }
}

impl Taken {
    /// A copy of the image with one byte changed.
    fn flipped(&self, at: u64) -> PathBuf {
        let copy = self.lab.file("flipped.crac");
        std::fs::copy(&self.image, &copy).unwrap();
        let file = std::fs::File::options().read(true).write(true).open(&copy).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x20], at).unwrap();
        release(&copy);
        copy
    }

    fn restore(&self, image: &Path) -> Output {
        self.lab.crac(["restore".as_ref(), image.as_os_str()])
    }

    fn refused(&self, image: &Path, codes: &[i32]) -> String {
        let output = self.restore(image);
        let said = text(&output.stderr);
        assert!(output.status.code().is_some_and(|code| codes.contains(&code)), "{:?}: {said}", output.status);
        assert!(!said.is_empty(), "a refusal says why");
        said
    }

    fn number(&self, name: &str) -> u64 {
        self.inspected[name].as_u64().unwrap_or_else(|| panic!("`{name}` is missing: {}", self.inspected))
    }
}

#[test]
fn flipped_bytes_in_header_manifest_and_tables_are_refused() {
    let taken = taken();
    let (begin, bytes) = (taken.number("metadata_offset"), taken.number("metadata_bytes"));
    let step = (bytes / 48).max(1) as usize;
    for at in (begin..begin + bytes).step_by(step) {
        taken.refused(&taken.flipped(at), &[START_COLD, UNTRUSTED]);
    }
}

#[test]
fn an_inspection_shows_maps_libraries_and_sizes() {
    let taken = taken();
    let found = &taken.inspected;
    let list = |name: &str| found[name].as_array().unwrap_or_else(|| panic!("`{name}` is missing: {found}")).clone();
    let maps = list("maps");
    assert!(maps.windows(2).all(|pair| pair[0]["end"].as_u64() <= pair[1]["start"].as_u64()), "by address, apart");
    let embedded: u64 = maps.iter().map(|map| map["embedded"].as_u64().unwrap()).sum();
    assert_eq!(embedded, taken.number("data_bytes"));
    assert_eq!(found["sizes"]["anonymous"].as_u64().unwrap() + found["sizes"]["files"].as_u64().unwrap(), embedded);
    assert!(maps.iter().any(|map| map["label"] == "heap") && maps.iter().any(|map| map["label"] == "stack"), "{maps:?}");
    assert!(maps.iter().any(|map| map["protection"] == "r-x"), "code is in the image: {maps:?}");
    let libraries = list("libraries");
    let named = |text: &str| libraries.iter().find(|library| library["name"].as_str().is_some_and(|name| name.contains(text)));
    assert!(named("web-server").is_some(), "{libraries:?}");
    let libc = named("libc.so").unwrap_or_else(|| panic!("the C library: {libraries:?}"));
    assert!(libc["build_id"].as_str().is_some_and(|id| id.len() == 40), "{libc}");
    assert!(list("threads").iter().any(|thread| thread["name"] == "crac-coord"));
    assert!(!list("descriptors").is_empty());

    let said = taken.lab.crac_ok(["inspect".as_ref(), "--maps".as_ref(), taken.image.as_os_str()]);
    for part in ["libc.so", "heap", "stack", "r-x", "fits here     yes", "crac-coord"] {
        assert!(said.contains(part), "`{part}` is missing in:\n{said}");
    }
    // The next generation has its code from the image, and knows as much about it.
    let mut second = taken.lab.restore(&taken.image, &[]);
    let image = taken.lab.file("second.crac");
    taken.lab.crac_ok(["checkpoint".as_ref(), second.pid().to_string().as_ref(), "--image".as_ref(), image.as_os_str()]);
    assert!(second.wait().success());
    let said = taken.lab.crac_ok(["inspect".as_ref(), image.as_os_str()]);
    assert!(said.contains("libc.so") && said.contains(libc["build_id"].as_str().unwrap()), "{said}");
}

#[test]
fn an_image_that_was_brought_to_a_mount_without_execution_is_restored_all_the_same() {
    let name = "an_image_that_was_brought_to_a_mount_without_execution_is_restored_all_the_same";
    let taken = taken();
    let namespaces = taken.lab.command("unshare").args(["--user", "--map-current-user", "--mount", "true"]).status();
    let mounts = taken.lab.command("unshare").args(["--user", "--map-root-user", "--mount", "true"]).status();
    if ![namespaces, mounts].into_iter().all(|status| status.is_ok_and(|status| status.success())) {
        return skip(name, "this user may not make a mount namespace, so there is no mount without execution");
    }
    let dir = taken.lab.file("noexec");
    std::fs::create_dir(&dir).unwrap();
    let addr = crac_testing::lab::free_addr();
    let script = format!(
        "mount -t tmpfs -o noexec none {dir} && cp {image} {dir}/web.crac && ! {dir}/web.crac 2>/dev/null && \
         exec unshare --user --map-user={uid} --map-group={gid} {crac} restore {dir}/web.crac -- --listen {addr}",
        dir = dir.display(),
        image = taken.image.display(),
        uid = rustix::process::geteuid().as_raw(),
        gid = rustix::process::getegid().as_raw(),
        crac = crac_testing::programs::program("crac").display(),
    );
    let mut command = taken.lab.command("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]);
    let service = crac_testing::lab::Service::start(command, addr).answering();
    assert_eq!(service.get("/instance").json()["generation"], 1);
}

#[test]
fn flipped_page_data_is_found_by_verify() {
    let taken = taken();
    let at = taken.number("data_offset");
    let copy = taken.flipped(at);
    let output = taken.lab.crac(["verify".as_ref(), copy.as_os_str()]);
    assert_eq!(output.status.code(), Some(UNTRUSTED), "{}", text(&output.stderr));
    assert!(taken.lab.crac(["verify".as_ref(), taken.image.as_os_str()]).status.success());
}

#[test]
fn truncated_images_are_refused() {
    let taken = taken();
    let whole = taken.image.metadata().unwrap().len();
    for bytes in
        [0, 1, 63, 4096, taken.number("metadata_offset") + 8, taken.number("data_offset"), whole / 2, whole - 4096, whole - 1]
    {
        let copy = taken.lab.file("short.crac");
        std::fs::copy(&taken.image, &copy).unwrap();
        std::fs::File::options().write(true).open(&copy).unwrap().set_len(bytes).unwrap();
        release(&copy);
        taken.refused(&copy, &[UNTRUSTED]);
        for verb in ["inspect", "verify"] {
            let output = taken.lab.crac([verb.as_ref(), copy.as_os_str()]);
            assert_eq!(output.status.code(), Some(UNTRUSTED), "{verb} of {bytes} bytes: {}", text(&output.stderr));
        }
    }
}

#[test]
fn foreign_files_are_refused() {
    let taken = taken();
    let program = crac_testing::programs::program("web-server");
    taken.refused(&program, &[UNTRUSTED]);
    let text_file = taken.lab.file("text.crac");
    std::fs::write(&text_file, "not an image").unwrap();
    std::fs::set_permissions(&text_file, std::fs::Permissions::from_mode(0o700)).unwrap();
    taken.refused(&text_file, &[UNTRUSTED]);
    taken.refused(&taken.lab.file("not-there.crac"), &[1, START_COLD]);
    taken.refused(taken.lab.path(), &[UNTRUSTED]);
}

#[test]
fn images_that_others_may_write_are_refused() {
    let taken = taken();
    for mode in [0o720, 0o702] {
        std::fs::set_permissions(&taken.image, std::fs::Permissions::from_mode(mode)).unwrap();
        assert!(taken.refused(&taken.image, &[UNTRUSTED]).contains("writ"));
    }
}

#[test]
fn images_of_strangers_are_refused() {
    let name = "images_of_strangers_are_refused";
    match rustix::process::geteuid().as_raw() {
        0 => {}
        // The suite runs as root and as nobody; what only root can arrange belongs to the first of the two.
        65534 => return,
        _ => return skip(name, "only root can give a file away"),
    }
    let taken = taken();
    std::os::unix::fs::chown(&taken.image, Some(12345), None).unwrap();
    assert!(taken.refused(&taken.image, &[UNTRUSTED]).contains("12345"));
}

#[test]
fn a_rebuilt_program_makes_run_start_cold() {
    let taken = taken();
    let other = taken.lab.file("web-server");
    std::fs::copy(crac_testing::programs::program("web-server"), &other).unwrap();
    let mut bytes = std::fs::read(&other).unwrap();
    // Another build: the note with the build id differs, or if there is none, the content.
    bytes.push(0);
    std::fs::write(&other, bytes).unwrap();
    release(&other);
    let addr = crac_testing::lab::free_addr();
    let mut command = taken.lab.command(crac_testing::programs::program("crac"));
    command.arg("run").arg("--image").arg(&taken.image).args(["--checkpoint-on", "never", "--"]);
    command.arg(&other).args(["--listen", &addr.to_string(), "--warm-mib", "0"]);
    let service = crac_testing::lab::Service::start(command, addr).answering();
    assert_eq!(service.get("/instance").json()["generation"], 0, "{}", service.output());
    assert!(service.output().contains("cold"), "it says why: {}", service.output());
}
