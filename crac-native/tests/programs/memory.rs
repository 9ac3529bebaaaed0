//! Memory of every kind.
#![allow(unsafe_code, reason = "the test makes mappings by hand")]

use std::{ffi::c_void, fs::File, os::fd::AsRawFd, ptr, slice};

use super::lives;

pub(super) const PAGE: usize = 4096;
pub(super) const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// A mapping that stays for the life of the process.
pub(super) fn map(len: usize, protection: i32, flags: i32, fd: i32) -> *mut u8 {
    // SAFETY: the kernel chooses the place.
    let at = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, fd, 0) };
    assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    at.cast()
}

pub(super) fn bytes<'a>(at: *mut u8, len: usize) -> &'a mut [u8] {
    // SAFETY: only used for mappings of this file, readable and writable at the time.
    unsafe { slice::from_raw_parts_mut(at, len) }
}

unsafe extern "C" {
    /// By name, as allocators call it.
    fn madvise(at: *mut c_void, len: usize, advice: i32) -> i32;
}

/// Code that was made at run time, in memory that may be written no more and, if `CRAC_TEST_WRITABLE_CODE` is set, in memory that may.
pub(crate) fn made_code() {
    /// `mov eax, 42; ret`
    const CODE: [u8; 6] = [0xb8, 42, 0, 0, 0, 0xc3];
    let may_write = std::env::var_os("CRAC_TEST_WRITABLE_CODE").is_some();
    let lasting = if may_write { RW | libc::PROT_EXEC } else { libc::PROT_READ | libc::PROT_EXEC };
    let at = map(3 * PAGE, RW, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1);
    bytes(at, 3 * PAGE)[2 * PAGE..][..CODE.len()].copy_from_slice(&CODE);
    // SAFETY: the mapping from above.
    assert_eq!(unsafe { libc::mprotect(at.cast(), 3 * PAGE, lasting) }, 0);
    // SAFETY: the code that was put there has this signature.
    let made = unsafe { std::mem::transmute::<*mut u8, extern "C" fn() -> u32>(at.wrapping_add(2 * PAGE)) };
    lives(|_| assert_eq!(made(), 42));
}

/// Memory given back with `MADV_DONTNEED` reads as zeros in every life, as anonymous memory does.
pub(crate) fn discard() {
    let len = 64 * PAGE;
    let anonymous = map(len, RW, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1);
    bytes(anonymous, len).fill(0xaa);
    let mut zeroed = 0;
    lives(|generation| {
        if generation == u64::MAX {
            return;
        }
        let all = bytes(anonymous, len);
        assert!(all[..zeroed].iter().all(|byte| *byte == 0), "given back in an earlier life");
        assert!(all[zeroed..].iter().all(|byte| *byte == 0xaa), "still in use");
        if generation > 0 {
            // One page read before, one written before, one untouched since the restore.
            all[zeroed + PAGE] = 0xbb;
            let given = 4 * PAGE;
            // SAFETY: the test's own mapping.
            let answer = unsafe { madvise(anonymous.wrapping_add(zeroed).cast(), given, libc::MADV_DONTNEED) };
            assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
            assert!(all[zeroed..zeroed + given].iter().all(|byte| *byte == 0), "freed memory came back with old bytes");
            zeroed += given;
            // MADV_FREE works as on anonymous memory, and the memory can be used again.
            // SAFETY: the test's own mapping.
            let answer = unsafe { madvise(anonymous.wrapping_add(zeroed).cast(), PAGE, libc::MADV_FREE) };
            assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
            all[zeroed..zeroed + PAGE].fill(0xaa);
        }
    });
}

