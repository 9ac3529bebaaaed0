//! The process and its threads.
#![expect(unsafe_code, reason = "system calls")]

use std::{ffi::CStr, mem::MaybeUninit, os::fd::AsRawFd, os::fd::BorrowedFd, ptr, time::Duration};

use crate::{
    errno::{Errno, Result},
    raw::syscall,
};

/// The process id (`getpid(2)`).
pub fn pid() -> i32 {
    simple(libc::SYS_getpid) as i32
}

/// The thread id (`gettid(2)`).
pub fn tid() -> i32 {
    simple(libc::SYS_gettid) as i32
}

/// Page faults of this process that waited for a disk (`ru_majflt` of `getrusage(2)`); 0 where it may not ask.
pub fn major_faults() -> u64 {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the call stores one such structure at the address given.
    let asked = unsafe { syscall(libc::SYS_getrusage, [libc::RUSAGE_SELF as usize, usage.as_mut_ptr() as usize, 0, 0, 0, 0]) };
    // SAFETY: integers, for which zeros are valid, and what the kernel has stored.
    let usage = unsafe { usage.assume_init() };
    if asked.is_ok() { usage.ru_majflt as u64 } else { 0 }
}

/// The session of this process (`getsid(2)`): the id of its leader, 0 if that is in a process id namespace further out.
pub fn session() -> i32 {
    simple(libc::SYS_getsid) as i32
}

/// Whether the thread `tid` of the process `pid` exists (`tgkill(2)` with signal 0).
pub fn thread_exists(pid: i32, tid: i32) -> bool {
    // SAFETY: signal 0 is only a check.
    unsafe { syscall(libc::SYS_tgkill, [pid as usize, tid as usize, 0, 0, 0, 0]) }.is_ok()
}

/// Ends the process at once, without running any exit handler (`exit_group(2)`).
pub fn exit_group(status: i32) -> ! {
    loop {
        // SAFETY: the call does not return; there is nothing to keep valid.
        let impossible = unsafe { syscall(libc::SYS_exit_group, [status as usize, 0, 0, 0, 0, 0]) };
        let _ = impossible;
    }
}

/// `prctl(2)` with integer arguments.
///
/// # Safety
///
/// The operation's pointers are valid, and its effect is what the caller's process expects.
pub unsafe fn prctl(operation: i32, args: [usize; 4]) -> Result<usize> {
    // SAFETY: the caller's promise.
    unsafe { syscall(libc::SYS_prctl, [operation as usize, args[0], args[1], args[2], args[3], 0]) }
}

/// The address of this thread's FS segment, the thread pointer (`arch_prctl(2)`).
pub fn fs_base() -> Result<usize> {
    segment_base(0x1003)
}

/// The address of this thread's GS segment (`arch_prctl(2)`).
pub fn gs_base() -> Result<usize> {
    segment_base(0x1004)
}

fn segment_base(operation: usize) -> Result<usize> {
    let mut base = 0_usize;
    // SAFETY: ARCH_GET_FS and ARCH_GET_GS store one word at the address given.
    unsafe { syscall(libc::SYS_arch_prctl, [operation, ptr::from_mut(&mut base) as usize, 0, 0, 0, 0]) }?;
    Ok(base)
}

/// The extended processor states the process has asked permission for (`ARCH_GET_XCOMP_PERM`), AMX among them.
pub fn extended_state_permission() -> Result<u64> {
    let mut mask = 0_u64;
    // SAFETY: the call stores one 64-bit word at the address given.
    unsafe { syscall(libc::SYS_arch_prctl, [0x1022, ptr::from_mut(&mut mask) as usize, 0, 0, 0, 0]) }?;
    Ok(mask)
}

/// The address the kernel clears and wakes when this thread ends (`PR_GET_TID_ADDRESS`, `CONFIG_CHECKPOINT_RESTORE`).
pub fn tid_address() -> Result<usize> {
    let mut address = 0_usize;
    // SAFETY: PR_GET_TID_ADDRESS stores one word at the address given.
    unsafe { prctl(libc::PR_GET_TID_ADDRESS, [ptr::from_mut(&mut address) as usize, 0, 0, 0]) }?;
    Ok(address)
}

