//! What the engine and its restorer stub agree on: the bytes of an image's header and tables.
//!
//! This file is compiled twice, into the engine and (by path) into the freestanding stub, so it uses `core` alone.
//!
//! ```text
//! file                                            memory of the restored process, while the stub runs
//! ┌──────────────────────────┐ 0                  zone_start ┌───────────────────────────────┐
//! │ ELF header, segments     │                               │ ELF header, stub code and data│
//! │ stub code and data       │                               │ stub stack                    │
//! ├──────────────────────────┤ metadata_offset    metadata_at├───────────────────────────────┤
//! │ Header                   │                               │ the same bytes, read-only     │
//! │ manifest (JSON), tables  │                               │                               │
//! ├──────────────────────────┤ data_offset        staging_at ├───────────────────────────────┤
//! │ page data of the runs    │                               │ vdso, if it has to wait       │
//! │ (place_data), with holes │                   handover_at ├───────────────────────────────┤
//! └──────────────────────────┘ file_bytes                    │ Handover: arguments, times    │
//!                                                   zone_end └───────────────────────────────┘
//! ```
//!
//! Integers are little-endian (the engine exists for `x86_64` only), widths are explicit, padding is named and zero, and every
//! record states its size and alignment below it. Tables are arrays of records; a record refers to text by [`Text`].
//!
//! # Where descriptors come in
//!
//! * `crate::descriptors::survey(&Survey, &mut ObstacleSink) -> Result<DescriptorTable, Errno>` is called by the engine while
//!   all other threads are stopped: arena and raw system calls only, no allocation, no lock, no panic.
//! * The table's records and its blob (text, sockaddrs, epoll sets) become two sections of the image.
//! * The stub calls `descriptors::restore(&DescriptorStep) -> Result<Listeners, Failure>` at step [`Step::Descriptors`]. At that
//!   point memory is back, no thread exists yet, working directory and umask are the recorded ones, all signals are blocked;
//!   descriptors 0, 1, 2 and everything else the new process was started with are still open, and the image's descriptor has
//!   been moved to `DescriptorStep::image_fd`, which lies above every recorded number and is closed afterwards by the caller.

#[path = "layout/cpu.rs"]
pub mod cpu;
#[path = "layout/data.rs"]
mod data;
#[path = "layout/descriptors.rs"]
pub mod descriptors;
#[path = "layout/kernel.rs"]
pub mod kernel;
#[path = "layout/privileges.rs"]
mod privileges;
#[path = "layout/settings.rs"]
mod settings;
#[path = "layout/trial.rs"]
pub mod trial;
#[path = "layout/xxh64.rs"]
pub mod xxh64;

pub use data::{BLOCK, HUGE_PAGE, block_count, block_of, place_data};
pub use kernel::VdsoRecord;
pub use trial::Trial;

/// The first bytes of a [`Header`].
pub const MAGIC: [u8; 8] = *b"\x89CRAC\r\n\x1a";
/// The version of everything in this file. An image of another version is refused.
pub const VERSION: u32 = 4;
/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Where the engine looks for a hole for the zone first: between the areas that the kernel's address space randomisation
/// uses for programs and for mappings.
pub const ZONE_HINT: u64 = 0x5000_0000_0000;
/// Bytes kept free for the vdso, if it cannot be moved to its recorded address at once.
pub const STAGING_BYTES: u64 = 64 * 1024;
/// Bytes kept free for [`Handover`]: the kernel allows at most 6 MiB of arguments and environment.
pub const HANDOVER_BYTES_MAX: u64 = 8 << 20;

/// Exit status of a stub when a variable of the environment cannot be understood.
pub const EXIT_USAGE: i32 = 2;
/// Exit status of a stub, and of `crac restore`, when the image does not fit this host, user or build: start cold.
pub const EXIT_START_COLD: i32 = 20;
/// Exit status when the image is damaged or its file cannot be trusted.
pub const EXIT_UNTRUSTED: i32 = 21;
/// Exit status when the restore failed behind the point of no return; the message names the [`Step`].
pub const EXIT_FAILED: i32 = 22;
/// Exit status when the image contradicts itself although its checksums are right: a bug.
pub const EXIT_BUG: i32 = 70;

