//! Memory for the time in which the allocator cannot be used.
//!
//! While the other threads are stopped, one of them may hold a lock of the allocator. Everything that is noted down then lives
//! in an [`Arena`]: chunks straight from `mmap`, handed out by moving a mark, given back all at once.
//!
//! The chunks are *shared* anonymous mappings. The kernel merges neighbouring private mappings into one, and a chunk merged
//! with the service's memory could not be told from it; shared ones stay apart. They are never part of an image.
#![expect(unsafe_code, reason = "hands out parts of mappings it owns")]

use std::{cell::Cell, fmt, marker::PhantomData, mem, ops, ptr, slice};

use crac_sys::{Errno, mem as sys};

/// Bytes of a chunk; a larger request gets a chunk of its own.
const CHUNK: usize = 4 << 20;
/// How many chunks there may be: with doubling vectors this is far beyond what a process can have of anything.
const CHUNKS_MAX: usize = 1024;

/// A growing region of scratch memory; see the [module](self).
pub(crate) struct Arena {
    /// Unused rest of the newest chunk.
    free: Cell<(usize, usize)>,
    /// How many entries of the chunk list are used.
    chunks: Cell<usize>,
    /// Address of the chunk list, itself a mapping of `CHUNKS_MAX` pairs (address, length).
    list: usize,
}

const LIST_LEN: usize = CHUNKS_MAX * size_of::<(usize, usize)>();

impl Arena {
    /// Maps the first chunk.
    pub(crate) fn new() -> Result<Self, Errno> {
        let list = sys::map_anonymous(LIST_LEN, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED)?;
        let arena = Self { free: Cell::new((0, 0)), chunks: Cell::new(0), list };
        arena.grow(CHUNK)?;
        Ok(arena)
    }

    /// The address ranges that belong to the arena, its list included.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = ops::Range<usize>> + '_ {
        let chunks = (0..self.chunks.get()).map(|at| {
            let (address, len) = self.chunk(at);
            address..address + len
        });
        chunks.chain(std::iter::once(self.list..self.list + LIST_LEN))
    }

    /// Room for `count` values of `T`, zeroed by the kernel or left by nobody.
    fn room<T: Copy>(&self, count: usize) -> Result<*mut T, Errno> {
        let no_memory = Errno::new(libc::ENOMEM);
        let bytes = size_of::<T>().checked_mul(count).ok_or(no_memory)?;
        loop {
            let (at, end) = self.free.get();
            let start = at.next_multiple_of(align_of::<T>().max(16));
            if at != 0 && start.checked_add(bytes).is_some_and(|behind| behind <= end) {
                self.free.set((start + bytes, end));
                return Ok(ptr::with_exposed_provenance_mut(start));
            }
            self.grow(bytes.checked_add(64).ok_or(no_memory)?)?;
        }
    }

    /// A zeroed slice that lives as long as the arena.
    #[expect(clippy::mut_from_ref, reason = "every call hands out memory that was never handed out before")]
    pub(crate) fn zeroed<T: Zeroable>(&self, count: usize) -> Result<&mut [T], Errno> {
        let room = self.room::<T>(count)?;
        // SAFETY: `room` returned `count` aligned, writable values' worth of memory that nobody else has.
        unsafe { ptr::write_bytes(room, 0, count) };
        // SAFETY: as above, and zeroes are a valid `T` by the contract of `Zeroable`; the arena outlives the borrow.
        Ok(unsafe { slice::from_raw_parts_mut(room, count) })
    }

    /// Room for `count` values in a mapping of its own, all zero, of which only what is used takes memory.
    pub(crate) fn sparse<T: Zeroable>(&self, count: usize) -> Result<*mut T, Errno> {
        let before = self.free.get();
        let bytes = size_of::<T>().checked_mul(count).ok_or(Errno::new(libc::ENOMEM))?;
        self.grow(bytes)?;
        let (start, _) = self.free.replace(before);
        Ok(ptr::with_exposed_provenance_mut(start))
    }

    fn grow(&self, at_least: usize) -> Result<(), Errno> {
        let len = at_least.max(CHUNK).next_multiple_of(sys::PAGE_SIZE);
        let at = self.chunks.get();
        if at == CHUNKS_MAX {
            return Err(Errno::new(libc::ENOMEM));
        }
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        let address = sys::map_anonymous(len, libc::PROT_READ | libc::PROT_WRITE, flags)?;
        let entry = ptr::with_exposed_provenance_mut::<(usize, usize)>(self.list).wrapping_add(at);
        // SAFETY: `at` is below CHUNKS_MAX, so the entry lies in the list's mapping, which only this arena uses.
        unsafe { entry.write((address, len)) };
        self.chunks.set(at + 1);
        self.free.set((address, address + len));
        Ok(())
    }

    fn chunk(&self, at: usize) -> (usize, usize) {
        debug_assert!(at < self.chunks.get());
        let entry = ptr::with_exposed_provenance::<(usize, usize)>(self.list).wrapping_add(at);
        // SAFETY: entries below `chunks` were written by `grow` and lie in the list's mapping.
        unsafe { entry.read() }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        for at in 0..self.chunks.get() {
            let (address, len) = self.chunk(at);
            // SAFETY: the chunk is ours, and what was borrowed from the arena cannot outlive it.
            let unmapped = unsafe { sys::unmap(address, len) };
            debug_assert!(unmapped.is_ok(), "a mapping of our own can be unmapped");
        }
        // SAFETY: the list is ours and is not read again.
        let unmapped = unsafe { sys::unmap(self.list, LIST_LEN) };
        debug_assert!(unmapped.is_ok(), "a mapping of our own can be unmapped");
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena").field("chunks", &self.chunks.get()).finish_non_exhaustive()
    }
}

