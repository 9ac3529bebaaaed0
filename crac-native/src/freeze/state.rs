//! What the kernel knows about a thread beside its registers.
#![expect(unsafe_code, reason = "reads the head of the thread's own robust list")]

use std::ptr;

use crac_sys::{Errno, process};

use crate::{arch, landlock, settings};

/// A thread's state in the kernel that `rt_sigreturn` does not bring back.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct ThreadState {
    pub(crate) fs_base: u64,
    pub(crate) gs_base: u64,
    pub(crate) tid_address: u64,
    pub(crate) robust_head: u64,
    pub(crate) robust_bytes: u64,
    pub(crate) rseq_address: u64,
    pub(crate) rseq_bytes: u32,
    /// The thread is about to take, or waits for, a mutex that holds its owner's id: it has its own at hand already.
    pub(crate) waits_for_owner: u32,
    /// The error number if something could not be read.
    pub(crate) errno: i32,
    /// Memory policy; 0 is the ordinary one.
    pub(crate) memory_policy: u32,
    /// Landlock domains of the thread, if it was asked: it costs a child.
    pub(crate) layers: u32,
    pub(crate) reserved: u32,
    pub(crate) timer_slack_ns: u64,
    pub(crate) name: [u8; 16],
}

impl ThreadState {
    /// Reads the calling thread's state.
    pub(crate) fn read() -> Self {
        let mut state = Self::default();
        if let Err(errno) = state.fill() {
            state.errno = errno.number();
        }
        state
    }

    fn fill(&mut self) -> Result<(), Errno> {
        self.name = process::thread_name()?;
        self.fs_base = process::fs_base()? as u64;
        self.gs_base = process::gs_base()? as u64;
        self.tid_address = process::tid_address()? as u64;
        let (head, bytes) = process::robust_list()?;
        (self.robust_head, self.robust_bytes) = (head as u64, bytes as u64);
        if head != 0 {
            let head = ptr::with_exposed_provenance::<usize>(head);
            // SAFETY: the kernel's `struct robust_list_head` of this very thread: three words, of which the third is the mutex
            // being taken or released.
            let pending = unsafe { head.wrapping_add(2).read_volatile() };
            self.waits_for_owner = u32::from(pending != 0);
        }
        self.timer_slack_ns = process::get_result(libc::PR_GET_TIMERSLACK)? as u64;
        // Who enters a domain is the main thread, before it makes others; or a thread that has given up privileges for that.
        let gave_up = process::get_result(libc::PR_GET_NO_NEW_PRIVS)? != 0 && !settings::started_without_new_privileges();
        if gave_up || process::tid() == process::pid() {
            self.layers = landlock::layers();
        }
        // A container may forbid to ask, and then to set.
        self.memory_policy = process::memory_policy().unwrap_or_default();
        (self.rseq_address, self.rseq_bytes) = arch::rseq_area(self.fs_base).unwrap_or_default();
        Ok(())
    }
}
