//! The two shims, and the offsets they share.
//!
//! Threads are stopped at any instruction. One that has read an offset and not used it yet would go on in another life with the
//! offset of this one, so in such stretches no thread is stopped ([`is_between`]); it is asked again until it is elsewhere. A
//! wait itself is no such stretch: a thread in it comes back with `EINTR`, behind the instruction.
//!
//! The shim for system calls also leads calls of `madvise` by its number to this crate's: `syscall(3)` comes here with any number.
#![expect(unsafe_code, reason = "stands between the C library and the kernel")]

use std::{
    arch::global_asm,
    ops::Range,
    sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering::SeqCst},
};

use super::{
    offset::{Offset, Readings},
    vdso::{FUNCTIONS_MAX, Proxy},
};
use crate::facts;

/// The offset of one clock, as the shims read it.
#[derive(Debug)]
#[repr(C)]
struct Added {
    seconds: AtomicI64,
    nanoseconds: AtomicI64,
}

/// How many clocks the shims know: all static ones of the kernel.
const CLOCKS: usize = 16;
/// Offsets by clock id. Those of the wall clock, of CPU time and of numbers without a clock stay zero.
static ADDED: Lines<[Added; CLOCKS]> =
    Lines([const { Added { seconds: AtomicI64::new(0), nanoseconds: AtomicI64::new(0) } }; CLOCKS]);
/// The real `clock_gettime` of the vdso, for lives in which a proxy stands in its place.
static REAL_READ: AtomicUsize = AtomicUsize::new(0);
/// All functions of the real vdso, in the order that they have in the proxy, which jumps through these words.
static REAL: [AtomicUsize; FUNCTIONS_MAX] = [const { AtomicUsize::new(0) }; FUNCTIONS_MAX];
/// How many absolute waits have led through the shim. For the trial of the layer, which is alone then: it is not exact otherwise.
static SHIFTED: Lines<AtomicU64> = Lines(AtomicU64::new(0));

/// Whole cache lines: every read of a clock looks at the offsets, which a counter beside them would take away each time.
#[repr(C, align(64))]
struct Lines<T>(T);

unsafe extern "C" {
    fn crac_clock_read();
    fn crac_clock_read_end();
    fn crac_clock_bare_read();
    fn crac_clock_bare_day();
    fn crac_clock_bare_time();
    fn crac_clock_bare_resolution();
    fn crac_clock_bare_processor();
    fn crac_clock_bare_random();
    fn crac_clock_bare_none();
    fn crac_clock_syscall();
    fn crac_clock_syscall_end();
    fn crac_clock_plain();
    fn crac_clock_plain_done();
    fn crac_clock_futex_done();
    fn crac_clock_sleep_monotonic_done();
    fn crac_clock_sleep_boottime_done();
}