/// Plain values for which all-zero bytes are valid.
///
/// # Safety
///
/// The bit pattern of all zeroes is a valid value of the type.
pub(crate) unsafe trait Zeroable: Copy {}

// SAFETY: zero is an integer.
unsafe impl Zeroable for u8 {}
// SAFETY: zero is an integer.
unsafe impl Zeroable for u64 {}
// SAFETY: zero is an integer.
unsafe impl Zeroable for usize {}
// SAFETY: a structure of three integers.
unsafe impl Zeroable for sys::PageRegion {}

/// A vector in an [`Arena`]. Growing copies to fresh room; the old room is lost until the arena goes.
pub(crate) struct ArenaVec<'a, T: Copy> {
    arena: &'a Arena,
    start: *mut T,
    len: usize,
    capacity: usize,
    values: PhantomData<&'a mut [T]>,
}

impl<'a, T: Copy> ArenaVec<'a, T> {
    /// An empty vector; takes no room yet.
    pub(crate) fn new(arena: &'a Arena) -> Self {
        Self { arena, start: ptr::dangling_mut(), len: 0, capacity: 0, values: PhantomData }
    }

    /// The arena the vector lives in.
    pub(crate) fn arena(&self) -> &'a Arena {
        self.arena
    }

    /// Appends a value.
    ///
    /// # Errors
    ///
    /// `ENOMEM` when the kernel gives no more memory.
    pub(crate) fn push(&mut self, value: T) -> Result<(), Errno> {
        if self.len == self.capacity {
            self.grow(self.len + 1)?;
        }
        // SAFETY: `len < capacity`, so the place is inside the vector's own room.
        unsafe { self.start.wrapping_add(self.len).write(value) };
        self.len += 1;
        Ok(())
    }

    /// Appends all of `values`.
    ///
    /// # Errors
    ///
    /// `ENOMEM` when the kernel gives no more memory; nothing is appended then.
    pub(crate) fn extend_from_slice(&mut self, values: &[T]) -> Result<(), Errno> {
        let needed = self.len.checked_add(values.len()).ok_or(Errno::new(libc::ENOMEM))?;
        if needed > self.capacity {
            self.grow(needed)?;
        }
        // SAFETY: the room behind `len` holds at least `values.len()` more, and a borrowed slice cannot overlap it.
        unsafe { ptr::copy_nonoverlapping(values.as_ptr(), self.start.wrapping_add(self.len), values.len()) };
        self.len = needed;
        Ok(())
    }

    /// Empties the vector and keeps its room.
    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    /// The values, for as long as the arena lives.
    pub(crate) fn into_slice(self) -> &'a mut [T] {
        // SAFETY: `len` values are written; the room belongs to this vector, which is consumed, and lives as long as 'a.
        unsafe { slice::from_raw_parts_mut(self.start, self.len) }
    }

    fn grow(&mut self, at_least: usize) -> Result<(), Errno> {
        let capacity = at_least.max(self.capacity.saturating_mul(2)).max(64 / size_of::<T>().max(1)).max(4);
        let room = self.arena.room::<T>(capacity)?;
        // SAFETY: the old room holds `len` values, the new one more, and they do not overlap.
        unsafe { ptr::copy_nonoverlapping(self.start, room, self.len) };
        self.start = room;
        self.capacity = capacity;
        Ok(())
    }
}

impl<T: Copy> ops::Deref for ArenaVec<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `len` values are written in the vector's own room.
        unsafe { slice::from_raw_parts(self.start, self.len) }
    }
}

impl<T: Copy> ops::DerefMut for ArenaVec<'_, T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: `len` values are written in the vector's own room, and `self` is borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl<T: Copy + fmt::Debug> fmt::Debug for ArenaVec<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl fmt::Write for ArenaVec<'_, u8> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.extend_from_slice(text.as_bytes()).map_err(|_| fmt::Error)
    }
}

const _: () = assert!(mem::size_of::<usize>() == 8, "addresses are 64 bits wide");

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    #[test]
    fn vectors_grow_beyond_a_chunk_and_do_not_overlap() {
        let arena = Arena::new().unwrap();
        let (mut even, mut odd) = (ArenaVec::new(&arena), ArenaVec::new(&arena));
        for value in 0..1_000_000_u64 {
            even.push(value * 2).unwrap();
            odd.push(value * 2 + 1).unwrap();
        }
        assert!(even.iter().zip(odd.iter()).enumerate().all(|(at, (even, odd))| *even == at as u64 * 2 && *odd == *even + 1));
        let at = odd.as_ptr() as usize;
        assert!(arena.ranges().any(|range| range.contains(&at)));
    }

    #[test]
    fn text_is_formatted_without_the_allocator() {
        let arena = Arena::new().unwrap();
        let mut text = ArenaVec::new(&arena);
        write!(text, "fd {}, {:#x}", 7, 255).unwrap();
        assert_eq!(&text.into_slice()[..], b"fd 7, 0xff");
    }

    #[test]
    fn an_absurd_request_is_an_error() {
        let arena = Arena::new().unwrap();
        assert!(arena.zeroed::<u64>(usize::MAX / 4).is_err());
        assert!(arena.zeroed::<u64>(3).unwrap().iter().all(|word| *word == 0));
    }
}
