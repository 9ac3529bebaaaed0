//! Eager restores: page data are read into memory of the process's own, by as many threads as there are processors, and held
//! against their checksums before anything of the captured process runs.
//!
//! ```text
//! lay_out ─► advice ─► fill: block 0, 1, 2, ... of the data, each by the next idle thread ─► protect
//! ```
//!
//! What is left behind is anonymous memory: nothing of the image is mapped, and no page has to be fetched later. Reading needs
//! memory that can be written, so protections come last.

use core::{
    arch::naked_asm,
    ptr, slice,
    sync::atomic::{AtomicI32, AtomicPtr, AtomicU64, Ordering},
};

use crate::{
    Restore,
    layout::{EXIT_UNTRUSTED, HUGE_PAGE, MappingRecord, PAGE, RunRecord, Step, advice, block_of, xxh64::Xxh64},
    memory::{MAP_ANONYMOUS, MAP_PRIVATE, is_written, map_at, read_all, write_code},
    report::{self, Decimal, fail_on},
    sys::{self, Errno},
    syscall,
};

/// Makes room for page data: anonymous memory that can be written, in huge pages where there is much of it.
pub fn lay_out(restore: &Restore) {
    let mut mappings = restore.table::<MappingRecord>(restore.header.mappings).iter().peekable();
    for run in restore.table::<RunRecord>(restore.header.runs).iter().filter(|run| !is_written(restore, run)) {
        while mappings.next_if(|mapping| mapping.end <= run.start).is_some() {}
        let around = mappings.peek().filter(|mapping| mapping.start <= run.start);
        let bytes = run.end - run.start;
        let made = match around {
            Some(mapping) if mapping.flags & MAP_ANONYMOUS != 0 && is_open(run.protection) => Ok(()),
            Some(mapping) if mapping.flags & MAP_ANONYMOUS != 0 => protect(run.start, bytes, READ_WRITE),
            _ => map_at(run.start, bytes, READ_WRITE, MAP_PRIVATE as u32 | MAP_ANONYMOUS, -1, 0),
        };
        if let Err(errno) = made {
            fail_on(Step::Memory, b"memory for page data at", run.start, errno);
        }
        let start = run.start.next_multiple_of(HUGE_PAGE);
        let end = run.end / HUGE_PAGE * HUGE_PAGE;
        let is_forbidden = around.is_some_and(|mapping| {
            mapping.advice & advice::NO_HUGE_PAGES != 0 || mapping.flags & (MAP_STACK | MAP_GROWSDOWN) != 0
        });
        if start < end && !is_sparse(run) && !is_forbidden && restore.header.process.thp_disable == 0 {
            // A kernel without huge pages refuses; small ones will do.
            let _ = syscall!(sys::SYS_MADVISE, start, end - start, MADV_HUGEPAGE);
        }
    }
}

/// Reads all page data and checks them, then protects them as they were.
pub fn fill(restore: &Restore) {
    RESTORE.store(ptr::from_ref(restore).cast_mut(), Ordering::Release);
    let blocks = restore.table::<u64>(restore.header.sums).len();
    let helpers = processors().min(blocks).saturating_sub(1);
    for (at, tid) in TIDS.iter().enumerate().take(helpers) {
        let stack = (&raw mut STACKS).cast::<Stack>().wrapping_add(at + 1) as u64;
        // SAFETY: a stack that nobody uses, and a place for the thread id: both are part of the stub, which outlives the thread.
        if unsafe { clone_helper(CLONE_FLAGS, stack, tid.as_ptr()) } < 0 {
            // Fewer threads may be allowed than there are processors.
            break;
        }
    }
    work(restore);
    TIDS.iter().for_each(wait_for_end);
    let mut is_mapped = false;
    for run in restore.table::<RunRecord>(restore.header.runs).iter().filter(|run| run.protection != READ_WRITE) {
        let bytes = run.end - run.start;
        let protected = if is_written(restore, run) { write_code(restore, run) } else { protect(run.start, bytes, run.protection) };
        let protected = match protected {
            // Nothing that could be written may be executed here (prctl PR_SET_MDWE, SELinux): code has to come from a file.
            Err(EACCES | EPERM) if run.protection & PROT_EXEC != 0 && !restore.is_launched => {
                is_mapped = true;
                map_at(run.start, bytes, run.protection, MAP_PRIVATE as u32 | MAP_POPULATE, restore.image_fd, run.data_offset)
            }
            protected => protected,
        };
        if let Err(errno) = protected {
            fail_on(Step::Memory, b"protecting page data at", run.start, errno);
        }
    }
    if is_mapped {
        crate::memory::advise(restore);
    }
}

