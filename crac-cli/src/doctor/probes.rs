//! The checks, one after the other. Each looks and answers; none changes anything that stays.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use rustix::fs::{Mode, OFlags, StatVfsMountFlags};

use super::{Check, criu, trial};
use crate::env;

/// The oldest kernel that the project is tested with.
const KERNEL_MIN: (u32, u32) = (6, 1);

/// Every check, in the order of the output; images would go into `dir`.
pub(super) fn all(dir: &Path) -> Vec<Check> {
    let mut checks = vec![
        Check::needed("system", system(), "run the service on x86_64 Linux; elsewhere only the sim engine, for tests, works"),
        Check::useful("kernel", kernel(), "the engine is tested with Linux 6.1 and later; see what the trial says"),
        Check::useful(
            "pagemap-scan",
            pagemap_scan(),
            "nothing: page maps are read word by word, which takes longer; Linux 6.7 has it",
        ),
        Check::useful("dupfd-query", dupfd_query(), "nothing: kcmp or flags find duplicated descriptors; Linux 6.10 has it"),
        Check::useful("kcmp", kcmp(), "nothing: F_DUPFD_QUERY or flags find duplicated descriptors; a sandbox may forbid it"),
        Check::useful("tmpfile", tmpfile(dir), "nothing: images are written under a temporary name and renamed"),
        Check::useful(
            "exec-allowed",
            exec_allowed(dir),
            "nothing: images there hold data alone, and `crac restore` brings them back",
        ),
        Check::needed("trial", trial::hold(dir), "follow what it says; `crac doctor --dir DIR` tries another directory"),
        Check::useful(
            "clocks",
            clocks(),
            "restore on the host, and in the boot, of the checkpoint, or choose clock = \"timens\": clocks cannot be continued",
        ),
        Check::useful("time-namespaces", time_namespaces(), "nothing, unless clock = \"timens\" is wanted"),
        Check::useful("control-directory", control_directory(), "set CRAC_RUN_DIR to a directory of your own, mode 0700"),
        Check::useful("no-seccomp-filter", seccomp(), "restore under the same sandbox as the service was started in"),
    ];
    checks.extend(criu::all(dir));
    checks
}

fn system() -> Result<String, String> {
    let here = format!("{} on {}", std::env::consts::OS, std::env::consts::ARCH);
    if cfg!(all(target_os = "linux", target_arch = "x86_64")) { Ok(here) } else { Err(here) }
}

fn kernel() -> Result<String, String> {
    let names = rustix::system::uname();
    let release = names.release().to_string_lossy().into_owned();
    if parse_release(&release).is_some_and(|found| found >= KERNEL_MIN) { Ok(release) } else { Err(release) }
}

