//! The image is on the disk and not in the page cache, as on another host.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{fs::File, path::Path};

use crac_testing::{
    lab::{Lab, Service, free_addr},
    programs::program,
    skip::skip,
    wait_until,
};
use rustix::fs::{Advice, fadvise};

const WARM_MIB: u64 = 128;

/// Has a service with this setting of `CRAC_PREFETCH` leave an image behind.
fn put_to_sleep(lab: &Lab, image: &Path, prefetch: &str) {
    let addr = free_addr();
    let mut command = lab.command(program("web-server"));
    command.env("CRAC_PREFETCH", prefetch);
    command.args(["--listen", &addr.to_string(), "--warm-mib", &WARM_MIB.to_string()]);
    let mut service = Service::start(command, addr).answering();
    checkpoint(lab, &mut service, image);
}

fn checkpoint(lab: &Lab, service: &mut Service, image: &Path) {
    lab.crac_ok(["checkpoint".as_ref(), service.pid().to_string().as_ref(), "--image".as_ref(), image.as_os_str()]);
    assert!(service.wait().success(), "{}", service.output());
}

/// Restores what is on the disk alone.
fn restore_cold(lab: &Lab, image: &Path) -> Service {
    // It was made durable, so that nothing keeps the kernel from dropping it.
    fadvise(File::open(image).unwrap(), 0, None, Advice::DontNeed).unwrap();
    lab.restore(image, &[])
}

/// MiB of the image that the process has mapped and at hand.
fn at_hand(service: &Service, image: &Path) -> u64 {
    let smaps = std::fs::read_to_string(format!("/proc/{}/smaps", service.pid())).unwrap();
    let mut is_image = false;
    let mut kib = 0;
    for line in smaps.lines() {
        match line.strip_prefix("Rss:") {
            Some(rss) if is_image => kib += rss.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap(),
            Some(_) => {}
            // The first line of a mapping begins with its addresses.
            None if line.split(' ').next().is_some_and(|first| first.contains('-')) => {
                is_image = line.ends_with(image.to_str().unwrap());
            }
            None => {}
        }
    }
    kib / 1024
}

/// Whether the kernel has fetched something for the process from a disk; else the `test` has to be skipped here.
fn has_fetched(test: &str, service: &Service) -> bool {
    let io = std::fs::read_to_string(format!("/proc/{}/io", service.pid())).unwrap();
    let has_fetched = !io.lines().any(|line| line == "read_bytes: 0");
    if !has_fetched {
        skip(test, "the file system for temporary files keeps what it is told to drop");
    }
    has_fetched
}

fn reads_ahead(service: &Service) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{}/task", service.pid())).unwrap().flatten();
    // One that has just ended has no name.
    let name = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
    threads.map(name).any(|name| name.trim() == "crac-prefetch")
}

#[test]
fn an_image_is_read_ahead_once_its_service_serves() {
    let lab = Lab::new();
    let image = lab.file("web.crac");
    put_to_sleep(&lab, &image, "on");
    let service = restore_cold(&lab, &image);
    if !has_fetched("an_image_is_read_ahead_once_its_service_serves", &service) {
        return;
    }
    // The kernel may have taken some of it back where memory is short.
    wait_until("the image is at hand", || (at_hand(&service, &image) >= WARM_MIB * 7 / 8).then_some(()));
    wait_until("the thread has ended", || (!reads_ahead(&service)).then_some(()));
    assert_eq!(service.get("/warm").json()["entries"], WARM_MIB * 256);
}

#[test]
fn generations_follow_each_other_while_the_image_is_read_ahead() {
    let lab = Lab::new();
    let image = lab.file("web.crac");
    put_to_sleep(&lab, &image, "on");
    let mut at_work = 0;
    for generation in 1..=6 {
        let mut service = restore_cold(&lab, &image);
        if !has_fetched("generations_follow_each_other_while_the_image_is_read_ahead", &service) {
            return;
        }
        at_work += usize::from(reads_ahead(&service));
        checkpoint(&lab, &mut service, &image);
        // Nor does anybody miss it in the next life.
        assert!(!service.output().contains("crac-prefetch"), "{}", service.output());
        let service = restore_cold(&lab, &image);
        assert_eq!(service.get("/instance").json()["generation"], generation + 1);
        assert!(!service.output().contains("crac-prefetch"), "{}", service.output());
    }
    println!("{at_work} of them while it was read");
    let service = restore_cold(&lab, &image);
    assert_eq!(service.get("/warm").json()["entries"], WARM_MIB * 256);
}

#[test]
fn an_image_is_read_where_it_is_touched_if_that_is_wanted() {
    let lab = Lab::new();
    let image = lab.file("web.crac");
    put_to_sleep(&lab, &image, "off");
    let service = restore_cold(&lab, &image);
    if !has_fetched("an_image_is_read_where_it_is_touched_if_that_is_wanted", &service) {
        return;
    }
    // The kernel maps 64 KiB around what is touched.
    for n in 0..64 {
        service.get(&format!("/warm/{n}"));
        assert!(!reads_ahead(&service));
    }
    let at_hand = at_hand(&service, &image);
    assert!((1..WARM_MIB / 2).contains(&at_hand), "{at_hand} MiB");
}
