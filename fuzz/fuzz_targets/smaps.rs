//! Text of `/proc/PID/smaps`: no more entries than there are bytes, and every part of them can be asked for.
#![no_main]

use crac_sys::proc::SmapsEntries;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    assert!(SmapsEntries::of(bytes).count() <= bytes.len());
    SmapsEntries::of(bytes).flatten().for_each(|entry| {
        let _of_each = (entry.mapping.size(), entry.mapping.name(), entry.flags.contains(b"lo"));
    });
});
