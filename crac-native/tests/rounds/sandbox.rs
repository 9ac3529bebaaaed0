//! What container runtimes forbid a process without extra capabilities, as a seccomp filter; and namespaces that a life enters.

use std::{os::unix::process::CommandExt, path::Path, process::Command};

use super::{finish, image, lines_of, program};

/// Calls that Docker's default profile answers with EPERM.
const DENIED: &[libc::c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_chroot,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_get_mempolicy,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_mbind,
    libc::SYS_migrate_pages,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_move_pages,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root,
    libc::SYS_process_madvise,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_set_mempolicy,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_sysfs,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    libc::SYS_uselib,
    libc::SYS_ustat,
    libc::SYS_vhangup,
];

/// Lets the program start under the filter, without privileges to get out of it.
pub(crate) fn confine(command: &mut Command) -> &mut Command {
    let filter = filter();
    // SAFETY: two system calls without allocation between fork and exec.
    unsafe { command.pre_exec(move || install(&filter)) }
}

fn install(filter: &[libc::sock_filter]) -> std::io::Result<()> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: integer arguments.
    let no_new = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    // SAFETY: a valid program, which outlives the call.
    let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) };
    if no_new == 0 && set == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARGUMENT_0: u32 = 16;

fn filter() -> Vec<libc::sock_filter> {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const ANY_BIT: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    let op = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
    let deny = |errno: i32| op(RETURN, libc::SECCOMP_RET_ERRNO | errno as u32, 0, 0);
    let allow = op(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0);

    let mut program = vec![op(LOAD, NUMBER, 0, 0)];
    // clone3 hides its flags from filters, so runtimes pretend not to know it.
    program.extend([op(EQUAL, libc::SYS_clone3 as u32, 0, 1), deny(libc::ENOSYS)]);
    // clone: no namespaces.
    program.extend([
        op(EQUAL, libc::SYS_clone as u32, 0, 4),
        op(LOAD, ARGUMENT_0, 0, 0),
        op(ANY_BIT, 0x7e02_0000, 0, 1),
        deny(libc::EPERM),
        allow,
    ]);
    // personality: the plain ones.
    program.extend([op(EQUAL, libc::SYS_personality as u32, 0, 8), op(LOAD, ARGUMENT_0, 0, 0)]);
    for (at, value) in [0, 8, 0x2_0000, 0x2_0008, u32::MAX].into_iter().enumerate() {
        program.push(op(EQUAL, value, 5 - at as u8, 0));
    }
    program.extend([deny(libc::EPERM), allow]);
    for number in DENIED {
        program.extend([op(EQUAL, *number as u32, 0, 1), deny(libc::EPERM)]);
    }
    program.push(allow);
    program
}

pub(super) fn entered_later(dir: &Path) {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root may enter another namespace");
        return;
    }
    let to = |generation| format!("--image={}", image(dir, generation).display());
    for who in ["main", "other", "itself"] {
        assert_eq!(lines_of(&finish(program(&format!("enters:{who}")).arg(to(0)))), ["life 0"]);
        let lines = lines_of(&finish(Command::new(image(dir, 0)).args(["--", &to(1)])));
        let refused = "obstacle privilege: another host name namespace was entered";
        assert!(
            matches!(&lines[..], [first, second, done] if first == "life 1" && second.starts_with(refused) && done == "done"),
            "{who}: {lines:?}"
        );
    }
}
