//! Private memory of every kind.
#![allow(unsafe_code, reason = "calls of the C library, and code made at run time")]

use std::{fs::File, hint::black_box, os::unix::fs::FileExt as _, sync::Barrier, thread};

use crate::{
    kernel::{Map, PAGE, PRIVATE, RW, call, field},
    lives::{Life, Lives, Program, not_here},
};

pub(crate) const PROGRAMS: &[(&str, Program)] = &[
    ("anonymous", anonymous),
    ("sparse", sparse),
    ("heap-end", heap_end),
    ("no-access", no_access),
    ("guard-regions", guard_regions),
    ("file-private", file_private),
    ("file-data", file_data),
    ("file-deleted", file_deleted),
    ("discarded", discarded),
    ("discarded-by-number", discarded_by_number),
    ("discarded-bare", discarded_bare),
    ("discarded-bare-kept", discarded_bare_kept),
    ("discarded-library-kept", discarded_library_kept),
    ("discarded-locked", discarded_locked),
    ("discarded-crowded", discarded_crowded),
    ("freed", freed),
    ("wiped-on-fork", wiped_on_fork),
    ("not-forked", not_forked),
    ("not-dumped", not_dumped),
    ("huge-pages", huge_pages),
    ("access-advice", access_advice),
    ("droppable", droppable),
    ("locked", locked),
    ("locked-on-fault", locked_on_fault),
    ("locked-future", locked_future),
    ("sealed", sealed),
    ("main-stack", main_stack),
    ("main-stack-overflow", main_stack_overflow),
    ("thread-stack-overflow", thread_stack_overflow),
    ("library-opened", library_opened),
    ("code-made", code_made),
    ("breakpoint", breakpoint),
    ("uprobe", uprobe),
];

fn anonymous(lives: Lives) {
    let map = Map::new(64 * PAGE, RW, PRIVATE);
    map.fill(0, 32 * PAGE, 7);
    let read_only = Map::new(PAGE, RW, PRIVATE);
    read_only.fill(0, PAGE, 9);
    read_only.protect(libc::PROT_READ);
    lives.each(|_| {
        assert!(map.all(0, 32 * PAGE, 7) && map.all(32 * PAGE, 64 * PAGE, 0));
        map.set(5, 8);
        map.set(5, 7);
        assert!(read_only.all(0, PAGE, 9) && !read_only.has_flag("wr"));
    })
}

fn sparse(lives: Lives) {
    const LEN: usize = 64 << 30;
    let map = Map::new(LEN, RW, PRIVATE | libc::MAP_NORESERVE);
    let places = [0, 1 << 30, LEN - PAGE];
    places.iter().for_each(|at| map.set(*at, 3));
    lives.each(|_| {
        assert!(places.iter().all(|at| map.get(*at) == 3));
        assert_eq!(map.get((2 << 30) + 77), 0, "a hole");
    })
}

fn heap_end(lives: Lives) {
    let end = || call(libc::SYS_brk, [0]).unwrap();
    let mut expected = end();
    let mut grown = 1;
    lives.each(|_| {
        // The C library's allocator may have moved it in between, but never to below.
        assert!(end() >= expected);
        let step = if grown % 2 == 0 { 3 * PAGE } else { 256 * PAGE };
        let before = end();
        assert_eq!(call(libc::SYS_brk, [before + step]), Ok(before + step), "grows");
        assert_eq!(call(libc::SYS_brk, [before]), Ok(before), "shrinks");
        expected = before;
        grown += 1;
    })
}

fn no_access(lives: Lives) {
    let map = Map::new(4 * PAGE, RW, PRIVATE);
    map.fill(0, 4 * PAGE, 0x11);
    map.protect(libc::PROT_NONE);
    let guard = Map::new(PAGE, libc::PROT_NONE, PRIVATE);
    lives.each(|_| {
        assert!(!map.is_there(0) && !guard.is_there(0));
        map.protect(RW);
        assert!(map.all(0, 4 * PAGE, 0x11), "memory without access keeps its content");
        map.protect(libc::PROT_NONE);
    })
}