/// The first bytes of the stub in the image, in place of its own ELF header: where the metadata is.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Boot {
    pub magic: [u8; 8],
    /// Address of the [`Header`] and what the kernel has mapped there.
    pub metadata_at: u64,
    pub metadata_offset: u64,
    pub metadata_bytes: u64,
    pub file_bytes: u64,
    /// Zero in an image, which the kernel has executed and shows as `/proc/self/exe`. Where a packaged program has put the stub
    /// into its own process: one more than the number of the open image's descriptor.
    pub launched_with: u64,
}
const _: () = assert!(size_of::<Boot>() == 48 && align_of::<Boot>() == 8);

/// A part of the metadata: `bytes` at `offset` from the header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Section {
    pub offset: u64,
    pub bytes: u64,
}
const _: () = assert!(size_of::<Section>() == 16 && align_of::<Section>() == 8);

/// A string in [`Header::text`], NUL-terminated behind `len` bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Text {
    pub offset: u32,
    pub len: u32,
}
const _: () = assert!(size_of::<Text>() == 8 && align_of::<Text>() == 4);

/// The start of the metadata.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Header {
    pub magic: [u8; 8],
    pub version: u32,
    /// `size_of::<Header>()`.
    pub header_bytes: u32,
    /// XXH64 of the header with this field zero.
    pub header_sum: u64,
    /// XXH64 of the metadata behind the header.
    pub tables_sum: u64,
    /// XXH64 of the file in front of the metadata: ELF header and stub. Not looked at by the stub itself.
    pub front_sum: u64,
    pub metadata_offset: u64,
    /// Header and all sections; whole pages.
    pub metadata_bytes: u64,
    pub data_offset: u64,
    pub file_bytes: u64,

    pub zone_start: u64,
    pub zone_end: u64,
    pub metadata_at: u64,
    pub staging_at: u64,
    pub handover_at: u64,

    pub image_id: [u8; 16],
    pub parent: [u8; 16],
    /// Generation of the captured life.
    pub generation: u64,
    /// What the service saw on its clocks: the kernel's, or shifted ones.
    pub captured_realtime_ns: u64,
    pub captured_monotonic_ns: u64,
    pub captured_boottime_ns: u64,
    pub captured_raw_ns: u64,
    /// One of [`clock`].
    pub clock: u32,
    /// One of [`downtime`].
    pub downtime: u32,
    /// Whether page data have to be read when the process is restored, and may not be mapped: 0 or 1.
    pub eager: u32,
    pub reserved: u32,
    /// Nothing, in every image that the engine writes.
    pub trial: Trial,

    pub page_size: u32,
    /// Version of the kernel, see [`kernel::version`].
    pub kernel: u32,
    pub cpu: CpuRecord,
    pub boot_id: cpu::BootId,
    pub vdso: VdsoRecord,
    pub privileges: PrivilegeRecord,
    pub process: ProcessRecord,

    /// JSON for people and tools; see `manifest.rs`.
    pub manifest: Section,
    /// [`MappingRecord`]s by address.
    pub mappings: Section,
    /// [`RunRecord`]s by address.
    pub runs: Section,
    /// [`RangeRecord`]s of guard regions by address.
    pub guards: Section,
    /// [`FileRecord`]s.
    pub files: Section,
    /// [`ThreadRecord`]s, the main thread first.
    pub threads: Section,
    /// [`ActionRecord`]s.
    pub actions: Section,
    /// The auxiliary vector, pairs of `u64`.
    pub auxv: Section,
    /// Strings that [`Text`] refers to.
    pub text: Section,
    /// [`descriptors::DescriptorRecord`]s by number.
    pub descriptors: Section,
    /// What the descriptor records refer to.
    pub descriptor_blob: Section,
    /// [`SettingRecord`]s.
    pub settings: Section,
    /// [`ObjectRecord`]s.
    pub objects: Section,
    /// [`RunRecord`]s of objects, behind those of mappings.
    pub object_runs: Section,
    /// Addresses of held mutexes, the first of [`OWNERS_MAX`] places; the rest is zero.
    pub owners: Section,
    /// XXH64 of every block of the page data, see [`block_of`].
    pub sums: Section,
}
const _: () = assert!(size_of::<Header>() == 824 && align_of::<Header>() == 8);
const _: () = assert!(size_of::<Header>() as u64 <= PAGE);

