//! Runs a command as a container runtime with its default seccomp profile would: `confined CMD ARGS...`.
//!
//! Docker's default profile is an allow list; this is its complement on x86-64 for a process without extra capabilities, plus
//! every number newer than the profile. `clone3` fails with ENOSYS, all else with EPERM.

use std::{collections::BTreeMap, os::unix::process::CommandExt, process::Command};

use anyhow::Context as _;
use libc::*;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition as Condition, SeccompFilter,
    SeccompRule as Rule, TargetArch, apply_filter,
};

/// Calls that the profile does not allow without an extra capability.
const DENIED: &[c_long] = &[
    SYS_syslog,
    SYS_uselib,
    SYS_ustat,
    SYS_sysfs,
    SYS_vhangup,
    SYS_pivot_root,
    SYS__sysctl,
    SYS_chroot,
    SYS_acct,
    SYS_settimeofday,
    SYS_mount,
    SYS_umount2,
    SYS_swapon,
    SYS_swapoff,
    SYS_reboot,
    SYS_sethostname,
    SYS_setdomainname,
    SYS_iopl,
    SYS_ioperm,
    SYS_init_module,
    SYS_delete_module,
    SYS_quotactl,
    SYS_nfsservctl,
    SYS_getpmsg,
    SYS_putpmsg,
    SYS_afs_syscall,
    SYS_tuxcall,
    SYS_security,
    SYS_lookup_dcookie,
    SYS_clock_settime,
    SYS_vserver,
    SYS_mbind,
    SYS_set_mempolicy,
    SYS_get_mempolicy,
    SYS_kexec_load,
    SYS_add_key,
    SYS_request_key,
    SYS_keyctl,
    SYS_migrate_pages,
    SYS_unshare,
    SYS_move_pages,
    SYS_perf_event_open,
    SYS_fanotify_init,
    SYS_open_by_handle_at,
    SYS_setns,
    SYS_kcmp,
    SYS_finit_module,
    SYS_kexec_file_load,
    SYS_bpf,
    SYS_userfaultfd,
    SYS_io_uring_setup,
    SYS_io_uring_enter,
    SYS_io_uring_register,
    SYS_open_tree,
    SYS_move_mount,
    SYS_fsopen,
    SYS_fsconfig,
    SYS_fsmount,
    SYS_fspick,
    SYS_pidfd_getfd,
    SYS_process_madvise,
    SYS_mount_setattr,
    SYS_quotactl_fd,
    SYS_set_mempolicy_home_node, // and the three of the old module interface, which have no name any more:
    174,
    177,
    178,
];

/// Calls newer than the profile begin here.
const NEWER: c_long = 467;

/// Flags of `clone` that make a namespace.
const NEW_NAMESPACE: u64 = 0x7e02_0000;

/// Address families that the profile does not allow.
const FAMILIES_DENIED: [u64; 10] = [12, 19, 20, 23, 25, 34, 37, 38, 40, 46];

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args_os().skip(1);
    let program = args.next().context("usage: confined CMD ARGS...")?;
    let not_permitted = filter(denied()?, EPERM)?;
    let not_there = filter([(SYS_clone3, vec![])].into(), ENOSYS)?;
    apply_filter(&not_permitted).context("cannot install the filter")?;
    apply_filter(&not_there).context("cannot install the second filter")?;
    Err(Command::new(program).args(args).exec().into())
}

fn filter(rules: BTreeMap<i64, Vec<Rule>>, errno: c_int) -> anyhow::Result<BpfProgram> {
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno as u32), TargetArch::x86_64)?;
    Ok(filter.try_into()?)
}

fn denied() -> anyhow::Result<BTreeMap<i64, Vec<Rule>>> {
    let mut rules: BTreeMap<i64, Vec<Rule>> =
        DENIED.iter().copied().chain(NEWER..NEWER + 64).map(|call| (call, vec![])).collect();
    // `clone` with any of the flags: one rule for each, and any rule that matches denies.
    let flags = (0..64).map(|bit| 1_u64 << bit).filter(|bit| NEW_NAMESPACE & bit != 0);
    let with_flag = |bit| Rule::new(vec![Condition::new(0, Len::Qword, Op::MaskedEq(bit), bit)?]);
    rules.insert(SYS_clone, flags.map(with_flag).collect::<Result<_, _>>()?);
    let family = |family| Rule::new(vec![Condition::new(0, Len::Dword, Op::Eq, family)?]);
    rules.insert(SYS_socket, FAMILIES_DENIED.into_iter().map(family).collect::<Result<_, _>>()?);
    let other_personality = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff]
        .into_iter()
        .map(|allowed| Condition::new(0, Len::Dword, Op::Ne, allowed))
        .collect::<Result<_, _>>()?;
    rules.insert(SYS_personality, vec![Rule::new(other_personality)?]);
    Ok(rules)
}