fn guard_regions(lives: Lives) {
    const MADV_GUARD_INSTALL: i32 = 102;
    let map = Map::new(8 * PAGE, RW, PRIVATE);
    map.fill(0, 8 * PAGE, 0x33);
    if map.advise_part(2 * PAGE, 3 * PAGE, MADV_GUARD_INSTALL).is_err() {
        not_here("guard regions need Linux 6.13");
    }
    lives.each(|_| {
        assert!(!map.is_there(2 * PAGE), "the guard");
        assert!(map.all(0, 2 * PAGE, 0x33) && map.all(3 * PAGE, 8 * PAGE, 0x33));
    })
}

fn write(name: &str, bytes: &[u8]) -> File {
    std::fs::write(name, bytes).unwrap();
    File::options().read(true).write(true).open(name).unwrap()
}

fn file_private(lives: Lives) {
    let file = write("data", &[0x44; 5 * PAGE]);
    let map = Map::file(5 * PAGE, RW, libc::MAP_PRIVATE, &file);
    drop(file);
    map.set(2 * PAGE, 0x55);
    lives.each(|_| {
        assert_eq!((map.get(0), map.get(2 * PAGE), map.get(2 * PAGE + 1)), (0x44, 0x55, 0x44));
        map.set(3 * PAGE, 0x66);
        map.set(3 * PAGE, 0x44);
        assert_eq!(std::fs::read("data").unwrap(), [0x44; 5 * PAGE], "the file itself stays");
    })
}

/// A large file that is only read is referred to: the image does not hold it.
fn file_data(lives: Lives) {
    const LEN: usize = 64 << 20;
    let file = write("data", &[]);
    let pattern: Vec<u8> = (0..LEN).map(|at| (at >> 12) as u8 | 1).collect();
    file.write_all_at(&pattern, 0).unwrap();
    drop(pattern);
    let shared = Map::file(LEN, libc::PROT_READ, libc::MAP_SHARED, &File::open("data").unwrap());
    let private = Map::file(LEN, libc::PROT_READ, libc::MAP_PRIVATE, &file);
    drop(file);
    lives.each(|life| {
        for at in (0..LEN).step_by(PAGE) {
            assert_eq!((shared.get(at), private.get(at)), ((at >> 12) as u8 | 1, (at >> 12) as u8 | 1));
        }
        if life == Life::Restored {
            let image = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata("/proc/self/exe").unwrap()) * 512;
            assert!(image < LEN as u64 / 2, "the image holds {image} bytes");
        }
    })
}

fn file_deleted(lives: Lives) {
    // The mapping reaches beyond the end of the file.
    let file = write("gone", &[0x44; 2 * PAGE + 100]);
    let map = Map::file(5 * PAGE, RW, libc::MAP_PRIVATE, &file);
    drop(file);
    map.set(PAGE, 0x55);
    std::fs::remove_file("gone").unwrap();
    lives.each(|_| {
        assert_eq!((map.get(0), map.get(PAGE), map.get(2 * PAGE + 99), map.get(2 * PAGE + 100)), (0x44, 0x55, 0x44, 0));
        map.set(7, 0x66);
        map.set(7, 0x44);
    })
}

fn discarded(lives: Lives) {
    let map = Map::new(64 * PAGE, RW, PRIVATE);
    lives.each(|life| {
        if life != Life::First {
            assert!(map.all(0, 64 * PAGE, 0xaa));
        }
        map.fill(0, 64 * PAGE, 0xaa);
        map.advise_part(PAGE, 20 * PAGE, libc::MADV_DONTNEED).unwrap();
        assert!(map.all(PAGE, 20 * PAGE, 0), "given back: zeros");
        assert!(map.all(0, PAGE, 0xaa) && map.all(20 * PAGE, 64 * PAGE, 0xaa));
        map.fill(PAGE, 20 * PAGE, 0xaa);
    })
}

fn discarded_locked(lives: Lives) {
    /// Since Linux 5.18.
    const MADV_DONTNEED_LOCKED: i32 = 24;
    let map = Map::new(8 * PAGE, RW, PRIVATE);
    map.fill(0, 8 * PAGE, 0xaa);
    call(libc::SYS_mlock, [map.address(), map.len()]).unwrap();
    lives.each(|_| {
        assert!(map.all(0, 8 * PAGE, 0xaa));
        map.advise_part(2 * PAGE, 4 * PAGE, MADV_DONTNEED_LOCKED).unwrap();
        assert!(map.all(2 * PAGE, 4 * PAGE, 0), "given back: zeros");
        assert!(map.all(0, 2 * PAGE, 0xaa) && map.all(4 * PAGE, 8 * PAGE, 0xaa));
        map.advise(MADV_DONTNEED_LOCKED).unwrap();
        assert!(map.all(0, 8 * PAGE, 0) && map.has_flag("lo"), "and it stays locked");
        map.fill(0, 8 * PAGE, 0xaa);
    })
}

