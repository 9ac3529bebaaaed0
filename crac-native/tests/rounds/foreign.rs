//! Images that come from somewhere else.

use std::{path::Path, process::Command};

use super::{boot_end, finish, image, lines_of, program, write_to_execute};

pub(super) fn of_a_stranger(dir: &Path) {
    // SAFETY: only asks.
    if unsafe { libc::geteuid() } != 0 {
        println!("skipped: only root can give a file to somebody else");
        return;
    }
    let path = image(dir, 0);
    lines_of(&finish(program("single").arg(format!("--image={}", path.display()))));
    std::os::unix::fs::chown(&path, Some(4321), Some(4321)).expect("root may");
    let reasons = crac_native::restore::Restore::open(&path, None).expect_err("a stranger's");
    assert!(reasons[0].what.contains("belongs to user 4321"), "{reasons:?}");
    let output = finish(&mut Command::new(&path));
    assert_eq!(output.status.code(), Some(21), "{output:?}");
}

pub(super) fn of_other_hosts(dir: &Path) {
    use crac_native::{
        image::reseal,
        layout::{CpuRecord, Header, PrivilegeRecord, VdsoRecord},
        restore::{Restore, Verdict},
    };
    use std::mem::offset_of;

    let path = image(dir, 0);
    // With the clocks of the host, which then matter.
    lines_of(&finish(
        program("single").env("CRAC_TEST_CLOCK", "none").env_remove("CRAC_TEST_SHIFT").arg(format!("--image={}", path.display())),
    ));
    let whole = std::fs::read(&path).expect("the image");
    let metadata = boot_end(&whole);
    for (at, byte, part) in [
        (offset_of!(Header, captured_monotonic_ns) + 7, 0x10, "backwards"),
        (offset_of!(Header, cpu) + offset_of!(CpuRecord, features) + 7, 0xff, "processor"),
        (offset_of!(Header, vdso) + offset_of!(VdsoRecord, code_sum), 0, "vdso"),
        (offset_of!(Header, kernel) + 3, 1, "older than the one of the checkpoint"),
        (offset_of!(Header, privileges) + offset_of!(PrivilegeRecord, uid), 77, "ran as user"),
        (offset_of!(Header, privileges) + offset_of!(PrivilegeRecord, permitted) + 7, 1, "capabilities"),
        (offset_of!(Header, page_size) + 2, 1, "pages have"),
    ] {
        let mut bytes = whole.clone();
        bytes[metadata + at] ^= byte.max(1);
        // The processor of the kernel that runs here is not asked about.
        bytes[metadata + offset_of!(Header, boot_id)] ^= 1;
        reseal(&mut bytes);
        write_to_execute(&path, &bytes);
        let reasons = Restore::open(&path, None).expect_err(part);
        assert_eq!(reasons.len(), 1, "{reasons:?}");
        assert_eq!(reasons[0].verdict, Verdict::StartCold);
        assert!(reasons[0].what.contains(part), "{part}: {reasons:?}");
        let output = finish(&mut Command::new(&path));
        assert_eq!(output.status.code(), Some(20), "{part}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(part), "{part}: {output:?}");
    }
}

/// With a proxy the functions of the vdso are found by name. That they are where they were is chance: `cargo xtask kernels` has
/// another kernel.
pub(super) fn of_another_build(dir: &Path) {
    use crac_native::layout::{Header, VdsoRecord};
    use std::mem::offset_of;

    let to = |generation| format!("--image={}", image(dir, generation).display());
    lines_of(&finish(program("clock-readers").env("CRAC_TEST_CLOCK", "proxy").arg(to(0))));
    for generation in 1..=2 {
        let path = image(dir, generation - 1);
        let mut bytes = std::fs::read(&path).expect("the image");
        let at = boot_end(&bytes) + offset_of!(Header, vdso) + offset_of!(VdsoRecord, code_sum);
        bytes[at] ^= 1;
        crac_native::image::reseal(&mut bytes);
        std::fs::write(&path, bytes).expect("own file");
        assert!(crac_native::restore::Restore::open(&path, None).is_ok());
        let lines = lines_of(&finish(Command::new(&path).args(["--", &to(generation)])));
        assert_eq!(lines, [format!("life {generation}")]);
    }
    assert_eq!(lines_of(&finish(&mut Command::new(image(dir, 2)))), ["life 3", "done", "joined"]);
}
