//! Memory that is not to survive a fork (`MADV_WIPEONFORK`, `MAP_DROPPABLE`): a restore is one.
//!
//! Libraries keep the state of random generators there, and start anew when they find it zero. CRIU restores the contents, so
//! that all clones would draw the same; they are wiped before the restored life goes on.
#![expect(unsafe_code, reason = "discards memory of others, who have asked for that")]

use std::{fs, io};

use crac_sys::{mem, proc::SmapsEntries};

/// `madvise(2)`: private anonymous memory reads as zeros from then on.
const DONTNEED: i32 = 4;

/// Where such memory is: start and length.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wiped(Vec<(usize, usize)>);

impl Wiped {
    /// Looks through the mappings of this process.
    ///
    /// # Errors
    ///
    /// If `/proc` cannot be read or understood.
    pub(crate) fn look() -> io::Result<Self> {
        let text = fs::read("/proc/self/smaps")?;
        let mut found = Vec::new();
        for entry in SmapsEntries::of(&text) {
            let entry = entry.map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "/proc/self/smaps is not understood"))?;
            if entry.flags.contains(b"wf") || entry.flags.contains(b"dp") {
                let [start, size] = [entry.mapping.start, entry.mapping.size()];
                found.extend(usize::try_from(start).ok().zip(usize::try_from(size).ok()));
            }
        }
        Ok(Self(found))
    }

    /// Makes it all zero.
    pub(crate) fn wipe(&self) {
        for (start, len) in &self.0 {
            // SAFETY: the range was mapped at the capture, and has not changed since: this life begins here. Whoever mapped it
            // expects to find it zero in a copy of the process.
            let wiped = unsafe { mem::advise(*start, *len, DONTNEED) };
            if let Err(errno) = wiped {
                tracing::error!(start, len, %errno, "memory that should be wiped in a restored life is not: clones may draw the same");
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use std::{ptr, sync::atomic::AtomicU8, sync::atomic::Ordering};

    const WIPE_ON_FORK: i32 = 18;
    const READ_WRITE: i32 = 3;
    const PRIVATE: i32 = 2;

    #[test]
    fn memory_that_is_wiped_on_fork_is_found_and_emptied_and_other_memory_is_not() {
        let page = || mem::map_anonymous(mem::PAGE_SIZE, READ_WRITE, PRIVATE).unwrap();
        let (marked, plain) = (page(), page());
        // SAFETY: the page is this test's own.
        unsafe { mem::advise(marked, mem::PAGE_SIZE, WIPE_ON_FORK) }.unwrap();
        let cell = |page| {
            let byte = ptr::with_exposed_provenance_mut::<u8>(page);
            // SAFETY: mapped above, never unmapped, and used through this type alone.
            unsafe { AtomicU8::from_ptr(byte) }
        };
        cell(marked).store(7, Ordering::SeqCst);
        cell(plain).store(7, Ordering::SeqCst);
        let found = Wiped::look().unwrap();
        assert!(found.0.iter().any(|(start, len)| (*start..start + len).contains(&marked)), "{found:?}");
        assert!(!found.0.iter().any(|(start, len)| (*start..start + len).contains(&plain)), "{found:?}");
        found.wipe();
        assert_eq!((cell(marked).load(Ordering::SeqCst), cell(plain).load(Ordering::SeqCst)), (0, 7));
    }
}