fn discarded_by_number(lives: Lives) {
    let map = Map::new(4 * PAGE, RW, PRIVATE);
    let discard = |at: usize| {
        // SAFETY: pages of this program's own mapping, which are looked at again as what they are then.
        unsafe { libc::syscall(libc::SYS_madvise, map.address() + at, map.len() - at, libc::MADV_DONTNEED) }
    };
    lives.each(|_| {
        map.fill(0, 4 * PAGE, 0xaa);
        assert_eq!(discard(0), 0);
        assert!(map.all(0, 4 * PAGE, 0));
        map.fill(0, 4 * PAGE, 0xaa);
        // What the kernel refuses is refused, as it would do that.
        assert_eq!((discard(1), std::io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EINVAL)));
        assert!(map.all(0, 4 * PAGE, 0xaa));
    })
}

/// `madvise` by an instruction of one's own, as a function. Nothing stands between such a call and the kernel, for which lazily
/// restored memory is a file's.
type Advise = extern "C" fn(usize, usize, i32) -> isize;

fn discarded_bare(lives: Lives) {
    discard_by(lives, advise_made_at_run_time());
}

fn discarded_bare_kept(lives: Lives) {
    discard_by(lives.policy("allocator-raw:memory* = keep"), advise_made_at_run_time());
}

/// In a library, by whose name the policy knows it in every generation.
fn discarded_library_kept(lives: Lives) {
    std::fs::write("bare.s", ".globl bare\nbare: mov $28, %eax\nsyscall\nret\n.section .note.GNU-stack\n").unwrap();
    let built = std::process::Command::new("cc").args(["-shared", "-nostdlib", "-o", "libbare.so", "bare.s"]).status();
    if !built.is_ok_and(|status| status.success()) {
        not_here("there is no `cc` that makes a library");
    }
    // SAFETY: a library of one function, without constructors.
    let library = unsafe { libc::dlopen(c"./libbare.so".as_ptr(), libc::RTLD_NOW) };
    if library.is_null() {
        not_here("this program cannot open a library");
    }
    // SAFETY: an open library.
    let function = unsafe { libc::dlsym(library, c"bare".as_ptr()) };
    // SAFETY: a function of three parameters that makes one system call.
    let advise = unsafe { std::mem::transmute::<*mut libc::c_void, Advise>(function) };
    discard_by(lives.policy("allocator-raw:*/libbare.so = keep"), advise);
}

fn advise_made_at_run_time() -> Advise {
    let code = Map::new(PAGE, RW, PRIVATE);
    // mov eax, 28; syscall; ret
    [0xb8, 28, 0, 0, 0, 0x0f, 0x05, 0xc3].into_iter().enumerate().for_each(|(at, byte)| code.set(at, byte));
    code.protect(libc::PROT_READ | libc::PROT_EXEC);
    // SAFETY: the code above is a function of three parameters that makes one system call.
    unsafe { std::mem::transmute::<*const (), Advise>(std::ptr::with_exposed_provenance(code.address())) }
}

fn discard_by(lives: Lives, advise: Advise) {
    let map = Map::new(4 * PAGE, RW, PRIVATE);
    lives.each(move |_| {
        map.fill(0, 4 * PAGE, 0xaa);
        assert_eq!(advise(map.address(), map.len(), libc::MADV_DONTNEED), 0);
        assert!(map.all(0, 4 * PAGE, 0));
        map.fill(0, 4 * PAGE, 0xaa);
    })
}

