//! Files, pipes, events.
#![allow(unsafe_code, reason = "a descriptor that no crate makes")]

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    time::Duration,
};

use crac_sys::fs::fcntl;
use rustix::{
    event::{EventfdFlags, epoll, eventfd},
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_gettime, timerfd_settime,
    },
};

use crate::{
    kernel::{call, field, made},
    lives::{Life, Lives, Program, not_here},
};

pub(crate) const PROGRAMS: &[(&str, Program)] = &[
    ("file-offset", file_offset),
    ("file-appended", file_appended),
    ("file-writable", file_writable),
    ("file-writable-unasked", |lives| opened(lives, File::create("written").unwrap())),
    ("file-unlinked", file_unlinked),
    ("file-locked-whole", |lives| locked(lives, Lock::Whole)),
    ("file-locked-range", |lives| locked(lives, Lock::Range)),
    ("file-locked-open", |lives| locked(lives, Lock::Open)),
    ("file-leased", |lives| locked(lives, Lock::Lease)),
    ("file-signalling", file_signalling),
    ("directory", directory),
    ("path-only", path_only),
    ("duplicates", duplicates),
    ("close-on-exec", close_on_exec),
    ("devices", devices),
    ("pipe-content", pipe_content),
    ("pipe-half", |lives| opened(lives, std::io::pipe().unwrap().0)),
    ("fifo", fifo),
    ("eventfd", eventfds),
    ("timerfd-once", timer_once),
    ("timerfd-periodic", timer_periodic),
    ("timerfd-fast", timer_fast),
    ("timerfd-unread", timer_unread),
    ("timerfd-alarm", timer_alarm),
    ("signalfd", signalfd),
    ("epoll", epolls),
    ("epoll-nested", epoll_nested),
    ("epoll-duplicates", epoll_duplicates),
    ("inotify", inotify),
    ("fanotify", |lives| kernel_object(lives, libc::SYS_fanotify_init, [0; 3])),
    ("pidfd-self", pidfd_self),
    ("pidfd-child", pidfd_child),
    ("terminal-pair", terminal_pair),
    ("io-uring", io_uring),
    ("userfaultfd", |lives| kernel_object(lives, libc::SYS_userfaultfd, [1, 0, 0])),
    ("thousand-descriptors", |lives| many(lives, 1_000)),
    ("ten-thousand-descriptors", |lives| many(lives, 10_000)),
];

/// Something open, that is not looked at.
fn opened(lives: Lives, descriptor: impl Into<OwnedFd>) {
    let descriptor = descriptor.into();
    lives.each(|_| assert!(fcntl(descriptor.as_raw_fd(), libc::F_GETFD, 0).is_ok()))
}

fn kernel_object(lives: Lives, number: libc::c_long, args: [usize; 3]) {
    match made(number, args) {
        Ok(descriptor) => opened(lives, descriptor),
        Err(errno) => not_here(&format!("the kernel does not give one to this user: {errno}")),
    }
}

fn file_offset(lives: Lives) {
    fs::write("file", b"0123456789").unwrap();
    let mut file = File::open("file").unwrap();
    file.seek(SeekFrom::Start(4)).unwrap();
    lives.each(|_| {
        let mut text = [0; 3];
        file.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"456");
        file.seek(SeekFrom::Start(4)).unwrap();
    })
}

fn file_appended(lives: Lives) {
    let mut log = File::options().append(true).create(true).open("log").unwrap();
    lives.each(|_| {
        let before = fs::read("log").unwrap().len();
        log.write_all(b"line\n").unwrap();
        assert!(fs::read("log").unwrap().len() >= before + 5);
    })
}

fn file_writable(lives: Lives) {
    fs::write("written", b"0123456789").unwrap();
    let mut file = File::options().read(true).write(true).open("written").unwrap();
    file.seek(SeekFrom::Start(3)).unwrap();
    lives.policy("file-writable = reopen").each(|_| {
        assert_eq!(file.stream_position().unwrap(), 3);
        file.write_all(b"x").unwrap();
        assert_eq!(fs::read("written").unwrap(), b"012x456789");
        file.seek(SeekFrom::Start(3)).unwrap();
    })
}

fn file_unlinked(lives: Lives) {
    fs::write("gone", b"text").unwrap();
    let file = File::open("gone").unwrap();
    fs::remove_file("gone").unwrap();
    opened(lives, file)
}

enum Lock {
    Whole,
    Range,
    Open,
    Lease,
}

