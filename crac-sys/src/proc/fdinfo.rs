//! `/proc/PID/fdinfo/FD` (proc_pid_fdinfo(5)).

use super::text::{Fields, Malformed, device, lines, narrow, number, signed, split_once};

/// What the kernel tells about one descriptor.
///
/// Repeated lines (epoll targets, locks) stay in the text and are iterated over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FdInfo<'a> {
    text: &'a [u8],
    /// File offset.
    pub position: u64,
    /// File status and access flags, as of open(2), `O_CLOEXEC` included.
    pub flags: u32,
    /// Mount the file was opened on; see `/proc/PID/mountinfo`.
    pub mount: Option<u32>,
    /// Inode number (Linux >= 5.14).
    pub inode: Option<u64>,
    /// Counter of an eventfd.
    pub eventfd_count: Option<u64>,
    /// Number that tells one eventfd from another (Linux >= 5.2).
    pub eventfd_id: Option<u64>,
    /// Whether an eventfd is a semaphore (Linux >= 6.5; before that nobody tells).
    pub eventfd_semaphore: Option<bool>,
    /// State of a timerfd.
    pub timerfd: Option<Timerfd>,
    /// Signals a signalfd takes; bit 0 is signal 1.
    pub signalfd_mask: Option<u64>,
    /// The process a pidfd stands for; -1 once it has been reaped.
    pub pidfd_process: Option<i32>,
    /// Whether inotify watches or fanotify marks exist.
    pub watches: bool,
}

/// State of a timerfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timerfd {
    /// Clock, as of timerfd_create(2).
    pub clock: i32,
    /// Expirations nobody has read.
    pub ticks: u64,
    /// Flags of the last timerfd_settime(2): `TFD_TIMER_ABSTIME` is 1, `TFD_TIMER_CANCEL_ON_SET` is 2.
    pub settime_flags: u32,
    /// Time until the next expiration, seconds and nanoseconds; relative even for absolute timers; zero when disarmed.
    pub remaining: (i64, i64),
    /// Interval, seconds and nanoseconds; zero for a one-shot timer.
    pub interval: (i64, i64),
}

/// One registration of an epoll instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpollTarget {
    /// Descriptor number at the time of registration; it may be closed or stand for another file by now.
    pub fd: i32,
    /// Events with flags, as given to epoll_ctl(2), plus `EPOLLERR` and `EPOLLHUP`.
    pub events: u32,
    /// User data.
    pub data: u64,
    /// Inode of the target (Linux >= 4.13).
    pub inode: Option<u64>,
    /// Device of the target's file system in the kernel's own encoding, major in the bits above the 20th.
    pub device: Option<u32>,
}

/// One lock on the open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileLock {
    /// Who holds it: the open file or the process.
    pub kind: LockKind,
    /// Whether it excludes readers too.
    pub write: bool,
    /// The process that took it; -1 for a lock of an open file description.
    pub process: i32,
    /// Device of the file, major and minor.
    pub device: (u32, u32),
    /// Inode of the file.
    pub inode: u64,
}

/// The kinds of lock in `lock:` lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockKind {
    /// flock(2).
    Flock,
    /// `F_SETLK` of fcntl(2).
    Posix,
    /// `F_OFD_SETLK` of fcntl(2).
    OpenFile,
    /// `F_SETLEASE` of fcntl(2), or a delegation.
    Lease,
    /// A kind this program does not know.
    Other,
}

impl<'a> FdInfo<'a> {
    /// Reads the whole text of one `fdinfo` file.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if `pos:` or `flags:` is missing or a known line cannot be read, epoll targets and locks included, so that
    /// the iterators never meet one.
    pub fn parse(text: &'a [u8]) -> Result<Self, Malformed> {
        let mut info = FdInfo {
            text,
            position: 0,
            flags: 0,
            mount: None,
            inode: None,
            eventfd_count: None,
            eventfd_id: None,
            eventfd_semaphore: None,
            timerfd: None,
            signalfd_mask: None,
            pidfd_process: None,
            watches: false,
        };
        let (mut position, mut flags, mut timer) = (None, None, PartialTimerfd::default());
        for line in lines(text) {
            let Some((label, value)) = split_once(line, b':') else {
                info.watches |= line.starts_with(b"inotify ") || line.starts_with(b"fanotify ");
                continue;
            };
            let value = value.trim_ascii();
            match label {
                b"pos" => position = Some(number(value, 10).ok_or(FDINFO)?),
                b"flags" => flags = Some(narrow(value, 8).ok_or(FDINFO)?),
                b"mnt_id" => info.mount = narrow(value, 10),
                b"ino" => info.inode = Some(number(value, 10).ok_or(FDINFO)?),
                b"eventfd-count" => info.eventfd_count = Some(number(value, 16).ok_or(FDINFO)?),
                b"eventfd-id" => info.eventfd_id = number(value, 10),
                b"eventfd-semaphore" => info.eventfd_semaphore = Some(number(value, 10).ok_or(FDINFO)? != 0),
                b"clockid" => timer.clock = Some(narrow(value, 10).ok_or(TIMERFD)?),
                b"ticks" => timer.ticks = Some(number(value, 10).ok_or(TIMERFD)?),
                b"settime flags" => timer.settime_flags = Some(narrow(value, 8).ok_or(TIMERFD)?),
                b"it_value" => timer.remaining = Some(pair(value).ok_or(TIMERFD)?),
                b"it_interval" => timer.interval = Some(pair(value).ok_or(TIMERFD)?),
                b"sigmask" => info.signalfd_mask = Some(number(value, 16).ok_or(FDINFO)?),
                b"Pid" => info.pidfd_process = Some(signed(value).and_then(|pid| i32::try_from(pid).ok()).ok_or(FDINFO)?),
                b"tfd" => _ = epoll_target(line).ok_or(Malformed { what: "fdinfo epoll target" })?,
                b"lock" => _ = file_lock(value).ok_or(Malformed { what: "fdinfo lock" })?,
                _ => info.watches |= label.starts_with(b"inotify ") || label.starts_with(b"fanotify "),
            }
        }
        info.position = position.ok_or(FDINFO)?;
        info.flags = flags.ok_or(FDINFO)?;
        info.timerfd = timer.finish()?;
        Ok(info)
    }

