//! Populated restores: everything is mapped from the image, as in a lazy one, and fetched before anything runs.

use std::{path::Path, process::Command};

use super::{
    eager::{captured, numbers},
    exit_rounds_with, finish, image, lines_of, program, room,
};

/// An image that is fetched when it starts.
fn populated(path: &Path) -> Command {
    let mut command = Command::new(path);
    command.env("CRAC_EAGER", "populate");
    command
}

pub(super) fn everything(dir: &Path) {
    for name in ["single", "threads", "other-thread", "tokio", "discard", "memory", "signals"] {
        exit_rounds_with(dir, name, 3, |_| "populate");
    }
    exit_rounds_with(dir, "many", 2, |_| "populate");
}

pub(super) fn fetched(dir: &Path) {
    captured(dir, "sizes");
    let lazy = numbers(&lines_of(&finish(&mut Command::new(image(dir, 0)))));
    let found = numbers(&lines_of(&finish(&mut populated(&image(dir, 0)))));
    assert_eq!((found["mapped"], found["code"]), (lazy["mapped"], lazy["code"]), "mappings of the image: {found:?}");
    assert!(lazy["resident"] < lazy["dense"], "the program can tell: {lazy:?}");
    // Dense memory is all there, and sparse memory is not more than there is of it.
    let data = room(&image(dir, 0));
    assert!(found["resident"] > found["dense"], "{found:?}");
    assert!(found["resident"] < data + data / 2, "{data} bytes in the image: {found:?}");
    // Likewise where a program restores data alone; that program's own file is mapped, not the image's code.
    let to = format!("--image={}", image(dir, 1).display());
    lines_of(&finish(program("sizes").env("CRAC_TEST_FORM", "data-only").arg(to)));
    let launched = |eager: &str| numbers(&lines_of(&finish(program("restore").arg(image(dir, 1)).env("CRAC_EAGER", eager))));
    let (lazy, found) = (launched("off"), launched("populate"));
    assert!(lazy["resident"] < lazy["dense"] && found["resident"] > found["dense"], "{lazy:?} {found:?}");
    captured(dir, "scattered");
    let (data, found) = (room(&image(dir, 0)), numbers(&lines_of(&finish(&mut populated(&image(dir, 0))))));
    assert!(found["resident"] < data + data / 2, "{data} bytes in the image: {found:?}");
}

pub(super) fn second_images(dir: &Path) {
    let to = format!("--image={}", image(dir, 1).display());
    captured(dir, "threads");
    let lines = lines_of(&finish(populated(&image(dir, 0)).args(["--", &to, "--mode=continue"])));
    assert!(lines[1].starts_with("original "), "{lines:?}");
    assert_eq!(lines_of(&finish(&mut populated(&image(dir, 1)))), ["life 2", "done", "joined"]);
    let lines = lines_of(&finish(populated(&image(dir, 0)).args(["--", &to, "--mode=become"])));
    assert_eq!(lines, ["life 1", "life 2", "done", "joined"]);
    assert!(room(&image(dir, 1)) <= room(&image(dir, 0)) + room(&image(dir, 0)) / 5);
}
