//! What a life's memory is made of.
#![allow(unsafe_code, reason = "the program makes mappings by hand")]

use std::{
    hint::black_box,
    os::unix::fs::MetadataExt,
    sync::mpsc::{self, Sender},
    thread::JoinHandle,
};

use super::{
    lives,
    memory::{PAGE, RW, bytes, map},
};

const DENSE: usize = 24 << 20;
const SMALL: usize = 4 << 20;
const RESERVED: usize = 1 << 30;
const SCATTERED: usize = 18 * PAGE;

/// Tells how much memory is there, what of it comes from the image, and whether pages have to be fetched.
pub(crate) fn sizes() {
    let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let ballast = map(DENSE, RW, private, -1);
    let dense = map(DENSE, RW, private, -1);
    let small = map(SMALL, RW, private, -1);
    // SAFETY: the program's own mapping.
    unsafe { libc::madvise(small.cast(), SMALL, libc::MADV_NOHUGEPAGE) };
    for (at, len) in [(ballast, DENSE), (dense, DENSE), (small, SMALL)] {
        bytes(at, len).chunks_mut(PAGE).zip(1..).for_each(|(page, number)| page.fill(number as u8 | 1));
    }
    // A page here and there, so near that each would be a huge page.
    let reserved = map(RESERVED, RW, private | libc::MAP_NORESERVE, -1);
    let places = || (0..RESERVED).step_by(RESERVED / 512);
    places().for_each(|at| bytes(reserved, RESERVED)[at] = 7);
    // Touched, and nothing in it.
    let zeros = map(DENSE, RW, private, -1);
    bytes(zeros, DENSE).fill(0);
    let shared = map(2 * PAGE, RW, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1);
    bytes(shared, 2 * PAGE).fill(9);
    println!("ballast {}", ballast.expose_provenance());
    lives(|generation| {
        if [0, u64::MAX].contains(&generation) {
            return;
        }
        let resident = resident();
        let before = faults();
        let is_whole =
            bytes(dense, DENSE).chunks(PAGE).zip(1..).all(|(page, number)| page.iter().all(|byte| *byte == number as u8 | 1));
        assert!(is_whole, "content");
        bytes(dense, DENSE).iter_mut().step_by(PAGE).for_each(|byte| *byte = black_box(*byte));
        let faults = faults() - before;
        assert!(
            bytes(small, SMALL).chunks(PAGE).zip(1..).all(|(page, number)| page.iter().all(|byte| *byte == number as u8 | 1))
        );
        assert!(places().all(|at| bytes(reserved, RESERVED)[at] == 7) && bytes(reserved, RESERVED)[PAGE] == 0);
        assert!(bytes(zeros, DENSE).iter().all(|byte| *byte == 0) && bytes(shared, 2 * PAGE).iter().all(|byte| *byte == 9));
        let (mapped, code) = mapped();
        for (name, number) in [
            ("resident", resident),
            ("faults", faults),
            ("mapped", mapped),
            ("code", code),
            ("dense", 2 * DENSE as u64),
            ("reserved", RESERVED as u64),
            ("threads", std::fs::read_dir("/proc/self/task").unwrap().count() as u64),
            ("huge", u64::from(has_flag(dense, "hg"))),
            ("small", u64::from(has_flag(small, "hg"))),
        ] {
            println!("{name} {number}");
        }
    });
}

/// Where the stacks of two threads are: one with little on it, one with much.
pub(crate) fn stacks() {
    let all = [("little", on_its_stack::<64>()), ("much", on_its_stack::<{ 512 << 10 }>())];
    lives(|generation| {
        if [0, u64::MAX].contains(&generation) {
            return;
        }
        let image = std::fs::metadata("/proc/self/exe").unwrap().ino();
        for (name, (_, _, address)) in &all {
            println!("{name} {}", if inode_at(*address) == image { "mapped" } else { "read" });
        }
    });
    for (_, (thread, wake, _)) in all {
        drop(wake);
        thread.join().unwrap();
    }
}

/// A thread that keeps so many bytes on its stack and waits; how to wake it, and where the middle of them is.
fn on_its_stack<const BYTES: usize>() -> (JoinHandle<()>, Sender<()>, usize) {
    let (tell, told) = mpsc::channel();
    let (wake, woken) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let kept = [3_u8; BYTES];
        tell.send(kept[BYTES / 2..].as_ptr().expose_provenance()).unwrap();
        let _ = woken.recv();
        assert!(black_box(&kept).iter().all(|byte| *byte == 3));
    });
    (thread, wake, told.recv().unwrap())
}

/// The inode of what is mapped at `address`.
fn inode_at(address: usize) -> u64 {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let hexadecimal = |text: &str| usize::from_str_radix(text, 16).unwrap();
    let holds = |line: &&str| {
        let (start, end) = line.split_whitespace().next().unwrap().split_once('-').unwrap();
        (hexadecimal(start)..hexadecimal(end)).contains(&address)
    };
    maps.lines().find(holds).unwrap().split_whitespace().nth(4).unwrap().parse().unwrap()
}

/// So many pages here and there that they cannot all be mapped apart, with more between them than there is in them.
pub(crate) fn scattered() {
    let len = 20_500 * SCATTERED;
    let at = map(len, RW, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, -1);
    (0..len).step_by(SCATTERED).for_each(|place| bytes(at, len)[place] = 7);
    lives(|generation| {
        println!("resident {}", resident());
        if ![0, u64::MAX].contains(&generation) {
            assert!((0..len).step_by(SCATTERED).all(|place| bytes(at, len)[place] == 7));
            assert_eq!(bytes(at, len)[PAGE], 0, "a hole");
        }
    });
}

fn faults() -> u64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap();
    text.rsplit_once(')').unwrap().1.split_whitespace().nth(7).unwrap().parse().unwrap()
}

/// Anonymous memory that is there, and pages of files.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// How many mappings of the image there are, and how many of them can be executed.
fn mapped() -> (u64, u64) {
    let inode = std::fs::metadata("/proc/self/exe").unwrap().ino().to_string();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let own = || maps.lines().filter(|line| line.split_whitespace().nth(4) == Some(&inode));
    // The stub is still there until the next capture; it lies apart, where nothing else does.
    let own = || own().filter(|line| !line.starts_with("500000"));
    (own().count() as u64, own().filter(|line| line.split_whitespace().nth(1).unwrap().contains('x')).count() as u64)
}

fn has_flag(at: *mut u8, flag: &str) -> bool {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    // Huge pages are asked for in whole ones: the middle tells.
    let at = at.addr() + DENSE.min(SMALL) / 2;
    for line in smaps.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-')
            && let (Ok(start), Ok(end)) = (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16))
        {
            inside = (start..end).contains(&at);
        }
        if inside && line.starts_with("VmFlags:") {
            return line.split_whitespace().any(|known| known == flag);
        }
    }
    panic!("{at:#x} is not mapped")
}
