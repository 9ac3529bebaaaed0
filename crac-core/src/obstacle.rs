//! What cannot be saved as it is: one closed list of kinds, each with its cause and its remedy.
//!
//! The refusal of a checkpoint, `crac check`, `crac doctor` and `docs/limits.md` all read this list. A finding that is not in
//! it cannot be reported, so a new check starts here.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One thing in the process that a checkpoint would not survive.
///
/// Found by the audit, by an engine's planning, or by holding the runtimes. All obstacles of a round are reported together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Obstacle {
    /// Which entry of the closed list this is.
    pub kind: ObstacleKind,
    /// The thing itself, as its user would recognise it: `fd 7, TCP 10.0.0.5:41234 -> 10.0.0.9:5432, ESTABLISHED`.
    pub subject: String,
    /// Who probably owns it: a resource, a crate, a thread name.
    pub owner: Option<String>,
}

impl Obstacle {
    /// An obstacle of `kind`; `subject` says which thing it is.
    pub fn new(kind: ObstacleKind, subject: impl Into<String>) -> Self {
        Self { kind, subject: subject.into(), owner: None }
    }

    /// Whether both are about the same thing, whoever is thought to own it.
    pub fn is_about_same_thing(&self, other: &Self) -> bool {
        (self.kind, &self.subject) == (other.kind, &other.subject)
    }

    /// Adds the likely owner.
    #[must_use]
    pub fn owned_by(mut self, owner: impl Into<String>) -> Self {
        self.owner = Some(owner.into());
        self
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.subject)?;
        if let Some(owner) = &self.owner {
            write!(f, " (likely owner: {owner})")?;
        }
        write!(f, "; hint: {}", self.kind.advice())
    }
}

macro_rules! obstacle_kinds {
    ($($(#[$meta:meta])* $variant:ident = $id:literal, $cause:literal, $advice:literal;)*) => {
        /// The closed list of what a checkpoint may be refused for.
        ///
        /// The identifier (`ObstacleKind::id`) is stable: policies, JSON output and documentation use it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum ObstacleKind {
            $(#[doc = $cause] $(#[$meta])* $variant,)*
        }

        impl ObstacleKind {
            /// Every kind, in the order of the documentation.
            pub const ALL: &'static [ObstacleKind] = &[$(ObstacleKind::$variant,)*];

            /// The stable identifier, kebab case.
            pub const fn id(self) -> &'static str {
                match self { $(ObstacleKind::$variant => $id,)* }
            }

            /// Why this cannot be saved.
            pub const fn cause(self) -> &'static str {
                match self { $(ObstacleKind::$variant => $cause,)* }
            }

            /// What the reader can do about it.
            pub const fn advice(self) -> &'static str {
                match self { $(ObstacleKind::$variant => $advice,)* }
            }
        }
    };
}