/// The head of this thread's robust list and its announced size (`get_robust_list(2)`).
pub fn robust_list() -> Result<(usize, usize)> {
    let (mut head, mut len) = (0_usize, 0_usize);
    let args = [0, ptr::from_mut(&mut head) as usize, ptr::from_mut(&mut len) as usize, 0, 0, 0];
    // SAFETY: the call stores one word at each address given.
    unsafe { syscall(libc::SYS_get_robust_list, args) }?;
    Ok((head, len))
}

/// This thread's name, NUL-padded (`PR_GET_NAME`).
pub fn thread_name() -> Result<[u8; 16]> {
    let mut name = [0_u8; 16];
    // SAFETY: PR_GET_NAME stores at most 16 bytes.
    unsafe { prctl(libc::PR_GET_NAME, [name.as_mut_ptr() as usize, 0, 0, 0]) }?;
    Ok(name)
}

/// The time of `clock` (`clock_gettime(2)`, by system call: never from the vdso).
pub fn clock(clock: libc::clockid_t) -> Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime fills one timespec.
    unsafe { syscall(libc::SYS_clock_gettime, [clock as usize, ptr::from_mut(&mut time) as usize, 0, 0, 0, 0]) }?;
    Ok(Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0)))
}

/// Fills `into` with randomness from the kernel (`getrandom(2)`).
pub fn random(into: &mut [u8]) -> Result<()> {
    // SAFETY: getrandom writes at most `into.len()` bytes into the exclusively borrowed buffer. Up to 256 bytes are always
    // delivered whole.
    unsafe { syscall(libc::SYS_getrandom, [into.as_mut_ptr() as usize, into.len().min(256), 0, 0, 0, 0]) }.map(drop)
}

/// Names of the kernel (`uname(2)`).
pub fn uname() -> Result<libc::utsname> {
    let mut names = MaybeUninit::<libc::utsname>::zeroed();
    // SAFETY: uname fills the whole structure.
    unsafe { syscall(libc::SYS_uname, [names.as_mut_ptr() as usize, 0, 0, 0, 0, 0]) }?;
    // SAFETY: all-zero is a valid value, and the call has filled it.
    Ok(unsafe { names.assume_init() })
}

/// Real, effective and saved user ids (`getresuid(2)`).
pub fn user_ids() -> Result<[u32; 3]> {
    three_ids(libc::SYS_getresuid)
}

/// Real, effective and saved group ids (`getresgid(2)`).
pub fn group_ids() -> Result<[u32; 3]> {
    three_ids(libc::SYS_getresgid)
}

fn three_ids(number: libc::c_long) -> Result<[u32; 3]> {
    let mut ids = [0_u32; 3];
    let at = ids.as_mut_ptr() as usize;
    // SAFETY: the call stores one 32-bit word at each of the three addresses, all inside the array.
    unsafe { syscall(number, [at, at + 4, at + 8, 0, 0, 0]) }?;
    Ok(ids)
}

/// The value of an interval timer (`getitimer(2)`).
pub fn interval_timer(which: i32) -> Result<libc::itimerval> {
    let mut timer = MaybeUninit::<libc::itimerval>::zeroed();
    // SAFETY: getitimer fills the structure.
    unsafe { syscall(libc::SYS_getitimer, [which as usize, timer.as_mut_ptr() as usize, 0, 0, 0, 0]) }?;
    // SAFETY: all-zero is a valid value, and the call has filled it.
    Ok(unsafe { timer.assume_init() })
}

/// Replaces the process by the program open at `fd` (`execveat(2)` with `AT_EMPTY_PATH`). Returns only on failure.
///
/// # Safety
///
/// `arguments` and `environment` are null-terminated arrays of pointers to NUL-terminated strings.
pub unsafe fn exec_fd(fd: BorrowedFd<'_>, arguments: usize, environment: usize) -> crate::Errno {
    let empty: &CStr = c"";
    let args = [fd.as_raw_fd() as usize, empty.as_ptr() as usize, arguments, environment, libc::AT_EMPTY_PATH as usize, 0];
    // SAFETY: the caller's promise about the arrays; the empty path is a constant.
    match unsafe { syscall(libc::SYS_execveat, args) } {
        Ok(_) => crate::Errno::new(0),
        Err(errno) => errno,
    }
}