/// Kinds of mappings, each with something to recognise.
pub(crate) fn memory() {
    let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let sparse_len = 256 << 20;
    let sparse = map(sparse_len, RW, anonymous | libc::MAP_NORESERVE, -1);
    for at in (0..sparse_len).step_by(sparse_len / 16) {
        // SAFETY: inside the mapping.
        unsafe { sparse.add(at).write(7) };
    }
    let hidden = map(2 * PAGE, RW, anonymous, -1);
    bytes(hidden, 2 * PAGE).fill(0x11);
    let protect = |protection| {
        // SAFETY: the test's own mapping.
        assert_eq!(unsafe { libc::mprotect(hidden.cast(), 2 * PAGE, protection) }, 0);
    };
    protect(libc::PROT_NONE);
    let wiped = map(PAGE, RW, anonymous, -1);
    bytes(wiped, PAGE).fill(0x22);
    // SAFETY: the test's own mapping.
    assert_eq!(unsafe { madvise(wiped.cast(), PAGE, libc::MADV_WIPEONFORK) }, 0);
    // Droppable memory, which the C library keeps its random state in (Linux 6.11).
    const MAP_DROPPABLE: i32 = 0x08;
    // SAFETY: the kernel chooses the place.
    let droppable = unsafe { libc::mmap(ptr::null_mut(), PAGE, RW, MAP_DROPPABLE | libc::MAP_ANONYMOUS, -1, 0) }.cast::<u8>();
    let droppable = (droppable.cast() != libc::MAP_FAILED).then_some(droppable);
    if let Some(at) = droppable {
        bytes(at, PAGE).fill(0x22);
    }
    let guarded = map(8 * PAGE, RW, anonymous, -1);
    bytes(guarded, 8 * PAGE).fill(0x33);
    const MADV_GUARD_INSTALL: i32 = 102;
    // SAFETY: the test's own mapping; nothing touches the guarded page again.
    let guards = unsafe { madvise(guarded.add(2 * PAGE).cast(), PAGE, MADV_GUARD_INSTALL) } == 0;
    // A file that does not change is referred to; what was changed in the private mapping is not lost.
    let file = std::env::current_exe().unwrap().parent().unwrap().join("data-for-memory-test");
    let file = if file.exists() { file } else { std::env::temp_dir().join(format!("crac-memory-{}", std::process::id())) };
    std::fs::write(&file, vec![0x44; 5 * PAGE]).unwrap();
    let opened = File::open(&file).unwrap();
    let private = map(5 * PAGE, RW, libc::MAP_PRIVATE, opened.as_raw_fd());
    bytes(private, 5 * PAGE)[2 * PAGE] = 0x55;
    let shared = map(5 * PAGE, libc::PROT_READ, libc::MAP_SHARED, opened.as_raw_fd());
    drop(opened);
    // SAFETY: only asks.
    let heap_end = unsafe { libc::sbrk(0) } as usize;
    lives(|generation| {
        assert!((0..sparse_len).step_by(sparse_len / 16).all(|at| bytes(sparse, sparse_len)[at] == 7));
        assert_eq!(bytes(sparse, sparse_len)[12_345_678], 0, "a hole reads as zeros");
        protect(RW);
        assert!(bytes(hidden, 2 * PAGE).iter().all(|byte| *byte == 0x11), "memory without access keeps its content");
        protect(libc::PROT_NONE);
        let expected = if generation == 0 { 0x22 } else { 0 };
        assert!(bytes(wiped, PAGE).iter().all(|byte| *byte == expected), "wiped like in a fork");
        if let Some(at) = droppable {
            assert!(bytes(at, PAGE).iter().all(|byte| *byte == expected), "dropped like in a fork");
        }
        if guards {
            assert!(bytes(guarded, 2 * PAGE).iter().all(|byte| *byte == 0x33));
            // The kernel answers EFAULT where a guard is.
            // SAFETY: the kernel does not touch the page.
            let written = unsafe { libc::write(1, guarded.add(2 * PAGE).cast(), 1) };
            assert_eq!((written, std::io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EFAULT)), "the guard is back");
        }
        assert_eq!((bytes(private, 5 * PAGE)[0], bytes(private, 5 * PAGE)[2 * PAGE]), (0x44, 0x55));
        // SAFETY: readable.
        assert_eq!(unsafe { shared.add(4 * PAGE).read() }, 0x44);
        // The heap grows where it grew before.
        // SAFETY: the test's own growth, given back.
        let grown = unsafe { libc::sbrk(1 << 20) } as usize;
        assert!(grown >= heap_end && grown != usize::MAX, "brk {heap_end:#x} {grown:#x}");
        // SAFETY: as above.
        unsafe { libc::sbrk(-(1 << 20)) };
        // The main stack grows beyond what it was.
        assert_eq!(deep(1 << 20), 1 << 20);
        if generation == u64::MAX {
            std::fs::remove_file(&file).unwrap();
        }
    });
}

/// Uses that many bytes of stack.
#[inline(never)]
fn deep(bytes: usize) -> usize {
    let frame = std::hint::black_box([1_u8; 64 * 1024]);
    if bytes <= frame.len() { bytes } else { deep(bytes - frame.len()) + usize::from(frame[7]) * frame.len() }
}