global_asm!(
    // Takes the offset at table position `at` from the time at `[\pointer + value]` and leaves it in r11 (seconds) and rcx
    // (nanoseconds), not below zero: the kernel refuses that, where a moment in the past is meant. What the kernel is to refuse
    // itself, or cannot be represented, it gets as it is.
    ".macro crac_clock_take pointer, value, at",
    "cmp qword ptr [\\pointer + \\value + 8], 999999999",
    "ja 2b",
    "mov r11, [\\pointer + \\value]",
    "test r11, r11",
    "js 2b",
    "mov rcx, [\\pointer + \\value + 8]",
    "sub r11, [rip + {added} + \\at]",
    "jo 2b",
    "sub rcx, [rip + {added} + \\at + 8]",
    "jns 8f",
    "add rcx, 1000000000",
    "dec r11",
    "8:",
    "test r11, r11",
    "jns 9f",
    "xor r11d, r11d",
    "xor ecx, ecx",
    "9:",
    ".endm",
    // A wait whose deadline is a `struct timespec` at `\pointer`.
    ".macro crac_clock_wait pointer, at, done",
    "crac_clock_take \\pointer, 0, \\at",
    "push \\pointer",
    ".cfi_adjust_cfa_offset 8",
    "push rcx",
    ".cfi_adjust_cfa_offset 8",
    "push r11",
    ".cfi_adjust_cfa_offset 8",
    "mov \\pointer, rsp",
    "inc qword ptr [rip + {shifted}]",
    "syscall",
    "\\done:",
    "add rsp, 16",
    ".cfi_adjust_cfa_offset -16",
    "pop \\pointer",
    ".cfi_adjust_cfa_offset -8",
    "ret 128",
    ".endm",
    // A timer whose time is the second half of a `struct itimerspec` at rdx. Zero would disarm it: due at once is one nanosecond.
    ".macro crac_clock_timer at",
    "crac_clock_take rdx, 16, \\at",
    "push rdx",
    ".cfi_adjust_cfa_offset 8",
    "mov rdx, r11",
    "or rdx, rcx",
    "mov rdx, [rsp]",
    "jne 8f",
    "mov ecx, 1",
    "8:",
    "push rcx",
    ".cfi_adjust_cfa_offset 8",
    "push r11",
    ".cfi_adjust_cfa_offset 8",
    "push qword ptr [rdx + 8]",
    ".cfi_adjust_cfa_offset 8",
    "push qword ptr [rdx]",
    ".cfi_adjust_cfa_offset 8",
    "mov rdx, rsp",
    "inc qword ptr [rip + {shifted}]",
    "syscall",
    "add rsp, 32",
    ".cfi_adjust_cfa_offset -32",
    "pop rdx",
    ".cfi_adjust_cfa_offset -8",
    "ret 128",
    ".endm",
    // What a system call keeps and a call of a function does not, in six words below rbx: the parameters.
    ".macro crac_clock_save",
    "push rbx",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_offset rbx, -144",
    "mov rbx, rsp",
    ".cfi_def_cfa_register rbx",
    "push rdi",
    "push rsi",
    "push rdx",
    "push r10",
    "push r8",
    "push r9",
    ".endm",
    ".macro crac_clock_restore",
    "lea rsp, [rbx - 48]",
    "pop r9",
    "pop r8",
    "pop r10",
    "pop rdx",
    "pop rsi",
    "pop rdi",
    "pop rbx",
    ".cfi_def_cfa rsp, 136",
    ".cfi_restore rbx",
    ".endm",
    //
    ".pushsection .text.crac_clock, \"ax\", @progbits",
    ".balign 64",
    ".hidden crac_clock_read",
    ".globl crac_clock_read",
    ".type crac_clock_read, @function",
    // int clock_gettime(clockid_t edi, struct timespec *rsi)
    "crac_clock_read:",
    ".cfi_startproc",
    "push rdi",
    ".cfi_adjust_cfa_offset 8",
    "push rsi",
    ".cfi_adjust_cfa_offset 8",
    "sub rsp, 8",
    ".cfi_adjust_cfa_offset 8",
    "call qword ptr [rip + {real}]",
    "add rsp, 8",
    ".cfi_adjust_cfa_offset -8",
    "pop rsi",
    ".cfi_adjust_cfa_offset -8",
    "pop rdi",
    ".cfi_adjust_cfa_offset -8",
    "test eax, eax",
    "jne 3f",
    "cmp edi, {clocks}",
    "jae 3f",
    "shl edi, 4",
    "lea rcx, [rip + {added}]",
    "mov rdx, [rcx + rdi]",
    "mov rcx, [rcx + rdi + 8]",
    "add rdx, [rsi]",
    "add rcx, [rsi + 8]",
    "cmp rcx, 1000000000",
    "jb 2f",
    "sub rcx, 1000000000",
    "inc rdx",
    "2:",
    "mov [rsi], rdx",
    "mov [rsi + 8], rcx",
    "3:",
    "ret",
    // What the shim calls where the real vdso has no clock_gettime: a time that lacks the offset, as above.
    ".hidden crac_clock_bare_read",
    ".globl crac_clock_bare_read",
    "crac_clock_bare_read:",
    "mov eax, {clock_gettime}",
    "syscall",
    "ret",
    ".cfi_endproc",
    ".hidden crac_clock_read_end",
    ".globl crac_clock_read_end",
    "crac_clock_read_end:",
    ".size crac_clock_read, . - crac_clock_read",
    // The other functions that a vdso may lack, as system calls of the same parameters.
    ".macro crac_clock_bare name, number",
    ".hidden \\name",
    ".globl \\name",
    ".type \\name, @function",
    "\\name:",
    ".cfi_startproc",
    "mov eax, \\number",
    "syscall",
    "ret",
    ".cfi_endproc",
    ".size \\name, . - \\name",
    ".endm",
    "crac_clock_bare crac_clock_bare_day, {gettimeofday}",
    "crac_clock_bare crac_clock_bare_time, {time}",
    "crac_clock_bare crac_clock_bare_resolution, {clock_getres}",
    "crac_clock_bare crac_clock_bare_processor, {getcpu}",
    ".hidden crac_clock_bare_random",
    ".globl crac_clock_bare_random",
    ".type crac_clock_bare_random, @function",
    // ssize_t getrandom(rdi, rsi, edx, state rcx, bytes of it r8), where -1 bytes ask what the state is to be like.
    "crac_clock_bare_random:",
    ".cfi_startproc",
    "cmp r8, -1",
    "je 2f",
    "mov eax, {getrandom}",
    "syscall",
    "ret",
    ".hidden crac_clock_bare_none",
    ".globl crac_clock_bare_none",
    // Callers of a function of the vdso fall back to the system call on their own.
    "crac_clock_bare_none:",
    "2:",
    "mov rax, -{not_there}",
    "ret",
    ".cfi_endproc",
    ".size crac_clock_bare_random, . - crac_clock_bare_random",
    //
    ".balign 64",
    ".hidden crac_clock_syscall",
    ".globl crac_clock_syscall",
    ".type crac_clock_syscall, @function",
    // A system call as the C library was about to make it, but for rcx, r11 and the flags, which it expects to lose. On the stack
    // lie the address behind its own instruction and, above that, its red zone. To unwinders this is a function it has called.
    "crac_clock_syscall:",
    ".cfi_startproc",
    ".cfi_def_cfa rsp, 136",
    ".cfi_offset rip, -136",
    "cmp eax, {futex}",
    "je 3f",
    "cmp eax, {clock_nanosleep}",
    "je 4f",
    "cmp eax, {timerfd_settime}",
    "je 6f",
    "cmp eax, {timer_settime}",
    "je 6f",
    "cmp eax, {clock_gettime}",
    "je 7f",
    "cmp eax, {madvise}",
    "je 22f",
    ".hidden crac_clock_plain",
    ".globl crac_clock_plain",
    "2:",
    "crac_clock_plain:",
    "syscall",
    ".hidden crac_clock_plain_done",
    ".globl crac_clock_plain_done",
    "crac_clock_plain_done:",
    "ret 128",
    // FUTEX_WAIT_BITSET, of whatever sharing, on the monotonic clock, with a deadline.
    "3:",
    "mov ecx, esi",
    "and ecx, {futex_command_and_clock}",
    "cmp ecx, {futex_wait_bitset}",
    "jne 2b",
    "test r10, r10",
    "je 2b",
    ".hidden crac_clock_futex_done",
    ".globl crac_clock_futex_done",
    "crac_clock_wait r10, 16, crac_clock_futex_done",
    // clock_nanosleep, TIMER_ABSTIME.
    "4:",
    "test esi, 1",
    "je 2b",
    "test rdx, rdx",
    "je 2b",
    "cmp edi, {monotonic}",
    "jne 5f",
    ".hidden crac_clock_sleep_monotonic_done",
    ".globl crac_clock_sleep_monotonic_done",
    "crac_clock_wait rdx, 16, crac_clock_sleep_monotonic_done",
    "5:",
    "cmp edi, {boottime}",
    "jne 2b",
    ".hidden crac_clock_sleep_boottime_done",
    ".globl crac_clock_sleep_boottime_done",
    "crac_clock_wait rdx, 112, crac_clock_sleep_boottime_done",
    // timerfd_settime and timer_settime, absolute, armed: of which clock, only the kernel knows.
    "6:",
    "test esi, 1",
    "je 2b",
    "test rdx, rdx",
    "je 2b",
    "mov rcx, [rdx + 16]",
    "or rcx, [rdx + 24]",
    "je 2b",
    "crac_clock_save",
    "push rax",
    "mov rsi, rdi",
    "mov edi, eax",
    "and rsp, -16",
    "call {clock_of}",
    "mov r11d, eax",
    "mov rax, [rbx - 56]",
    "crac_clock_restore",
    "cmp r11d, {monotonic}",
    "jne 5f",
    "crac_clock_timer 16",
    "5:",
    "cmp r11d, {boottime}",
    "jne 2b",
    "crac_clock_timer 112",
    // clock_gettime without the vdso.
    "7:",
    "syscall",
    "test eax, eax",
    "jne 9f",
    "cmp edi, {clocks}",
    "jae 9f",
    "push rdx",
    ".cfi_adjust_cfa_offset 8",
    "mov ecx, edi",
    "shl ecx, 4",
    "lea r11, [rip + {added}]",
    "mov rdx, [r11 + rcx]",
    "mov rcx, [r11 + rcx + 8]",
    "add rdx, [rsi]",
    "add rcx, [rsi + 8]",
    "cmp rcx, 1000000000",
    "jb 8f",
    "sub rcx, 1000000000",
    "inc rdx",
    "8:",
    "mov [rsi], rdx",
    "mov [rsi + 8], rcx",
    "pop rdx",
    ".cfi_adjust_cfa_offset -8",
    "9:",
    "ret 128",
    // madvise, which is ours by name: the same for whoever calls it by its number.
    "22:",
    "crac_clock_save",
    "and rsp, -16",
    "call {advise}",
    "crac_clock_restore",
    "ret 128",
    ".cfi_endproc",
    ".hidden crac_clock_syscall_end",
    ".globl crac_clock_syscall_end",
    "crac_clock_syscall_end:",
    ".size crac_clock_syscall, . - crac_clock_syscall",
    ".popsection",
    ".purgem crac_clock_take",
    ".purgem crac_clock_wait",
    ".purgem crac_clock_timer",
    ".purgem crac_clock_save",
    ".purgem crac_clock_restore",
    ".purgem crac_clock_bare",
    added = sym ADDED,
    real = sym REAL_READ,
    shifted = sym SHIFTED,
    clock_of = sym super::waits::clock_of_timer,
    advise = sym crate::madvise::by_number,
    madvise = const libc::SYS_madvise,
    clocks = const CLOCKS,
    futex = const libc::SYS_futex,
    clock_nanosleep = const libc::SYS_clock_nanosleep,
    timerfd_settime = const libc::SYS_timerfd_settime,
    timer_settime = const libc::SYS_timer_settime,
    clock_gettime = const libc::SYS_clock_gettime,
    gettimeofday = const libc::SYS_gettimeofday,
    time = const libc::SYS_time,
    clock_getres = const libc::SYS_clock_getres,
    getcpu = const libc::SYS_getcpu,
    getrandom = const libc::SYS_getrandom,
    not_there = const libc::ENOSYS,
    futex_command_and_clock = const libc::FUTEX_CLOCK_REALTIME | 0x7f,
    futex_wait_bitset = const libc::FUTEX_WAIT_BITSET,
    monotonic = const libc::CLOCK_MONOTONIC,
    boottime = const libc::CLOCK_BOOTTIME,
);
const _: () = assert!(size_of::<Added>() == 16 && libc::CLOCK_MONOTONIC == 1 && libc::CLOCK_BOOTTIME == 7);