/// Major and minor version of a release such as `6.1.0-18-amd64`.
fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn pagemap_scan() -> Result<String, String> {
    use std::os::fd::AsFd;

    let pagemap = fs::File::open("/proc/self/pagemap").map_err(|error| format!("/proc/self/pagemap: {error}"))?;
    // Any page of this process does.
    let here = std::ptr::from_ref(&KERNEL_MIN).addr() & !0xfff;
    let mut regions = [crac_sys::mem::PageRegion::default(); 1];
    let present = crac_sys::mem::category::PRESENT;
    crac_sys::mem::pagemap_scan(pagemap.as_fd(), here, here + 4096, present, present, &mut regions)
        .map(|_| "resident pages are found by one call".into())
        .map_err(|errno| format!("PAGEMAP_SCAN: {errno}"))
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn dupfd_query() -> Result<String, String> {
    answers("F_DUPFD_QUERY", crac_sys::descriptor::is_duplicate_by_query)
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn kcmp() -> Result<String, String> {
    answers("kcmp", crac_sys::descriptor::is_duplicate_by_kcmp)
}

/// Whether `query` knows a duplicate of a descriptor, and a stranger.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn answers(name: &str, query: fn(i32, i32) -> crac_sys::Result<bool>) -> Result<String, String> {
    use std::os::fd::AsRawFd;

    let open = || fs::File::open("/").map_err(|error| format!("/: {error}"));
    let (one, other) = (open()?, open()?);
    let duplicate = one.try_clone().map_err(|error| format!("dup: {error}"))?;
    let ask = |with: &fs::File| query(one.as_raw_fd(), with.as_raw_fd()).map_err(|errno| format!("{name}: {errno}"));
    match (ask(&duplicate)?, ask(&other)?) {
        (true, false) => Ok("duplicated descriptors are told apart".into()),
        wrong => Err(format!("{name} answers wrongly: {wrong:?}")),
    }
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn pagemap_scan() -> Result<String, String> {
    system()
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn dupfd_query() -> Result<String, String> {
    system()
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn kcmp() -> Result<String, String> {
    system()
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn clocks() -> Result<String, String> {
    let places = crac_native::prepare_clocks()?;
    Ok(format!("a restored life's go on without privilege; {places} places in the C library were prepared and tried"))
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn clocks() -> Result<String, String> {
    system()
}

fn tmpfile(dir: &Path) -> Result<String, String> {
    rustix::fs::open(dir, OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::RWXU)
        .map(|_| format!("images appear in {} whole or not at all", dir.display()))
        .map_err(|errno| format!("O_TMPFILE in {}: {errno}", dir.display()))
}

fn exec_allowed(dir: &Path) -> Result<String, String> {
    let found = rustix::fs::statvfs(dir).map_err(|errno| format!("{}: {errno}", dir.display()))?;
    if found.f_flag.contains(StatVfsMountFlags::NOEXEC) {
        return Err(format!("{} is mounted noexec", dir.display()));
    }
    let free_mib = found.f_bavail.saturating_mul(found.f_frsize) >> 20;
    Ok(format!("{} may hold programs; {free_mib} MiB free", dir.display()))
}

fn time_namespaces() -> Result<String, String> {
    if !Path::new("/proc/self/ns/time").exists() {
        return Err("this kernel has none".into());
    }
    let limit =
        |name: &str| fs::read_to_string(format!("/proc/sys/user/{name}")).ok().and_then(|text| text.trim().parse::<u64>().ok());
    if limit("max_time_namespaces") == Some(0) {
        return Err("user.max_time_namespaces is 0".into());
    }
    let root = rustix::process::geteuid().is_root();
    if !root && limit("max_user_namespaces") == Some(0) {
        return Err("user.max_user_namespaces is 0 and this is not root".into());
    }
    Ok("this kernel has them; whether a sandbox allows them is not tried".into())
}

fn control_directory() -> Result<String, String> {
    let [given, xdg] = [env::RUN_DIR, env::XDG_RUNTIME_DIR].map(std::env::var_os);
    let me = rustix::process::geteuid();
    let dir = crac_core::control::run_dir(given.as_deref(), xdg.as_deref(), &std::env::temp_dir(), me.as_raw());
    match fs::metadata(&dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let parent = dir.parent().unwrap_or(Path::new("/"));
            let writable = rustix::fs::access(parent, rustix::fs::Access::WRITE_OK);
            writable
                .map(|()| format!("{} will be made by the first service", dir.display()))
                .map_err(|errno| format!("{} is not there, and {}: {errno}", dir.display(), parent.display()))
        }
        Err(error) => Err(format!("{}: {error}", dir.display())),
        Ok(found) if !found.is_dir() => Err(format!("{} is not a directory", dir.display())),
        Ok(found) if found.uid() != me.as_raw() => Err(format!("{} belongs to user {}", dir.display(), found.uid())),
        Ok(found) if found.permissions().mode() & 0o077 != 0 => Err(format!("{} is open to other users", dir.display())),
        Ok(_) => Ok(dir.display().to_string()),
    }
}

fn seccomp() -> Result<String, String> {
    let status = fs::read_to_string("/proc/self/status").map_err(|error| format!("/proc/self/status: {error}"))?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map_or("?", str::trim).to_owned();
    let privileges = format!("no_new_privs {}", field("NoNewPrivs:"));
    match field("Seccomp:").as_str() {
        "0" => Ok(format!("no filter; {privileges}")),
        "2" => Err(format!("{} filter(s); {privileges}", field("Seccomp_filters:"))),
        other => Err(format!("mode {other}; {privileges}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_distributions_are_understood() {
        assert_eq!(parse_release("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(parse_release("5.15.153.1-microsoft-standard-WSL2"), Some((5, 15)));
        assert_eq!(parse_release("strange"), None);
    }

    #[test]
    fn what_is_missing_comes_with_advice_and_what_is_found_without() {
        let missing = Check::needed("x", Err("not there".into()), "get it");
        assert_eq!((missing.found, missing.needed, missing.advice), (false, true, Some("get it")));
        let found = Check::useful("x", Ok("there".into()), "get it");
        assert_eq!((found.found, found.needed, found.advice), (true, false, None));
    }
}
