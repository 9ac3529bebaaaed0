//! Tables of `/proc/net`, and the kernel's answers over netlink.
#![no_main]

use crac_sys::{
    proc::{InetSocket, UnixSocket},
    unix_diag,
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    assert!(InetSocket::all(bytes).count() + UnixSocket::all(bytes).count() <= 2 * bytes.len());
    // The answer names a socket: with the right one, what is behind its name is read too.
    let inode = bytes.get(20..).and_then(|bytes| bytes.first_chunk()).map_or(0, |inode| u32::from_ne_bytes(*inode));
    let _answer = unix_diag::parse(bytes, inode);
});