/// Address of the shim for `clock_gettime`.
pub(crate) fn read_address() -> usize {
    crac_clock_read as *const () as usize
}

/// Address of the shim for system calls.
pub(crate) fn syscall_address() -> usize {
    crac_clock_syscall as *const () as usize
}

/// Whether a thread stopped at `ip` may hold an offset, or a time that lacks it.
pub(crate) fn is_between(ip: usize) -> bool {
    let range = |start: unsafe extern "C" fn(), end: unsafe extern "C" fn()| -> Range<usize> {
        start as *const () as usize..end as *const () as usize
    };
    let plain = [crac_clock_plain as *const () as usize, crac_clock_plain_done as *const () as usize];
    range(crac_clock_read, crac_clock_read_end).contains(&ip)
        || range(crac_clock_syscall, crac_clock_syscall_end).contains(&ip) && !plain.contains(&ip) && !is_shifted_wait(ip)
}

/// Whether a thread that was interrupted in a system call and goes on at `ip` waits by way of the shim.
pub(crate) fn is_shifted_wait(ip: usize) -> bool {
    [crac_clock_futex_done, crac_clock_sleep_monotonic_done, crac_clock_sleep_boottime_done]
        .map(|done: unsafe extern "C" fn()| done as *const () as usize)
        .contains(&ip)
}

