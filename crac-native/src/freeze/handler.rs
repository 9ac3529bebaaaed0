//! What runs in every other thread: the handler of the freeze signal.
//!
//! It may interrupt any code, so it uses bare system calls and atomics alone.
#![expect(unsafe_code, reason = "a signal handler, and a slot that it shares with the capturing thread")]

use std::{
    ptr,
    sync::atomic::Ordering::{Relaxed, Release, SeqCst},
};

use crac_sys::{futex, process};

use super::{
    ARRIVED, AVOIDED, COOKIE, IN_AVOIDED, INSIDE, IS_PARKED, PARKED, PREVIOUS, PROCESS, RELEASE, SIGNALLED, SLOT_BITS, SLOTS,
    Slot, SlotRoom, THREADS_MAX, state::ThreadState,
};
use crate::{
    arch,
    clock::{shim, waits::Call},
    madvise,
};

/// Operations of futex(2) that wait for an owner the kernel knows.
const PRIORITY_INHERITANCE: [i32; 3] = [libc::FUTEX_LOCK_PI, libc::FUTEX_LOCK_PI2, libc::FUTEX_WAIT_REQUEUE_PI];
/// The bytes of the instruction of that name.
const SYSCALL: u16 = 0x050f;

/// The handler of the freeze signal.
pub(super) extern "C" fn on_signal(number: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands a filled siginfo to an SA_SIGINFO handler.
    let info_filled = unsafe { &*info };
    // SAFETY: for SI_QUEUE the sender is filled in; for other codes the bytes are there too and not used.
    let sender = unsafe { info_filled.si_pid() };
    if info_filled.si_code != libc::SI_QUEUE || sender != PROCESS.load(Relaxed) {
        // Not counted: it may end the thread, for the C library cancels threads with this signal.
        return pass_on(number, info, context);
    }
    INSIDE.fetch_add(1, SeqCst);
    // SAFETY: SI_QUEUE comes with a value.
    handle(unsafe { info_filled.si_value() }.sival_ptr.addr() as u64, context);
    if INSIDE.fetch_sub(1, SeqCst) == 1 {
        // The capturing thread waits for the last one to leave. Cannot fail for a word of our own, here and below.
        let _ = futex::wake_all(&INSIDE);
    }
}

/// Parks the thread if the freeze that sent the signal with `value` is under way.
fn handle(value: u64, context: *mut libc::c_void) {
    let cookie = COOKIE.load(SeqCst);
    if cookie == 0 || value >> SLOT_BITS != cookie {
        // A signal of an earlier freeze, taken late.
        return;
    }
    let room = ptr::with_exposed_provenance_mut::<SlotRoom>(SLOTS.load(Relaxed));
    let place = room.wrapping_add((value & (THREADS_MAX as u64 - 1)) as usize).cast::<Slot>();
    // SAFETY: the cookie is the running freeze's, so the slot was written before the signal was sent; it stays mapped while a
    // thread is counted as inside.
    let slot = unsafe { &*place };
    if slot.tid != process::tid() || slot.state.load(SeqCst) != SIGNALLED {
        return;
    }
    // SAFETY: an SA_SIGINFO handler gets the interrupted context.
    let interrupted = unsafe { &*context.cast::<libc::ucontext_t>() };
    let ip = interrupted.uc_mcontext.gregs[libc::REG_RIP as usize] as usize;
    let avoided = || AVOIDED.iter().any(|[start, end]| (start.load(Relaxed)..end.load(Relaxed)).contains(&ip));
    if shim::is_between(ip) || avoided() || madvise::is_inside() || is_in_unseen_wait(slot, &interrupted.uc_mcontext) {
        slot.state.store(IN_AVOIDED, SeqCst);
        PARKED.fetch_add(1, SeqCst);
        let _ = futex::wake_all(&PARKED);
        return;
    }
    // Kept in this frame: in another life the slot is not there.
    let freeze = slot.freeze;
    let mut state = ThreadState::read();
    let [number, operation] = [libc::REG_RAX, libc::REG_RSI].map(|register| interrupted.uc_mcontext.gregs[register as usize]);
    if number == libc::SYS_futex && PRIORITY_INHERITANCE.contains(&(operation as i32 & libc::FUTEX_CMD_MASK)) {
        // The kernel has set the thread back to before the call, so that it is made again.
        // SAFETY: reads the instruction at which the thread goes on.
        let instruction = unsafe { ptr::with_exposed_provenance::<u16>(ip).read_unaligned() };
        state.waits_for_owner |= u32::from(instruction == SYSCALL);
    }
    // SAFETY: the notes are this thread's until it says that it is parked.
    unsafe { slot.noted.get().write(state) };
    // SAFETY: `wait_here` does not unwind: it makes system calls and uses atomics. The slot's resume point is this thread's to
    // write until it says that it is parked.
    let came_back = unsafe { arch::park(slot.resume.get(), wait_here, place.cast()) };
    if came_back == 1 {
        ARRIVED.fetch_add(1, SeqCst);
        let _ = futex::wake_all(&ARRIVED);
        wait_for_release(freeze);
    }
}

