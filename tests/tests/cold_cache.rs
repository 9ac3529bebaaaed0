//! The image is on the disk and not in the page cache, as on another host.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    fs::File,
    path::{Path, PathBuf},
};

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
    drop_from_cache(image);
    lab.restore(image, &[])
}

fn drop_from_cache(image: &Path) {
    // It was made durable, so that nothing keeps the kernel from dropping it.
    fadvise(File::open(image).unwrap(), 0, None, Advice::DontNeed).unwrap();
}

/// Bytes that a process has had fetched from the disk.
fn fetched(service: &Service) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{}/io", service.pid())).unwrap();
    io.lines().find_map(|line| line.strip_prefix("read_bytes: ")?.parse().ok()).unwrap()
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

/// Restores what a service with this setting of `CRAC_PREFETCH` has left on the disk alone; nothing if the `test` is to be skipped here.
fn cold_life(test: &str, lab: &Lab, prefetch: &str) -> Option<(Service, PathBuf)> {
    let image = lab.file("web.crac");
    put_to_sleep(lab, &image, prefetch);
    let service = restore_cold(lab, &image);
    if fetched(&service) == 0 {
        skip(test, "the file system for temporary files keeps what it is told to drop");
        return None;
    }
    Some((service, image))
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
    let life = cold_life("an_image_is_read_ahead_once_its_service_serves", &lab, "on");
    let Some((service, image)) = life else { return };
    // The kernel may have taken some of it back where memory is short.
    wait_until("the image is at hand", || (at_hand(&service, &image) >= WARM_MIB * 7 / 8).then_some(()));
    wait_until("the thread has ended", || (!reads_ahead(&service)).then_some(()));
    assert_eq!(service.get("/warm").json()["entries"], WARM_MIB * 256);
}

#[test]
fn generations_follow_each_other_while_the_image_is_read_ahead() {
    let lab = Lab::new();
    let life = cold_life("generations_follow_each_other_while_the_image_is_read_ahead", &lab, "on");
    let Some((mut service, image)) = life else { return };
    let (mut generation, mut at_work) = (1, 0);
    // On a fast disk it is done before the checkpoint comes, but not each time.
    while generation <= 5 || (at_work == 0 && generation <= 40) {
        at_work += usize::from(reads_ahead(&service));
        checkpoint(&lab, &mut service, &image);
        // Nor does anybody miss it in the next life.
        assert!(!service.output().contains("crac-prefetch"), "{}", service.output());
        service = restore_cold(&lab, &image);
        generation += 1;
        assert_eq!(service.get("/instance").json()["generation"], generation);
        assert!(!service.output().contains("crac-prefetch"), "{}", service.output());
    }
    assert_ne!(at_work, 0);
    assert_eq!(service.get("/warm").json()["entries"], WARM_MIB * 256);
}

#[test]
fn an_image_is_read_where_it_is_touched_if_that_is_wanted() {
    let lab = Lab::new();
    let life = cold_life("an_image_is_read_where_it_is_touched_if_that_is_wanted", &lab, "off");
    let Some((service, image)) = life else { return };
    // The kernel maps 64 KiB around what is touched.
    for n in 0..64 {
        service.get(&format!("/warm/{n}"));
        assert!(!reads_ahead(&service));
    }
    let at_hand = at_hand(&service, &image);
    assert!((1..WARM_MIB / 2).contains(&at_hand), "{at_hand} MiB");
}

#[test]
fn an_image_is_fetched_before_its_service_serves_if_that_is_wanted() {
    let lab = Lab::new();
    let image = lab.file("web.crac");
    put_to_sleep(&lab, &image, "on");
    for verb in [&["restore", "--populate"][..], &["run", "--populate", "--image"]] {
        drop_from_cache(&image);
        let addr = free_addr();
        let mut command = lab.command(program("crac"));
        command.args(verb).arg(&image).arg("--");
        if verb[0] == "run" {
            command.arg(program("web-server"));
        }
        command.args(["--listen", &addr.to_string()]);
        let service = Service::start(command, addr).answering();
        let before = fetched(&service);
        if before == 0 {
            let test = "an_image_is_fetched_before_its_service_serves_if_that_is_wanted";
            return skip(test, "the file system for temporary files keeps what it is told to drop");
        }
        assert!(before >= WARM_MIB << 20, "{verb:?}: {before} bytes were fetched");
        // The kernel may have taken some of it back where memory is short.
        assert!(at_hand(&service, &image) >= WARM_MIB * 7 / 8 && !reads_ahead(&service), "{verb:?}");
        assert_eq!(service.get("/instance").json()["generation"], 1);
        assert_eq!(service.get("/warm").json()["entries"], WARM_MIB * 256);
        let later = fetched(&service) - before;
        assert!(later < (WARM_MIB / 8) << 20, "{verb:?}: {later} bytes were fetched later");
    }
}