/// Memory of an image is given back by replacing it, which splits mappings, of which a process may have so many.
fn discarded_crowded(lives: Lives) {
    let limit: usize = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap();
    if limit > 1 << 18 {
        not_here("this kernel allows more mappings than a test should make (`vm.max_map_count`)");
    }
    const LEN: usize = 1024 * PAGE;
    let map = Map::new(LEN, RW, PRIVATE);
    map.fill(0, LEN, 0xaa);
    let count = || std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
    // Pages of their own, so that nothing is joined again.
    let discard = |from: usize, to: usize| {
        for at in (from..to).step_by(2 * PAGE) {
            map.advise_part(at, at + PAGE, libc::MADV_DONTNEED).unwrap();
            assert!(map.all(at, at + PAGE, 0) && map.all(at + PAGE, at + 2 * PAGE, 0xaa), "given back: zeros");
        }
    };
    lives.each(|life| {
        let before = count();
        discard(0, LEN / 4);
        if life == Life::Restored {
            assert!(count() > before, "what is given back is replaced");
            // Every other page with another protection is a mapping of its own.
            let crowd = Map::new((limit + 2) * PAGE, libc::PROT_NONE, PRIVATE | libc::MAP_NORESERVE);
            let split = |at: usize| call(libc::SYS_mprotect, [crowd.address() + at * PAGE, PAGE, libc::PROT_READ as usize]);
            let mut pages = (1..limit).step_by(2);
            let needed = limit.saturating_sub(2 * count()) / 4 + 2;
            assert!(pages.by_ref().take(needed).all(|at| split(at).is_ok()));
            let crowded = count();
            assert!(crowded > limit / 2 && crowded < limit);
            discard(LEN / 4, LEN / 2);
            // It is not counted each time.
            assert!(count() < crowded + 150, "from half of the limit on nothing is split: {} {crowded}", count());
            // Up to the very last one.
            pages.by_ref().find(|at| split(*at).is_err()).expect("the limit is reached");
            discard(LEN / 2, 3 * LEN / 4);
            call(libc::SYS_munmap, [crowd.address(), crowd.len()]).unwrap();
        }
        discard(3 * LEN / 4, LEN);
        map.fill(0, LEN, 0xaa);
    })
}

fn freed(lives: Lives) {
    let map = Map::new(64 * PAGE, RW, PRIVATE);
    map.fill(0, 64 * PAGE, 0xaa);
    lives.each(|_| {
        let kept = |at: usize| [0, 0xaa].contains(&map.get(at));
        assert!((0..64 * PAGE).all(kept), "freed memory is what it was, or zero");
        map.advise(libc::MADV_FREE).unwrap();
        map.fill(0, 32 * PAGE, 0xaa);
        assert!(map.all(0, 32 * PAGE, 0xaa), "and can be used again");
    })
}

fn wiped_on_fork(lives: Lives) {
    let map = Map::new(PAGE, RW, PRIVATE);
    map.fill(0, PAGE, 0x22);
    map.advise(libc::MADV_WIPEONFORK).unwrap();
    lives.each(|life| {
        let expected = if life == Life::Restored { 0 } else { 0x22 };
        assert!(map.all(0, PAGE, expected), "a restored life is as new as a fork");
        assert!(map.has_flag("wf"));
    })
}

fn not_forked(lives: Lives) {
    let map = Map::new(PAGE, RW, PRIVATE);
    map.fill(0, PAGE, 0x22);
    map.advise(libc::MADV_DONTFORK).unwrap();
    lives.without_copies().each(|_| {
        assert!(map.all(0, PAGE, 0x22) && map.has_flag("dc"));
    })
}

fn not_dumped(lives: Lives) {
    let map = Map::new(PAGE, RW, PRIVATE);
    map.fill(0, PAGE, 0x22);
    map.advise(libc::MADV_DONTDUMP).unwrap();
    lives.each(|life| {
        let expected = if life == Life::Restored { 0 } else { 0x22 };
        assert!(map.all(0, PAGE, expected) && map.has_flag("dd"), "left out of images, as of core dumps");
    })
}

fn huge_pages(lives: Lives) {
    let map = Map::new(8 << 20, RW, PRIVATE);
    if map.advise(libc::MADV_HUGEPAGE).is_err() {
        not_here("this kernel has no huge pages");
    }
    map.fill(0, 8 << 20, 0x21);
    lives.each(|_| assert!(map.all(0, 8 << 20, 0x21) && map.has_flag("hg")))
}