fn locked(lives: Lives, lock: Lock) {
    fs::write("locked", b"text").unwrap();
    // A lease is for who opens it alone.
    let file = File::options().read(true).append(!matches!(lock, Lock::Lease)).open("locked").unwrap();
    let number = file.as_raw_fd() as usize;
    // SAFETY: zero is a valid lock.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    range.l_type = libc::F_RDLCK as i16;
    let range = std::ptr::from_ref(&range).expose_provenance();
    match lock {
        Lock::Whole => call(libc::SYS_flock, [number, libc::LOCK_EX as usize]),
        Lock::Range => call(libc::SYS_fcntl, [number, libc::F_SETLK as usize, range]),
        Lock::Open => call(libc::SYS_fcntl, [number, libc::F_OFD_SETLK as usize, range]),
        Lock::Lease => call(libc::SYS_fcntl, [number, libc::F_SETLEASE as usize, libc::F_RDLCK as usize]),
    }
    .unwrap();
    opened(lives, file)
}

fn file_signalling(lives: Lives) {
    let (reader, _writer) = std::io::pipe().unwrap();
    fcntl(reader.as_raw_fd(), libc::F_SETFL, libc::O_ASYNC as usize).unwrap();
    opened(lives, reader)
}

fn directory(lives: Lives) {
    fs::create_dir("folder").unwrap();
    fs::write("folder/file", "").unwrap();
    let folder = File::open("folder").unwrap();
    lives.each(|_| {
        assert!(rustix::fs::openat(&folder, "file", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).is_ok());
    })
}

fn path_only(lives: Lives) {
    fs::write("file", "text").unwrap();
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    let path = rustix::fs::open("file", flags, rustix::fs::Mode::empty()).unwrap();
    lives.each(|_| {
        assert_eq!(rustix::fs::fstat(&path).unwrap().st_size, 4);
        assert!(rustix::io::read(&path, &mut [0]).is_err());
    })
}

fn duplicates(lives: Lives) {
    fs::write("file", b"0123456789").unwrap();
    let mut file = File::open("file").unwrap();
    let mut duplicate = file.try_clone().unwrap();
    let mut other = File::open("file").unwrap();
    lives.each(|_| {
        file.seek(SeekFrom::Start(2)).unwrap();
        assert_eq!((duplicate.stream_position().unwrap(), other.stream_position().unwrap()), (2, 0));
        duplicate.rewind().unwrap();
        assert_eq!(file.stream_position().unwrap(), 0);
    })
}

fn close_on_exec(lives: Lives) {
    let kept = eventfd(0, EventfdFlags::empty()).unwrap();
    let closed = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let far = rustix::io::fcntl_dupfd_cloexec(&kept, 500).unwrap();
    lives.each(|_| {
        let flags = [&kept, &closed, &far].map(|descriptor| fcntl(descriptor.as_raw_fd(), libc::F_GETFD, 0).unwrap());
        assert_eq!(flags, [0, 1, 1]);
        assert_eq!(far.as_raw_fd(), 500);
    })
}

fn devices(lives: Lives) {
    let mut devices = ["/dev/null", "/dev/zero", "/dev/urandom"].map(|path| File::open(path).unwrap());
    lives.each(|_| {
        let mut bytes = [1; 32];
        assert_eq!(devices[0].read(&mut bytes).unwrap(), 0);
        devices[1].read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, [0; 32]);
        devices[2].read_exact(&mut bytes).unwrap();
        assert_ne!(bytes, [0; 32]);
    })
}

fn pipe_content(lives: Lives) {
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, 1 << 18).unwrap();
    let content: Vec<u8> = (0..150_000).map(|at: u32| at as u8).collect();
    writer.write_all(&content).unwrap();
    lives.each(|_| {
        let mut found = vec![0; content.len()];
        reader.read_exact(&mut found).unwrap();
        assert_eq!(found, content);
        writer.write_all(&content).unwrap();
        assert_eq!(fcntl(writer.as_raw_fd(), libc::F_GETPIPE_SZ, 0), Ok(1 << 18));
    })
}

