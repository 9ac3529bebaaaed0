//! The system calls of the stub: a bare instruction, an error number, nothing else.

use core::arch::asm;

/// A positive error number.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

pub type Result<T> = core::result::Result<T, Errno>;

/// Issues the system call `number`. Missing arguments are zero: `syscall!(SYS_CLOSE, fd)`.
#[macro_export]
macro_rules! syscall {
    ($number:expr $(, $argument:expr)* $(,)?) => {
        $crate::sys::call($number, $crate::sys::six(&[$($argument as usize),*]))
    };
}

#[inline(always)]
pub fn six(given: &[usize]) -> [usize; 6] {
    let mut six = [0; 6];
    for (to, from) in six.iter_mut().zip(given) {
        *to = *from;
    }
    six
}

/// Every pointer handed over must be good for what the call does; the whole stub is one `unsafe` program, and each caller's
/// step says what its calls touch.
#[inline(always)]
pub fn call(number: usize, args: [usize; 6]) -> Result<usize> {
    if crate::trial::is_on() && crate::trial::fails(number, args) { Err(crate::trial::FAILURE) } else { bare(number, args) }
}

/// As [`call`], whatever is on trial.
#[inline(always)]
pub fn bare(number: usize, args: [usize; 6]) -> Result<usize> {
    let returned: usize;
    // SAFETY: the x86_64 Linux calling convention; see above for what the call does to memory.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => returned,
            in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], in("r8") args[4], in("r9") args[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    if returned > usize::MAX - 4095 { Err(Errno((returned as isize).wrapping_neg() as i32)) } else { Ok(returned) }
}

pub const SYS_READ: usize = 0;
pub const SYS_WRITE: usize = 1;
pub const SYS_CLOSE: usize = 3;
pub const SYS_FSTAT: usize = 5;
pub const SYS_LSEEK: usize = 8;
pub const SYS_MMAP: usize = 9;
pub const SYS_MPROTECT: usize = 10;
pub const SYS_MUNMAP: usize = 11;
pub const SYS_RT_SIGACTION: usize = 13;
pub const SYS_RT_SIGPROCMASK: usize = 14;
pub const SYS_IOCTL: usize = 16;
pub const SYS_PREAD64: usize = 17;
pub const SYS_PWRITE64: usize = 18;
pub const SYS_MREMAP: usize = 25;
pub const SYS_MADVISE: usize = 28;
pub const SYS_SCHED_YIELD: usize = 24;
pub const SYS_DUP3: usize = 292;
pub const SYS_SOCKET: usize = 41;
pub const SYS_CONNECT: usize = 42;
pub const SYS_BIND: usize = 49;
pub const SYS_LISTEN: usize = 50;
pub const SYS_GETSOCKNAME: usize = 51;
pub const SYS_SOCKETPAIR: usize = 53;
pub const SYS_SETSOCKOPT: usize = 54;
pub const SYS_GETSOCKOPT: usize = 55;
pub const SYS_CLONE: usize = 56;
pub const SYS_KILL: usize = 62;
pub const SYS_EXIT: usize = 60;
pub const SYS_UNAME: usize = 63;
pub const SYS_FCNTL: usize = 72;
pub const SYS_CHDIR: usize = 80;
pub const SYS_UMASK: usize = 95;
pub const SYS_CAPGET: usize = 125;
pub const SYS_CAPSET: usize = 126;
pub const SYS_PRCTL: usize = 157;
pub const SYS_ARCH_PRCTL: usize = 158;
pub const SYS_GETTID: usize = 186;
pub const SYS_FUTEX: usize = 202;
pub const SYS_SET_TID_ADDRESS: usize = 218;
pub const SYS_CLOCK_GETTIME: usize = 228;
pub const SYS_EXIT_GROUP: usize = 231;
pub const SYS_EPOLL_CTL: usize = 233;
pub const SYS_OPENAT: usize = 257;
pub const SYS_TGKILL: usize = 234;
pub const SYS_SET_ROBUST_LIST: usize = 273;
pub const SYS_TIMERFD_CREATE: usize = 283;
pub const SYS_TIMERFD_SETTIME: usize = 286;
pub const SYS_SIGNALFD4: usize = 289;
pub const SYS_EVENTFD2: usize = 290;
pub const SYS_EPOLL_CREATE1: usize = 291;
pub const SYS_PIPE2: usize = 293;
pub const SYS_GETRANDOM: usize = 318;
pub const SYS_MEMBARRIER: usize = 324;
pub const SYS_STATX: usize = 332;
pub const SYS_RSEQ: usize = 334;
pub const SYS_SENDTO: usize = 44;
pub const SYS_SHUTDOWN: usize = 48;
pub const SYS_GETPID: usize = 39;
pub const SYS_FCHOWNAT: usize = 260;
pub const SYS_NEWFSTATAT: usize = 262;
pub const SYS_UNLINKAT: usize = 263;
pub const SYS_UNSHARE: usize = 272;
pub const SYS_SETNS: usize = 308;
pub const SYS_FCHMODAT: usize = 268;
pub const SYS_PRLIMIT64: usize = 302;
pub const SYS_CLOSE_RANGE: usize = 436;
pub const SYS_GETEUID: usize = 107;
pub const SYS_GETRESUID: usize = 118;
pub const SYS_GETRESGID: usize = 120;
pub const SYS_PERSONALITY: usize = 135;
pub const SYS_READLINKAT: usize = 267;