/// What every thread does: takes the next block until there is none.
fn work(restore: &Restore) {
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        match restore.table::<u64>(restore.header.sums).get(number as usize) {
            Some(sum) => read_block(restore, number, *sum),
            None => return,
        }
    }
}

/// Reads the block `number` of the page data to where it belongs, and checks it.
fn read_block(restore: &Restore, number: u64, expected: u64) {
    let header = restore.header;
    let (start, end) = block_of(header.data_offset, header.file_bytes, number);
    let mut sum = Xxh64::new();
    // Up to where the block has been summed.
    let mut done = start;
    for (run, from, to) in parts(restore.table(header.runs), start, end) {
        let mut at = from;
        add_zeros(&mut sum, from - done);
        done = to;
        if is_written(restore, run) {
            sum_alone(restore, &mut sum, from, to);
            continue;
        }
        while at < to {
            let (data, hole) = if is_sparse(run) { next_data(restore.image_fd, at, to) } else { (at, to) };
            add_zeros(&mut sum, data - at);
            at = data;
            while at < hole {
                let (address, bytes) = (run.start + (at - run.data_offset), PIECE.min(hole - at));
                if let Err(errno) = read_all(restore.image_fd, address, bytes, at) {
                    alone();
                    fail_on(Step::Memory, b"page data at", address, errno);
                }
                // SAFETY: what was just read: memory that was laid out for this run, which only this thread touches.
                sum.blocks(unsafe { slice::from_raw_parts(address as *const u8, bytes as usize) });
                at += bytes;
            }
        }
    }
    // Shared memory has its content already; it is part of the sums all the same.
    for (_, from, to) in parts(restore.table(header.object_runs), start, end) {
        add_zeros(&mut sum, from - done);
        done = to;
        sum_alone(restore, &mut sum, from, to);
    }
    add_zeros(&mut sum, end - done);
    if sum.finish(&[]) != expected {
        alone();
        let (start, end) = (Decimal::new(start), Decimal::new(end));
        report::exit(
            EXIT_UNTRUSTED,
            &[b"page data are damaged: the checksum of bytes ", start.bytes(), b" to ", end.bytes(), b" of the image does not match"],
        );
    }
}

/// Sums bytes of the image that are brought back in another way.
fn sum_alone(restore: &Restore, sum: &mut Xxh64, from: u64, to: u64) {
    let mut buffer = [0_u8; PAGE as usize];
    let mut at = from;
    while at < to {
        if let Err(errno) = read_all(restore.image_fd, buffer.as_mut_ptr() as u64, PAGE, at) {
            alone();
            fail_on(Step::Memory, b"page data at byte", at, errno);
        }
        sum.blocks(&buffer);
        at += PAGE;
    }
}

/// The runs whose data overlap `start..end` of the file, and where they do.
fn parts(runs: &[RunRecord], start: u64, end: u64) -> impl Iterator<Item = (&RunRecord, u64, u64)> {
    let first = runs.partition_point(|run| run.data_offset + (run.end - run.start) <= start);
    let overlapping = runs.iter().skip(first).take_while(move |run| run.data_offset < end);
    overlapping.map(move |run| (run, run.data_offset.max(start), end.min(run.data_offset + (run.end - run.start))))
}

/// Whether most of a run is zeros: then no more of it is made than there is.
pub fn is_sparse(run: &RunRecord) -> bool {
    run.data_bytes < (run.end - run.start) / 2
}

/// Where the next data of the file begin and end within `at..to`, in whole pages. Where it cannot tell holes, everything is data.
pub fn next_data(fd: i32, at: u64, to: u64) -> (u64, u64) {
    let seek = |from: u64, what: usize, otherwise: u64| match syscall!(sys::SYS_LSEEK, fd, from, what) {
        Ok(found) => found as u64,
        Err(ENXIO) => to,
        Err(_) => otherwise,
    };
    let data = (seek(at, SEEK_DATA, at) & !(PAGE - 1)).max(at).min(to);
    let hole = seek(data, SEEK_HOLE, to).next_multiple_of(PAGE).max(data + PAGE).min(to);
    (data, hole)
}

fn add_zeros(sum: &mut Xxh64, bytes: u64) {
    // SAFETY: nobody writes there.
    let zeros = unsafe { &*(&raw const ZEROS) };
    for _ in 0..bytes / PAGE {
        sum.blocks(zeros);
    }
}