fn fifo(lives: Lives) {
    rustix::fs::mknodat(rustix::fs::CWD, "fifo", rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    opened(lives, File::options().read(true).write(true).open("fifo").unwrap())
}

fn counter(descriptor: &OwnedFd) -> Result<u64, rustix::io::Errno> {
    let mut value = [0; 8];
    rustix::io::read(descriptor, &mut value).map(|_| u64::from_ne_bytes(value))
}

fn eventfds(lives: Lives) {
    let plain = eventfd(5, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap();
    let semaphore = eventfd(3, EventfdFlags::SEMAPHORE | EventfdFlags::NONBLOCK).unwrap();
    lives.each(|_| {
        assert_eq!((counter(&plain), counter(&semaphore)), (Ok(5), Ok(1)));
        rustix::io::write(&plain, &5_u64.to_ne_bytes()).unwrap();
        rustix::io::write(&semaphore, &1_u64.to_ne_bytes()).unwrap();
    })
}

fn timer(clock: TimerfdClockId, first: Duration, interval: Duration) -> OwnedFd {
    let timer = timerfd_create(clock, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC).unwrap();
    arm(&timer, first, interval);
    timer
}

fn arm(timer: &OwnedFd, first: Duration, interval: Duration) {
    let time = |time: Duration| Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() };
    let setting = Itimerspec { it_interval: time(interval), it_value: time(first) };
    timerfd_settime(timer, TimerfdTimerFlags::empty(), &setting).unwrap();
}

const HOUR: Duration = Duration::from_secs(3600);

fn readable(descriptor: &OwnedFd) {
    let mut polled = [rustix::event::PollFd::new(descriptor, rustix::event::PollFlags::IN)];
    while rustix::event::poll(&mut polled, None).is_err() {}
}

fn timer_once(lives: Lives) {
    let timers = [TimerfdClockId::Monotonic, TimerfdClockId::Boottime, TimerfdClockId::Realtime];
    let timers = timers.map(|clock| timer(clock, HOUR, Duration::ZERO));
    let disarmed = timer(TimerfdClockId::Monotonic, Duration::ZERO, Duration::ZERO);
    lives.each(|_| {
        for timer in &timers {
            let left = timerfd_gettime(timer).unwrap();
            assert!((3500..=3600).contains(&left.it_value.tv_sec) && left.it_interval.tv_sec == 0, "{left:?}");
        }
        assert_eq!(timerfd_gettime(&disarmed).unwrap().it_value.tv_sec, 0);
    })
}

fn timer_periodic(lives: Lives) {
    let timer = timer(TimerfdClockId::Monotonic, HOUR, 2 * HOUR);
    lives.each(|_| {
        let left = timerfd_gettime(&timer).unwrap();
        assert!(left.it_value.tv_sec <= 3600 && left.it_interval.tv_sec == 7200, "{left:?}");
    })
}

fn timer_fast(lives: Lives) {
    let timer = timer(TimerfdClockId::Monotonic, Duration::from_micros(100), Duration::from_micros(100));
    lives.each(|_| {
        for _ in 0..10 {
            readable(&timer);
            assert!(counter(&timer).unwrap() > 0);
        }
    })
}

fn timer_unread(lives: Lives) {
    let timer = timer(TimerfdClockId::Monotonic, Duration::from_nanos(1), Duration::ZERO);
    lives.each(|_| {
        readable(&timer);
        assert_eq!(counter(&timer), Ok(1), "it has fired, and nobody has read that yet");
        arm(&timer, Duration::from_nanos(1), Duration::ZERO);
        readable(&timer);
    })
}

fn timer_alarm(lives: Lives) {
    match timerfd_create(TimerfdClockId::BoottimeAlarm, TimerfdFlags::CLOEXEC) {
        Ok(timer) => opened(lives, timer),
        Err(error) => not_here(&format!("no timers that wake the machine: {error}")),
    }
}

fn signalfd(lives: Lives) {
    let mask: u64 = 1 << (libc::SIGUSR1 - 1);
    let at = std::ptr::from_ref(&mask).expose_provenance();
    call(libc::SYS_rt_sigprocmask, [libc::SIG_BLOCK as usize, at, 0, 8]).unwrap();
    let signals = made(libc::SYS_signalfd4, [usize::MAX, at, 8, libc::SFD_NONBLOCK as usize]).unwrap();
    lives.each(|_| {
        let mut info = [0; 128];
        assert!(rustix::io::read(&signals, &mut info).is_err());
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::USR1).unwrap();
        assert_eq!(rustix::io::read(&signals, &mut info), Ok(128));
        assert_eq!(u32::from_ne_bytes(*info.first_chunk().unwrap()), libc::SIGUSR1 as u32);
    })
}

fn watch(instance: &OwnedFd, target: &impl std::os::fd::AsFd, data: u64, flags: epoll::EventFlags) {
    epoll::add(instance, target, epoll::EventData::new_u64(data), flags).unwrap();
}

fn ready(instance: &OwnedFd) -> Vec<u64> {
    let mut events = Vec::with_capacity(64);
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    epoll::wait(instance, rustix::buffer::spare_capacity(&mut events), Some(&now)).unwrap();
    let mut data: Vec<u64> = events.iter().map(|event| event.data.u64()).collect();
    data.sort_unstable();
    data
}