    /// The registrations of an epoll instance, in the kernel's order.
    pub fn epoll_targets(&self) -> impl Iterator<Item = EpollTarget> + Clone + use<'a> {
        lines(self.text).filter(|line| line.starts_with(b"tfd:")).filter_map(epoll_target)
    }

    /// The locks held through this open file, or by this process on this file.
    pub fn locks(&self) -> impl Iterator<Item = FileLock> + Clone + use<'a> {
        lines(self.text).filter_map(|line| line.strip_prefix(b"lock:")).filter_map(file_lock)
    }
}

#[derive(Default)]
struct PartialTimerfd {
    clock: Option<i32>,
    ticks: Option<u64>,
    settime_flags: Option<u32>,
    remaining: Option<(i64, i64)>,
    interval: Option<(i64, i64)>,
}

impl PartialTimerfd {
    /// All or nothing; the flags came with Linux 3.17 as everything else.
    fn finish(self) -> Result<Option<Timerfd>, Malformed> {
        match self {
            PartialTimerfd { clock: None, remaining: None, interval: None, .. } => Ok(None),
            PartialTimerfd {
                clock: Some(clock),
                ticks: Some(ticks),
                settime_flags: Some(settime_flags),
                remaining: Some(remaining),
                interval: Some(interval),
            } => Ok(Some(Timerfd { clock, ticks, settime_flags, remaining, interval })),
            _ => Err(TIMERFD),
        }
    }
}

/// `(SECONDS, NANOSECONDS)`.
fn pair(text: &[u8]) -> Option<(i64, i64)> {
    let (seconds, nanoseconds) = split_once(text.strip_prefix(b"(")?.strip_suffix(b")")?, b',')?;
    let nanoseconds = signed(nanoseconds.trim_ascii()).filter(|value| (0..1_000_000_000).contains(value))?;
    Some((signed(seconds.trim_ascii())?, nanoseconds))
}

fn epoll_target(line: &[u8]) -> Option<EpollTarget> {
    let mut fields = Fields::of(line);
    let fd = narrow(fields.after(b"tfd:")?, 10)?;
    let events = narrow(fields.after(b"events:")?, 16)?;
    let data = number(fields.after(b"data:")?, 16)?;
    let inode = fields.after(b"ino:").map(|inode| number(inode, 16));
    let device = fields.after(b"sdev:").map(|device| narrow(device, 16));
    let inode = if let Some(inode) = inode { Some(inode?) } else { None };
    let device = if let Some(device) = device { Some(device?) } else { None };
    Some(EpollTarget { fd, events, data, inode, device })
}

/// `ID: KIND MODE ACCESS PID MAJOR:MINOR:INODE START END`, as in `/proc/locks`.
fn file_lock(text: &[u8]) -> Option<FileLock> {
    let mut fields = Fields::of(text);
    let _id = fields.next()?;
    let kind = match fields.next()? {
        b"FLOCK" => LockKind::Flock,
        b"POSIX" => LockKind::Posix,
        b"OFDLCK" => LockKind::OpenFile,
        b"LEASE" | b"DELEG" => LockKind::Lease,
        _ => LockKind::Other,
    };
    let _mode = fields.next()?;
    let write = matches!(fields.next()?, b"WRITE" | b"RW");
    let process = i32::try_from(signed(fields.next()?)?).ok()?;
    let file = fields.next()?;
    let at = file.iter().rposition(|byte| *byte == b':')?;
    Some(FileLock { kind, write, process, device: device(file.get(..at)?)?, inode: number(file.get(at + 1..)?, 10)? })
}

