//! Execution by descriptor, and where code lies that a process does not bring itself.
#![expect(unsafe_code, reason = "replaces the process; reads the kernel's own mapping")]

use std::{ffi::CString, ops::Range, os::fd::BorrowedFd, ptr, slice};

use crac_sys::{Errno, mem, process};

use crate::restore::vector;

/// Executes the program open at `file`. Returns only the kernel's refusal.
pub(crate) fn exec(file: BorrowedFd<'_>, arguments: &[CString], environment: &[CString]) -> std::io::Error {
    let (arguments, environment) = (vector(arguments), vector(environment));
    // SAFETY: both vectors end with a null and hold addresses of NUL-terminated strings that outlive the call.
    unsafe { process::exec_fd(file, arguments.as_ptr().addr(), environment.as_ptr().addr()) }.into()
}

/// Tries whether memory may be writable and executable at once.
///
/// # Errors
///
/// As the kernel, a filter or a security module has it.
pub(crate) fn map_writable_code() -> Result<(), Errno> {
    let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    let at = mem::map_anonymous(mem::PAGE_SIZE, protection, libc::MAP_PRIVATE)?;
    // SAFETY: the page of this function.
    unsafe { mem::unmap(at, mem::PAGE_SIZE) }
}

/// The code of the vdso that the kernel has mapped into this process.
pub(crate) fn vdso() -> Option<&'static [u8]> {
    let text = std::fs::read("/proc/self/maps").ok()?;
    let mut mappings = crac_sys::proc::Mapping::all(&text).flatten();
    let found = mappings.find(|mapping| mapping.name() == crac_sys::proc::MappingName::Vdso)?;
    let start = ptr::with_exposed_provenance::<u8>(usize::try_from(found.start).ok()?);
    // SAFETY: the kernel maps its code readable, and nobody unmaps it.
    Some(unsafe { slice::from_raw_parts(start, usize::try_from(found.size()).ok()?) })
}

/// Addresses of the dynamic loader's code; nothing in a static program.
pub(crate) fn loader() -> Option<Range<usize>> {
    // SAFETY: only asks; 0 stands for "not there".
    let base = unsafe { libc::getauxval(libc::AT_BASE) };
    let text = std::fs::read("/proc/self/maps").ok()?;
    let mut at = base;
    for mapping in crac_sys::proc::Mapping::all(&text).flatten().filter(|mapping| mapping.end > base && base != 0) {
        // The parts of one file follow each other without a gap. Read from an image, the first may be one with what lies below it.
        if mapping.start > at {
            break;
        }
        at = mapping.end;
        if mapping.execute {
            return Some(usize::try_from(mapping.start).ok()?..usize::try_from(mapping.end).ok()?);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_is_found_where_there_is_one() {
        let found = loader();
        if cfg!(target_feature = "crt-static") {
            assert_eq!(found, None);
        } else {
            assert!(found.is_some_and(|range| range.len() > 4096));
        }
        assert!(vdso().is_some_and(|code| code.starts_with(b"\x7fELF")));
    }
}
