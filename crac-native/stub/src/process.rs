//! Step "process", and what the process may do.

use crate::{
    Restore,
    layout::{ActionRecord, Step},
    report::{Decimal, fail, fail_on},
    sys,
    syscall,
};

const PR_SET_PDEATHSIG: usize = 1;
const PR_SET_DUMPABLE: usize = 4;
const PR_GET_SECCOMP: usize = 21;
const PR_CAPBSET_READ: usize = 23;
const PR_CAPBSET_DROP: usize = 24;
const PR_SET_CHILD_SUBREAPER: usize = 36;
const PR_SET_NO_NEW_PRIVS: usize = 38;
const PR_SET_THP_DISABLE: usize = 41;
const PR_CAP_AMBIENT: usize = 47;
const PR_CAP_AMBIENT_CLEAR_ALL: usize = 4;
const SIG_SETMASK: usize = 2;
const WALL: usize = 0x4000_0000;
const SIGKILL: u32 = 9;
const SIGSTOP: u32 = 19;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Blocks every signal. The captured threads come back with their own masks.
pub fn block_signals() {
    let all = u64::MAX;
    // Cannot fail with a valid set.
    let _ = syscall!(sys::SYS_RT_SIGPROCMASK, SIG_SETMASK, &raw const all, 0, 8);
}

/// Permitted, effective and inheritable capabilities of this process.
#[derive(Clone, Copy, Default)]
struct Capabilities {
    effective: u64,
    permitted: u64,
    inheritable: u64,
}

fn capabilities() -> sys::Result<Capabilities> {
    let header = [CAPABILITY_VERSION_3, 0];
    let mut data = [0_u32; 6];
    syscall!(sys::SYS_CAPGET, header.as_ptr(), data.as_mut_ptr())?;
    let [e0, p0, i0, e1, p1, i1] = data.map(u64::from);
    Ok(Capabilities { effective: e0 | e1 << 32, permitted: p0 | p1 << 32, inheritable: i0 | i1 << 32 })
}

/// The capabilities this process may use.
pub fn effective_capabilities() -> u64 {
    capabilities().unwrap_or_default().effective
}

/// Refuses where the process would be somebody else, could do less than it needs, or could do more and cannot be held back.
pub fn check_privileges(restore: &Restore, refuse: &mut dyn FnMut(&[&[u8]])) {
    let recorded = &restore.header.privileges;
    let users: (usize, &[u8], _) = (sys::SYS_GETRESUID, b"user", &recorded.uid);
    for (number, what, recorded) in [users, (sys::SYS_GETRESGID, b"group", &recorded.gid)] {
        let mut ids = [u32::MAX; 3];
        let [a, b, c] = &mut ids;
        let asked = syscall!(number, a as *mut u32, b as *mut u32, c as *mut u32);
        if asked.is_err() || ids != *recorded {
            let [_, is, _] = ids.map(|id| Decimal::new(u64::from(id)));
            let [_, was, _] = recorded.map(|id| Decimal::new(u64::from(id)));
            refuse(&[b"the service ran as ", what, b" ", was.bytes(), b", this is ", is.bytes()]);
        }
    }
    let here = capabilities().unwrap_or_default();
    if recorded.permitted & !here.permitted != 0 {
        refuse(&[b"the service had capabilities that are missing here"]);
    }
    if recorded.landlock_layers > 0 && landlock_layers() < recorded.landlock_layers {
        refuse(&[b"the service ran in Landlock domains that are missing here"]);
    }
    let seccomp = syscall!(sys::SYS_PRCTL, PR_GET_SECCOMP, 0, 0, 0, 0).unwrap_or(0);
    if recorded.seccomp != 0 && (seccomp == 0 || seccomp_filters() < recorded.seccomp_filters) {
        refuse(&[b"the service ran under seccomp filters that are missing here"]);
    }
}