/// How many absolute waits have led through the shim.
pub(crate) fn shifted() -> u64 {
    SHIFTED.0.load(SeqCst)
}

/// Address of the words through which a proxy jumps.
pub(crate) fn table_address() -> usize {
    REAL.as_ptr().expose_provenance()
}

/// Tells shim and proxy where the functions of the real vdso are, or will be in the life to come.
pub(crate) fn set_real(proxy: &Proxy) {
    REAL_READ.store(proxy.real_read as usize, SeqCst);
    REAL.iter().zip(proxy.functions).for_each(|(word, function)| word.store(function as usize, SeqCst));
}

/// Address of what does the same as the function `name` of a vdso by a system call, or says that there is none.
pub(crate) fn by_system_call(name: &[u8]) -> usize {
    let function: unsafe extern "C" fn() = match name.strip_prefix(b"__vdso_").unwrap_or(name) {
        b"clock_gettime" => crac_clock_bare_read,
        b"gettimeofday" => crac_clock_bare_day,
        b"time" => crac_clock_bare_time,
        b"clock_getres" => crac_clock_bare_resolution,
        b"getcpu" => crac_clock_bare_processor,
        b"getrandom" => crac_clock_bare_random,
        _ => crac_clock_bare_none,
    };
    function as *const () as usize
}

