//! The image is on the disk and not in the page cache, as on another host.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{fs::File, path::Path};

use crac_testing::{
    lab::{Lab, Service, free_addr},
    programs::program,
    skip::skip,
    wait_until,
};
use rustix::fs::{Advice, fadvise, fstatfs};

const WARM_MIB: u64 = 128;

/// Has a service with this setting of `CRAC_PREFETCH` leave an image behind; no if the `test` has to be skipped here.
fn has_slept(test: &str, lab: &Lab, image: &Path, prefetch: &str) -> bool {
    let addr = free_addr();
    let mut command = lab.command(program("web-server"));
    command.env("CRAC_PREFETCH", prefetch);
    command.args(["--listen", &addr.to_string(), "--warm-mib", &WARM_MIB.to_string()]);
    let mut service = Service::start(command, addr).answering();
    checkpoint(lab, &mut service, image);
    let is_on_disk = fstatfs(File::open(image).unwrap()).unwrap().f_type != libc::TMPFS_MAGIC;
    if !is_on_disk {
        skip(test, "the directory for temporary files is in memory");
    }
    is_on_disk
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

#[test]
fn an_image_is_read_ahead_once_its_service_serves() {
    let lab = Lab::new();
    let image = lab.file("web.crac");
    if !has_slept("an_image_is_read_ahead_once_its_service_serves", &lab, &image, "on") {
        return;
    }
    let service = restore_cold(&lab, &image);
    wait_until("all of the image is at hand", || (at_hand(&service, &image) >= WARM_MIB).then_some(()));
    let threads = || std::fs::read_dir(format!("/proc/{}/task", service.pid())).unwrap().flatten();
    let name = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
    wait_until("the thread has ended", || threads().all(|thread| name(thread).trim() != "crac-prefetch").then_some(()));
    assert_eq!(service.get("/warm").json()["entries"], WARM_MIB * 256);
}

#[test]
fn a_checkpoint_does_not_wait_until_the_image_is_read() {
    let lab = Lab::new();
    let image = lab.file("web.crac");
    if !has_slept("a_checkpoint_does_not_wait_until_the_image_is_read", &lab, &image, "on") {
        return;
    }
    for generation in 1..=4 {
        let mut service = restore_cold(&lab, &image);
        assert_eq!(service.get("/instance").json()["generation"], generation);
        checkpoint(&lab, &mut service, &image);
    }
    let service = restore_cold(&lab, &image);
    assert_eq!(service.get("/warm").json()["entries"], WARM_MIB * 256);
}

#[test]
fn an_image_is_read_where_it_is_touched_if_that_is_wanted() {
    let lab = Lab::new();
    let image = lab.file("web.crac");
    if !has_slept("an_image_is_read_where_it_is_touched_if_that_is_wanted", &lab, &image, "off") {
        return;
    }
    let service = restore_cold(&lab, &image);
    // The kernel maps 64 KiB around what is touched.
    (0..32).for_each(|n| _ = service.get(&format!("/warm/{n}")));
    let at_hand = at_hand(&service, &image);
    assert!(at_hand < WARM_MIB / 2, "{at_hand} MiB");
}
