//! Images that hold data alone, and are restored by a program.

use std::{
    io::{BufRead, BufReader},
    os::unix::fs::{FileExt, PermissionsExt},
    path::Path,
    process::{Command, Output, Stdio},
};

use super::{
    clock::{may_refuse_new_code, refuse_new_code},
    finish, image, lines_of, program,
};

fn restore(image: &Path, arguments: &[&str]) -> Output {
    finish(program("restore").arg(image).args(arguments))
}

/// Every program comes back from images that cannot be executed.
pub(super) fn rounds(dir: &Path) {
    for name in ["single", "threads", "other-thread", "many", "tokio", "discard", "memory", "signals"] {
        let dir = dir.join(name);
        std::fs::create_dir(&dir).expect("room");
        let to = |generation| format!("--image={}", image(&dir, generation).display());
        assert_eq!(lines_of(&finish(program(name).env("CRAC_TEST_FORM", "data-only").arg(to(0)))), ["life 0"], "{name}");
        for generation in 1..=3 {
            let mode = std::fs::metadata(image(&dir, generation - 1)).expect("an image").permissions().mode();
            assert_eq!(mode & 0o7777, 0o600, "{name}");
            let mut command = program("restore");
            command.env("CRAC_EAGER", ["off", "populate", "on"][generation % 3]);
            let lines = lines_of(&finish(command.arg(image(&dir, generation - 1)).args(["--", &to(generation)])));
            assert_eq!(lines, [format!("life {generation}")], "{name}");
        }
        let last = lines_of(&restore(&image(&dir, 3), &[]));
        assert_eq!(last[..2], ["life 4".to_owned(), "done".to_owned()], "{name}");
    }
}

/// Code made at run time comes back, also where it could not be made; only what is writable all the time does not come back there.
pub(super) fn made_code(dir: &Path) {
    for (at, writable) in [false, true].into_iter().enumerate() {
        let mut command = program("made-code");
        command.env("CRAC_TEST_FORM", "data-only").arg(format!("--image={}", image(dir, at).display()));
        if writable {
            command.env("CRAC_TEST_WRITABLE_CODE", "1");
        }
        assert_eq!(lines_of(&finish(&mut command)), ["life 0"]);
        assert_eq!(lines_of(&restore(&image(dir, at), &[])), ["life 1", "done"]);
    }
    if !may_refuse_new_code() {
        return;
    }
    let confined = |at| {
        let mut command = program("restore");
        command.arg(image(dir, at));
        refuse_new_code(&mut command);
        finish(&mut command)
    };
    assert_eq!(lines_of(&confined(0)), ["life 1", "done"]);
    let refused = confined(1);
    let err = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && err.contains("writable and executable at once"), "{err}");
}

/// Arguments, environment and the names of functions are found in a life that another program has begun.
pub(super) fn arguments(dir: &Path) {
    let mut command = program("environment");
    lines_of(&finish(command.env("CRAC_TEST_FORM", "data-only").arg(format!("--image={}", image(dir, 0).display()))));
    let mut command = program("restore");
    let lines = lines_of(&finish(command.arg(image(dir, 0)).args(["--", "one", "two words", ""]).env("CRAC_TEST_VALUE", "a=b")));
    assert_eq!(lines[0], r#"args ["one", "two words", ""]"#);
    assert!(lines[1].contains(r#"("CRAC_TEST_VALUE", "a=b")"#), "{lines:?}");
}

/// The program is its own restorer, and keeps its pid.
pub(super) fn becomes(dir: &Path) {
    let to = format!("--image={}", image(dir, 0).display());
    let mut command = program("single");
    command.env("CRAC_TEST_FORM", "data-only").args([to.clone(), "--mode=become".into()]).stdout(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let pid = format!("pid {}", child.id());
    let lines: Vec<_> = BufReader::new(child.stdout.take().expect("piped")).lines().map(|line| line.expect("text")).collect();
    assert_eq!(lines, ["life 0", &pid, "life 1", &pid, "done"]);
    assert!(child.wait().expect("own child").success());
    // Whoever was restored by executing an image has no file that could restore another.
    lines_of(&finish(program("single").env("CRAC_TEST_FORM", "auto").arg(&to)));
    let mut life = Command::new(image(dir, 0));
    let said =
        lines_of(&finish(life.args(["--", &format!("--image={}", image(dir, 1).display()), "--mode=become", "--data-only"])));
    assert!(said.iter().any(|line| line.contains("cannot become a data-only image")), "{said:?}");
    assert!(!image(dir, 1).exists());
}

/// Another file with the same code is as good as the one of the checkpoint; other code is not.
pub(super) fn other_files(dir: &Path) {
    let own = std::env::current_exe().expect("own path");
    let (installed, upgrade) = (dir.join("installed"), dir.join("upgrade"));
    std::fs::copy(&own, &installed).expect("room");
    let mut command = Command::new(&installed);
    command.env("CRAC_TEST_PROGRAM", "threads").env("CRAC_TEST_FORM", "data-only");
    lines_of(&finish(command.arg(format!("--image={}", image(dir, 0).display()))));
    std::fs::copy(&own, &upgrade).expect("room");
    std::fs::rename(&upgrade, &installed).expect("own file");
    assert_eq!(lines_of(&restore(&image(dir, 0), &[])), ["life 1", "done", "joined"]);

    std::fs::copy(&own, &upgrade).expect("room");
    let file = std::fs::File::options().read(true).write(true).open(&upgrade).expect("own file");
    let at = middle_of_code(&file);
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("code");
    file.write_all_at(&[!byte[0]], at).expect("own file");
    drop(file);
    std::fs::rename(&upgrade, &installed).expect("own file");
    let said = restore(&image(dir, 0), &[]);
    let err = String::from_utf8_lossy(&said.stderr);
    assert!(!said.status.success() && err.contains("installed has changed since the checkpoint"), "{err}");
    std::fs::remove_file(&installed).expect("own file");
    let err = String::from_utf8_lossy(&restore(&image(dir, 0), &[]).stderr).into_owned();
    assert!(err.contains("installed cannot be found"), "{err}");
}

/// Where in an ELF file the middle of its code is.
fn middle_of_code(file: &std::fs::File) -> u64 {
    let number = |at: u64, bytes: usize| {
        let mut field = [0; 8];
        file.read_exact_at(&mut field[..bytes], at).expect("a program header");
        u64::from_le_bytes(field)
    };
    let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    let is_code = |at: &u64| number(*at, 4) == 1 && number(at + 4, 4) & 1 == 1;
    let header = (0..count).map(|index| table + index * size).find(is_code).expect("code");
    number(header + 8, 8) + number(header + 32, 8) / 2
}
