//! What a checkpoint of a process brings back, feature by feature of the kernel: one closed list.
//!
//! The suite of this package (`tests/suite.rs`) has a program for each entry, which sets the feature up, is captured by the
//! native engine, and looks in each of its lives whether all is as it was: after a copy was saved, in clones, in the second
//! generation, and after it became its own image. Whatever is not restored is refused by name, never lost in silence.
//! `docs/features.md` is drawn from the list.

use std::fmt;

use crac_core::ObstacleKind;

/// One feature of the kernel, and the program of that name.
#[derive(Debug, Clone, Copy)]
pub struct Feature {
    /// What it belongs to.
    pub area: Area,
    /// The name of the program.
    pub name: &'static str,
    /// What it is, for people.
    pub what: &'static str,
    /// What becomes of it.
    pub fate: Fate,
    /// Whether lives of one image cannot run side by side, because each takes the same address.
    pub is_alone: bool,
    /// The thread whose stack overflows at the end of a restored life, which dies of it, where that is the feature.
    pub overflows: Option<&'static str>,
    /// What becomes of it with CRIU in place of the native engine.
    pub with_criu: WithCriu,
}

impl Feature {
    const fn overflows(self, thread: &'static str) -> Self {
        Self { overflows: Some(thread), ..self }
    }

    const fn with_criu(self, with_criu: WithCriu) -> Self {
        Self { with_criu, ..self }
    }
}

/// The parts of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Area {
    /// Memory and mappings.
    Memory,
    /// Threads and the C library's locks.
    Threads,
    /// Files, pipes, events.
    Descriptors,
    /// Sockets.
    Sockets,
    /// Settings and privileges of the process.
    Process,
}

impl Area {
    /// All of them, in the order of the documentation.
    pub const ALL: [Self; 5] = [Self::Memory, Self::Threads, Self::Descriptors, Self::Sockets, Self::Process];
}

impl fmt::Display for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Memory => "memory",
            Self::Threads => "threads",
            Self::Descriptors => "descriptors",
            Self::Sockets => "sockets",
            Self::Process => "process",
        })
    }
}

/// What becomes of a feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is there in the restored life.
    Restored,
    /// The checkpoint is refused for it, and the original goes on.
    Refused(ObstacleKind),
}

