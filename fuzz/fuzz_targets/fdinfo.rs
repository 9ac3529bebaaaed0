//! Text of `/proc/PID/fdinfo/N` and the links of `/proc/PID/fd`.
#![no_main]

use crac_sys::proc::{FdInfo, FdLink};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(info) = FdInfo::parse(bytes) {
        assert!(info.epoll_targets().count() + info.locks().count() <= bytes.len());
    }
    let _named = FdLink::parse(bytes).deleted();
});
