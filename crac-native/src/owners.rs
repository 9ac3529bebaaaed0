//! Held mutexes of the C library that know their owner by its thread id, which is another one in the next life.
//!
//! Recursive, error-checking, priority-inheritance and robust mutexes refuse to be released by anybody but their owner. The
//! process keeps no list of them, so they are looked for while memory is written: forty bytes that cannot well be anything else,
//! with the id of a living thread in the right place. A restored life puts the new ids in, before any thread goes on.
//!
//! ```text
//! offset  0       4       8       12      16      20      24     32     (glibc, x86_64: struct __pthread_mutex_s)
//!         lock    count   owner   users   kind    spins   previous, next
//! ```
#![allow(unsafe_code, reason = "writes to mutexes at noted addresses, while no thread runs")]

use std::ptr;

use crac_sys::Errno;

use crate::layout::{OWNERS_MAX, ThreadRecord};

const TYPE: u32 = 3;
const RECURSIVE: u32 = 1;
const ERROR_CHECKING: u32 = 2;
const ROBUST: u32 = 0x10;
const INHERITING: u32 = 0x20;
/// With the kinds above: protecting priorities, shared between processes, lock elision.
const KNOWN: u32 = TYPE | ROBUST | INHERITING | 0x40 | 0x80 | 0x300;
/// `FUTEX_TID_MASK`.
const TID: u32 = 0x3fff_ffff;
const WORDS: usize = 5;
const USERS_MAX: u32 = 1 << 16;

/// Fills bytes from an address.
pub(crate) type ReadAt<'f> = dyn FnMut(u64, &mut [u8]) -> Result<(), Errno> + 'f;

/// The held mutexes found so far.
#[derive(Debug)]
pub(crate) struct Owners<'a> {
    threads: &'a [ThreadRecord],
    /// Lowest and highest id of a thread.
    between: (u32, u32),
    found: &'a mut [u64],
    count: usize,
}

impl<'a> Owners<'a> {
    /// Looks for mutexes held by one of `threads`; addresses are noted in `found`.
    pub(crate) fn new(threads: &'a [ThreadRecord], found: &'a mut [u64]) -> Self {
        let tids = || threads.iter().map(|thread| thread.tid as u32);
        Self { threads, between: (tids().min().unwrap_or(0), tids().max().unwrap_or(0)), found, count: 0 }
    }

    /// Addresses of mutexes.
    pub(crate) fn found(&self) -> &[u64] {
        self.found.get(..self.count).unwrap_or_default()
    }

    /// Looks through memory that lies at `address`. `tail` is asked for words that lie behind it.
    ///
    /// # Errors
    ///
    /// `ENOBUFS` if there are more than can be noted.
    pub(crate) fn look(&mut self, address: u64, memory: &[u8], tail: &mut ReadAt<'_>) -> Result<(), Errno> {
        let (low, high) = self.between;
        let words = memory.as_chunks::<8>().0;
        for (at, word) in words.iter().enumerate() {
            let word = u64::from_ne_bytes(*word);
            let (owner, users) = (word as u32, (word >> 32) as u32);
            if !(low..=high).contains(&owner) || users == 0 || users > USERS_MAX {
                continue;
            }
            let start = address.wrapping_add(8 * at as u64).wrapping_sub(8);
            let mut mutex = [0_u64; WORDS];
            let inside = at.checked_sub(1).and_then(|first| words.get(first..first + WORDS));
            match inside {
                Some(words) => mutex.iter_mut().zip(words).for_each(|(word, bytes)| *word = u64::from_ne_bytes(*bytes)),
                None => {
                    let mut bytes = [0; 8 * WORDS];
                    // What cannot be read is no mutex.
                    if tail(start, &mut bytes).is_err() {
                        continue;
                    }
                    let words = bytes.as_chunks::<8>().0;
                    mutex.iter_mut().zip(words).for_each(|(word, bytes)| *word = u64::from_ne_bytes(*bytes));
                }
            }
            if names_owner(&mutex) && self.threads.iter().any(|thread| thread.tid as u32 == owner) {
                *self.found.get_mut(self.count).ok_or(Errno::new(libc::ENOBUFS))? = start;
                self.count += 1;
            }
        }
        Ok(())
    }
}

/// Whether this is a held mutex for which its owner counts.
fn names_owner(mutex: &[u64; WORDS]) -> bool {
    let [first, second, third, previous, next] = *mutex;
    let (lock, count, owner, kind) = (first as u32, (first >> 32) as u32, second as u32, third as u32);
    let names_tid = kind & (ROBUST | INHERITING) != 0;
    let held = if names_tid { lock & TID == owner } else { lock == 1 || lock == 2 };
    let counted = match kind & TYPE {
        RECURSIVE => count > 0,
        ERROR_CHECKING => names_tid || count == 0,
        _ => names_tid,
    };
    let linked = if kind & ROBUST != 0 { previous != 0 && next != 0 } else { previous == 0 && next == 0 };
    kind & !KNOWN == 0 && held && counted && linked
}