obstacle_kinds! {
    // Sockets
    TcpEstablished = "tcp-established", "A connected TCP socket has a peer that does not stop with us.",
        "close it in before_checkpoint, use crac-sqlx or crac-hyper for pools and servers, or set the policy `tcp-established = sever`";
    TcpListener = "tcp-listener", "A listening TCP socket that this engine cannot rebind as it is.",
        "bind it with crac::net::TcpListener, or close it in before_checkpoint";
    UnixConnected = "unix-connected", "A connected Unix socket whose peer is another process.",
        "close it in before_checkpoint, or set the policy `unix-connected = sever`";
    UnixListener = "unix-listener", "A listening Unix socket that this engine cannot rebind as it is.",
        "close it in before_checkpoint and bind it again in after_restore";
    UdpSocket = "udp-socket", "A UDP or Unix datagram socket in a state this engine cannot rebuild.",
        "bind it with crac::net::UdpSocket, or close it in before_checkpoint";
    SocketOther = "socket-other", "A socket of a family the engine does not rebuild (netlink, packet, raw, vsock, ...).",
        "close it in before_checkpoint and open it again in after_restore";
    // Files and other descriptors
    FileWritable = "file-writable", "A regular file open for writing may have changed when the image is restored.",
        "close it in before_checkpoint, open it in append mode, or set the policy `file-writable:PATH = reopen`";
    FileDeleted = "file-deleted", "An open file has been deleted: nothing can be reopened at its path.",
        "close it in before_checkpoint";
    FileLock = "file-lock", "A file lock is held; another process may take it while this one does not exist.",
        "release the lock in before_checkpoint and take it again in after_restore";
    PipeForeign = "pipe-foreign", "One end of a pipe or FIFO is held by another process.",
        "close it in before_checkpoint; standard input, output and error are exempt";
    Terminal = "terminal", "A terminal other than the inherited standard streams is open.",
        "close it in before_checkpoint";
    Device = "device", "A device file is open and its state lives in the kernel.",
        "close it in before_checkpoint and open it again in after_restore";
    IoUring = "io-uring", "An io_uring instance has kernel state that cannot be read back.",
        "drop it in before_checkpoint; build tokio without its `io-uring` feature";
    Memfd = "memfd", "A memfd in huge pages, or one that may change while a copy of the process is saved.",
        "close and unmap it in before_checkpoint, or checkpoint in another mode than continue";
    Pidfd = "pidfd", "A pidfd refers to another process, which does not come back with us.",
        "wait for the child in before_checkpoint";
    Inotify = "inotify", "An inotify or fanotify instance has queued events that cannot be read back.",
        "close it in before_checkpoint and watch again in after_restore";
    Signalfd = "signalfd", "A signalfd in a state the engine cannot rebuild.",
        "close it in before_checkpoint";
    Timerfd = "timerfd", "A timerfd in a state the engine cannot rebuild.",
        "disarm or close it in before_checkpoint";
    EpollTarget = "epoll-target", "An epoll instance watches a descriptor the engine cannot name.",
        "deregister descriptors before closing their duplicates";
    DescriptorOther = "descriptor-other", "A descriptor of a kind the engine does not know (bpf, perf event, userfaultfd, ...).",
        "close it in before_checkpoint";
    DescriptorInherited = "descriptor-inherited", "A descriptor inherited from the parent process cannot be opened again by name.",
        "start the service without it, or close it at start";
    // Memory
    MemoryShared = "memory-shared", "Shared memory would change while a copy of the process is saved.",
        "checkpoint in another mode than continue, or unmap it in before_checkpoint and map it again in after_restore";
    MemoryFileShared = "memory-file-shared", "A writable shared mapping of a file, which may have changed when the image is restored.",
        "unmap it in before_checkpoint, or set the policy `memory-file-shared:PATH = reopen`";
    MemoryFileDeleted = "memory-file-deleted", "A mapping whose file has been deleted and cannot be referenced.",
        "map the file under a name that stays, or restart the service after an upgrade before the checkpoint";
    MemoryDevice = "memory-device", "A mapping of a device or of kernel-provided memory.",
        "unmap it in before_checkpoint";
    MemoryLocked = "memory-locked", "Locked memory (mlock) would come back unlocked.",
        "munlock it in before_checkpoint and lock it again in after_restore";
    MemorySysv = "memory-sysv", "A System V shared memory segment is attached.",
        "detach it in before_checkpoint";
    MemoryOther = "memory-other", "A mapping of a kind the engine does not know.",
        "unmap it in before_checkpoint";
    AllocatorRaw = "allocator-raw", "Memory is given back past crac's `madvise`: where zeros are expected, the old bytes would come back.",
        "link crac into the executable itself (crac::main does) and call `madvise` by its name, or set the policy `allocator-raw = keep`: the image is then always restored eagerly";
    // Threads and process
    ThreadUnstoppable = "thread-unstoppable", "A thread could not be stopped in time.",
        "see whether the named thread is stuck in the kernel or blocks the freeze signal";
    ThreadLock = "thread-lock", "A thread takes or waits for a robust or priority-inheritance mutex: it is about to write its id, which will change.",
        "let no thread wait for such a mutex during the checkpoint";
    ThreadSyscall = "thread-syscall", "A thread waits in a system call that cannot be resumed.",
        "stop the named thread in before_checkpoint";
    ClockWait = "clock-wait", "A thread waits until a moment of a clock that will be another one, in a way that cannot be corrected.",
        "let it wait through the C library or std, or choose `clock = \"timens\"` or `clock = \"none\"`";
    Clock = "clock", "The clocks cannot be continued in this process as was asked for.",
        "choose `clock = \"auto\"`, `clock = \"timens\"` or `clock = \"none\"`";
    WorkerStuck = "worker-stuck", "A tokio worker thread did not come to a stop: a task blocks it or never yields.",
        "move blocking work to spawn_blocking, yield in long loops, or raise the hold deadline";
    RuntimeForeign = "runtime-foreign", "A tokio runtime that crac does not hold runs in this process.",
        "attach it with crac::attach(&handle), or shut it down in before_checkpoint";
    Child = "child", "A child process runs and would be left behind.",
        "wait for it in before_checkpoint";
    Tracer = "tracer", "A debugger or tracer is attached.",
        "detach it";
    Breakpoint = "breakpoint", "Program text was changed by a debugger or a uprobe.",
        "remove the breakpoints or uprobes";
    Scheduling = "scheduling", "A thread is scheduled, or its memory placed, in a way it could not be given again.",
        "return to an ordinary scheduling class and memory policy in before_checkpoint and set it again in after_restore";
    Timer = "timer", "A POSIX timer (timer_create) exists.",
        "disarm or delete it in before_checkpoint";
    SignalPending = "signal-pending", "A signal is pending and would be lost.",
        "try again; if it stays, find out who blocks that signal";
    Seccomp = "seccomp", "A seccomp filter was installed by this process and cannot be read back without privilege.",
        "install the filter outside the service, so that the restored process inherits it too";
    Landlock = "landlock", "A Landlock domain was entered by this process and cannot be read back.",
        "enter it outside the service, so that the restored process is in it too";
    Privilege = "privilege", "Credentials, capabilities or namespaces the restored process could not be given again.",
        "start the service without them";
    Kernel = "kernel", "This kernel lacks something the engine needs.",
        "run `crac doctor`";
    Cpu = "cpu", "The processor state has a part the engine does not restore (shadow stack, AMX tiles, protection keys).",
        "switch that feature off for this service";
    RequestServed = "request-served", "A request has been served, whose data may still be in memory, and the policy is `pristine`.",
        "take the checkpoint before the first request (`crac run --checkpoint-on ready`, readiness before listening), or drop `pristine`";
    Resource = "resource", "A resource did not let go.",
        "see the failure above";
    Image = "image", "The image cannot be written where it was asked for.",
        "choose another directory or free some space";
}