/// Takes back the registration of the calling thread's restartable-sequence area (`rseq(2)`).
///
/// # Safety
///
/// The C library has registered the area, and nobody asks it for the current processor any more.
pub unsafe fn unregister_rseq(address: usize, bytes: u32, signature: u32) -> Result<()> {
    const RSEQ_FLAG_UNREGISTER: usize = 1;
    let args = [address, bytes as usize, RSEQ_FLAG_UNREGISTER, signature as usize, 0, 0];
    // SAFETY: the caller's promise; the kernel marks the area as not in use.
    unsafe { syscall(libc::SYS_rseq, args) }.map(drop)
}

fn simple(number: libc::c_long) -> usize {
    // SAFETY: only used for calls without arguments that touch no memory and cannot fail.
    unsafe { syscall(number, [0; 6]) }.unwrap_or(0)
}

/// The end of the heap (`brk(2)` with an address it refuses).
pub fn brk() -> usize {
    simple(libc::SYS_brk)
}

/// The execution domain (`personality(2)`).
pub fn personality() -> u32 {
    // SAFETY: 0xffffffff asks without changing anything.
    unsafe { syscall(libc::SYS_personality, [0xffff_ffff, 0, 0, 0, 0, 0]) }.unwrap_or(0) as u32
}

/// A setting that `prctl(2)` returns as its result, such as `PR_GET_DUMPABLE`.
pub fn get_result(operation: i32) -> Result<usize> {
    // SAFETY: the operations that answer with their result take no pointer; one that stores would be given address zero and
    // answer EFAULT.
    unsafe { prctl(operation, [0; 4]) }
}

/// A setting that `prctl(2)` stores in an `int`, such as `PR_GET_PDEATHSIG`; 0 if the kernel does not know it.
pub fn get_int(operation: i32) -> u32 {
    let mut value = 0_u32;
    // SAFETY: these operations store one int at the address.
    let got = unsafe { prctl(operation, [ptr::from_mut(&mut value) as usize, 0, 0, 0]) };
    if got.is_ok() { value } else { 0 }
}

/// Whether the process may be dumped and looked at by its user (`PR_SET_DUMPABLE`): 1 or 0.
pub fn set_dumpable(value: usize) -> Result<()> {
    // SAFETY: an integer argument.
    unsafe { prctl(libc::PR_SET_DUMPABLE, [value, 0, 0, 0]) }.map(drop)
}

/// The `MEMBARRIER_CMD_REGISTER_*` commands in force (`membarrier(2)`).
///
/// Before Linux 6.3 the kernel does not tell. Then each barrier is tried: it fails unless the process is registered for it; and
/// for the global one, which succeeds in any case, the process counts as registered, which costs little if it is not.
pub fn membarrier_registrations() -> u32 {
    const GET_REGISTRATIONS: usize = 512;
    const REGISTER_GLOBAL_EXPEDITED: u32 = 4;
    /// `MEMBARRIER_CMD_PRIVATE_EXPEDITED`, `..._SYNC_CORE` and `..._RSEQ`; the command that registers is twice that.
    const PRIVATE: [u32; 3] = [8, 32, 128];
    // SAFETY: a barrier has no effect on memory, and the other command only asks.
    let call = |command: usize| unsafe { syscall(libc::SYS_membarrier, [command, 0, 0, 0, 0, 0]) };
    if let Ok(mask) = call(GET_REGISTRATIONS) {
        return mask as u32;
    }
    // Which commands there are at all.
    let Ok(there) = call(0) else { return 0 };
    let private =
        PRIVATE.into_iter().filter(|command| call(*command as usize).is_ok()).fold(0, |all, command| all | command << 1);
    private | there as u32 & REGISTER_GLOBAL_EXPEDITED
}

/// Whether the kernel can be told where a process's parts are (`PR_SET_MM_MAP`): only if it was built with
/// `CONFIG_CHECKPOINT_RESTORE`. Nothing is changed.
pub fn can_set_memory_map() -> bool {
    const PR_SET_MM: i32 = 35;
    const PR_SET_MM_MAP_SIZE: usize = 15;
    let mut size = 0_u32;
    // SAFETY: the operation stores one 32-bit word at the address given.
    unsafe { prctl(PR_SET_MM, [PR_SET_MM_MAP_SIZE, ptr::from_mut(&mut size) as usize, 0, 0]) }.is_ok()
}

