//! Memory that several mappings or descriptors share.

use std::{
    fs::File,
    os::{fd::AsRawFd as _, unix::fs::FileExt as _},
};

use crate::{
    kernel::{Map, PAGE, PRIVATE, RW, SHARED, call, made},
    lives::{Life, Lives, Program, not_here},
};

pub(crate) const PROGRAMS: &[(&str, Program)] = &[
    ("shared-anonymous", shared_anonymous),
    ("shared-sparse", shared_sparse),
    ("shared-aliases", shared_aliases),
    ("memfd", memfd),
    ("memfd-sealed", memfd_sealed),
    ("memfd-mapped", memfd_mapped),
    ("memfd-private", memfd_private),
    ("memfd-closed", memfd_closed),
    ("file-shared", file_shared),
    ("file-shared-unasked", file_shared_unasked),
    ("file-shared-deleted", file_shared_deleted),
    ("sysv-segment", sysv_segment),
    ("shared-by-fork", shared_by_fork),
];

fn shared_anonymous(lives: Lives) {
    let map = Map::new(64 * PAGE, RW, SHARED);
    map.fill(3 * PAGE, 9 * PAGE, 7);
    let read = Map::new(PAGE, RW, SHARED);
    read.fill(0, PAGE, 8);
    read.protect(libc::PROT_READ);
    lives.without_copies().each(|_| {
        assert!(map.all(3 * PAGE, 9 * PAGE, 7) && map.all(0, 3 * PAGE, 0) && map.all(9 * PAGE, 64 * PAGE, 0));
        assert!(read.all(0, PAGE, 8) && read.has_flag("sh") && !read.has_flag("wr"));
        // Still shared: a child's writing is seen here.
        let child = call(libc::SYS_fork, []).unwrap();
        if child == 0 {
            map.set(0, 1);
            call(libc::SYS_exit_group, [0]).unwrap();
        }
        rustix::process::waitpid(rustix::process::Pid::from_raw(child as i32), rustix::process::WaitOptions::empty()).unwrap();
        assert_eq!(map.get(0), 1, "a child shares it");
        map.set(0, 0);
    })
}

fn shared_sparse(lives: Lives) {
    const LEN: usize = 8 << 30;
    let map = Map::new(LEN, RW, SHARED | libc::MAP_NORESERVE);
    let places = [0, 1 << 30, LEN - 1];
    places.iter().for_each(|at| map.set(*at, 3));
    lives.without_copies().each(|life| {
        assert!(places.iter().all(|at| map.get(*at) == 3));
        if life == Life::Restored {
            let image = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata("/proc/self/exe").unwrap()) * 512;
            assert!(image < 64 << 20, "the image holds {image} bytes");
        }
    })
}

fn shared_aliases(lives: Lives) {
    let one = Map::new(4 * PAGE, RW, SHARED);
    let two = one.alias();
    one.fill(0, PAGE, 5);
    two.fill(PAGE, 2 * PAGE, 6);
    lives.without_copies().each(|_| {
        for map in [&one, &two] {
            assert!(map.all(0, PAGE, 5) && map.all(PAGE, 2 * PAGE, 6) && map.all(2 * PAGE, 4 * PAGE, 0));
        }
        one.set(3 * PAGE, 9);
        assert_eq!(two.get(3 * PAGE), 9, "two views of one memory");
        two.set(3 * PAGE, 0);
        assert_eq!(one.get(3 * PAGE), 0);
    })
}

const MFD_CLOEXEC: usize = 1;
const MFD_ALLOW_SEALING: usize = 2;

fn make_memfd(name: &std::ffi::CStr) -> File {
    made(libc::SYS_memfd_create, [name.as_ptr().expose_provenance(), MFD_CLOEXEC | MFD_ALLOW_SEALING]).unwrap().into()
}

fn seals(file: &File) -> usize {
    crac_sys::fs::fcntl(file.as_raw_fd(), libc::F_GET_SEALS, 0).unwrap()
}

fn position(file: &File) -> u64 {
    std::io::Seek::stream_position(&mut &*file).unwrap()
}