fn access_advice(lives: Lives) {
    let file = write("data", &[0x44; 4 * PAGE]);
    let random = Map::file(4 * PAGE, libc::PROT_READ, libc::MAP_PRIVATE, &file);
    random.advise(libc::MADV_RANDOM).unwrap();
    let sequential = Map::file(4 * PAGE, libc::PROT_READ, libc::MAP_SHARED, &file);
    sequential.advise(libc::MADV_SEQUENTIAL).unwrap();
    drop(file);
    lives.each(|_| {
        assert!(random.has_flag("rr") && sequential.has_flag("sr"), "{} {}", random.flags(), sequential.flags());
        assert!(random.all(0, PAGE, 0x44) && sequential.all(0, PAGE, 0x44));
    })
}

fn droppable(lives: Lives) {
    const MAP_DROPPABLE: usize = 0x08;
    let flags = MAP_DROPPABLE | libc::MAP_ANONYMOUS as usize;
    if call(libc::SYS_mmap, [0, PAGE, RW as usize, flags, usize::MAX, 0]).is_err() {
        not_here("droppable memory needs Linux 6.11");
    }
    let map = Map::new(PAGE, RW, flags as i32);
    map.fill(0, PAGE, 0x22);
    lives.each(|life| {
        let expected = if life == Life::Restored { 0 } else { 0x22 };
        assert!(map.all(0, PAGE, expected) && map.has_flag("dp"));
    })
}

fn locked(lives: Lives) {
    let map = Map::new(8 * PAGE, RW, PRIVATE);
    map.fill(0, 3 * PAGE, 0x77);
    let file = write("data", &[0x44; 4 * PAGE]);
    let read = Map::file(4 * PAGE, libc::PROT_READ, libc::MAP_PRIVATE, &file);
    drop(file);
    call(libc::SYS_mlock, [map.address(), map.len()]).unwrap();
    call(libc::SYS_mlock, [read.address(), read.len()]).unwrap();
    let amount = || field("/proc/self/status", "VmLck");
    let before = amount();
    lives.each(|_| {
        assert!(map.has_flag("lo") && read.has_flag("lo"));
        assert!(map.all(0, 3 * PAGE, 0x77) && read.all(0, PAGE, 0x44));
        assert_eq!(amount(), before);
        let mut resident = [0_u8; 8];
        call(libc::SYS_mincore, [map.address(), map.len(), resident.as_mut_ptr().expose_provenance()]).unwrap();
        assert_eq!(resident, [1; 8], "locked memory is in memory");
    })
}

fn locked_on_fault(lives: Lives) {
    const MLOCK_ONFAULT: usize = 1;
    let map = Map::new(8 * PAGE, RW, PRIVATE);
    call(libc::SYS_mlock2, [map.address(), map.len(), MLOCK_ONFAULT]).unwrap();
    map.fill(0, PAGE, 0x77);
    lives.each(|_| {
        assert!(map.has_flag("lo") && map.has_flag("lf"), "{}", map.flags());
        assert!(map.all(0, PAGE, 0x77));
    })
}

fn locked_future(lives: Lives) {
    const MCL_ONFAULT: usize = 4;
    // The engine's own tables are locked as well, as far as they are touched, and counted in full.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock);
    if !crate::kernel::is_root() && limit.current.is_some_and(|limit| limit < 256 << 20) {
        not_here("this user may not lock enough memory");
    }
    call(libc::SYS_mlockall, [libc::MCL_FUTURE as usize | MCL_ONFAULT]).unwrap();
    lives.each(|_| {
        let map = Map::new(PAGE, RW, PRIVATE);
        assert!(map.has_flag("lo") && map.has_flag("lf"), "what is mapped now is locked");
        call(libc::SYS_munmap, [map.address(), map.len()]).unwrap();
    })
}

fn sealed(lives: Lives) {
    const SYS_MSEAL: libc::c_long = 462;
    let map = Map::new(PAGE, RW, PRIVATE);
    if call(SYS_MSEAL, [map.address(), map.len(), 0]).is_err() {
        not_here("mseal needs Linux 6.10");
    }
    lives.each(|_| assert!(map.has_flag("sl")))
}

fn main_stack(lives: Lives) {
    let top = black_box(0_u8);
    let top = std::ptr::from_ref(&top).addr();
    assert!(deep(top, 1 << 20) < 2 << 20);
    lives.each(|_| assert!(deep(top, 5 << 20) >= 5 << 20))
}

