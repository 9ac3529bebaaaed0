//! What an operating system does before programs can run, and when they have.

use std::{
    ffi::CStr,
    fs::{self, File},
    process::Command,
};

use rustix::{
    mount::{MountFlags, mount},
    net::{AddressFamily, SendFlags, SocketType, netlink::SocketAddrNetlink, sendto, socket},
    process::{WaitOptions, wait},
    system::{RebootCommand, finit_module, reboot, uname},
};

/// File systems, and where programs expect them.
const MOUNTS: [(&str, &str, &CStr); 6] = [
    ("proc", "/proc", c""),
    ("sysfs", "/sys", c""),
    ("devtmpfs", "/dev", c""),
    ("tmpfs", "/dev/shm", c"mode=1777"),
    ("tmpfs", "/tmp", c"mode=1777"),
    ("tmpfs", "/run", c"mode=0755"),
];

/// The part of the kernel that knows the peers of Unix sockets. Debian has it as a module, which a whole system loads when it is asked.
const MODULE: &str = "/unix_diag.ko";

/// Mounts file systems, starts the loopback device, and has a child do the work, while this process takes in orphans. With
/// `guest.ahead=SECONDS` the work sees the clocks of a machine that has been up for so much longer.
pub(super) fn run() -> Result<(), String> {
    for (kind, at, options) in MOUNTS {
        fs::create_dir_all(at).map_err(|error| format!("{at}: {error}"))?;
        mount(kind, at, kind, MountFlags::empty(), options).map_err(|errno| format!("mounting {at}: {errno}"))?;
    }
    if let Ok(module) = File::open(MODULE) {
        finit_module(&module, c"", 0).map_err(|errno| format!("loading {MODULE}: {errno}"))?;
    }
    loopback_up().map_err(|errno| format!("starting the loopback device: {errno}"))?;
    let console = |path| File::options().read(true).write(true).open(path).map_err(|error| format!("{path}: {error}"));
    let mut command = Command::new("/init");
    if let Some(ahead_s) = setting("guest.ahead=") {
        command = Command::new("/bin/unshare");
        command.args(["--time", "--monotonic", &ahead_s, "--boottime", &ahead_s, "/init"]);
    }
    command.env_clear().env("PATH", "/bin").env("HOME", "/tmp").env("RUST_BACKTRACE", "1");
    command.stdin(console("/dev/null")?).stdout(console("/dev/console")?).stderr(console("/dev/console")?);
    let worker = command.spawn().map_err(|error| format!("starting the work: {error}"))?;
    let worker = rustix::process::Pid::from_child(&worker);
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((ended, status))) if ended == worker => {
                return if status.exit_status() == Some(0) { Ok(()) } else { Err(format!("the work ended with {status:?}")) };
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(format!("waiting for the work: {errno}")),
        }
    }
}

/// Ends the machine.
pub(super) fn switch_off() {
    // QEMU ends when the machine is to start again.
    if let Err(errno) = reboot(RebootCommand::Restart) {
        println!("guest: FAILED the machine: switching off: {errno}");
    }
}

/// What the kernel's command line says behind `name`.
pub(super) fn setting(name: &str) -> Option<String> {
    let line = fs::read_to_string("/proc/cmdline").ok()?;
    line.split_whitespace().find_map(|word| word.strip_prefix(name)).map(str::to_owned)
}

/// The release of the kernel.
pub(super) fn release() -> String {
    uname().release().to_string_lossy().into_owned()
}

/// Sends one `RTM_NEWLINK` for the first device (rtnetlink(7)), which is the loopback device of every network namespace.
fn loopback_up() -> rustix::io::Result<()> {
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST: u16 = 1;
    const IFF_UP: u32 = 1;
    let mut message = Vec::new();
    // struct nlmsghdr: length, type, flags, sequence, port; struct ifinfomsg: family, padding, type, index, flags, change.
    message.extend(32_u32.to_ne_bytes());
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([0; 4]);
    message.extend(1_i32.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes());
    let netlink = socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
    sendto(&netlink, &message, SendFlags::empty(), &SocketAddrNetlink::new(0, 0)).map(drop)
}