/// In a restored life: gives the mutexes at these addresses the new ids of their owners.
///
/// # Safety
///
/// The addresses were noted by [`Owners::look`] in the memory that is mapped now, no thread goes on yet, and every thread has
/// its new id at its `tid_address`.
pub(crate) unsafe fn rename(addresses: &[u64], threads: &[ThreadRecord]) {
    for address in addresses {
        let mutex = ptr::with_exposed_provenance_mut::<u32>(*address as usize);
        let (owner_at, kind_at) = (mutex.wrapping_add(2), mutex.wrapping_add(4));
        // SAFETY: the caller's promise: an aligned mutex.
        let owner = unsafe { owner_at.read() };
        let Some(thread) = threads.iter().find(|thread| thread.tid as u32 == owner && thread.tid_address != 0) else { continue };
        // SAFETY: the C library's own place for the thread's id.
        let tid = unsafe { ptr::with_exposed_provenance::<u32>(thread.tid_address as usize).read() };
        // SAFETY: as above.
        unsafe { owner_at.write(tid) };
        // SAFETY: as above.
        if unsafe { kind_at.read() } & (ROBUST | INHERITING) != 0 {
            // SAFETY: as above.
            let lock = unsafe { mutex.read() };
            // SAFETY: as above.
            unsafe { mutex.write(lock & !TID | tid) };
        }
    }
}

const _: () = assert!(OWNERS_MAX <= 1 << 16);

#[cfg(test)]
mod tests {
    use super::*;

    fn mutex(lock: u32, count: u32, owner: u32, users: u32, kind: u32, list: u64) -> [u64; WORDS] {
        let two = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        [two(lock, count), two(owner, users), two(kind, 0), list, list]
    }

    #[test]
    fn only_held_mutexes_that_know_their_owner_count() {
        for (mutex, expected) in [
            (mutex(1, 1, 77, 1, RECURSIVE, 0), true),
            (mutex(2, 3, 77, 2, RECURSIVE | 0x80, 0), true),
            (mutex(1, 0, 77, 1, ERROR_CHECKING, 0), true),
            (mutex(77, 0, 77, 1, INHERITING, 0), true),
            (mutex(77 | 0x8000_0000, 1, 77, 1, ROBUST, 0x5000), true),
            (mutex(1, 0, 77, 1, 0, 0), false),
            (mutex(0, 0, 77, 1, RECURSIVE, 0), false),
            (mutex(1, 0, 77, 1, RECURSIVE, 0), false),
            (mutex(1, 1, 77, 1, RECURSIVE, 9), false),
            (mutex(1, 1, 77, 1, 0x1000, 0), false),
            (mutex(78, 0, 77, 1, INHERITING, 0), false),
        ] {
            assert_eq!(names_owner(&mutex), expected, "{mutex:x?}");
        }
    }

    #[test]
    fn a_mutex_is_found_wherever_it_lies_and_gets_its_new_owner() {
        let held = mutex(2, 1, 77, 1, RECURSIVE, 0);
        let mut tid = 99_u32;
        let thread =
            ThreadRecord { tid: 77, tid_address: ptr::from_mut(&mut tid).expose_provenance() as u64, ..ThreadRecord::default() };
        let memory: Vec<u64> = [[0; WORDS], held, [5; WORDS]].concat();
        let bytes: Vec<u8> = memory.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let at = memory.as_ptr().expose_provenance() as u64;
        // Cut in the middle of the mutex, too.
        for cut in [0, 48, 56, 64, bytes.len()] {
            let mut found = [0; 4];
            let mut owners = Owners::new(std::slice::from_ref(&thread), &mut found);
            for (start, part) in [(0, &bytes[..cut]), (cut, &bytes[cut..])] {
                let mut tail = |address: u64, into: &mut [u8]| {
                    let from = (address - at) as usize;
                    into.copy_from_slice(&bytes[from..from + into.len()]);
                    Ok(())
                };
                owners.look(at + start as u64, part, &mut tail).unwrap();
            }
            assert_eq!(owners.found(), [at + 8 * WORDS as u64], "cut at {cut}");
        }
        let mut memory = memory;
        let at = memory.as_mut_ptr().expose_provenance() as u64;
        // SAFETY: the test's own memory, with a mutex at that place.
        unsafe { rename(&[at + 8 * WORDS as u64], std::slice::from_ref(&thread)) };
        assert_eq!(memory[WORDS + 1], mutex(2, 1, 99, 1, RECURSIVE, 0)[1]);
    }
}