/// In how many Landlock domains this process is: a child enters others until the kernel allows no more.
fn landlock_layers() -> u32 {
    const LAYERS_MAX: u32 = 16;
    let Ok(child) = syscall!(sys::SYS_CLONE, 0, 0, 0, 0, 0) else { return 0 };
    if child == 0 {
        let handled = 1_u64;
        let _ = syscall!(sys::SYS_PRCTL, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        let mut entered = 0_u32;
        if let Ok(rules) = syscall!(sys::SYS_LANDLOCK_CREATE_RULESET, &raw const handled, 8, 0) {
            while entered < LAYERS_MAX && syscall!(sys::SYS_LANDLOCK_RESTRICT_SELF, rules, 0).is_ok() {
                entered += 1;
            }
        }
        crate::report::end(entered as i32);
    }
    let mut status = 0_u32;
    if syscall!(sys::SYS_WAIT4, child, &raw mut status, WALL, 0).is_err() || status & 0x7f != 0 {
        return 0;
    }
    LAYERS_MAX.saturating_sub(status >> 8 & 0xff)
}

/// How many filters `/proc/self/status` counts; as many as can be where the kernel does not count (before 5.9).
fn seccomp_filters() -> u32 {
    const LABEL: &[u8] = b"Seccomp_filters:";
    let mut text = [0_u8; 4096];
    let Ok(fd) = syscall!(sys::SYS_OPENAT, sys::AT_FDCWD, c"/proc/self/status".as_ptr(), sys::O_RDONLY | sys::O_CLOEXEC, 0) else {
        return 0;
    };
    let read = syscall!(sys::SYS_READ, fd, text.as_mut_ptr(), text.len()).unwrap_or(0);
    crate::check::close(fd as i32);
    let text = text.get(..read).unwrap_or_default();
    for line in text.split(|byte| *byte == b'\n') {
        if let Some(value) = line.strip_prefix(LABEL) {
            let digits = value.iter().filter(|byte| byte.is_ascii_digit());
            return digits.fold(0, |number: u32, digit| number.wrapping_mul(10).wrapping_add(u32::from(digit - b'0')));
        }
    }
    u32::MAX
}

/// Working directory, settings, dispositions; more privileges than recorded are given up.
pub fn restore(restore: &Restore) {
    let process = &restore.header.process;
    if process.working_directory.len > 0
        && let Err(errno) = syscall!(sys::SYS_CHDIR, restore.text(process.working_directory))
    {
        fail(Step::Process, b"entering the working directory", errno);
    }
    // umask(2) cannot fail; the others are settings the kernel of the checkpoint had, and it is the same one.
    let _ = syscall!(sys::SYS_UMASK, process.umask);
    let settings = [
        (PR_SET_THP_DISABLE, process.thp_disable as usize),
        (PR_SET_CHILD_SUBREAPER, process.child_subreaper as usize),
        (PR_SET_PDEATHSIG, process.parent_death_signal as usize),
    ];
    for (setting, value) in settings {
        if value != 0
            && let Err(errno) = syscall!(sys::SYS_PRCTL, setting, value, 0, 0, 0)
        {
            fail_on(Step::Process, b"prctl", setting as u64, errno);
        }
    }
    if process.personality != 0
        && let Err(errno) = syscall!(sys::SYS_PERSONALITY, process.personality)
    {
        fail(Step::Process, b"setting the personality", errno);
    }
    let mut rest = process.membarrier;
    while rest != 0 {
        let command = rest & rest.wrapping_neg();
        if let Err(errno) = syscall!(sys::SYS_MEMBARRIER, command, 0, 0) {
            fail_on(Step::Process, b"membarrier registration", u64::from(command), errno);
        }
        rest &= !command;
    }
    dispositions(restore);
    crate::settings::stop_timers();
    crate::settings::of_process(restore);
    give_up_privileges(restore);
}

fn dispositions(restore: &Restore) {
    let actions = restore.table::<ActionRecord>(restore.header.actions);
    let mut rest = actions.iter().peekable();
    for signal in 1..=64_u32 {
        if signal == SIGKILL || signal == SIGSTOP {
            continue;
        }
        // The new process may have inherited ignored signals, so the default ones are set as well.
        let action = match rest.peek() {
            Some(action) if action.signal == signal => rest.next().copied().unwrap_or_default(),
            _ => ActionRecord::default(),
        };
        // The first four fields are `struct kernel_sigaction`.
        if let Err(errno) = syscall!(sys::SYS_RT_SIGACTION, signal, &raw const action, 0, 8) {
            fail_on(Step::Process, b"disposition of signal", u64::from(signal), errno);
        }
    }
}

fn give_up_privileges(restore: &Restore) {
    let recorded = &restore.header.privileges;
    let here = capabilities().unwrap_or_default();
    if here.permitted & !recorded.permitted != 0 {
        for capability in 0..64 {
            let has = syscall!(sys::SYS_PRCTL, PR_CAPBSET_READ, capability, 0, 0, 0) == Ok(1);
            if has && recorded.bounding >> capability & 1 == 0 {
                if let Err(errno) = syscall!(sys::SYS_PRCTL, PR_CAPBSET_DROP, capability, 0, 0, 0) {
                    fail_on(Step::Process, b"giving up the capability", capability as u64, errno);
                }
            }
        }
    }
    if here.permitted != recorded.permitted
        || here.effective != recorded.effective
        || here.inheritable & !recorded.inheritable != 0
    {
        let header = [CAPABILITY_VERSION_3, 0];
        let (effective, permitted) = (recorded.effective, recorded.permitted);
        let inheritable = here.inheritable & recorded.inheritable;
        let data = [effective, permitted, inheritable, effective >> 32, permitted >> 32, inheritable >> 32].map(|set| set as u32);
        if let Err(errno) = syscall!(sys::SYS_CAPSET, header.as_ptr(), data.as_ptr()) {
            fail(Step::Process, b"giving up capabilities", errno);
        }
    }
    if recorded.ambient == 0 {
        // Fails only on kernels without ambient capabilities, where there is nothing to clear.
        let _ = syscall!(sys::SYS_PRCTL, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    }
    if recorded.no_new_privs != 0
        && let Err(errno) = syscall!(sys::SYS_PRCTL, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    {
        fail(Step::Process, b"setting no_new_privs", errno);
    }
    // Changing credentials has changed it too, so it comes last. 2 (readable by root) can only be set by the kernel.
    let dumpable = usize::from(recorded.dumpable == 1);
    if let Err(errno) = syscall!(sys::SYS_PRCTL, PR_SET_DUMPABLE, dumpable, 0, 0, 0) {
        fail(Step::Process, b"setting dumpable", errno);
    }
}