/// [`Header::clock`].
pub mod clock {
    /// The host's clocks.
    pub const HOST: u32 = 0;
    /// A copy of the vdso, which is page data, adds offsets; the real one lies elsewhere.
    pub const PROXY: u32 = 1;
    /// A time namespace made by the stub.
    pub const TIME_NAMESPACE: u32 = 2;
}

/// [`Header::downtime`].
pub mod downtime {
    /// The time between capture and restore did not happen.
    pub const FROZEN: u32 = 0;
    /// It has passed.
    pub const ELAPSED: u32 = 1;
}

/// Which processor features the captured code may rely on: it chose its functions by them, and the signal frames of the
/// stopped threads hold the register state of exactly these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CpuRecord {
    /// CPUID 1 ecx, edx; 7.0 ebx, ecx, edx; 7.1 eax; 0x8000_0001 ecx, edx.
    pub features: [u32; 8],
    /// XCR0.
    pub xcr0: u64,
    /// CPUID 0xd.0 ebx: bytes of the XSAVE area as enabled.
    pub xsave_bytes: u32,
    pub reserved: u32,
}
const _: () = assert!(size_of::<CpuRecord>() == 48 && align_of::<CpuRecord>() == 8);

/// What the process was allowed to do. A restore never adds to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PrivilegeRecord {
    /// Real, effective, saved.
    pub uid: [u32; 3],
    pub gid: [u32; 3],
    pub permitted: u64,
    pub effective: u64,
    pub inheritable: u64,
    pub bounding: u64,
    pub ambient: u64,
    pub no_new_privs: u32,
    /// 0 none, 2 filters.
    pub seccomp: u32,
    pub seccomp_filters: u32,
    pub dumpable: u32,
    /// Landlock domains that the service was started in.
    pub landlock_layers: u32,
    pub reserved: u32,
}
const _: () = assert!(size_of::<PrivilegeRecord>() == 88 && align_of::<PrivilegeRecord>() == 8);

/// Process-wide settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ProcessRecord {
    /// `struct prctl_mm_map` without its auxv and exe fields: start_code, end_code, start_data, end_data, start_brk, brk,
    /// start_stack, arg_start, arg_end, env_start, env_end.
    pub mm: [u64; 11],
    pub working_directory: Text,
    pub umask: u32,
    /// `PR_SET_THP_DISABLE`.
    pub thp_disable: u32,
    /// Membarrier registration commands to repeat, as a mask.
    pub membarrier: u32,
    /// `PR_SET_CHILD_SUBREAPER`.
    pub child_subreaper: u32,
    /// `PR_SET_PDEATHSIG`.
    pub parent_death_signal: u32,
    /// `MCL_*` for what is mapped later (`mlockall(2)`).
    pub lock_future: u32,
    /// `personality(2)`.
    pub personality: u32,
    /// The greatest descriptor number in the table; -1 if there is none.
    pub descriptor_max: i32,
}
const _: () = assert!(size_of::<ProcessRecord>() == 128 && align_of::<ProcessRecord>() == 8);

