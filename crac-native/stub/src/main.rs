//! The restorer: the program that an image starts as.
//!
//! The kernel has mapped it, with the image's metadata, at an address that the captured process did not use; or, where an image may
//! not be executed, a packaged program has done the same in its own process (`crac-native/src/launch.rs`). It checks that
//! image and host fit each other, replaces its own address space by the captured one, and jumps into the captured threads.
//!
//! What does not exist here: a heap, thread-local storage, a C library, panics (the handler calls a function that nobody
//! defines, so a program in which a panic can be reached does not link). All signals are blocked from the first instruction
//! to the last. Everything was decided at the checkpoint; the steps run from top to bottom and a failure names its step.
#![no_std]
#![no_main]
#![allow(dead_code, reason = "the layout is shared with the engine, which uses all of it")]

mod check;
mod clear;
mod descriptors;
mod eager;
mod fetch;
#[path = "../../src/layout.rs"]
mod layout;
mod memory;
mod objects;
mod process;
mod report;
mod runtime;
mod settings;
mod sys;
mod threads;
mod time_namespace;
mod trial;
mod vdso;

use layout::{Boot, Handover, Header, MAGIC, Section, Step};
use report::fail;
use sys::Errno;

/// What every step may look at.
pub struct Restore {
    pub header: &'static Header,
    /// The kernel's initial stack: arguments, environment, auxiliary vector. Gone after [`Step::Clear`].
    pub start: check::Start,
    /// Where the engine reads what happened; valid after [`Step::Clear`].
    pub handover: *mut Handover,
    pub image_fd: i32,
    pub fetch: fetch::Fetch,
    /// Whether a packaged program has started this, rather than the image itself: nothing of the image is mapped executable then.
    pub is_launched: bool,
    pub vdso: vdso::Vdso,
}

impl Restore {
    /// The records of one table.
    pub fn table<T>(&self, section: Section) -> &'static [T] {
        let size = size_of::<T>() as u64;
        let inside = section.offset.checked_add(section.bytes).is_some_and(|end| end <= self.header.metadata_bytes);
        if !inside || section.offset % align_of::<T>() as u64 != 0 || section.bytes % size != 0 {
            report::exit(layout::EXIT_BUG, &[b"a table lies outside the metadata"]);
        }
        let start = (self.header as *const Header as u64 + section.offset) as *const T;
        // SAFETY: the table is inside the metadata, which the kernel has mapped read-only for as long as the stub exists; it
        // is aligned, and any bytes are a valid record.
        unsafe { core::slice::from_raw_parts(start, (section.bytes / size) as usize) }
    }

    /// The NUL-terminated text at `text`, as an address for a system call.
    pub fn text(&self, text: layout::Text) -> usize {
        let end = u64::from(text.offset) + u64::from(text.len);
        if end >= self.header.text.bytes {
            report::exit(layout::EXIT_BUG, &[b"a text lies outside its section"]);
        }
        (self.header as *const Header as u64 + self.header.text.offset + u64::from(text.offset)) as usize
    }

    /// Whether page data are read rather than mapped.
    pub fn is_eager(&self) -> bool {
        self.fetch == fetch::Fetch::Eagerly
    }

    fn done(&self, step: Step) {
        let now = sys::clock_ns(sys::CLOCK_MONOTONIC);
        // SAFETY: the handover was mapped in the clearing step, before the first call, and nobody else uses it yet.
        if let Some(at) = unsafe { (*self.handover).steps_ns.get_mut(step as usize) } {
            *at = now;
        }
    }
}

unsafe extern "C" {
    /// Provided by the linker: the first byte of this program, where the engine has put the [`Boot`] record.
    static __ehdr_start: Boot;
}

/// Called by `_start` with the kernel's initial stack pointer, on the stub's own stack.
extern "C" fn main(start: *const usize) -> ! {
    process::block_signals();
    let (realtime_ns, monotonic_ns) = (sys::clock_ns(sys::CLOCK_REALTIME), sys::clock_ns(sys::CLOCK_MONOTONIC));
    // SAFETY: the linker's symbol is the start of the first loaded segment, which holds at least an ELF header's 64 bytes.
    let boot = unsafe { &__ehdr_start };
    if boot.magic != MAGIC {
        report::exit(layout::EXIT_UNTRUSTED, &[b"this is a restorer without an image"]);
    }
    let start = check::Start::read(start);
    let mut restore = check::open(boot, start);
    trial::begin(restore.header.trial);
    let processors = settings::confine(&restore);
    check::host(&mut restore);
    let files = check::files(&restore);
    let (records, blob) = (restore.table(restore.header.descriptors), restore.table(restore.header.descriptor_blob));
    descriptors::check(records, blob, restore.start.environment);
    let (eager, populated) = (u32::from(restore.is_eager()), u32::from(restore.fetch == fetch::Fetch::Populated));
    let mut handover =
        Handover { realtime_ns, monotonic_ns, eager, populated, processors, ..Handover::default() };
    if restore.header.clock == layout::clock::TIME_NAMESPACE {
        time_namespace::enter(&restore, &mut handover);
    }
    let checked_ns = sys::clock_ns(sys::CLOCK_MONOTONIC);

    clear::hand_over(&mut restore, handover, checked_ns);
    clear::unmap_everything_else(&mut restore);
    restore.done(Step::Clear);
    memory::map(&restore, &files);
    restore.done(Step::Memory);
    memory::tell_kernel(&restore);
    restore.done(Step::Kernel);
    process::restore(&restore);
    restore.done(Step::Process);
    let step = layout::DescriptorStep {
        records: restore.table(restore.header.descriptors),
        blob: restore.table(restore.header.descriptor_blob),
        image_fd: restore.image_fd,
        objects: objects::all(&restore),
        object_fd: objects::descriptor(&restore, 0),
        captured_monotonic_ns: restore.header.captured_monotonic_ns,
        environment: clear::environment(&restore),
    };
    match descriptors::restore(&step) {
        // SAFETY: the handover area is mapped, and nobody else uses it yet.
        Ok(listeners) => unsafe { (*restore.handover).listeners = listeners },
        Err(failure) => report::fail_on(Step::Descriptors, b"descriptor", failure.descriptor as u64, Errno(failure.errno)),
    }
    objects::close(&restore);
    if let Err(errno) = syscall!(sys::SYS_CLOSE, restore.image_fd) {
        fail(Step::Descriptors, b"closing the image", errno);
    }
    restore.done(Step::Descriptors);
    threads::start(&restore)
}
