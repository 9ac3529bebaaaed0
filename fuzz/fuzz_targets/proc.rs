//! The kernel's text may be anything: the parsers of `/proc` return, they never panic, loop or allocate.
#![no_main]

use crac_sys::proc::{FdInfo, FdLink, InetSocket, Mapping, ProcessStat, ProcessStatus, SmapsEntries, UnixSocket};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    Mapping::all(bytes).flatten().for_each(|mapping| {
        let _size = (mapping.size(), mapping.name());
    });
    if let Ok(info) = FdInfo::parse(bytes) {
        assert!(info.epoll_targets().count() + info.locks().count() <= bytes.len());
    }
    assert!(SmapsEntries::of(bytes).count() <= bytes.len());
    let _named = FdLink::parse(bytes).deleted();
    let _sockets = InetSocket::all(bytes).count() + UnixSocket::all(bytes).count();
    let _process = (ProcessStat::parse(bytes).is_ok(), ProcessStatus::parse(bytes).is_ok());
});