/// Whether the process has children, zombies included (`waitid(2)` without waiting or reaping).
pub fn has_children() -> bool {
    let options = libc::WNOHANG | libc::WNOWAIT | libc::WEXITED | libc::__WALL;
    let mut info = [0_u64; 16];
    let args = [libc::P_ALL as usize, 0, info.as_mut_ptr() as usize, options as usize, 0, 0];
    // SAFETY: waitid fills at most the 128 bytes of a siginfo.
    !matches!(unsafe { syscall(libc::SYS_waitid, args) }, Err(errno) if errno.number() == libc::ECHILD)
}

/// Makes a copy of this process with this thread alone (`clone(2)` without flags), and without a signal to the parent at its
/// end. Returns 0 in the copy and its process id here.
///
/// # Safety
///
/// In the copy only system calls and memory that no other thread was changing may be used: locks of the C library or the
/// allocator may be held for ever.
pub unsafe fn fork() -> Result<i32> {
    // SAFETY: no new stack and no addresses for ids; the rest is the caller's promise.
    unsafe { syscall(libc::SYS_clone, [0; 6]) }.map(|pid| pid as i32)
}

/// Whether the child `pid` has ended; then it is gone for good (`wait4(2)` with `WNOHANG`, children without a signal included).
///
/// # Errors
///
/// `ECHILD` if there is no such child.
pub fn reap(pid: i32) -> Result<bool> {
    // SAFETY: with null addresses for status and usage nothing is written.
    let reaped = unsafe { syscall(libc::SYS_wait4, [pid as usize, 0, (libc::WNOHANG | libc::__WALL) as usize, 0, 0, 0]) }?;
    Ok(reaped != 0)
}

/// Kills the child `pid` (`kill(2)`).
pub fn kill(pid: i32) -> Result<()> {
    // SAFETY: sends a signal to another process.
    unsafe { syscall(libc::SYS_kill, [pid as usize, libc::SIGKILL as usize, 0, 0, 0, 0]) }.map(drop)
}

/// Stops this process as `SIGSTOP` does, until somebody has it go on or kills it.
pub fn stop() -> Result<()> {
    // SAFETY: sends a signal to this process.
    unsafe { syscall(libc::SYS_kill, [pid() as usize, libc::SIGSTOP as usize, 0, 0, 0, 0]) }.map(drop)
}

/// Has the kernel kill this process when the thread that made it ends (`PR_SET_PDEATHSIG`); `parent` is that thread's process.
///
/// # Errors
///
/// `ESRCH` if that process has ended before, so that nothing would end this one; it is not told of a parent in a process id
/// namespace further out. Otherwise those of `prctl(2)`.
pub fn end_with_parent(parent: i32) -> Result<()> {
    // SAFETY: an integer argument.
    unsafe { prctl(libc::PR_SET_PDEATHSIG, [libc::SIGKILL as usize, 0, 0, 0]) }?;
    // Asked only now: an end after the setting is one that the kernel tells.
    match simple(libc::SYS_getppid) as i32 {
        now if now == parent => Ok(()),
        // It is in a process id namespace further out.
        0 => Ok(()),
        _ => Err(Errno::new(libc::ESRCH)),
    }
}

/// Soft and hard limit of a resource (`prlimit(2)`); `u64::MAX` is none.
pub fn limit(resource: u32) -> Result<[u64; 2]> {
    let mut limit = [0_u64; 2];
    // SAFETY: the call stores two 64-bit words at the address given, and sets nothing.
    unsafe { syscall(libc::SYS_prlimit64, [0, resource as usize, 0, limit.as_mut_ptr() as usize, 0, 0]) }?;
    Ok(limit)
}

/// How a thread is scheduled: the first fields of `struct sched_attr`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Schedule {
    /// Bytes the kernel has filled.
    pub bytes: u32,
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// Nice value, for ordinary classes.
    pub nice: i32,
    /// Priority, for real-time classes.
    pub priority: u32,
    /// Runtime, deadline and period of the deadline class, in nanoseconds; a slice hint elsewhere.
    pub times_ns: [u64; 3],
}

/// How the thread `tid` is scheduled (`sched_getattr(2)`).
pub fn schedule(tid: i32) -> Result<Schedule> {
    let mut schedule = Schedule::default();
    let bytes = size_of::<Schedule>();
    // SAFETY: the call stores at most as many bytes as it is told.
    unsafe { syscall(libc::SYS_sched_getattr, [tid as usize, ptr::from_mut(&mut schedule) as usize, bytes, 0, 0, 0]) }?;
    Ok(schedule)
}

