//! The parsers of `/proc` against any bytes, against damaged real text, and against this very process.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use crac_sys::proc::{
    FdInfo, FdLink, InetSocket, Mapping, ProcessStat, ProcessStatus, SmapsEntries, UnixSocket, decimal_name, lines,
};
use proptest::prelude::*;

/// Runs every parser over `text` and everything that can be asked of what it gives.
fn exercise(text: &[u8]) {
    for line in lines(text) {
        _ = Mapping::parse(line).map(|mapping| (mapping.size(), format!("{:?}", mapping.name())));
        _ = InetSocket::parse(line).map(|socket| socket.state.name());
        _ = UnixSocket::parse(line);
        _ = FdLink::parse(line).deleted();
        _ = decimal_name(line);
    }
    _ = Mapping::all(text).count();
    for entry in SmapsEntries::of(text).flatten() {
        _ = (entry.flags.contains(b"io"), entry.flags.iter().count(), entry.mapping.name());
    }
    if let Ok(info) = FdInfo::parse(text) {
        let (targets, tfds) = (info.epoll_targets().count(), lines(text).filter(|line| line.starts_with(b"tfd:")).count());
        assert_eq!(targets, tfds, "a target that was accepted is given out");
        assert_eq!(info.locks().count(), lines(text).filter(|line| line.starts_with(b"lock:")).count());
    }
    _ = ProcessStat::parse(text);
    _ = ProcessStatus::parse(text).map(|status| status.blocked.iter().count());
    _ = InetSocket::all(text).count();
    _ = UnixSocket::all(text).count();
}

const SAMPLES: &[&[u8]] = &[
    include_bytes!("../testdata/fdinfo-epoll.txt"),
    include_bytes!("../testdata/fdinfo-locks.txt"),
    include_bytes!("../testdata/net-tcp.txt"),
    include_bytes!("../testdata/net-unix.txt"),
    include_bytes!("../testdata/smaps.txt"),
    include_bytes!("../testdata/stat.txt"),
    include_bytes!("../testdata/status.txt"),
];

proptest! {
    #[test]
    fn any_bytes_are_survived(text in proptest::collection::vec(any::<u8>(), 0..600)) {
        exercise(&text);
    }

    #[test]
    fn damaged_real_text_is_survived(
        sample in 0..SAMPLES.len(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut text = SAMPLES[sample].to_vec();
        for (at, byte) in damage {
            let at = at.index(text.len());
            text[at] = byte;
        }
        exercise(&text[..=cut.index(text.len())]);
    }
}

#[test]
fn this_process_can_be_read() {
    let read = |path: &str| std::fs::read(path).unwrap();
    let smaps = read("/proc/self/smaps");
    let entries: Vec<_> = SmapsEntries::of(&smaps).collect::<Result<_, _>>().unwrap();
    assert!(entries.iter().any(|entry| entry.mapping.execute && !entry.flags.iter().any(|flag| flag.len() != 2)));
    assert!(Mapping::all(&read("/proc/self/maps")).all(|mapping| mapping.is_ok()));

    let stat = read("/proc/self/stat");
    let pid = i32::try_from(std::process::id()).unwrap();
    assert_eq!(ProcessStat::parse(&stat).unwrap().id, pid);
    let status = read("/proc/self/status");
    assert!(ProcessStatus::parse(&status).unwrap().threads >= 1);

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let link = std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&listener))).unwrap();
    let FdLink::Socket { inode } = FdLink::parse(std::os::unix::ffi::OsStrExt::as_bytes(link.as_os_str())) else {
        panic!("not a socket: {link:?}")
    };
    let tcp = read("/proc/self/net/tcp");
    let own = InetSocket::all(&tcp).map(Result::unwrap).find(|socket| socket.inode == inode).unwrap();
    assert_eq!((own.local, own.state.name()), (listener.local_addr().unwrap(), "LISTEN"));
    assert!(UnixSocket::all(&read("/proc/self/net/unix")).all(|socket| socket.is_ok()));

    for entry in std::fs::read_dir("/proc/self/fdinfo").unwrap() {
        let path = entry.unwrap().path();
        // The directory's own descriptor and those of other tests may be gone by now.
        if let Ok(text) = std::fs::read(&path) {
            assert!(FdInfo::parse(&text).is_ok(), "{}", path.display());
        }
    }
}