pub const SYS_WAIT4: usize = 61;
pub const SYS_LANDLOCK_CREATE_RULESET: usize = 444;
pub const SYS_LANDLOCK_RESTRICT_SELF: usize = 446;
pub const SYS_SENDFILE: usize = 40;
pub const SYS_FTRUNCATE: usize = 77;
pub const SYS_FCHMOD: usize = 91;
pub const SYS_MEMFD_CREATE: usize = 319;
pub const SYS_PIDFD_OPEN: usize = 434;
pub const SYS_SETITIMER: usize = 38;
pub const SYS_GETGROUPS: usize = 115;
pub const SYS_SETGROUPS: usize = 116;
pub const SYS_MLOCKALL: usize = 151;
pub const SYS_SCHED_SETAFFINITY: usize = 203;
pub const SYS_SCHED_GETAFFINITY: usize = 204;
pub const SYS_IOPRIO_SET: usize = 251;
pub const SYS_SCHED_SETATTR: usize = 314;
pub const SYS_SCHED_GETSCHEDULER: usize = 145;
pub const SYS_GETCPU: usize = 309;
pub const SYS_MLOCK2: usize = 325;

pub const AT_FDCWD: isize = -100;
pub const O_RDONLY: usize = 0;
pub const O_RDWR: usize = 2;
pub const O_NOCTTY: usize = 0o400;
pub const O_CLOEXEC: usize = 0o2_000_000;
pub const CLOCK_REALTIME: usize = 0;
pub const CLOCK_MONOTONIC: usize = 1;
pub const CLOCK_MONOTONIC_COARSE: usize = 6;
pub const CLOCK_BOOTTIME: usize = 7;

/// Nanoseconds of `clock`.
pub fn clock_ns(clock: usize) -> u64 {
    let mut time = [0_u64; 2];
    // The clock exists; a failure would leave zero.
    let _ = crate::syscall!(SYS_CLOCK_GETTIME, clock, time.as_mut_ptr());
    let [seconds, nanoseconds] = time;
    seconds.wrapping_mul(1_000_000_000).wrapping_add(nanoseconds)
}

/// `struct stat`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Stat {
    pub device: u64,
    pub inode: u64,
    pub links: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub padding: u32,
    pub special_device: u64,
    pub size: u64,
    pub block_size: u64,
    pub blocks: u64,
    pub accessed: [u64; 2],
    pub modified_s: i64,
    pub modified_ns: u64,
    pub changed: [u64; 2],
    pub unused: [u64; 3],
}
const _: () = assert!(size_of::<Stat>() == 144);

impl Stat {
    pub fn of(fd: i32) -> Result<Self> {
        let mut stat = Self::default();
        crate::syscall!(SYS_FSTAT, fd, &raw mut stat)?;
        Ok(stat)
    }
}