fn memfd(lives: Lives) {
    use std::io::{Seek as _, SeekFrom};
    let mut file = make_memfd(c"crac-test");
    file.write_all_at(&[4; 3 * PAGE], 2 * PAGE as u64).unwrap();
    file.set_len(1 << 20).unwrap();
    file.seek(SeekFrom::Start(77)).unwrap();
    let duplicate = file.try_clone().unwrap();
    let reopened = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    lives.without_copies().each(|_| {
        let mut bytes = [9; 4 * PAGE];
        file.read_exact_at(&mut bytes, PAGE as u64).unwrap();
        assert!(bytes[..PAGE].iter().all(|byte| *byte == 0) && bytes[PAGE..].iter().all(|byte| *byte == 4));
        assert_eq!(file.metadata().unwrap().len(), 1 << 20);
        assert_eq!((position(&file), position(&duplicate), position(&reopened)), (77, 77, 0));
        (&duplicate).seek(SeekFrom::Start(78)).unwrap();
        assert_eq!(position(&file), 78, "one open file");
        (&duplicate).seek(SeekFrom::Start(77)).unwrap();
        file.write_all_at(&[1], 0).unwrap();
        reopened.read_exact_at(&mut bytes[..1], 0).unwrap();
        assert_eq!(bytes[0], 1, "one memory");
        assert!(reopened.write_all_at(&[1], 0).is_err(), "open for reading");
        file.write_all_at(&[0], 0).unwrap();
        let name = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        assert_eq!(name.to_str().unwrap(), "/memfd:crac-test (deleted)");
    })
}

fn memfd_sealed(lives: Lives) {
    let file = make_memfd(c"sealed");
    file.write_all_at(&[4; PAGE], 0).unwrap();
    let read = Map::file(PAGE, libc::PROT_READ, libc::MAP_SHARED, &file);
    let growing = make_memfd(c"growing");
    growing.set_len(PAGE as u64).unwrap();
    let written = Map::file(PAGE, RW, libc::MAP_SHARED, &growing);
    written.set(0, 3);
    let seal = |file: &File, seals: i32| crac_sys::fs::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals as usize).unwrap();
    seal(&growing, libc::F_SEAL_SHRINK | libc::F_SEAL_FUTURE_WRITE);
    call(libc::SYS_munmap, [read.address(), read.len()]).unwrap();
    seal(&file, libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW);
    let read = Map::file(PAGE, libc::PROT_READ, libc::MAP_SHARED, &file);
    seal(&file, libc::F_SEAL_SEAL);
    let before = (seals(&file), seals(&growing));
    lives.without_copies().each(|_| {
        assert_eq!((seals(&file), seals(&growing)), before);
        assert!(read.all(0, PAGE, 4));
        assert!(file.write_all_at(&[1], 0).is_err() && growing.write_all_at(&[1], 0).is_err());
        assert_eq!(written.get(0), 3);
        written.set(1, 5);
        let mut byte = [0];
        growing.read_exact_at(&mut byte, 1).unwrap();
        assert_eq!(byte, [5], "the mapping made before the seal still writes");
    })
}

fn memfd_mapped(lives: Lives) {
    let file = make_memfd(c"ring");
    file.set_len(4 * PAGE as u64).unwrap();
    // As ring buffers do: the same memory twice, one behind the other, and a part of it elsewhere.
    let room = Map::new(8 * PAGE, libc::PROT_NONE, PRIVATE);
    for half in [0, 4 * PAGE] {
        let flags = (libc::MAP_SHARED | libc::MAP_FIXED) as usize;
        let args = [room.address() + half, 4 * PAGE, RW as usize, flags, file.as_raw_fd() as usize, 0];
        call(libc::SYS_mmap, args).unwrap();
    }
    let part = Map::of(PAGE, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 2 * PAGE);
    room.fill(2 * PAGE, 3 * PAGE, 6);
    lives.without_copies().each(|_| {
        assert!(room.all(2 * PAGE, 3 * PAGE, 6) && room.all(6 * PAGE, 7 * PAGE, 6) && part.all(0, PAGE, 6));
        room.set(0, 8);
        let mut byte = [0];
        file.read_exact_at(&mut byte, 0).unwrap();
        assert_eq!((room.get(4 * PAGE), byte), (8, [8]), "written once, seen everywhere");
        file.write_all_at(&[0], 0).unwrap();
        assert_eq!(room.get(4 * PAGE), 0);
    })
}

