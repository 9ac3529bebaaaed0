//! Compiles the restorer stub, a freestanding program, with the same compiler and with flags of its own.
//!
//! The user's `RUSTFLAGS`, profile and sanitizers do not apply to it: it has no runtime that could serve them.

use std::{
    env,
    error::Error,
    ffi::{OsStr, OsString},
    path::PathBuf,
    process::Command,
};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=stub/src");
    println!("cargo::rerun-if-changed=src/layout.rs");
    println!("cargo::rerun-if-changed=src/layout");
    println!("cargo::rerun-if-env-changed=RUSTC");
    println!("cargo::rerun-if-env-changed=RUSTC_LINKER");
    let target = env::var("TARGET")?;
    if env::var("CARGO_CFG_TARGET_OS")? != "linux" || env::var("CARGO_CFG_TARGET_ARCH")? != "x86_64" {
        return Ok(());
    }
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let stub = PathBuf::from(env::var("OUT_DIR")?).join("stub.elf");
    let mut rustc = Command::new(env::var("RUSTC")?);
    rustc
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .arg(manifest.join("stub/src/main.rs"))
        .args(["--crate-name", "crac_stub", "--crate-type", "bin", "--edition", "2024", "--target", &target, "-o"])
        .arg(&stub)
        .args(["-C", "panic=abort", "-C", "opt-level=s", "-C", "debug-assertions=off", "-C", "overflow-checks=off"])
        .args(["-C", "lto=fat", "-C", "codegen-units=1", "-C", "strip=symbols", "-C", "force-unwind-tables=no"])
        .args(["-C", "relocation-model=pie", "-C", "target-cpu=x86-64"])
        .args(["-C", "link-arg=-nostdlib", "-C", "link-arg=-nostartfiles", "-C", "link-arg=-static-pie"])
        .args(["-C", "link-arg=-Wl,-z,norelro,-z,noexecstack,--build-id=none,--no-dynamic-linker,--hash-style=sysv"]);
    // What cargo's configuration names as the linker of the target; of its flags, none.
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        rustc.arg("-C").arg([OsStr::new("linker="), &linker].into_iter().collect::<OsString>());
    }
    let output = rustc.output()?;
    if !output.status.success() {
        return Err(format!("the restorer stub does not compile:\n{}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(())
}
