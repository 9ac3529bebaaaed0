//! The in-process checkpoint engine of crac: no privileges, nothing to install.

mod engine;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod arch;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod arena;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod capture;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod descriptors;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod exec;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod facts;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod fault;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod findings;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod freeze;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod image;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[allow(missing_docs, reason = "plain records; their fields' names and the format's drawing say it")]
pub mod layout;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod madvise;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod manifest;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod pages;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod plan;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod record;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod restore;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod resumed;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod stub;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod tables;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod text;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod writer;

pub use engine::NativeEngine;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub use fault::NotAFault;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub use manifest::{Executable, Manifest};