/// What becomes of a feature when CRIU saves the process.
///
/// The programs see what the native engine promises: a life that finds something else after CRIU shows that either the program
/// expects the wrong thing, or CRIU does something else, which is then said here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WithCriu {
    /// It is there in the restored life.
    Restored,
    /// The checkpoint is refused, for this reason, and the original goes on.
    Refused(&'static str),
    /// The image is taken, but what comes back is not as it was, in this way, or nothing comes back.
    Changed(&'static str),
    /// The process comes back, and nobody has looked closely: the native engine refuses it.
    Unexamined,
    /// Not tried, for this reason.
    Untried(&'static str),
}

use WithCriu::{Changed, Refused as CriuRefuses, Untried};

/// The list.
pub const FEATURES: &[Feature] = &[
    restored(Area::Memory, "anonymous", "private anonymous memory, written, untouched, and read-only"),
    restored(Area::Memory, "sparse", "64 GiB of it reserved, three pages touched (`MAP_NORESERVE`)"),
    restored(Area::Memory, "heap-end", "the heap's end (`brk`), which grows and shrinks afterwards"),
    restored(Area::Memory, "no-access", "memory without access (`PROT_NONE`): with content, and guard pages"),
    restored(Area::Memory, "guard-regions", "guard regions (`MADV_GUARD_INSTALL`)"),
    restored(Area::Memory, "file-private", "a private mapping of a file, clean pages and changed ones"),
    restored(Area::Memory, "file-data", "a large file mapped to be read: referred to, not copied; its identity is checked"),
    restored(Area::Memory, "file-deleted", "a private mapping of a deleted file, beyond its end too"),
    restored(Area::Memory, "discarded", "memory given back (`MADV_DONTNEED`) reads as zeros, in later lives too"),
    restored(Area::Memory, "discarded-by-number", "the same by the number of the system call (`syscall(3)`)"),
    refused(
        Area::Memory,
        "discarded-bare",
        "the same by an instruction of one's own, past the C library",
        ObstacleKind::AllocatorRaw,
    )
    .with_criu(WithCriu::Restored),
    restored(Area::Memory, "discarded-bare-kept", "the same by the policy `allocator-raw = keep`: the image is read, not mapped"),
    restored(Area::Memory, "discarded-library-kept", "the same in a library that the policy names"),
    restored(
        Area::Memory,
        "discarded-locked",
        "locked memory given back (`MADV_DONTNEED_LOCKED`) reads as zeros and stays locked",
    ),
    restored(Area::Memory, "discarded-crowded", "it reads as zeros in a process with as many mappings as the kernel allows")
        .with_criu(Untried("it is about the native engine's way to map images")),
    restored(Area::Memory, "freed", "memory given back lazily (`MADV_FREE`)"),
    restored(Area::Memory, "wiped-on-fork", "`MADV_WIPEONFORK`: comes back empty, as in a fork"),
    restored(Area::Memory, "not-forked", "`MADV_DONTFORK`; in continue mode refused"),
    restored(Area::Memory, "not-dumped", "`MADV_DONTDUMP`: left out of images, comes back empty")
        .with_criu(Changed("is saved with its content")),
    restored(Area::Memory, "huge-pages", "`MADV_HUGEPAGE`"),
    restored(Area::Memory, "access-advice", "`MADV_RANDOM` and `MADV_SEQUENTIAL`"),
    restored(Area::Memory, "droppable", "droppable memory (`MAP_DROPPABLE`): comes back empty"),
    restored(Area::Memory, "locked", "locked memory (`mlock`)"),
    restored(Area::Memory, "locked-on-fault", "memory that is locked once it is touched (`mlock2`)")
        .with_criu(Changed("all of it is locked")),
    restored(Area::Memory, "locked-future", "locking of all that is mapped later (`mlockall`)")
        .with_criu(Changed("what is mapped later is not locked")),
    refused(Area::Memory, "sealed", "sealed mappings (`mseal`)", ObstacleKind::MemoryOther)
        .with_criu(Changed("is not sealed any more")),
    restored(Area::Memory, "main-stack", "the main stack grows beyond what it was, to 5 MiB"),
    restored(Area::Memory, "main-stack-overflow", "the main stack overflows in a later life: it says so, and dies")
        .overflows("main"),
    restored(Area::Memory, "thread-stack-overflow", "the same on a thread").overflows("deep"),
    restored(Area::Memory, "library-opened", "a library opened at run time (`dlopen`)"),
    restored(Area::Memory, "code-made", "machine code made at run time"),
    refused(Area::Memory, "breakpoint", "a breakpoint in the program's text", ObstacleKind::Breakpoint)
        .with_criu(WithCriu::Restored),
    refused(Area::Memory, "uprobe", "a uprobe there, set from outside", ObstacleKind::Breakpoint)
        .with_criu(Untried("tracing tools take their probes away by themselves")),
    restored(Area::Memory, "shared-anonymous", "shared anonymous memory, still shared with children"),
    restored(Area::Memory, "shared-sparse", "8 GiB of it reserved, three pages touched"),
    restored(Area::Memory, "shared-aliases", "two mappings of the same memory (`mremap` of length 0)"),
    restored(Area::Memory, "shared-by-fork", "memory shared with a child that has ended"),
    restored(Area::Memory, "memfd", "memfd: content, holes, size, name; duplicates and further opens of it"),
    restored(Area::Memory, "memfd-sealed", "its seals, those against future writing included")
        .with_criu(Changed("the restore fails: such seals cannot be set on memory that is mapped")),
    restored(Area::Memory, "memfd-mapped", "several mappings of it, one behind the other"),
    restored(Area::Memory, "memfd-private", "a private mapping of it"),
    restored(Area::Memory, "memfd-closed", "mappings of one that is not open any more"),
    restored_alone(
        Area::Memory,
        "file-shared",
        "a shared, writable mapping of a file, by the policy `memory-file-shared:PATH = reopen`",
    ),
    refused(Area::Memory, "file-shared-unasked", "the same without that policy", ObstacleKind::MemoryFileShared)
        .with_criu(WithCriu::Restored),
    refused(Area::Memory, "file-shared-deleted", "a shared mapping of a deleted file", ObstacleKind::MemoryFileDeleted)
        .with_criu(WithCriu::Restored),
    refused(Area::Memory, "sysv-segment", "an attached System V segment", ObstacleKind::MemorySysv)
        .with_criu(CriuRefuses("it belongs to no IPC namespace of its own")),
    restored(Area::Threads, "one-thread", "a single thread"),
    restored(Area::Threads, "ten-threads", "10 threads"),
    restored(Area::Threads, "two-hundred-threads", "200 threads"),
    restored(Area::Threads, "eight-hundred-threads", "800 threads"),
    restored(Area::Threads, "changing-threads", "threads that begin and end all the time"),
    restored(Area::Threads, "thread-names", "names of the process and its threads"),
    restored(Area::Threads, "wait-futex", "a thread waiting for a futex"),
    restored(Area::Threads, "wait-futex-timeout", "the same with a timeout"),
    restored(Area::Threads, "wait-condition", "a thread waiting for a condition variable"),
    restored(Area::Threads, "wait-channel", "a thread waiting for a channel"),
    restored(Area::Threads, "wait-read", "a thread in `read`"),
    restored(Area::Threads, "wait-poll", "a thread in `poll` (it sees `EINTR` once)"),
    restored(Area::Threads, "wait-epoll", "a thread in `epoll_wait` (it sees `EINTR` once)"),
    restored(Area::Threads, "wait-sleep", "a thread that sleeps, as long as it meant to"),
    restored(Area::Threads, "wait-signal", "a thread waiting for a signal (`sigtimedwait`; it sees `EINTR` once)"),
    restored(Area::Threads, "all-signals-blocked", "a thread with all signals blocked"),
    restored(Area::Threads, "floating-point", "a computation that gets the same numbers"),
    restored(Area::Threads, "vector-registers", "AVX registers"),
    restored(Area::Threads, "restartable-sequences", "restartable sequences (`rseq`)"),
    restored(Area::Threads, "thread-locals", "thread-local values and their destructors"),
    restored(Area::Threads, "thread-exit", "threads that end in a later life, and are joined there"),
    refused(
        Area::Threads,
        "main-thread-ended",
        "a main thread that has ended before the others",
        ObstacleKind::ThreadUnstoppable,
    )
    .with_criu(CriuRefuses("the program's file cannot be found out")),
    restored(Area::Threads, "mutex-held-normal", "a held mutex of the C library"),
    restored(Area::Threads, "mutex-held-recursive", "the same, recursive"),
    restored(Area::Threads, "mutex-held-checking", "the same, error-checking"),
    restored(Area::Threads, "mutex-held-inheriting", "the same, with priority inheritance"),
    restored(Area::Threads, "mutex-held-robust", "the same, robust"),
    restored(Area::Threads, "mutex-held-elsewhere", "all kinds, held by another thread than the capturing one"),
    restored(Area::Threads, "mutex-contended", "a thread that waits for a recursive one"),
    refused(
        Area::Threads,
        "mutex-contended-inheriting",
        "a thread that waits for one with priority inheritance",
        ObstacleKind::ThreadLock,
    )
    .with_criu(WithCriu::Restored),
    refused(Area::Threads, "mutex-contended-robust", "a thread that waits for a robust one", ObstacleKind::ThreadLock)
        .with_criu(WithCriu::Restored),
    restored(Area::Threads, "mutex-robust-owner-dies", "a robust mutex whose owner ends in a later life"),
    restored(Area::Descriptors, "file-offset", "a file that is read, at its offset"),
    restored(Area::Descriptors, "file-appended", "a file in append mode"),
    restored(Area::Descriptors, "file-writable", "a file open for writing, by the policy `file-writable:PATH = reopen`"),
    refused(Area::Descriptors, "file-writable-unasked", "the same without that policy", ObstacleKind::FileWritable),
    refused(Area::Descriptors, "file-unlinked", "an open file that was deleted", ObstacleKind::FileDeleted),
    refused(Area::Descriptors, "file-locked-whole", "a lock of a whole file (`flock`)", ObstacleKind::FileLock),
    refused(Area::Descriptors, "file-locked-range", "a lock of a range (`F_SETLK`)", ObstacleKind::FileLock),
    refused(Area::Descriptors, "file-locked-open", "a lock of an open file (`F_OFD_SETLK`)", ObstacleKind::FileLock),
    refused(Area::Descriptors, "file-leased", "a lease", ObstacleKind::FileLock),
    refused(
        Area::Descriptors,
        "file-signalling",
        "a descriptor that announces itself by signal (`O_ASYNC`)",
        ObstacleKind::DescriptorOther,
    ),
    restored(Area::Descriptors, "directory", "a directory"),
    restored(Area::Descriptors, "path-only", "a path opened without its content (`O_PATH`)"),
    restored(Area::Descriptors, "duplicates", "duplicates, which share an offset"),
    restored(Area::Descriptors, "close-on-exec", "close-on-exec flags, and far numbers"),
    restored(Area::Descriptors, "devices", "null, zero and random devices"),
    restored(Area::Descriptors, "pipe-content", "a pipe with its content and size"),
    restored(Area::Descriptors, "pipe-half", "a pipe whose other end is closed"),
    refused(Area::Descriptors, "fifo", "a FIFO", ObstacleKind::PipeForeign),
    restored(Area::Descriptors, "eventfd", "eventfd, plain and semaphore")
        .with_criu(Changed("a semaphore comes back as a plain one")),
    restored(Area::Descriptors, "timerfd-once", "timerfd of every clock, armed once, and disarmed"),
    restored(Area::Descriptors, "timerfd-periodic", "a periodic one"),
    restored(Area::Descriptors, "timerfd-fast", "one that fires every 100 µs")
        .with_criu(Untried("comes back disarmed; the program would wait for it for good")),
    restored(Area::Descriptors, "timerfd-unread", "one that has fired and was not read"),
    refused(Area::Descriptors, "timerfd-alarm", "one that wakes the machine", ObstacleKind::Timerfd)
        .with_criu(CriuRefuses("CRIU does not know that clock")),
    restored(Area::Descriptors, "signalfd", "signalfd"),
    restored(Area::Descriptors, "epoll", "epoll, level and edge triggered"),
    restored(Area::Descriptors, "epoll-nested", "epoll that watches epoll"),
    restored(Area::Descriptors, "epoll-duplicates", "epoll that watches closed duplicates")
        .with_criu(Changed("the restore fails: two registrations of one number")),
    refused(Area::Descriptors, "inotify", "inotify", ObstacleKind::Inotify),
    refused(Area::Descriptors, "fanotify", "fanotify", ObstacleKind::Inotify),
    restored(Area::Descriptors, "pidfd-self", "a pidfd of the process itself"),
    refused(Area::Descriptors, "pidfd-child", "a pidfd of a process that is gone", ObstacleKind::Pidfd),
    refused(Area::Descriptors, "terminal-pair", "a pseudo-terminal", ObstacleKind::Terminal),
    refused(Area::Descriptors, "io-uring", "io_uring", ObstacleKind::IoUring)
        .with_criu(CriuRefuses("CRIU cannot take the descriptor over")),
    refused(Area::Descriptors, "userfaultfd", "userfaultfd", ObstacleKind::DescriptorOther)
        .with_criu(CriuRefuses("CRIU cannot save it")),
    restored(Area::Descriptors, "thousand-descriptors", "1 000 descriptors, watched by epoll"),
    restored(Area::Descriptors, "ten-thousand-descriptors", "10 000 descriptors, watched by epoll"),
    restored_alone(Area::Sockets, "tcp-listener-4", "a listening TCP socket, IPv4"),
    restored_alone(Area::Sockets, "tcp-listener-6", "the same, IPv6"),
    restored_alone(Area::Sockets, "tcp-listener-dual", "the same, both"),
    restored_alone(Area::Sockets, "tcp-listeners-same-port", "several on one port (`SO_REUSEPORT`)"),
    refused(Area::Sockets, "tcp-established", "a TCP connection", ObstacleKind::TcpEstablished)
        .with_criu(CriuRefuses("its peer does not stop with it")),
    restored(Area::Sockets, "tcp-severed", "the same by the policy `tcp-established = sever`: it has ended"),
    restored_alone(Area::Sockets, "unix-listener-path", "a listening Unix socket with a path"),
    restored_alone(Area::Sockets, "unix-listener-abstract", "one with an abstract name"),
    restored(Area::Sockets, "unix-pair", "a pair of stream sockets, with what is on its way"),
    refused(Area::Sockets, "unix-pair-descriptors", "a descriptor on its way through one", ObstacleKind::UnixConnected),
    restored(Area::Sockets, "unix-pair-credentials", "a pair that passes credentials"),
    restored(Area::Sockets, "unix-pair-packets", "a pair of packet sockets, with what is on its way"),
    restored_alone(Area::Sockets, "unix-connected", "a connection through a listener, both ends in this process"),
    restored_alone(Area::Sockets, "unix-datagram-connected", "a datagram socket connected to a name, as loggers do"),
    restored_alone(Area::Sockets, "udp-4", "UDP sockets, bound and connected, IPv4"),
    restored_alone(Area::Sockets, "udp-6", "the same, IPv6"),
    restored_alone(Area::Sockets, "udp-waiting", "a UDP socket with a datagram that waits: that one is lost"),
    refused(Area::Sockets, "netlink", "a netlink socket", ObstacleKind::SocketOther),
    refused(Area::Sockets, "packet", "a packet socket", ObstacleKind::SocketOther),
    restored(Area::Process, "signal-actions", "actions of signals"),
    restored(Area::Process, "signal-masks", "signal masks of threads"),
    restored(Area::Process, "signal-stacks", "alternate signal stacks of threads"),
    refused(Area::Process, "signal-pending", "a signal that waits for the process", ObstacleKind::SignalPending)
        .with_criu(WithCriu::Restored),
    refused(Area::Process, "signal-pending-thread", "a signal that waits for a thread", ObstacleKind::SignalPending)
        .with_criu(WithCriu::Restored),
    restored(Area::Process, "interval-timer", "an interval timer (`setitimer`) has as long to go as it had"),
    restored(Area::Process, "interval-timer-processor", "those of processor time"),
    refused(Area::Process, "posix-timer", "a POSIX timer (`timer_create`)", ObstacleKind::Timer).with_criu(WithCriu::Restored),
    restored(Area::Process, "resource-limits", "resource limits that the service has set"),
    restored(Area::Process, "resource-limit-hard", "hard limits that it has lowered"),
    restored(Area::Process, "working-directory", "the working directory"),
    refused(Area::Process, "working-directory-deleted", "one that was deleted", ObstacleKind::FileDeleted)
        .with_criu(WithCriu::Restored),
    restored(Area::Process, "umask", "the file mode mask"),
    restored(Area::Process, "nice", "a nice value that the service has set"),
    restored(Area::Process, "nice-of-a-thread", "that of a thread"),
    restored(Area::Process, "scheduling-class", "a scheduling class (`SCHED_BATCH`)"),
    refused(Area::Process, "scheduling-deadline", "deadline scheduling", ObstacleKind::Scheduling)
        .with_criu(CriuRefuses("such a process may not start CRIU")),
    restored(Area::Process, "affinity", "processor affinity that the service has set").with_criu(Changed("is lost")),
    restored(Area::Process, "affinity-of-a-thread", "that of a thread").with_criu(Changed("is lost")),
    restored(Area::Process, "io-priority", "the I/O priority of a thread").with_criu(Changed("is lost")),
    restored(Area::Process, "timer-slack", "timer slack of threads").with_criu(Changed("is lost")),
    refused(Area::Process, "memory-policy", "a NUMA policy of memory", ObstacleKind::Scheduling).with_criu(Changed("is lost")),
    restored(Area::Process, "oom-score", "the score for the out-of-memory killer"),
    restored(Area::Process, "core-dump-filter", "what core dumps hold").with_criu(Changed("is lost")),
    restored(Area::Process, "no-new-privileges", "`no_new_privs`"),
    restored(Area::Process, "capabilities", "capabilities that were given up"),
    restored(Area::Process, "credentials", "a user that was given up: the image is that user's")
        .with_criu(CriuRefuses("CRIU needs root, which the service is not any more")),
    restored(Area::Process, "groups", "supplementary groups that whoever restores does not have"),
    refused(Area::Process, "secure-bits", "secure bits", ObstacleKind::Privilege).with_criu(WithCriu::Restored),
    refused(Area::Process, "seccomp", "a seccomp filter that the service has installed", ObstacleKind::Seccomp)
        .with_criu(CriuRefuses("the service starts CRIU, which is under the filter as well")),
    refused(Area::Process, "landlock", "a Landlock domain that the service has entered", ObstacleKind::Landlock)
        .with_criu(CriuRefuses("the service starts CRIU, which is in the domain as well")),
    refused(Area::Process, "namespace", "a namespace that the service has entered", ObstacleKind::Privilege),
    refused(Area::Process, "root-directory", "a root directory that the service has entered (`chroot`)", ObstacleKind::Privilege)
        .with_criu(CriuRefuses("CRIU is not in it")),
    restored(Area::Process, "write-or-execute", "memory that is writable or executable, never both (`PR_SET_MDWE`)")
        .with_criu(Changed("is lost")),
    restored(Area::Process, "dumpable", "whether the process can be dumped"),
    restored(Area::Process, "personality", "the execution domain (`personality`)").with_criu(Changed("is lost")),
    refused(Area::Process, "child-running", "a child process", ObstacleKind::Child)
        .with_criu(Untried("the child outlives the service, and has its id")),
    refused(Area::Process, "child-ended", "one that has ended and was not waited for", ObstacleKind::Child)
        .with_criu(Untried("the child may keep its id")),
    restored(Area::Process, "child-subreaper", "the process adopts orphans")
        .with_criu(CriuRefuses("the service becomes the parent of the CRIU that saves it")),
    refused(Area::Process, "traced", "a debugger is attached", ObstacleKind::Tracer)
        .with_criu(CriuRefuses("CRIU traces the service itself")),
];

const fn restored(area: Area, name: &'static str, what: &'static str) -> Feature {
    Feature { area, name, what, fate: Fate::Restored, is_alone: false, overflows: None, with_criu: WithCriu::Restored }
}

const fn restored_alone(area: Area, name: &'static str, what: &'static str) -> Feature {
    Feature { area, name, what, fate: Fate::Restored, is_alone: true, overflows: None, with_criu: WithCriu::Restored }
}

const fn refused(area: Area, name: &'static str, what: &'static str, kind: ObstacleKind) -> Feature {
    Feature { area, name, what, fate: Fate::Refused(kind), is_alone: false, overflows: None, with_criu: WithCriu::Unexamined }
}