impl fmt::Display for ObstacleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.id())
    }
}

/// Text that names no kind of obstacle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown kind of obstacle `{0}`; `crac doctor --obstacles` lists them")]
pub struct UnknownObstacleKind(pub String);

impl std::str::FromStr for ObstacleKind {
    type Err = UnknownObstacleKind;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.iter().copied().find(|kind| kind.id() == text).ok_or_else(|| UnknownObstacleKind(text.to_owned()))
    }
}

impl Serialize for ObstacleKind {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.id())
    }
}

impl<'de> Deserialize<'de> for ObstacleKind {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_unique_and_parse_back() {
        for (at, kind) in ObstacleKind::ALL.iter().enumerate() {
            assert_eq!(kind.id().parse::<ObstacleKind>().unwrap(), *kind);
            assert!(ObstacleKind::ALL[at + 1..].iter().all(|other| other.id() != kind.id()));
        }
    }

    #[test]
    fn an_obstacle_says_what_and_what_to_do() {
        let obstacle = Obstacle::new(ObstacleKind::TcpEstablished, "fd 7, TCP 10.0.0.5:41234 -> 10.0.0.9:5432").owned_by("sqlx");
        let text = obstacle.to_string();
        assert!(text.contains("fd 7") && text.contains("likely owner: sqlx") && text.contains("hint: close it"));
    }

    #[test]
    fn a_guess_about_the_owner_makes_no_second_thing() {
        let obstacle = Obstacle::new(ObstacleKind::FileLock, "fd 7, /a");
        assert!(obstacle.is_about_same_thing(&obstacle.clone().owned_by("SQLite")));
        assert!(!obstacle.is_about_same_thing(&Obstacle::new(ObstacleKind::FileLock, "fd 8, /a")));
        assert!(!obstacle.is_about_same_thing(&Obstacle::new(ObstacleKind::FileDeleted, "fd 7, /a")));
    }

    #[test]
    fn an_obstacle_survives_json() {
        let obstacle = Obstacle::new(ObstacleKind::Child, "process 12");
        let json = serde_json::to_string(&obstacle).unwrap();
        assert_eq!(json, r#"{"kind":"child","subject":"process 12","owner":null}"#);
        assert_eq!(serde_json::from_str::<Obstacle>(&json).unwrap(), obstacle);
    }
}
