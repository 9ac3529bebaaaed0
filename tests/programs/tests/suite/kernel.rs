//! Bare calls and mappings, for programs that do what other people's code does.
#![allow(unsafe_code, reason = "calls and mappings that no crate offers")]

use std::{
    os::fd::{AsRawFd, FromRawFd as _, OwnedFd, RawFd},
    ptr,
};

use crac_sys::Errno;

pub(crate) const PAGE: usize = 4096;
pub(crate) const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
pub(crate) const PRIVATE: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
pub(crate) const SHARED: i32 = libc::MAP_SHARED | libc::MAP_ANONYMOUS;

/// A system call with integers, or with addresses of values that live and are as large as the call wants them.
pub(crate) fn call<const N: usize>(number: libc::c_long, args: [usize; N]) -> Result<usize, Errno> {
    let mut six = [0; 6];
    six[..N].copy_from_slice(&args);
    // SAFETY: a program names calls that change its own mappings and settings, and buffers that live.
    unsafe { crac_sys::syscall(number, six) }
}

/// A call that makes a descriptor.
pub(crate) fn made<const N: usize>(number: libc::c_long, args: [usize; N]) -> Result<OwnedFd, Errno> {
    // SAFETY: it has just been made.
    call(number, args).map(|number| unsafe { OwnedFd::from_raw_fd(number as RawFd) })
}

/// A mapping that stays for the life of the process. Access is volatile: others may look at the same memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Map {
    at: *mut u8,
    len: usize,
}

// SAFETY: an address; whoever uses it from several threads takes turns.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    pub(crate) fn new(len: usize, protection: i32, flags: i32) -> Self {
        Self::of(len, protection, flags, -1, 0)
    }

    pub(crate) fn file(len: usize, protection: i32, flags: i32, file: &impl AsRawFd) -> Self {
        Self::of(len, protection, flags, file.as_raw_fd(), 0)
    }

    pub(crate) fn of(len: usize, protection: i32, flags: i32, fd: RawFd, offset: usize) -> Self {
        let at = call(libc::SYS_mmap, [0, len, protection as usize, flags as usize, fd as usize, offset]);
        Self { at: ptr::with_exposed_provenance_mut(at.unwrap()), len }
    }

    /// A second view of the same shared memory.
    pub(crate) fn alias(&self) -> Self {
        let at = call(libc::SYS_mremap, [self.address(), 0, self.len, libc::MREMAP_MAYMOVE as usize]).unwrap();
        Self { at: ptr::with_exposed_provenance_mut(at), len: self.len }
    }

    pub(crate) fn address(&self) -> usize {
        self.at.expose_provenance()
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn get(&self, at: usize) -> u8 {
        assert!(at < self.len);
        // SAFETY: inside the mapping, readable when a program asks.
        unsafe { self.at.wrapping_add(at).read_volatile() }
    }

    pub(crate) fn set(&self, at: usize, value: u8) {
        assert!(at < self.len);
        // SAFETY: inside the mapping, writable when a program asks.
        unsafe { self.at.wrapping_add(at).write_volatile(value) }
    }

    /// Writes the same byte everywhere from `start` to `end`.
    pub(crate) fn fill(&self, start: usize, end: usize, value: u8) {
        assert!(start <= end && end <= self.len);
        // SAFETY: as above.
        unsafe { ptr::write_bytes(self.at.wrapping_add(start), value, end - start) }
    }

    pub(crate) fn all(&self, start: usize, end: usize, value: u8) -> bool {
        (start..end).all(|at| self.get(at) == value)
    }

    pub(crate) fn advise(&self, advice: i32) -> Result<(), Errno> {
        self.advise_part(0, self.len, advice)
    }

    /// `madvise` by name, as allocators call it.
    pub(crate) fn advise_part(&self, start: usize, end: usize, advice: i32) -> Result<(), Errno> {
        unsafe extern "C" {
            fn madvise(at: *mut libc::c_void, len: usize, advice: i32) -> i32;
        }
        assert!(start <= end && end <= self.len);
        // SAFETY: a part of the program's own mapping.
        match unsafe { madvise(self.at.wrapping_add(start).cast(), end - start, advice) } {
            0 => Ok(()),
            _ => Err(Errno::new(std::io::Error::last_os_error().raw_os_error().unwrap())),
        }
    }

    pub(crate) fn protect(&self, protection: i32) {
        call(libc::SYS_mprotect, [self.address(), self.len, protection as usize]).unwrap();
    }

    /// Whether the kernel can read the byte: where a guard or nothing is, it answers `EFAULT`.
    pub(crate) fn is_there(&self, at: usize) -> bool {
        let [_reader, writer] = pipe();
        call(libc::SYS_write, [writer.as_raw_fd() as usize, self.address() + at, 1]).is_ok()
    }

    /// What `smaps` says about the mapping at this address.
    pub(crate) fn flags(&self) -> String {
        let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let begins = |line: &str| line.split_once('-').and_then(|(start, _)| usize::from_str_radix(start, 16).ok());
        let mut lines = text.lines().skip_while(|line| begins(line) != Some(self.address()));
        let flags = lines.find_map(|line| line.strip_prefix("VmFlags: "));
        flags.expect("a mapping begins there").to_owned()
    }

    pub(crate) fn has_flag(&self, flag: &str) -> bool {
        self.flags().split_whitespace().any(|found| found == flag)
    }
}

fn pipe() -> [OwnedFd; 2] {
    let (reader, writer) = std::io::pipe().unwrap();
    [reader.into(), writer.into()]
}

/// Whoever started the tests may have left descriptors open that are not ours to test.
pub(crate) fn close_what_was_left_open() {
    const CLOSE_RANGE_CLOEXEC: usize = 4;
    call(libc::SYS_close_range, [3, u32::MAX as usize, CLOSE_RANGE_CLOEXEC]).expect("close_range, Linux 5.11");
}

/// A field of a file of `/proc` whose lines are `LABEL: VALUE`.
pub(crate) fn field(path: &str, label: &str) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(label)?.strip_prefix(':'));
    value.unwrap_or_else(|| panic!("no {label} in {path}")).trim().to_owned()
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Has the kernel put a uprobe where this program has `function`, in a process of the same program.
pub(crate) fn probe(process: &std::process::Child, function: usize) -> std::io::Result<OwnedFd> {
    const PERF_FLAG_FD_CLOEXEC: usize = 8;
    let kind = std::fs::read_to_string("/sys/bus/event_source/devices/uprobe/type")?;
    let kind: u64 = kind.trim().parse().map_err(std::io::Error::other)?;
    let maps = std::fs::read("/proc/self/maps")?;
    let holds = |mapping: &crac_sys::proc::Mapping<'_>| (mapping.start..mapping.end).contains(&(function as u64));
    let mapping = crac_sys::proc::Mapping::all(&maps).flatten().find(holds).expect("a function of this program");
    let path = std::ffi::CString::new(std::env::current_exe()?.into_os_string().into_encoded_bytes())?;
    // struct perf_event_attr as of PERF_ATTR_SIZE_VER1.
    let mut attributes = [0_u64; 9];
    attributes[0] = kind | (size_of_val(&attributes) as u64) << 32;
    attributes[7] = path.as_ptr().expose_provenance() as u64;
    attributes[8] = function as u64 - mapping.start + mapping.offset;
    let attributes = attributes.as_ptr().expose_provenance();
    let args = [attributes, process.id() as usize, usize::MAX, usize::MAX, PERF_FLAG_FD_CLOEXEC];
    made(libc::SYS_perf_event_open, args).map_err(|errno| std::io::Error::from_raw_os_error(errno.number()))
}