/// One mapping of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct MappingRecord {
    pub start: u64,
    pub end: u64,
    /// `PROT_*`.
    pub protection: u32,
    /// `MAP_*`, without `MAP_FIXED`. With `MAP_ANONYMOUS` no file is referenced.
    pub flags: u32,
    /// Index into the files; meaningless for anonymous mappings.
    pub file: u32,
    /// Bits of [`advice`].
    pub advice: u32,
    pub file_offset: u64,
}
const _: () = assert!(size_of::<MappingRecord>() == 40 && align_of::<MappingRecord>() == 8);

/// Advice to give again, [`MappingRecord::advice`].
pub mod advice {
    pub const WIPE_ON_FORK: u32 = 1;
    pub const DONT_FORK: u32 = 1 << 1;
    pub const DONT_DUMP: u32 = 1 << 2;
    pub const HUGE_PAGES: u32 = 1 << 3;
    pub const NO_HUGE_PAGES: u32 = 1 << 4;
    pub const MERGEABLE: u32 = 1 << 5;
    pub const RANDOM: u32 = 1 << 6;
    pub const SEQUENTIAL: u32 = 1 << 7;
    /// Not advice but `mlock2(2)`, last of all.
    pub const LOCKED: u32 = 1 << 8;
    /// With [`LOCKED`]: only what is touched.
    pub const LOCKED_ON_FAULT: u32 = 1 << 9;
    /// Not advice either: [`super::MappingRecord::file`] is an index into the objects.
    pub const OBJECT: u32 = 1 << 10;
    /// Every bit with the number that `madvise(2)` has for it.
    pub const NUMBERS: [(u32, u32); 8] = [
        (WIPE_ON_FORK, 18),
        (DONT_FORK, 10),
        (DONT_DUMP, 16),
        (HUGE_PAGES, 14),
        (NO_HUGE_PAGES, 15),
        (MERGEABLE, 12),
        (RANDOM, 1),
        (SEQUENTIAL, 2),
    ];
}

/// A stretch of memory whose content is in the image, inside one mapping.
///
/// Of an executed image all runs are mapped, but for [`run::COPY`]. Where a packaged program has started the restore, the image may
/// lie where nothing may be executed: executable runs are written into the mapping that is there, or into anonymous memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RunRecord {
    pub start: u64,
    pub end: u64,
    /// Where in the image; a multiple of the page size.
    pub data_offset: u64,
    /// Bytes of the content that are no holes.
    pub data_bytes: u64,
    pub protection: u32,
    /// Bits of [`run`].
    pub flags: u32,
}
const _: () = assert!(size_of::<RunRecord>() == 40 && align_of::<RunRecord>() == 8);

/// [`RunRecord::flags`].
pub mod run {
    /// Read into the anonymous mapping in any case instead of being mapped: stacks that grow, and such as are in use.
    pub const COPY: u32 = 1;
    /// Anonymous memory of the service, for which `MADV_DONTNEED` has to give zeros.
    pub const ANONYMOUS: u32 = 1 << 1;
}

/// Memory that mappings or descriptors share: a memfd, or shared anonymous memory, which comes back as one.
///
/// Its content is that of the object runs with its index in [`RunRecord::protection`], which start and end at offsets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ObjectRecord {
    /// Inode in the captured life, by which descriptors name it.
    pub inode: u64,
    pub size: u64,
    pub name: Text,
    /// `F_SEAL_*`.
    pub seals: u32,
    /// Permissions.
    pub mode: u32,
}
const _: () = assert!(size_of::<ObjectRecord>() == 32 && align_of::<ObjectRecord>() == 8);

/// A range of addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RangeRecord {
    pub start: u64,
    pub end: u64,
}
const _: () = assert!(size_of::<RangeRecord>() == 16 && align_of::<RangeRecord>() == 8);