/// Sets the offsets: monotonic, raw, boot time. No other thread of the program runs.
pub(crate) fn set_offsets([monotonic, raw, boottime]: [Offset; 3]) {
    for (clock, offset) in [
        (libc::CLOCK_MONOTONIC, monotonic),
        (libc::CLOCK_MONOTONIC_COARSE, monotonic),
        (libc::CLOCK_MONOTONIC_RAW, raw),
        (libc::CLOCK_BOOTTIME, boottime),
        (libc::CLOCK_BOOTTIME_ALARM, boottime),
    ] {
        if let Some(added) = ADDED.0.get(clock as usize) {
            added.seconds.store(offset.seconds, SeqCst);
            added.nanoseconds.store(offset.nanoseconds, SeqCst);
        }
    }
}

/// What the service sees on its clocks now.
pub(crate) fn seen() -> Readings {
    let seen = |clock: libc::clockid_t| {
        let added = ADDED.0.get(clock as usize);
        let offset = added.map_or_else(Offset::default, |added| Offset {
            seconds: added.seconds.load(SeqCst),
            nanoseconds: added.nanoseconds.load(SeqCst),
        });
        u64::try_from(i128::from(facts::clock_ns(clock)) + offset.ns()).unwrap_or(0)
    };
    Readings {
        monotonic_ns: seen(libc::CLOCK_MONOTONIC),
        raw_ns: seen(libc::CLOCK_MONOTONIC_RAW),
        boottime_ns: seen(libc::CLOCK_BOOTTIME),
    }
}