/// Whether the thread was interrupted in a system call other than the one it was seen in, or is about to begin an absolute wait:
/// the capturing thread then looks again, so that no wait that leads past the shim goes unnoticed.
fn is_in_unseen_wait(slot: &Slot, registers: &libc::mcontext_t) -> bool {
    if slot.watched.load(Relaxed) == 0 {
        return false;
    }
    let register = |register: i32| registers.gregs.get(register as usize).map_or(0, |value| *value as u64);
    let (ip, sp, result) = (register(libc::REG_RIP), register(libc::REG_RSP), register(libc::REG_RAX));
    let is_syscall = |at: u64| {
        let code = ptr::with_exposed_provenance::<[u8; 2]>(at as usize);
        // SAFETY: the thread executes there, or has just done so, and both bytes are in the page of the first.
        at & 0xfff < 0xfff && unsafe { code.read() } == [0x0f, 0x05]
    };
    let ended = result == u64::from_ne_bytes(i64::from(-libc::EINTR).to_ne_bytes()) && ip & 0xfff >= 2 && is_syscall(ip - 2);
    let behind = if ended {
        ip
    } else {
        let arguments = [libc::REG_RDI, libc::REG_RSI, libc::REG_RDX, libc::REG_R10, libc::REG_R8, libc::REG_R9].map(register);
        let call = Call { number: result, arguments, sp, ip: ip + 2 };
        if !is_syscall(ip) || call.absolute_wait().is_none() {
            return false;
        }
        ip + 2
    };
    let is_seen = [behind, sp] == [slot.observed[0].load(Relaxed), slot.observed[1].load(Relaxed)];
    slot.in_call.store(u32::from(is_seen), Relaxed);
    !is_seen && !shim::is_shifted_wait(behind as usize)
}

/// Says that the thread is parked, and waits.
unsafe extern "C" fn wait_here(slot: *mut u8) {
    // SAFETY: `handle` passes its own slot.
    let slot = unsafe { &*slot.cast::<Slot>() };
    slot.state.store(IS_PARKED, Release);
    PARKED.fetch_add(1, SeqCst);
    let _ = futex::wake_all(&PARKED);
    wait_for_release(slot.freeze);
}

fn wait_for_release(freeze: u32) {
    while RELEASE.load(SeqCst) == freeze {
        futex::wait(&RELEASE, freeze, None);
    }
}

/// Calls the handler that ours has replaced.
fn pass_on(number: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let (handler, flags) = (PREVIOUS[0].load(Relaxed), PREVIOUS[1].load(Relaxed));
    if handler <= 1 {
        return;
    }
    let handler = ptr::with_exposed_provenance::<()>(handler);
    if flags & libc::SA_SIGINFO as usize != 0 {
        type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);
        // SAFETY: the address was installed as a handler with SA_SIGINFO, so it is a function of this type.
        let handler = unsafe { std::mem::transmute::<*const (), Handler>(handler) };
        handler(number, info, context);
    } else {
        // SAFETY: the address was installed as a handler without SA_SIGINFO, so it is a function of this type.
        let handler = unsafe { std::mem::transmute::<*const (), extern "C" fn(i32)>(handler) };
        handler(number);
    }
}
