//! What restored lives do first, done once before the first capture.
#![expect(unsafe_code, reason = "makes a thread without what Rust does for one, which needs memory and may not fail")]

use std::{
    ffi::c_void,
    mem::MaybeUninit,
    ptr,
    sync::atomic::{AtomicBool, Ordering},
};

use crac_sys::signal;

use crate::{engine, prefetch};

/// What `std::thread` gives its threads: so a stack that one of them has left is taken, or one is left for the next.
const STACK_BYTES: usize = 2 << 20;

/// Has threads made, one of them on the stack of another that has ended. The C library finds the functions it calls then when it first
/// calls them, by their names, in tables all over its memory. In a process that has done so little that it never came to that, each
/// restored life would do it anew, and most make a thread before they answer.
///
/// Takes some 150 µs, once in the life of a process. Where no thread can be made, nothing is lost but that time. Nothing is tried where
/// memory is locked, as the stack would be for good, and under a filter of the service's own, which may end who makes a thread; the
/// capture says what it thinks of that.
pub(super) fn make_threads(filters_at_start: u32) {
    static DONE: AtomicBool = AtomicBool::new(false);
    if DONE.load(Ordering::Relaxed) || prefetch::is_memory_locked() || engine::filters() > filters_at_start {
        return;
    }
    DONE.store(true, Ordering::Relaxed);
    // The service's signals are for its own threads.
    let mask = signal::set_mask(prefetch::BLOCKED);
    let _ = (0..2).try_for_each(|_| make_one());
    // The mask was valid when it was read.
    let _ = mask.and_then(signal::set_mask);
}

extern "C" fn nothing(_: *mut c_void) -> *mut c_void {
    ptr::null_mut()
}

/// Makes a thread and waits for its end.
fn make_one() -> Result<(), i32> {
    let ok = |errno: i32| if errno == 0 { Ok(()) } else { Err(errno) };
    let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
    // SAFETY: a place for attributes, which the call makes valid if it succeeds.
    ok(unsafe { libc::pthread_attr_init(attributes.as_mut_ptr()) })?;
    // SAFETY: made valid above; a size that the C library refuses leaves them as they are.
    let mut made = ok(unsafe { libc::pthread_attr_setstacksize(attributes.as_mut_ptr(), STACK_BYTES) });
    let mut thread = MaybeUninit::<libc::pthread_t>::uninit();
    // SAFETY: valid attributes, a place for the handle, and a function that neither unwinds nor uses its argument.
    made = made
        .and_then(|()| ok(unsafe { libc::pthread_create(thread.as_mut_ptr(), attributes.as_ptr(), nothing, ptr::null_mut()) }));
    // SAFETY: valid, and used by nobody else.
    unsafe { libc::pthread_attr_destroy(attributes.as_mut_ptr()) };
    made?;
    // SAFETY: the call that has made the thread has left its handle.
    let thread = unsafe { thread.assume_init() };
    // SAFETY: nobody else joins it.
    ok(unsafe { libc::pthread_join(thread, ptr::null_mut()) })
}

#[cfg(test)]
mod tests {
    #[test]
    fn threads_can_be_made_one_after_the_other() {
        for _ in 0..3 {
            assert_eq!(super::make_one(), Ok(()));
        }
    }
}