/// A file that mappings refer to instead of being embedded, with what it must still be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FileRecord {
    pub path: Text,
    pub device: u64,
    pub inode: u64,
    pub size: u64,
    pub modified_s: i64,
    pub modified_ns: u64,
    /// Bits of [`mod@file`].
    pub flags: u64,
    /// With [`file::TEXT`]: the part of the file that is code, and its XXH64.
    pub text_offset: u64,
    pub text_bytes: u64,
    pub text_sum: u64,
}
const _: () = assert!(size_of::<FileRecord>() == 80 && align_of::<FileRecord>() == 8);

/// [`FileRecord::flags`].
pub mod file {
    /// A mapping may write to it.
    pub const WRITTEN: u64 = 1;
    /// Its content may be another one by now, as long as it has not become shorter.
    pub const MAY_CHANGE: u64 = 1 << 1;
    /// Programs and libraries of a data-only image. Another file with the same code is as good: the host may be another one.
    pub const TEXT: u64 = 1 << 2;
}

impl FileRecord {
    /// Whether a file with this identity may stand for the recorded one. If not, its code may, see [`file::TEXT`].
    pub fn is_same(&self, device: u64, inode: u64, size: u64, modified: (i64, u64)) -> bool {
        let content = if self.flags & file::MAY_CHANGE != 0 {
            size >= self.size
        } else {
            size == self.size && modified == (self.modified_s, self.modified_ns)
        };
        (device, inode) == (self.device, self.inode) && content
    }
}

/// A thread, parked in the engine's signal handler (or, the capturing one, in `capture`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ThreadRecord {
    /// Stack pointer to load and address to jump to, with 1 in `eax`.
    pub resume_sp: u64,
    pub resume_ip: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    /// `set_tid_address(2)`; the C library keeps its thread id there.
    pub tid_address: u64,
    pub robust_head: u64,
    pub robust_bytes: u64,
    /// Zero if restartable sequences are not registered.
    pub rseq_address: u64,
    pub rseq_bytes: u32,
    pub rseq_signature: u32,
    /// Thread id in the captured life.
    pub tid: i32,
    pub reserved: u32,
    pub name: [u8; 16],
}
const _: () = assert!(size_of::<ThreadRecord>() == 96 && align_of::<ThreadRecord>() == 8);

/// A signal disposition that is not the default one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ActionRecord {
    pub handler: u64,
    pub flags: u64,
    pub restorer: u64,
    pub mask: u64,
    pub signal: u32,
    pub reserved: u32,
}
const _: () = assert!(size_of::<ActionRecord>() == 40 && align_of::<ActionRecord>() == 8);

/// Something the process has set about itself or one of its threads since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SettingRecord {
    /// The thread in the captured life; 0 for the process.
    pub tid: i32,
    /// One of [`setting`].
    pub kind: u32,
    pub values: [u64; 4],
}
const _: () = assert!(size_of::<SettingRecord>() == 40 && align_of::<SettingRecord>() == 8);

/// [`SettingRecord::kind`], and what its values are.
pub mod setting {
    /// Resource, soft limit, hard limit.
    pub const LIMIT: u32 = 1;
    /// Policy, nice value, priority, flags (`sched_setattr(2)`).
    pub const SCHEDULE: u32 = 2;
    /// Number of the first word of the mask, three words of it.
    pub const AFFINITY: u32 = 3;
    /// As `ioprio_set(2)` has it.
    pub const IO_PRIORITY: u32 = 4;
    /// Nanoseconds.
    pub const TIMER_SLACK: u32 = 5;
    /// `oom_score_adj`.
    pub const OOM_SCORE: u32 = 6;
    /// `coredump_filter`.
    pub const CORE_FILTER: u32 = 7;
    /// `PR_SET_MDWE`.
    pub const WRITE_OR_EXECUTE: u32 = 8;
    /// Number of the first group in its lower half, how many groups there are in its upper; six groups.
    pub const GROUPS: u32 = 9;
    /// Which interval timer; nanoseconds of its interval, and until it fires.
    pub const INTERVAL_TIMER: u32 = 10;
}