fn epolls(lives: Lives) {
    let instance = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let [quiet, level, edge] = [0, 1, 1].map(|count| eventfd(count, EventfdFlags::NONBLOCK).unwrap());
    watch(&instance, &quiet, 1, epoll::EventFlags::IN);
    watch(&instance, &level, u64::MAX, epoll::EventFlags::IN);
    watch(&instance, &edge, 3, epoll::EventFlags::IN | epoll::EventFlags::ET);
    lives.each(|life| {
        let expected: &[u64] = if life == Life::Copied { &[u64::MAX] } else { &[3, u64::MAX] };
        assert_eq!(ready(&instance), expected, "an edge is told once in each life");
        assert_eq!(ready(&instance), [u64::MAX]);
        assert_eq!(counter(&edge), Ok(1));
        rustix::io::write(&edge, &1_u64.to_ne_bytes()).unwrap();
        assert_eq!(ready(&instance), [3, u64::MAX]);
    })
}

fn epoll_nested(lives: Lives) {
    let [outer, inner] = [0; 2].map(|_| epoll::create(epoll::CreateFlags::CLOEXEC).unwrap());
    let event = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    watch(&outer, &inner, 1, epoll::EventFlags::IN);
    watch(&inner, &event, 2, epoll::EventFlags::IN);
    lives.each(|_| {
        assert!(ready(&outer).is_empty());
        rustix::io::write(&event, &1_u64.to_ne_bytes()).unwrap();
        assert_eq!((ready(&outer), ready(&inner)), (vec![1], vec![2]));
        counter(&event).unwrap();
    })
}

fn epoll_duplicates(lives: Lives) {
    let instance = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let again = instance.try_clone().unwrap();
    let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap();
    let closed = event.try_clone().unwrap();
    watch(&instance, &event, 1, epoll::EventFlags::IN);
    watch(&instance, &closed, 2, epoll::EventFlags::IN);
    drop(closed);
    lives.each(|_| {
        assert!(ready(&again).is_empty());
        rustix::io::write(&event, &1_u64.to_ne_bytes()).unwrap();
        assert_eq!((ready(&instance), ready(&again)), (vec![1, 2], vec![1, 2]));
        counter(&event).unwrap();
    })
}

fn inotify(lives: Lives) {
    let flags = rustix::fs::inotify::CreateFlags::CLOEXEC | rustix::fs::inotify::CreateFlags::NONBLOCK;
    let instance = rustix::fs::inotify::init(flags).unwrap();
    rustix::fs::inotify::add_watch(&instance, ".", rustix::fs::inotify::WatchFlags::CREATE).unwrap();
    opened(lives, instance)
}

fn pidfd_self(lives: Lives) {
    let process = rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty()).unwrap();
    lives.each(|_| {
        rustix::process::pidfd_send_signal(&process, rustix::process::Signal::CONT).unwrap();
        let pid = field(&format!("/proc/self/fdinfo/{}", process.as_raw_fd()), "Pid");
        assert_eq!(pid, std::process::id().to_string(), "this life's own");
    })
}

fn pidfd_child(lives: Lives) {
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let id = rustix::process::Pid::from_child(&child);
    let process = rustix::process::pidfd_open(id, rustix::process::PidfdFlags::empty()).unwrap();
    child.wait().unwrap();
    opened(lives, process)
}

fn terminal_pair(lives: Lives) {
    let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY | rustix::pty::OpenptFlags::CLOEXEC;
    match rustix::pty::openpt(flags) {
        Ok(controller) => opened(lives, controller),
        Err(error) => not_here(&format!("no pseudo-terminals: {error}")),
    }
}

fn io_uring(lives: Lives) {
    let mut parameters = [0_u64; 15];
    kernel_object(lives, libc::SYS_io_uring_setup, [4, parameters.as_mut_ptr().expose_provenance(), 0])
}

fn many(lives: Lives, count: usize) {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if limit.maximum.is_some_and(|maximum| maximum < count as u64 + 100) {
        not_here("this user may not have as many");
    }
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    let instance = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let events: Vec<OwnedFd> = (0..count as u32 / 2)
        .flat_map(|at| {
            let event = eventfd(at + 1, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap();
            watch(&instance, &event, at.into(), epoll::EventFlags::OUT | epoll::EventFlags::ET);
            [event.as_fd().try_clone_to_owned().unwrap(), event]
        })
        .collect();
    lives.each(|_| {
        for (at, pair) in events.chunks(2).enumerate() {
            let value = at as u64 + 1;
            assert_eq!((counter(&pair[0]), counter(&pair[1])), (Ok(value), Err(rustix::io::Errno::AGAIN)));
            rustix::io::write(&pair[1], &value.to_ne_bytes()).unwrap();
        }
    })
}
