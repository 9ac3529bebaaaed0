//! Text of `/proc/PID/maps`: the parser returns, and every range and name can be asked for.
#![no_main]

use crac_sys::proc::Mapping;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    Mapping::all(bytes).flatten().for_each(|mapping| {
        let _size = (mapping.size(), mapping.name());
    });
});
