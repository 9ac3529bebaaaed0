//! Eager restores: nothing of the image is mapped, damage is found before anything runs.
#![allow(unsafe_code, reason = "one system call before a program starts")]

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::unix::process::CommandExt,
    path::Path,
    process::Command,
};

use crac_native::image::{Image, verify};

use super::{exit_rounds_with, finish, image, lines_of, program, room};

const EAGER: &str = "CRAC_EAGER";

/// An image that is read when it starts.
fn eager(path: &Path) -> Command {
    let mut command = Command::new(path);
    command.env(EAGER, "on");
    command
}

/// Captures the program `name` into the first image.
pub(super) fn captured(dir: &Path, name: &str) -> Vec<String> {
    lines_of(&finish(program(name).arg(format!("--image={}", image(dir, 0).display()))))
}

/// What a program tells about its memory: lines of a name and a number.
pub(super) fn numbers(lines: &[String]) -> HashMap<String, u64> {
    let pair = |line: &String| line.split_once(' ').and_then(|(name, number)| Some((name.to_owned(), number.parse().ok()?)));
    lines.iter().filter_map(pair).collect()
}

pub(super) fn everything(dir: &Path) {
    for name in ["single", "threads", "other-thread", "tokio", "discard", "memory", "signals"] {
        exit_rounds_with(dir, name, 3, |_| "on");
    }
}

pub(super) fn hundreds_of_threads(dir: &Path) {
    exit_rounds_with(dir, "many", 2, |_| "on");
}

/// In turns with lazy restores and populated ones, in each of which the code is where the one before has left it.
pub(super) fn in_turns(dir: &Path) {
    const GENERATIONS: usize = 12;
    exit_rounds_with(dir, "threads", GENERATIONS, |generation| ["off", "on", "on", "populate"][generation % 4]);
    let rooms: Vec<u64> = (0..GENERATIONS).map(|generation| room(&image(dir, generation))).collect();
    assert!(rooms[GENERATIONS - 1] <= rooms[1] + rooms[1] / 5, "{rooms:?}");
}

pub(super) fn nothing_mapped(dir: &Path) {
    captured(dir, "sizes");
    let lazy = numbers(&lines_of(&finish(&mut Command::new(image(dir, 0)))));
    let found = numbers(&lines_of(&finish(&mut eager(&image(dir, 0)))));
    assert!(lazy["mapped"] > 0 && lazy["faults"] > 100, "the program can tell: {lazy:?}");
    assert_eq!(found["mapped"], 0, "mappings of the image: {found:?}");
    assert!(found["faults"] < 16, "everything is there: {found:?}");
    assert_eq!(found["threads"], 1, "no helper is left: {found:?}");
    // Dense memory is all there, and sparse memory is not more than there is of it.
    let data = room(&image(dir, 0));
    assert!(found["resident"] > found["dense"], "{found:?}");
    assert!(found["resident"] < data + data / 2, "{data} bytes in the image: {found:?}");
    assert!(found["reserved"] > 10 * data, "the program has much more: {found:?}");
    // The service's own word counts.
    assert_eq!((found["huge"], found["small"]), (1, 0), "huge pages where they are allowed: {found:?}");
}

pub(super) fn scattered(dir: &Path) {
    captured(dir, "scattered");
    let to = format!("--image={}", image(dir, 1).display());
    for (path, arguments) in [(image(dir, 0), &["--", &to][..]), (image(dir, 1), &[])] {
        let (data, found) = (room(&path), numbers(&lines_of(&finish(eager(&path).args(arguments)))));
        assert!(found["resident"] < data + data / 2, "{data} bytes in the image: {found:?}");
    }
    assert!(room(&image(dir, 1)) <= room(&image(dir, 0)) + room(&image(dir, 0)) / 5);
}

pub(super) fn second_images(dir: &Path) {
    // In continue mode a copy of an eagerly restored life writes the image; in become mode the life becomes it.
    let to = |generation| format!("--image={}", image(dir, generation).display());
    captured(dir, "threads");
    let lines = lines_of(&finish(eager(&image(dir, 0)).args(["--", &to(1), "--mode=continue"])));
    assert!(lines[1].starts_with("original "), "{lines:?}");
    assert_eq!(lines_of(&finish(&mut eager(&image(dir, 1)))), ["life 2", "done", "joined"]);
    let lines = lines_of(&finish(eager(&image(dir, 0)).args(["--", &to(1), "--mode=become"])));
    assert_eq!(lines, ["life 1", "life 2", "done", "joined"]);
    assert_eq!(lines_of(&finish(&mut Command::new(image(dir, 1)))), ["life 2", "done", "joined"]);
    assert!(room(&image(dir, 1)) <= room(&image(dir, 0)) + room(&image(dir, 0)) / 5);
    // A life that is to become its image reads it, if it was started like that.
    let lines = lines_of(&finish(program("sizes").env(EAGER, "on").args([to(2), "--mode=become".into()])));
    assert_eq!(numbers(&lines)["mapped"], 0, "{lines:?}");
}