fn protect(start: u64, bytes: u64, protection: u32) -> sys::Result<()> {
    syscall!(sys::SYS_MPROTECT, start, bytes, protection).map(drop)
}

/// Whether memory can be read and written.
fn is_open(protection: u32) -> bool {
    protection & READ_WRITE == READ_WRITE
}

/// How many processors this thread may run on.
fn processors() -> usize {
    let mut mask = [0_u64; 16];
    // Not told: one.
    let _ = syscall!(sys::SYS_SCHED_GETAFFINITY, 0, size_of_val(&mask), mask.as_mut_ptr());
    mask.iter().map(|word| word.count_ones() as usize).sum()
}

/// Lets the first thread through that has something to complain about; others end.
fn alone() {
    if HAS_FAILED.fetch_add(1, Ordering::Relaxed) > 0 {
        end_thread();
    }
}

extern "C" fn help() -> ! {
    // SAFETY: set before this thread was made; the one who did waits for it.
    work(unsafe { &*RESTORE.load(Ordering::Acquire) });
    end_thread()
}

fn end_thread() -> ! {
    loop {
        let _ = syscall!(sys::SYS_EXIT, 0);
    }
}

/// Waits until the thread whose id is in `tid`, if there is one, is gone from the process.
fn wait_for_end(tid: &AtomicI32) {
    let id = tid.load(Ordering::Acquire);
    loop {
        match tid.load(Ordering::Acquire) {
            0 => break,
            // Woken, interrupted, or too late: looked at again.
            id => _ = syscall!(sys::SYS_FUTEX, tid.as_ptr(), FUTEX_WAIT, id, 0),
        }
    }
    // The kernel tells of the end a moment before.
    let process = syscall!(sys::SYS_GETPID).unwrap_or(0);
    while id != 0 && syscall!(sys::SYS_TGKILL, process, id, 0) != Err(ESRCH) {
        let _ = syscall!(sys::SYS_SCHED_YIELD);
    }
}

/// `clone(2)`: flags, stack, where the thread's id is from its start to its end; the new thread calls [`help`].
///
/// # Safety
///
/// As of clone(2): the stack is unused, and both it and the place for the id outlive the thread.
#[unsafe(naked)]
unsafe extern "C" fn clone_helper(flags: usize, stack: u64, tid: *mut i32) -> i64 {
    naked_asm!(
        "mov r10, rdx",
        "xor r8d, r8d",
        "mov eax, 56",
        "syscall",
        "test rax, rax",
        "jz 2f",
        "ret",
        "2:",
        "xor ebp, ebp",
        "call {help}",
        "ud2",
        help = sym help,
    )
}

/// More threads than that do not read faster than memory is.
const HELPERS_MAX: usize = 7;
/// Frames are small, the largest holds a page.
const STACK_BYTES: usize = 32 * 1024;

#[derive(Clone, Copy)]
#[repr(C, align(16))]
struct Stack([u8; STACK_BYTES]);

// Take no room in the image, and go with the stub.
static mut STACKS: [Stack; HELPERS_MAX] = [Stack([0; STACK_BYTES]); HELPERS_MAX];
static mut ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];
static TIDS: [AtomicI32; HELPERS_MAX] = [const { AtomicI32::new(0) }; HELPERS_MAX];
static NEXT: AtomicU64 = AtomicU64::new(0);
static HAS_FAILED: AtomicI32 = AtomicI32::new(0);
static RESTORE: AtomicPtr<Restore> = AtomicPtr::new(ptr::null_mut());

/// Read at once: as much as stays in a processor's cache until it is summed.
const PIECE: u64 = 256 * 1024;
const READ_WRITE: u32 = 3;
const PROT_EXEC: u32 = 4;
const MAP_POPULATE: u32 = 0x8000;
const MAP_GROWSDOWN: u32 = 0x100;
const MAP_STACK: u32 = 0x2_0000;
const MADV_HUGEPAGE: usize = 14;
const SEEK_DATA: usize = 3;
const SEEK_HOLE: usize = 4;
const FUTEX_WAIT: usize = 0;
/// VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, PARENT_SETTID, CHILD_CLEARTID.
const CLONE_FLAGS: usize = 0x35_0f00;
const EPERM: Errno = Errno(1);
const ESRCH: Errno = Errno(3);
const ENXIO: Errno = Errno(6);
const EACCES: Errno = Errno(13);