/// What the kernel's clocks read now.
pub(crate) fn kernel() -> Readings {
    Readings {
        monotonic_ns: facts::clock_ns(libc::CLOCK_MONOTONIC),
        raw_ns: facts::clock_ns(libc::CLOCK_MONOTONIC_RAW),
        boottime_ns: facts::clock_ns(libc::CLOCK_BOOTTIME),
    }
}

#[cfg(test)]
mod tests {
    use std::{mem::transmute, ptr};

    use super::*;

    #[test]
    fn what_a_vdso_may_lack_is_there_as_a_system_call() {
        let (mut time, mut resolution) = (libc::timespec { tv_sec: 0, tv_nsec: 0 }, libc::timespec { tv_sec: 0, tv_nsec: 0 });
        type Clock = unsafe extern "C" fn(libc::clockid_t, *mut libc::timespec) -> i32;
        // SAFETY: a function of this signature.
        let read = unsafe { transmute::<usize, Clock>(by_system_call(b"__vdso_clock_gettime")) };
        // SAFETY: fills the time.
        let clocked = unsafe { read(libc::CLOCK_REALTIME, &raw mut time) };
        // SAFETY: as above.
        let ask = unsafe { transmute::<usize, Clock>(by_system_call(b"clock_getres")) };
        // SAFETY: as above.
        let asked = unsafe { ask(libc::CLOCK_REALTIME, &raw mut resolution) };
        assert!(clocked == 0 && asked == 0 && time.tv_sec > 1_500_000_000 && resolution.tv_nsec > 0);

        // SAFETY: a function of this signature.
        let seconds = unsafe { transmute::<usize, unsafe extern "C" fn(*mut i64) -> i64>(by_system_call(b"time")) };
        // SAFETY: a null stores nothing.
        assert!((0..600).contains(&(unsafe { seconds(ptr::null_mut()) } - time.tv_sec)));

        let mut day = libc::timeval { tv_sec: 0, tv_usec: 0 };
        type Day = unsafe extern "C" fn(*mut libc::timeval, *mut u8) -> i32;
        // SAFETY: a function of this signature.
        let of_day = unsafe { transmute::<usize, Day>(by_system_call(b"__vdso_gettimeofday")) };
        // SAFETY: fills the time; nobody asks for a zone.
        assert!(unsafe { of_day(&raw mut day, ptr::null_mut()) } == 0 && (0..600).contains(&(day.tv_sec - time.tv_sec)));

        let mut processor = u32::MAX;
        type Processor = unsafe extern "C" fn(*mut u32, *mut u32, *mut u8) -> i64;
        // SAFETY: a function of this signature.
        let which = unsafe { transmute::<usize, Processor>(by_system_call(b"getcpu")) };
        // SAFETY: fills the number; nobody asks for a node.
        assert!(unsafe { which(&raw mut processor, ptr::null_mut(), ptr::null_mut()) } == 0 && processor < 1 << 16);

        let mut bytes = [0_u8; 64];
        type Random = unsafe extern "C" fn(*mut u8, usize, u32, *mut u8, usize) -> isize;
        // SAFETY: a function of this signature.
        let random = unsafe { transmute::<usize, Random>(by_system_call(b"getrandom")) };
        // SAFETY: fills the bytes; there is no state.
        assert_eq!(unsafe { random(bytes.as_mut_ptr(), bytes.len(), 0, ptr::null_mut(), 0) }, 64);
        assert_ne!(bytes, [0; 64]);
        // SAFETY: only asks what the state is to be like.
        let no_state = unsafe { random(ptr::null_mut(), 0, 0, ptr::null_mut(), usize::MAX) };
        // SAFETY: a function that uses no parameter.
        let unknown = unsafe { transmute::<usize, unsafe extern "C" fn() -> isize>(by_system_call(b"__vdso_of_tomorrow")) };
        // SAFETY: as above.
        assert_eq!((no_state, unsafe { unknown() }), (-libc::ENOSYS as isize, -libc::ENOSYS as isize));
    }
}