pub(super) fn damage(dir: &Path) {
    let lines = captured(dir, "sizes");
    let (path, broken) = (image(dir, 0), dir.join("broken.crac"));
    let whole = fs::read(&path).expect("the image");
    let found = Image::read(&File::open(&path).expect("the image")).expect("it is whole");
    let ballast = numbers(&lines)["ballast"];
    let (start, offset, _) =
        found.stretches().filter(|(start, ..)| *start <= ballast).last().expect("the ballast is in the image");
    let (_, first, _) = found.stretches().next().expect("there is memory");
    let last = whole.len() as u64 - 1;
    // Its first page, which nobody looks at; the beginning and the end of all page data, which are code and shared memory.
    for (at, is_used) in [(offset + (ballast - start), false), (first, true), (last, true)] {
        let mut bytes = whole.clone();
        bytes[at as usize] ^= 1;
        // A program that runs cannot be written, and one that was just written may not run yet where others fork.
        let _ = fs::remove_file(&broken);
        fs::write(&broken, &bytes).expect("room");
        fs::set_permissions(&broken, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("own file");
        if !is_used {
            let lines = lines_of(&finish(&mut Command::new(&broken)));
            assert_eq!(lines.last().map(String::as_str), Some("done"), "a lazy restore does not notice: {lines:?}");
        }
        let output = finish(&mut eager(&broken));
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(21), 0), "nothing has run: {said}");
        let block = (at / (2 << 20) * (2 << 20)).max(found.data_offset());
        assert!(said.contains(&format!("bytes {block} to ")), "the place is named: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        let named = verify(&File::open(&broken).expect("just written")).expect_err("damaged").to_string();
        assert!(named.contains(&format!("bytes {block} to ")), "{named}");
    }
}

pub(super) fn setting(dir: &Path) {
    captured(dir, "sizes");
    let output = finish(Command::new(image(dir, 0)).env(EAGER, "yes"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("CRAC_EAGER=yes is neither `on` nor `populate` nor `off`"), "{said}");
    for off in ["off", ""] {
        let lines = lines_of(&finish(Command::new(image(dir, 0)).env(EAGER, off)));
        assert!(numbers(&lines)["mapped"] > 0, "{lines:?}");
    }
}

/// Where nothing that was writable may be executed, code stays mapped from the image, and is checked all the same.
pub(super) fn without_writable_code(dir: &Path) {
    const PR_SET_MDWE: i32 = 65;
    const PR_GET_MDWE: i32 = 66;
    // SAFETY: only asks.
    if unsafe { libc::prctl(PR_GET_MDWE, 0, 0, 0, 0) } < 0 {
        println!("skipped: this kernel has no PR_SET_MDWE");
        return;
    }
    captured(dir, "sizes");
    let mut command = eager(&image(dir, 0));
    command.arg("--").arg(format!("--image={}", image(dir, 1).display()));
    let refuse = || {
        // SAFETY: integer arguments.
        let set = unsafe { libc::prctl(PR_SET_MDWE, 1, 0, 0, 0) };
        if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: the closure makes one system call.
    unsafe { command.pre_exec(refuse) };
    let found = numbers(&lines_of(&finish(&mut command)));
    assert!(found["mapped"] > 0 && found["mapped"] == found["code"], "code alone is mapped: {found:?}");
    assert_eq!(numbers(&lines_of(&finish(&mut eager(&image(dir, 1)))))["mapped"], 0);
}

/// One processor, and no thread to be had.
pub(super) fn alone(dir: &Path) {
    captured(dir, "sizes");
    let mut command = Command::new("taskset");
    command.args(["-c", "0"]).arg(image(dir, 0)).env(EAGER, "on");
    let found = numbers(&lines_of(&finish(&mut command)));
    assert_eq!(found["mapped"], 0, "{found:?}");
}

pub(super) fn raw_madvise(dir: &Path) {
    let to = |generation| format!("--image={}", image(dir, generation).display());
    let raw = |policy: &str| {
        let mut command = program("sizes");
        command.env("CRAC_TEST_NO_MADVISE", "1").env("CRAC_TEST_POLICY", policy).arg(to(0));
        lines_of(&finish(&mut command))
    };
    let refused = raw("");
    assert!(refused.iter().any(|line| line.starts_with("obstacle allocator-raw: ")), "{refused:?}");
    assert!(!image(dir, 0).exists());
    raw("allocator-raw = keep");
    // Whatever is asked for: such an image is read.
    let lines = lines_of(&finish(Command::new(image(dir, 0)).env(EAGER, "off").args(["--", &to(1)])));
    assert_eq!(numbers(&lines)["mapped"], 0, "{lines:?}");
    assert_eq!(numbers(&lines_of(&finish(&mut Command::new(image(dir, 1)))))["mapped"], 0);
}

pub(super) fn stacks(dir: &Path) {
    let to = |generation| format!("--image={}", image(dir, generation).display());
    captured(dir, "stacks");
    let expected = |generation: u64| ["little read".to_owned(), "much mapped".to_owned(), format!("life {generation}")];
    assert_eq!(lines_of(&finish(Command::new(image(dir, 0)).args(["--", &to(1)]))), expected(1));
    let lines = lines_of(&finish(&mut Command::new(image(dir, 1))));
    assert_eq!((&lines[..3], lines[3].as_str()), (&expected(2)[..], "done"));
    // What is in between is no page of zeros.
    assert!(room(&image(dir, 1)) <= room(&image(dir, 0)) + room(&image(dir, 0)) / 5);
}
