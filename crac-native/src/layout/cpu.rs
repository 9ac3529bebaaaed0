//! What the processor can do, as both programs ask it.
#![allow(unsafe_code, reason = "two privileged-looking but harmless instructions: cpuid and xgetbv")]

use core::arch::x86_64::{__cpuid, __cpuid_count};

use super::CpuRecord;

/// The kernel's name for the time since it was started (random(4)), with zeros behind it; zeros alone if it does not say. On the kernel
/// of the checkpoint the processor is the same, too, and need not be asked: in a virtual machine that is a trap into the hypervisor.
pub type BootId = [u8; 40];
/// Where it is, and how long.
pub const BOOT_ID: &core::ffi::CStr = c"/proc/sys/kernel/random/boot_id";
pub const BOOT_ID_BYTES: usize = 36;

/// CPUID 1 ecx: the system has enabled XSAVE, so `xgetbv` may be used.
const OSXSAVE: u32 = 1 << 27;

/// The processor this runs on.
pub fn current() -> CpuRecord {
    let (basic_max, extended_max) = (__cpuid(0).eax, __cpuid(0x8000_0000).eax);
    let basic = __cpuid(1);
    let mut cpu = CpuRecord { features: [basic.ecx, basic.edx, 0, 0, 0, 0, 0, 0], ..CpuRecord::default() };
    if basic_max >= 7 {
        let (seven, seven_one) = (__cpuid_count(7, 0), __cpuid_count(7, 1));
        let [_, _, ebx, ecx, edx, eax_one, ..] = &mut cpu.features;
        (*ebx, *ecx, *edx) = (seven.ebx, seven.ecx, seven.edx);
        if seven.eax >= 1 {
            *eax_one = seven_one.eax;
        }
    }
    if extended_max >= 0x8000_0001 {
        let extended = __cpuid(0x8000_0001);
        let [.., ecx, edx] = &mut cpu.features;
        (*ecx, *edx) = (extended.ecx, extended.edx);
    }
    if basic.ecx & OSXSAVE != 0 && basic_max >= 0xd {
        cpu.xcr0 = xcr0();
        cpu.xsave_bytes = __cpuid_count(0xd, 0).ebx;
    }
    cpu
}

/// Whether a process captured on `recorded` can go on here: nothing that it may use is missing, and the register state in its
/// signal frames has the same parts in the same places.
pub fn fits(recorded: &CpuRecord, here: &CpuRecord) -> bool {
    let features = recorded.features.iter().zip(&here.features).all(|(recorded, here)| recorded & !here == 0);
    features && recorded.xcr0 == here.xcr0 && recorded.xsave_bytes == here.xsave_bytes
}

fn xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller has seen OSXSAVE, so the instruction exists and is enabled; it only reads.
    unsafe {
        core::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}