/// Processors, one bit each.
pub type Processors = [u64; 16];

/// The processors the thread `tid` may run on (`sched_getaffinity(2)`), the calling one's for 0.
pub fn affinity(tid: i32) -> Result<Processors> {
    let mut mask = [0_u64; 16];
    // SAFETY: the call stores at most as many bytes as it is told.
    unsafe { syscall(libc::SYS_sched_getaffinity, [tid as usize, size_of_val(&mask), mask.as_mut_ptr() as usize, 0, 0, 0]) }?;
    Ok(mask)
}

/// The same for a mask of any size; how many bytes the kernel has filled.
pub fn affinity_into(tid: i32, mask: &mut [u8]) -> Result<usize> {
    // SAFETY: the call stores at most as many bytes as it is told.
    unsafe { syscall(libc::SYS_sched_getaffinity, [tid as usize, mask.len(), mask.as_mut_ptr() as usize, 0, 0, 0]) }
}

/// Sets the processors the thread `tid` may run on (`sched_setaffinity(2)`).
pub fn set_affinity(tid: i32, mask: &Processors) -> Result<()> {
    // SAFETY: the call reads as many bytes as it is told, all of which are the mask's.
    unsafe { syscall(libc::SYS_sched_setaffinity, [tid as usize, size_of_val(mask), mask.as_ptr() as usize, 0, 0, 0]) }.map(drop)
}

/// The I/O priority of the thread `tid` (`ioprio_get(2)`).
pub fn io_priority(tid: i32) -> Result<u32> {
    const IOPRIO_WHO_PROCESS: usize = 1;
    // SAFETY: integers.
    unsafe { syscall(libc::SYS_ioprio_get, [IOPRIO_WHO_PROCESS, tid as usize, 0, 0, 0, 0]) }.map(|value| value as u32)
}

/// The memory policy of this thread (`get_mempolicy(2)`): 0 is the ordinary one.
pub fn memory_policy() -> Result<u32> {
    let mut mode = 0_u32;
    // SAFETY: the call stores one int at the first address; the others are null.
    unsafe { syscall(libc::SYS_get_mempolicy, [ptr::from_mut(&mut mode) as usize, 0, 0, 0, 0, 0]) }?;
    Ok(mode)
}

/// The supplementary groups (`getgroups(2)`), in the kernel's order, as far as there is room for them; how many there are.
pub fn supplementary_groups(into: &mut [u32]) -> Result<usize> {
    // SAFETY: the call stores at most as many 32-bit words as it is told.
    unsafe { syscall(libc::SYS_getgroups, [into.len(), into.as_mut_ptr() as usize, 0, 0, 0, 0]) }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::fd::AsFd};

    use super::*;
    use crate::fs;

    /// What a process is told that binds itself to its parent, which is there or `has_ended`.
    fn bound(has_ended: bool) -> u8 {
        let (mut told, tell) = std::io::pipe().unwrap();
        let (begun, begin) = std::io::pipe().unwrap();
        // SAFETY: both new processes make system calls alone.
        let parent = unsafe { fork() }.unwrap();
        if parent == 0 {
            let parent = pid();
            // SAFETY: as before.
            if unsafe { fork() } == Ok(0) {
                while has_ended && simple(libc::SYS_getppid) as i32 == parent {
                    std::hint::spin_loop();
                }
                let answer = end_with_parent(parent).map_or_else(|errno| errno.number() as u8, |()| 0);
                let _ = fs::write(tell.as_fd(), &[answer]);
                exit_group(0);
            }
            if !has_ended {
                let _ = fs::read(begun.as_fd(), &mut [0]);
            }
            exit_group(0);
        }
        drop(tell);
        let mut answer = [0];
        told.read_exact(&mut answer).unwrap();
        fs::write(begin.as_fd(), &[0]).unwrap();
        while reap(parent) == Ok(false) {
            std::thread::yield_now();
        }
        answer[0]
    }

    #[test]
    fn a_parent_that_has_ended_before_is_told() {
        assert_eq!(bound(false), 0);
        assert_eq!(bound(true), libc::ESRCH as u8);
    }
}
