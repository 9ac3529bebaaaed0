//! Facts about this machine.

use std::ffi::OsString;

use crac_core::{BoxError, Host, HostFacts};

use crate::cgroup;

/// The machine this process runs on.
#[derive(Debug, Clone, Copy, Default)]
pub struct ThisHost {
    _private: (),
}

impl ThisHost {
    /// This machine.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Host for ThisHost {
    /// From getrandom(2), never from the process's memory: two clones differ.
    fn fresh_id(&self) -> [u8; 16] {
        random().unwrap_or_else(|| crac_core::NoHost.fresh_id())
    }

    /// Reads a few files of `/proc` and `/sys`; what cannot be read is left out.
    fn facts(&self) -> HostFacts {
        let mut facts = HostFacts::default();
        facts.hostname = read("/proc/sys/kernel/hostname");
        facts.boot_id = read("/proc/sys/kernel/random/boot_id");
        facts.cpus = std::thread::available_parallelism().ok().map(Into::into);
        facts.memory_limit = cgroup::memory_limit();
        facts.kernel = read("/proc/sys/kernel/osrelease");
        facts
    }

    /// Sets what differs and removes what is gone.
    ///
    /// Attached runtimes are held meanwhile. Threads that are not attached and run C code that reads the environment would race
    /// with it, which is why it happens only where it was asked for.
    fn apply_env(&self, env: &[(OsString, OsString)]) -> Result<(), BoxError> {
        apply(env)
    }
}

fn read(path: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim_end().to_owned()).filter(|text| !text.is_empty())
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn apply(env: &[(OsString, OsString)]) -> Result<(), BoxError> {
    crac_sys::environment::replace(env);
    Ok(())
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn apply(_env: &[(OsString, OsString)]) -> Result<(), BoxError> {
    Err("the environment can be changed on Linux on x86_64 only; read RestoreContext::env instead".into())
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn random() -> Option<[u8; 16]> {
    let mut id = [0; 16];
    crac_sys::process::random(&mut id).ok().map(|()| id)
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn random() -> Option<[u8; 16]> {
    let mut id = [0; 16];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom").ok()?, &mut id).ok().map(|()| id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_fresh() {
        assert_ne!(ThisHost::new().fresh_id(), ThisHost::new().fresh_id());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_machine_is_described() {
        let facts = ThisHost::new().facts();
        assert_eq!(facts.boot_id.unwrap().len(), 36);
        assert!(facts.cpus.unwrap() >= 1 && facts.kernel.is_some() && facts.hostname.is_some());
        assert_ne!(facts.memory_limit, Some(0));
    }
}
