//! `/proc/PID/stat` and `status`.
#![no_main]

use crac_sys::proc::{ProcessStat, ProcessStatus};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _read = (ProcessStat::parse(bytes).is_ok(), ProcessStatus::parse(bytes).is_ok());
});
