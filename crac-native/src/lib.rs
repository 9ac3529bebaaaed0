//! The in-process checkpoint engine of crac: no privileges, nothing to install.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod arena;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod descriptors;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod findings;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[allow(missing_docs, reason = "plain records; their fields' names and the format's drawing say it")]
pub mod layout;
