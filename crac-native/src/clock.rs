//! What the clocks show in a restored life: settings, and the parts that make them true.
//!
//! ```text
//!                 first life, host A          another life, host B (or after a downtime)
//! kernel's clock  ──── 900 s ────┤            ├── 20 s ───►        (CLOCK_MONOTONIC counts from the host's start)
//! the service     ──── 900 s ────┤            ├─ 900 s ───►        = kernel's + offset, the offset being 880 s
//! ```
//!
//! Two things belong together, and neither is of use alone:
//!
//! * *Reads* ([`shim`], [`vdso`]): the C library and the programs that know of the vdso have cached its address. In a restored
//!   life a private copy lies there, whose functions jump to a shim that asks the real vdso, which lies elsewhere, and adds the
//!   offset of the clock.
//! * *Absolute deadlines* given to the kernel ([`sites`], [`shim`]): the few instructions in the C library that enter the kernel
//!   for such waits lead through a shim that takes the offset away again. A wait that is under way at the checkpoint corrects
//!   itself: it ends with `EINTR`, the library tries again with the program's own deadline, and the shim takes the new offset.
//!
//! [`layer`] puts the second into the process before its first capture and tries it; where that fails nothing is changed and the
//! restored life sees the host's clocks. [`waits`] finds the threads whose absolute waits lead past the shim.

use std::{fmt, str::FromStr};

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(crate) mod layer;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(crate) mod offset;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(crate) mod shim;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(crate) mod sites;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(crate) mod vdso;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(crate) mod waits;

/// How `CLOCK_MONOTONIC` and `CLOCK_BOOTTIME`, and with them `std::time::Instant`, go on in a restored life.
///
/// The wall clock is always the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Clock {
    /// [`Proxy`](Clock::Proxy) where the C library can be prepared for it, else [`None`](Clock::None), with a warning.
    #[default]
    Auto,
    /// They go on from where they stood, on every host: a copy of the vdso adds an offset, and the C library's absolute waits take
    /// it away. Needs no privilege. A thread that waits until an absolute time by a bare system call is an obstacle.
    Proxy,
    /// They go on from where they stood, by a time namespace made at the restore (`time_namespaces(7)`). Needs `CAP_SYS_ADMIN`, or
    /// else a user namespace of its own, which other programs can see; containers often forbid both, and the image is then refused.
    Timens,
    /// They are the host's. An image is refused where they would run backwards.
    None,
}

/// What the time between checkpoint and restore is to the restored life's monotonic clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Downtime {
    /// It did not happen: no timer is late, an interval does not catch up.
    #[default]
    Frozen,
    /// It has passed, as far as the wall clock tells: what was due meanwhile is due at once.
    Elapsed,
}

/// A word that names no setting.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is not {expected}")]
pub struct UnknownSetting {
    found: String,
    expected: &'static str,
}

impl UnknownSetting {
    pub(crate) fn new(found: &str, expected: &'static str) -> Self {
        Self { found: found.to_owned(), expected }
    }
}

impl Clock {
    /// The word for it in settings and manifests.
    pub const fn as_str(self) -> &'static str {
        match self {
            Clock::Auto => "auto",
            Clock::Proxy => "proxy",
            Clock::Timens => "timens",
            Clock::None => "none",
        }
    }
}

impl Downtime {
    /// The word for it in settings and manifests.
    pub const fn as_str(self) -> &'static str {
        match self {
            Downtime::Frozen => "frozen",
            Downtime::Elapsed => "elapsed",
        }
    }
}

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Display for Downtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Clock {
    type Err = UnknownSetting;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let all = [Clock::Auto, Clock::Proxy, Clock::Timens, Clock::None];
        let unknown = || UnknownSetting { found: text.to_owned(), expected: "`auto`, `proxy`, `timens` or `none`" };
        all.into_iter().find(|clock| clock.as_str() == text).ok_or_else(unknown)
    }
}

impl FromStr for Downtime {
    type Err = UnknownSetting;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let all = [Downtime::Frozen, Downtime::Elapsed];
        let unknown = || UnknownSetting { found: text.to_owned(), expected: "`frozen` or `elapsed`" };
        all.into_iter().find(|downtime| downtime.as_str() == text).ok_or_else(unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_as_they_are_written() {
        for clock in [Clock::Auto, Clock::Proxy, Clock::Timens, Clock::None] {
            assert_eq!(clock.to_string().parse(), Ok(clock));
        }
        for downtime in [Downtime::Frozen, Downtime::Elapsed] {
            assert_eq!(downtime.to_string().parse(), Ok(downtime));
        }
        assert_eq!("host".parse::<Clock>().unwrap_err().to_string(), "`host` is not `auto`, `proxy`, `timens` or `none`");
    }
}