fn memfd_private(lives: Lives) {
    let file = make_memfd(c"private");
    file.write_all_at(&[4; 3 * PAGE], 0).unwrap();
    let map = Map::file(3 * PAGE, RW, libc::MAP_PRIVATE, &file);
    map.set(PAGE, 5);
    lives.without_copies().each(|_| {
        assert_eq!((map.get(0), map.get(PAGE), map.get(PAGE + 1)), (4, 5, 4));
        let mut byte = [0];
        file.read_exact_at(&mut byte, PAGE as u64).unwrap();
        assert_eq!(byte, [4], "the private page is not the memory's");
    })
}

fn memfd_closed(lives: Lives) {
    let file = make_memfd(c"closed");
    file.set_len(4 * PAGE as u64).unwrap();
    let whole = Map::file(4 * PAGE, RW, libc::MAP_SHARED, &file);
    let part = Map::of(PAGE, RW, libc::MAP_SHARED, file.as_raw_fd(), 2 * PAGE);
    drop(file);
    whole.fill(2 * PAGE, 3 * PAGE, 6);
    lives.without_copies().each(|_| {
        assert!(part.all(0, PAGE, 6) && whole.all(0, 2 * PAGE, 0));
        part.set(9, 1);
        assert_eq!(whole.get(2 * PAGE + 9), 1);
        whole.set(2 * PAGE + 9, 6);
    })
}

fn make_file(name: &str) -> File {
    std::fs::write(name, [4; 4 * PAGE]).unwrap();
    File::options().read(true).write(true).open(name).unwrap()
}

fn file_shared(lives: Lives) {
    let file = make_file("database");
    let map = Map::file(4 * PAGE, RW, libc::MAP_SHARED, &file);
    // Only read at the moment; it may be made writable later.
    let other = Map::file(4 * PAGE, libc::PROT_READ, libc::MAP_SHARED, &file);
    drop(file);
    let again = map.alias();
    map.set(0, 1);
    lives.policy("memory-file-shared:*/database = reopen").without_copies().each(|_| {
        assert_eq!((map.get(0), map.get(PAGE), again.get(0)), (1, 4, 1));
        map.set(PAGE, 5);
        assert_eq!(std::fs::read("database").unwrap()[PAGE], 5, "written to the file");
        other.protect(RW);
        other.set(PAGE, 4);
        other.protect(libc::PROT_READ);
        assert_eq!(map.get(PAGE), 4);
    })
}

fn file_shared_unasked(lives: Lives) {
    let file = make_file("database");
    let map = Map::file(4 * PAGE, RW, libc::MAP_SHARED, &file);
    drop(file);
    lives.each(|_| assert!(map.all(0, PAGE, 4)))
}

fn file_shared_deleted(lives: Lives) {
    let file = make_file("gone");
    let map = Map::file(4 * PAGE, RW, libc::MAP_SHARED, &file);
    std::fs::remove_file("gone").unwrap();
    drop(file);
    lives.each(|_| assert!(map.all(0, PAGE, 4)))
}

fn sysv_segment(lives: Lives) {
    const IPC_RMID: usize = 0;
    let Ok(id) = call(libc::SYS_shmget, [0, PAGE, 0o600]) else { not_here("no System V segments") };
    call(libc::SYS_shmat, [id, 0, 0]).unwrap();
    call(libc::SYS_shmctl, [id, IPC_RMID, 0]).unwrap();
    lives.each(|_| {})
}

/// Memory shared with a child that is gone.
fn shared_by_fork(lives: Lives) {
    let map = Map::new(PAGE, RW, SHARED);
    let child = call(libc::SYS_fork, []).unwrap();
    if child == 0 {
        map.fill(0, PAGE, 3);
        call(libc::SYS_exit_group, [0]).unwrap();
    }
    rustix::process::waitpid(rustix::process::Pid::from_raw(child as i32), rustix::process::WaitOptions::empty()).unwrap();
    lives.without_copies().each(|_| assert!(map.all(0, PAGE, 3)))
}
