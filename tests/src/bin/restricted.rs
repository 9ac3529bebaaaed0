//! Runs a command as systemd does with `MemoryDenyWriteExecute=`: `restricted mdwe,filter CMD ARGS...`.
//!
//! * `mdwe`: by `PR_SET_MDWE`, as on newer kernels.
//! * `filter`: by the seccomp filter that systemd installs everywhere.
//! * `memfd`: files in memory that may be executed are refused, as with `vm.memfd_noexec=2`, which only root may set.
//!
//! `restricted probe` says which ways to new code are refused.

#![allow(unsafe_code, reason = "asks the kernel to refuse new code, and whether it does")]

use std::{collections::BTreeMap, io, os::unix::process::CommandExt, process::Command, ptr};

use anyhow::{Context as _, bail};
use libc::*;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition as Condition, SeccompFilter,
    SeccompRule as Rule, TargetArch, apply_filter,
};

const PR_SET_MDWE: c_int = 65;
const PR_MDWE_REFUSE_EXEC_GAIN: c_ulong = 1;
const PAGE: usize = 4096;

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args_os().skip(1);
    let usage = "usage: restricted [mdwe][,filter][,memfd] CMD ARGS..., or restricted probe";
    let restrictions = args.next().and_then(|first| first.into_string().ok()).context(usage)?;
    if restrictions == "probe" {
        probe();
        return Ok(());
    }
    let program = args.next().context(usage)?;
    for restriction in restrictions.split(',').filter(|restriction| !restriction.is_empty()) {
        match restriction {
            // SAFETY: changes what this process may do, and no memory.
            "mdwe" => match unsafe { prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0) } {
                0 => {}
                _ => return Err(io::Error::last_os_error()).context("PR_SET_MDWE"),
            },
            "filter" => apply_filter(&no_new_code()?).context("cannot install the filter")?,
            "memfd" => apply_filter(&filter([(SYS_memfd_create, vec![with(1, MFD_EXEC as c_int)?])].into(), EACCES)?)
                .context("cannot install the filter for memfd_create")?,
            other => bail!("`{other}`: {usage}"),
        }
    }
    Err(Command::new(program).args(args).exec().into())
}

/// systemd's `MemoryDenyWriteExecute=`.
fn no_new_code() -> anyhow::Result<BpfProgram> {
    let rules = [
        (SYS_mmap, vec![with(2, PROT_WRITE | PROT_EXEC)?]),
        (SYS_mprotect, vec![with(2, PROT_EXEC)?]),
        (SYS_pkey_mprotect, vec![with(2, PROT_EXEC)?]),
        (SYS_shmat, vec![with(2, SHM_EXEC)?]),
    ];
    filter(rules.into(), EPERM)
}

/// Matches calls whose argument has all these bits.
fn with(argument: u8, bits: c_int) -> anyhow::Result<Rule> {
    let bits = bits as u64;
    Ok(Rule::new(vec![Condition::new(argument, Len::Dword, Op::MaskedEq(bits), bits)?])?)
}

fn filter(rules: BTreeMap<c_long, Vec<Rule>>, errno: c_int) -> anyhow::Result<BpfProgram> {
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno as u32), TargetArch::x86_64)?;
    Ok(filter.try_into()?)
}

fn probe() {
    let map = |protection| {
        // SAFETY: a new mapping at a free address.
        let at = unsafe { mmap(ptr::null_mut(), PAGE, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) };
        (at != MAP_FAILED).then_some(at)
    };
    let later = map(PROT_READ | PROT_WRITE).is_some_and(|at| {
        // SAFETY: the page from above, which nobody uses.
        unsafe { mprotect(at, PAGE, PROT_READ | PROT_EXEC) == 0 }
    });
    // SAFETY: the name is NUL-terminated; makes a descriptor.
    let memory = unsafe { memfd_create(c"probe".as_ptr(), MFD_CLOEXEC | MFD_EXEC) };
    for (what, allowed) in
        [("at once", map(PROT_READ | PROT_WRITE | PROT_EXEC).is_some()), ("later", later), ("memfd", memory >= 0)]
    {
        println!("{what}: {}", if allowed { "allowed" } else { "refused" });
    }
}
