//! When page data come into memory.

use crate::{
    Restore,
    eager::{is_sparse, next_data},
    layout::{EXIT_USAGE, RunRecord, Step, run},
    memory::is_written,
    report::{self, fail_on},
    sys, syscall,
};

/// The variable that says when page data are fetched, with its `=`.
const VARIABLE: &[u8] = b"CRAC_EAGER=";

/// When page data come into memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fetch {
    /// They are mapped, and fetched where they are touched.
    Lazily,
    /// They are mapped, and fetched before anything of the captured process runs.
    Populated,
    /// They are read into the process's own memory and checked.
    Eagerly,
}

/// What is asked for in the environment. Ends the process if nobody can tell.
pub fn wanted(environment: *const *const u8) -> Fetch {
    match crate::descriptors::variable(environment, VARIABLE) {
        Some(b"on") => Fetch::Eagerly,
        Some(b"populate") => Fetch::Populated,
        None | Some(b"off" | b"") => Fetch::Lazily,
        Some(other) => report::exit(EXIT_USAGE, &[VARIABLE, other, b" is neither `on` nor `populate` nor `off`"]),
    }
}

/// Has the kernel fetch everything that is mapped and map it for reading, in the order of the file. What lies in holes of sparse runs
/// is not made.
pub fn populate(restore: &Restore) {
    let runs = restore.table::<RunRecord>(restore.header.runs).iter();
    let is_mapped = |run: &&RunRecord| run.flags & run::COPY == 0 && !is_written(restore, run);
    for run in runs.filter(is_mapped).filter(|run| run.protection & PROT_READ != 0) {
        let (mut at, end) = (run.data_offset, run.data_offset + (run.end - run.start));
        while at < end {
            let (data, hole) = if is_sparse(run) { next_data(restore.image_fd, at, end) } else { (at, end) };
            let address = run.start + (data - run.data_offset);
            if data < hole
                && let Err(errno) = syscall!(sys::SYS_MADVISE, address, hole - data, MADV_POPULATE_READ)
            {
                fail_on(Step::Memory, b"fetching page data at", address, errno);
            }
            at = hole;
        }
    }
}

const PROT_READ: u32 = 1;
const MADV_POPULATE_READ: usize = 22;
