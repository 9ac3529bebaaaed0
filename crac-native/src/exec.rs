//! Execution by descriptor, and the running kernel's vdso.
#![expect(unsafe_code, reason = "replaces the process; reads the kernel's own mapping")]

use std::{ffi::CString, os::fd::BorrowedFd, ptr, slice};

use crac_sys::process;

use crate::restore::vector;

/// Executes the program open at `file`. Returns only the kernel's refusal.
pub(crate) fn exec(file: BorrowedFd<'_>, arguments: &[CString], environment: &[CString]) -> std::io::Error {
    let (arguments, environment) = (vector(arguments), vector(environment));
    // SAFETY: both vectors end with a null and hold addresses of NUL-terminated strings that outlive the call.
    unsafe { process::exec_fd(file, arguments.as_ptr().addr(), environment.as_ptr().addr()) }.into()
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