/// How many held mutexes can be noted whose owner has to be renamed.
pub const OWNERS_MAX: usize = 512;

/// How many supplementary groups can be brought back.
pub const GROUPS_MAX: usize = 192;

/// What the stub leaves for the engine at [`Header::handover_at`].
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Handover {
    /// Bytes of the mapping that starts here.
    pub bytes: u64,
    pub arguments: u32,
    pub variables: u32,
    /// Arguments, then variables, each NUL-terminated: behind this record.
    pub strings_bytes: u64,
    /// Time at entry.
    pub realtime_ns: u64,
    pub monotonic_ns: u64,
    /// Monotonic time at the end of each [`Step`]; zero for steps not reached.
    pub steps_ns: [u64; Step::COUNT],
    /// Device and inode of the image, as `fstat(2)` has them.
    pub image_device: u64,
    pub image_inode: u64,
    /// The code of the vdso and its bytes, if it is of another build than that of the checkpoint; else zero.
    pub vdso_at: u64,
    pub vdso_bytes: u64,
    /// Listening sockets that a supervisor handed over and no recorded descriptor has taken; 0 where there is none.
    pub listeners: Listeners,
    /// Whether page data were read, and nothing of them is mapped.
    pub eager: u32,
    /// Whether page data are mapped, and were all fetched.
    pub populated: u32,
    /// The processors that the process may use, if it was bound to one of them for the time being; else none.
    pub processors: [u64; 16],
}
/// Descriptors, 0 where there is none.
pub type Listeners = [i32; LISTENERS_MAX];
/// How many sockets a supervisor may hand over (sd_listen_fds(3)); those beyond are closed.
pub const LISTENERS_MAX: usize = 16;
const _: () = assert!(size_of::<Handover>() == 208 + 4 * LISTENERS_MAX + 8 * Step::COUNT && align_of::<Handover>() == 8);

macro_rules! steps {
    ($($(#[$meta:meta])* $name:ident = $text:literal,)*) => {
        /// The steps of the stub, in order. A failure names its step.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Step { $($(#[$meta])* $name,)* }

        impl Step {
            /// Every step in order.
            pub const ALL: &'static [Step] = &[$(Step::$name,)*];
            /// How many steps there are.
            pub const COUNT: usize = Self::ALL.len();

            /// What is done in this step.
            pub const fn name(self) -> &'static str {
                match self { $(Step::$name => $text,)* }
            }
        }
    };
}

steps! {
    /// Header, tables, host, file: everything that can be refused. The point of no return is behind it.
    Check = "check",
    /// Arguments and environment are copied, the vdso is moved aside, everything else is unmapped.
    Clear = "clear",
    /// Mappings and page data.
    Memory = "memory",
    /// The vdso is at its address, the kernel knows heap, stack and arguments.
    Kernel = "kernel",
    /// Working directory, umask, signal actions, process settings.
    Process = "process",
    /// Descriptors.
    Descriptors = "descriptors",
    /// Threads.
    Threads = "threads",
}

/// What the stub's descriptor step gets.
#[derive(Clone, Copy, Debug)]
pub struct DescriptorStep<'a> {
    pub records: &'a [descriptors::DescriptorRecord],
    pub blob: &'a [u8],
    /// The open image: above every recorded number, closed by the caller.
    pub image_fd: i32,
    /// What shared memory there is, and the descriptor of the first of it; those of the others follow. Closed by the caller.
    pub objects: &'a [ObjectRecord],
    pub object_fd: i32,
    /// Monotonic time of the capture in nanoseconds, for timers.
    pub captured_monotonic_ns: u64,
    /// The vector of the new process's environment: pointers to `NAME=VALUE`, NUL-terminated strings; ends with a null.
    pub environment: *const *const u8,
}

/// Where the descriptor step failed: a record's descriptor number and the kernel's error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    pub descriptor: i32,
    pub errno: i32,
}