const FDINFO: Malformed = Malformed { what: "fdinfo" };
const TIMERFD: Malformed = Malformed { what: "fdinfo of a timerfd" };

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "pos:\t0\nflags:\t02000002\nmnt_id:\t17\nino:\t1038\n";

    fn with_head(rest: &str) -> String {
        format!("{HEAD}{rest}")
    }

    #[test]
    fn a_plain_file_has_position_and_flags() {
        let info = FdInfo::parse(b"pos:\t4096\nflags:\t0100001\nmnt_id:\t27\n").unwrap();
        assert_eq!((info.position, info.flags, info.mount, info.inode), (4096, 0o100001, Some(27), None));
        assert_eq!(info.locks().count(), 0);
    }

    #[test]
    fn an_eventfd_counter_is_hexadecimal() {
        let text = with_head("eventfd-count:              1ff\neventfd-id: 2\neventfd-semaphore: 1\n");
        let info = FdInfo::parse(text.as_bytes()).unwrap();
        assert_eq!((info.eventfd_count, info.eventfd_id, info.eventfd_semaphore), (Some(0x1ff), Some(2), Some(true)));
        let old = with_head("eventfd-count: ffffffffffffffff\n");
        assert_eq!(FdInfo::parse(old.as_bytes()).unwrap().eventfd_semaphore, None);
    }

    #[test]
    fn a_timerfd_is_read_whole_or_refused() {
        let text = with_head("clockid: 1\nticks: 3\nsettime flags: 01\nit_value: (9, 999950977)\nit_interval: (1, 500000000)\n");
        let timer = FdInfo::parse(text.as_bytes()).unwrap().timerfd.unwrap();
        let expected = Timerfd { clock: 1, ticks: 3, settime_flags: 1, remaining: (9, 999_950_977), interval: (1, 500_000_000) };
        assert_eq!(timer, expected);
        assert!(FdInfo::parse(with_head("clockid: 1\nticks: 3\n").as_bytes()).is_err());
        assert!(FdInfo::parse(text.replace("999950977", "1999950977").as_bytes()).is_err());
    }

    #[test]
    fn epoll_targets_keep_every_bit() {
        let text = include_bytes!("../../testdata/fdinfo-epoll.txt");
        let targets: Vec<_> = FdInfo::parse(text).unwrap().epoll_targets().collect();
        let waker = EpollTarget { fd: 4, events: 0x8000_2019, data: 0, inode: Some(0x40e), device: Some(0x10) };
        let pointer = EpollTarget { fd: 9, events: 0x8000_201d, data: 0x5653_74e5_2490, inode: Some(0x5e40), device: Some(9) };
        assert_eq!(targets, [pointer, waker]);
    }

    #[test]
    fn a_target_cut_short_is_an_error_not_a_wrong_token() {
        let text = include_bytes!("../../testdata/fdinfo-epoll.txt");
        let inside_data = text.windows(5).position(|window| window == b"data:").unwrap() + 5;
        assert!(FdInfo::parse(&text[..inside_data]).is_err());
    }

    #[test]
    fn locks_are_listed_by_kind() {
        let text = include_bytes!("../../testdata/fdinfo-locks.txt");
        let kinds: Vec<_> = FdInfo::parse(text).unwrap().locks().map(|lock| (lock.kind, lock.write, lock.process)).collect();
        let expected = [
            (LockKind::Flock, true, 4798),
            (LockKind::Posix, true, 4798),
            (LockKind::OpenFile, false, -1),
            (LockKind::Lease, false, 4798),
        ];
        assert_eq!(kinds, expected);
    }

    #[test]
    fn watches_signals_and_processes_are_seen() {
        let inotify = with_head("inotify wd:1 ino:3c4a7 sdev:fe00000 mask:2 ignored_mask:0 fhandle-bytes:8\n");
        assert!(FdInfo::parse(inotify.as_bytes()).unwrap().watches);
        let fanotify = with_head("fanotify flags:0 event-flags:8000\n");
        assert!(FdInfo::parse(fanotify.as_bytes()).unwrap().watches);
        let signalfd = with_head("sigmask:\t0000000000004001\n");
        assert_eq!(FdInfo::parse(signalfd.as_bytes()).unwrap().signalfd_mask, Some(0x4001));
        let pidfd = with_head("Pid:\t-1\nNSpid:\t-1\n");
        assert_eq!(FdInfo::parse(pidfd.as_bytes()).unwrap().pidfd_process, Some(-1));
    }

    #[test]
    fn a_text_without_flags_is_refused() {
        assert_eq!(FdInfo::parse(b"pos:\t0\n"), Err(FDINFO));
        assert_eq!(FdInfo::parse(b""), Err(FDINFO));
    }
}