/// A restored life that overflows its stack is told so by the standard library, as any other: guard pages and alternate signal
/// stacks are where they were, and its handler finds them.
fn main_stack_overflow(lives: Lives) {
    without_core_dump();
    lives.at_last(overflow).each(|_| {})
}

/// The same on a thread that has lived through all of it.
fn thread_stack_overflow(lives: Lives) {
    static LAST: Barrier = Barrier::new(2);
    without_core_dump();
    thread::Builder::new()
        .name("deep".into())
        .spawn(|| {
            LAST.wait();
            overflow();
        })
        .unwrap();
    lives
        .at_last(|| {
            LAST.wait();
            thread::sleep(crac_testing::PATIENCE);
        })
        .each(|_| {})
}

fn overflow() {
    let top = black_box(0_u8);
    deep(std::ptr::from_ref(&top).addr(), usize::MAX);
}

/// What dies on purpose leaves nothing behind.
fn without_core_dump() {
    let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(rustix::process::Resource::Core, none).unwrap();
}

/// Goes as deep as that many bytes of stack below `top`, and says how deep.
#[inline(never)]
fn deep(top: usize, bytes: usize) -> usize {
    let frame = black_box([1_u8; 4096]);
    let used = top - frame.as_ptr().addr();
    if used >= bytes { used } else { deep(top, bytes).max(usize::from(frame[7])) }
}

fn library_opened(lives: Lives) {
    // SAFETY: a library of the C library's own, whose constructors do nothing.
    let library = unsafe { libc::dlopen(c"libBrokenLocale.so.1".as_ptr(), libc::RTLD_NOW) };
    if library.is_null() {
        not_here("there is no library that could be opened");
    }
    // SAFETY: an open library.
    let symbol = move || unsafe { libc::dlsym(library, c"__ctype_get_mb_cur_max".as_ptr()) };
    let before = symbol();
    assert!(!before.is_null());
    lives.each(|_| {
        assert_eq!(symbol(), before);
        // SAFETY: the function takes nothing and returns a number.
        let function = unsafe { std::mem::transmute::<*mut libc::c_void, extern "C" fn() -> usize>(before) };
        assert_eq!(function(), 1);
    })
}

/// `mov eax, 42; ret`, made at run time as a compiler does.
fn code_made(lives: Lives) {
    let map = Map::new(PAGE, RW, PRIVATE);
    [0xb8, 42, 0, 0, 0, 0xc3].into_iter().enumerate().for_each(|(at, byte)| map.set(at, byte));
    map.protect(libc::PROT_READ | libc::PROT_EXEC);
    lives.each(|_| {
        // SAFETY: the code above is a function that returns a number.
        let function =
            unsafe { std::mem::transmute::<*const (), extern "C" fn() -> u32>(std::ptr::with_exposed_provenance(map.address())) };
        assert_eq!(function(), 42);
    })
}

/// A trap in the program's own code, as debuggers and uprobes put there.
fn breakpoint(lives: Lives) {
    #[inline(never)]
    extern "C" fn trapped() -> u64 {
        black_box(7)
    }
    let at = (trapped as *const () as usize) as u64;
    let memory = File::options().read(true).write(true).open("/proc/self/mem").unwrap();
    let mut original = [0];
    memory.read_exact_at(&mut original, at).unwrap();
    memory.write_all_at(&[0xcc], at).unwrap();
    drop(memory);
    lives.each(|_| {
        let memory = File::open("/proc/self/mem").unwrap();
        let mut found = [0];
        memory.read_exact_at(&mut found, at).unwrap();
        assert_eq!(found, [0xcc]);
    })
}

/// Where the driver says that the probe is set, or why not.
pub(crate) const PROBED: &str = "probed";

/// What the probe of [`uprobe`] is set on.
#[inline(never)]
pub(crate) extern "C" fn probed() -> u64 {
    black_box(7)
}

/// A trap that somebody else has set, by way of the kernel, and that has been met.
fn uprobe(lives: Lives) {
    let answer = crac_testing::wait_until("the probe", || std::fs::read_to_string(format!("../{PROBED}")).ok());
    if !answer.is_empty() {
        not_here(&format!("no uprobes for this user: {answer}"));
    }
    lives.each(|_| assert_eq!(probed(), 7))
}
