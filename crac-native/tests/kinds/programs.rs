//! The programs: each sets something up, is captured, and checks in its next life that all is as it was.
#![allow(unsafe_code, reason = "descriptors that no crate offers")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd as _, OwnedFd, RawFd},
        unix::{
            fs::PermissionsExt as _,
            net::{SocketAddr, UnixDatagram, UnixListener, UnixStream},
        },
    },
    path::PathBuf,
};

use crac_core::{CaptureRequest, Captured, Engine as _, EngineError, ImageId, ImageMetadata, Mode, Policy};
use crac_native::NativeEngine;
use crac_sys::proc::FdInfo;
use rustix::{
    event::{EventfdFlags, epoll},
    net::{AddressFamily, SocketFlags, SocketType},
    time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec},
};

pub(super) fn run(name: &str) {
    let program = PROGRAMS.iter().find(|(known, _)| *known == name).expect("a program of that name");
    (program.1)();
    println!("all as it was");
}

type Program = fn();

pub(super) const PROGRAMS: &[(&str, Program)] = &[
    ("events", events),
    ("registrations", registrations),
    ("files", files),
    ("pairs", pairs),
    ("listeners", listeners),
    ("datagrams", datagrams),
    ("severed", severed),
    ("many", many),
    ("streams", streams),
    ("one_refusal", one_refusal),
    ("one_port", one_port),
    ("one_path", one_path),
    ("one_file", one_file),
];

/// Captures this process and returns in the life after the next: what was restored is captured and restored again.
/// What cannot be saved is printed, and ends the program.
fn next_life(policy: &str) {
    let policy: Policy = policy.parse().expect("a policy");
    let image = PathBuf::from(std::env::var_os("CRAC_TEST_IMAGE").expect("an image path"));
    capture(&policy, image.with_extension("first"), 0);
    capture(&policy, image, 1);
}

fn capture(policy: &Policy, image: PathBuf, generation: u64) {
    let before = table();
    let metadata = ImageMetadata::new("test", ImageId([7 + generation as u8; 16]), generation, None);
    let switch = |name: &str| std::env::var_os(name).is_none();
    let engine = NativeEngine::new().with_kcmp(switch("CRAC_TEST_NO_KCMP")).with_duplicate_query(switch("CRAC_TEST_NO_QUERY"));
    match engine.capture(CaptureRequest::new(image, Mode::Exit, metadata, policy)) {
        Ok(Captured::Restored(_)) => assert_eq!(table(), before, "numbers and flags"),
        Ok(Captured::Original(_) | Captured::Underway(_)) => panic!("the original goes on"),
        Err(EngineError::Refused(obstacles)) => panic!("{}", obstacles.iter().map(|o| format!("{o}\n")).collect::<String>()),
        Err(error) => panic!("{error}"),
    }
}

/// Every open descriptor but the standard streams: close-on-exec flag and status flags.
fn table() -> BTreeMap<RawFd, (usize, usize)> {
    let numbers: Vec<RawFd> = fs::read_dir("/proc/self/fd")
        .expect("/proc")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|number| *number > 2)
        .collect();
    let flag = |number, command| crac_sys::fs::fcntl(number, command, 0);
    // The listing's own descriptor is closed by now.
    numbers
        .into_iter()
        .filter_map(|number| Some((number, (flag(number, libc::F_GETFD).ok()?, flag(number, libc::F_GETFL).ok()?))))
        .collect()
}

fn eventfd(count: u32, flags: EventfdFlags) -> OwnedFd {
    rustix::event::eventfd(count, flags).expect("eventfd")
}

fn watch(epoll: &OwnedFd, target: &impl AsFd, data: u64, flags: epoll::EventFlags) {
    epoll::add(epoll, target, epoll::EventData::new_u64(data), flags).expect("epoll_ctl");
}

fn info(descriptor: &impl AsRawFd) -> Vec<u8> {
    fs::read(format!("/proc/self/fdinfo/{}", descriptor.as_raw_fd())).expect("fdinfo")
}

/// Number, events and data of every registration.
fn watched(epoll: &OwnedFd) -> Vec<(i32, u32, u64)> {
    let text = info(epoll);
    let mut targets: Vec<_> =
        FdInfo::parse(&text).expect("fdinfo").epoll_targets().map(|target| (target.fd, target.events, target.data)).collect();
    targets.sort_unstable();
    targets
}

fn ready(epoll: &OwnedFd) -> Vec<u64> {
    let mut events = Vec::with_capacity(64);
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    epoll::wait(epoll, rustix::buffer::spare_capacity(&mut events), Some(&now)).expect("epoll_wait");
    let mut data: Vec<u64> = events.iter().map(|event| event.data.u64()).collect();
    data.sort_unstable();
    data
}

fn events() {
    let plain = eventfd(5, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC);
    let semaphore = eventfd(3, EventfdFlags::SEMAPHORE | EventfdFlags::NONBLOCK);
    let large = eventfd(0, EventfdFlags::NONBLOCK);
    rustix::io::write(&large, &(u64::MAX - 1).to_ne_bytes()).expect("write");
    let number = |descriptor: &OwnedFd| {
        let mut value = [0; 8];
        rustix::io::read(descriptor, &mut value).map(|_| u64::from_ne_bytes(value))
    };

    let timer = |clock, first, interval| {
        let timer = rustix::time::timerfd_create(clock, TimerfdFlags::NONBLOCK).expect("timerfd");
        let time = |milliseconds: i64| Timespec { tv_sec: milliseconds / 1000, tv_nsec: milliseconds % 1000 * 1_000_000 };
        let setting = Itimerspec { it_interval: time(interval), it_value: time(first) };
        rustix::time::timerfd_settime(&timer, TimerfdTimerFlags::empty(), &setting).expect("timerfd_settime");
        timer
    };
    let far = timer(TimerfdClockId::Monotonic, 3_600_000, 0);
    let ticking = timer(TimerfdClockId::Boottime, 1, 3_600_000);
    let disarmed = timer(TimerfdClockId::Realtime, 0, 0);
    // Expired, and nobody has read it.
    let mut polled = [rustix::event::PollFd::new(&ticking, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut polled, None).expect("poll");

    let mask: u64 = 1 << (libc::SIGUSR1 - 1);
    let signals = made(libc::SYS_signalfd4, [usize::MAX, &raw const mask as usize, 8]).expect("signalfd");

    next_life("");

    assert_eq!(number(&plain), Ok(5));
    assert_eq!([number(&semaphore), number(&semaphore)], [Ok(1), Ok(1)]);
    assert_eq!(number(&large), Ok(u64::MAX - 1));
    let left = rustix::time::timerfd_gettime(&far).expect("timerfd_gettime");
    assert!((3_000..=3_600).contains(&left.it_value.tv_sec), "{left:?}");
    let left = rustix::time::timerfd_gettime(&ticking).expect("timerfd_gettime");
    assert_eq!(left.it_interval.tv_sec, 3_600);
    assert_eq!(number(&ticking), Ok(1), "the expiration is still there to be read");
    assert_eq!(number(&disarmed).map_err(|errno| errno.raw_os_error()), Err(libc::EAGAIN));
    let text = info(&signals);
    assert_eq!(FdInfo::parse(&text).expect("fdinfo").signalfd_mask, Some(mask));
}

fn made(number: libc::c_long, args: [usize; 3]) -> Option<OwnedFd> {
    // SAFETY: the programs only name calls that make a descriptor, of values and of buffers that live.
    let made = unsafe { crac_sys::syscall(number, [args[0], args[1], args[2], 0, 0, 0]) }.ok()?;
    // SAFETY: it has just been made.
    Some(unsafe { OwnedFd::from_raw_fd(made as i32) })
}

/// Kernel state that cannot be read back: refused by name, and this life goes on.
fn one_refusal() {
    let mut parameters = [0_u64; 15];
    let calls = [
        ("io-uring", libc::SYS_io_uring_setup, [4, parameters.as_mut_ptr() as usize, 0]),
        ("inotify", libc::SYS_fanotify_init, [0; 3]),
        ("descriptor-other", libc::SYS_userfaultfd, [1, 0, 0]),
    ];
    // Some are forbidden to nobody, and in containers.
    let opened: Vec<_> = calls.into_iter().filter_map(|(kind, number, args)| Some((kind, made(number, args)?))).collect();
    println!("{} of {} could be opened", opened.len(), calls.len());
    let image = PathBuf::from(std::env::var_os("CRAC_TEST_IMAGE").expect("an image path"));
    let metadata = ImageMetadata::new("test", ImageId([7; 16]), 0, None);
    let mode = if opened.is_empty() { Mode::Rehearse } else { Mode::Exit };
    let refused = match NativeEngine::new().capture(CaptureRequest::new(image.clone(), mode, metadata, &Policy::new())) {
        Err(EngineError::Refused(obstacles)) => obstacles,
        Ok(Captured::Original(_)) if opened.is_empty() => Vec::new(),
        other => panic!("{other:?}"),
    };
    for (kind, descriptor) in &opened {
        let start = format!("fd {},", descriptor.as_raw_fd());
        let named = refused.iter().any(|obstacle| obstacle.kind.id() == *kind && obstacle.subject.starts_with(&start));
        assert!(named, "{kind} {start} {refused:?}");
    }
    assert!(!image.exists(), "nothing was written");
}

fn registrations() {
    use epoll::EventFlags as E;
    let instance = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
    let duplicate = instance.try_clone().expect("dup");
    let waker = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC);
    watch(&duplicate, &waker, 0x5653_74e5_2490, E::IN | E::ET);
    let (mut left, right) = UnixStream::pair().expect("socketpair");
    let right_again = right.try_clone().expect("dup");
    watch(&instance, &right_again, u64::MAX, E::IN | E::RDHUP | E::ET);
    // Registered, then closed: lives on under the number of the duplicate.
    let closed = right.try_clone().expect("dup");
    watch(&instance, &closed, 3, E::IN);
    let stale = closed.as_raw_fd();
    drop(closed);
    // Registered, closed, and the number is somebody else's.
    let newcomer = eventfd(1, EventfdFlags::CLOEXEC);
    assert_eq!(newcomer.as_raw_fd(), stale);
    watch(&instance, &newcomer, 4, E::IN);
    let far = rustix::io::fcntl_dupfd_cloexec(&right, 100).expect("dup");
    watch(&instance, &far, 5, E::IN);
    drop(far);
    let outer = epoll::create(epoll::CreateFlags::empty()).expect("epoll");
    watch(&outer, &instance, 6, E::IN);
    let once = eventfd(1, EventfdFlags::empty());
    watch(&instance, &once, 7, E::IN | E::ONESHOT);
    let (before, outer_before) = (watched(&instance), watched(&outer));
    assert_eq!(before.len(), 6);

    next_life("");

    assert_eq!((watched(&instance), watched(&outer)), (before.clone(), outer_before));
    assert_eq!(watched(&duplicate), before, "the duplicate is the same instance");
    assert_eq!(ready(&instance), [4, 7]);
    left.write_all(b"x").expect("write");
    assert_eq!(ready(&instance), [3, 4, 5, u64::MAX], "each registration of the pair hears of it, the one-shot is over");
    assert_eq!(ready(&outer), [6]);
    rustix::io::write(&waker, &1_u64.to_ne_bytes()).expect("write");
    assert!(ready(&duplicate).contains(&0x5653_74e5_2490));
}

fn files() {
    let directory = std::env::current_dir().expect("a working directory");
    let path = directory.join("file");
    fs::write(&path, b"0123456789").expect("write");
    let mut read = File::open(&path).expect("open");
    read.seek(SeekFrom::Start(4)).expect("seek");
    let same = read.try_clone().expect("dup");
    let mut appended = File::options().append(true).create(true).open(directory.join("log")).expect("open");
    appended.write_all(b"first\n").expect("write");
    let mut written = File::options().read(true).write(true).open(&path).expect("open");
    written.seek(SeekFrom::Start(9)).expect("seek");
    let folder = File::open(&directory).expect("open");
    let (mut zero, null) = (File::open("/dev/zero").expect("open"), File::open("/dev/null").expect("open"));
    let mut stat = File::open("/proc/self/stat").expect("open");
    let inherited = crac_sys::fs::fcntl(null.as_raw_fd(), libc::F_DUPFD, 60).expect("dup");
    assert_eq!(inherited, 60);

    next_life("file-writable = reopen");

    let mut text = [0; 3];
    read.read_exact(&mut text).expect("read");
    assert_eq!(&text, b"456");
    (&same).read_exact(&mut text).expect("read");
    assert_eq!(&text, b"789", "duplicates share the offset");
    appended.write_all(b"second\n").expect("write");
    assert_eq!(fs::read(directory.join("log")).expect("read"), b"first\nsecond\n");
    written.write_all(b"X").expect("write");
    assert_eq!(fs::read(&path).expect("read"), b"012345678X");
    assert!(folder.metadata().expect("stat").is_dir());
    zero.read_exact(&mut text).expect("read");
    assert_eq!((text, null.metadata().expect("stat").len()), ([0; 3], 0));
    let mut own = String::new();
    stat.read_to_string(&mut own).expect("read");
    assert!(own.starts_with(&std::process::id().to_string()), "this life's own file: {own}");
}

fn pairs() {
    let (mut left, mut right) = UnixStream::pair().expect("socketpair");
    left.write_all(b"to right").expect("write");
    right.write_all(b"to left").expect("write");
    left.shutdown(std::net::Shutdown::Write).expect("shutdown");
    left.set_read_timeout(Some(std::time::Duration::from_secs(7))).expect("timeout");
    let (first, second) = UnixDatagram::pair().expect("socketpair");
    for message in [&b"one"[..], b"twotwo", b"3"] {
        first.send(message).expect("send");
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (packets, other) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("socketpair");
    rustix::io::write(&packets, b"packet").expect("write");
    rustix::io::write(&packets, b"another").expect("write");
    let (mut dying, mut survivor) = UnixStream::pair().expect("socketpair");
    dying.write_all(b"last words").expect("write");
    drop(dying);

    let (mut reader, mut writer) = std::io::pipe().expect("pipe");
    let filling = vec![b'p'; 100_000];
    crac_sys::fs::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, 131_072).expect("F_SETPIPE_SZ");
    writer.write_all(&filling).expect("write");
    let writer_again = writer.try_clone().expect("dup");
    let (mut ended, closing) = std::io::pipe().expect("pipe");
    (&closing).write_all(b"rest").expect("write");
    drop(closing);

    next_life("");

    let mut text = Vec::new();
    right.read_to_end(&mut text).expect("read");
    assert_eq!(text, b"to right", "and the end, as the sender has shut down");
    let mut some = [0; 64];
    let len = left.read(&mut some).expect("read");
    assert_eq!(&some[..len], b"to left");
    assert_eq!(left.read_timeout().expect("timeout"), Some(std::time::Duration::from_secs(7)));
    for message in [&b"one"[..], b"twotwo", b"3"] {
        let len = second.recv(&mut some).expect("recv");
        assert_eq!(&some[..len], message);
    }
    for message in [&b"packet"[..], b"another"] {
        let len = rustix::io::read(&other, &mut some).expect("read");
        assert_eq!(&some[..len], message);
    }
    text.clear();
    survivor.read_to_end(&mut text).expect("read");
    assert_eq!(text, b"last words");
    assert!(survivor.write_all(b"x").is_err());
    drop((writer, writer_again));
    text.clear();
    reader.read_to_end(&mut text).expect("read");
    assert!(text == filling, "{} bytes", text.len());
    text.clear();
    ended.read_to_end(&mut text).expect("read");
    assert_eq!(text, b"rest");
}

fn listeners() {
    use std::os::linux::net::SocketAddrExt as _;
    let four = TcpListener::bind("127.0.0.1:0").expect("bind");
    let six = TcpListener::bind("[::1]:0").map_err(|error| println!("skipped: the IPv6 part of listeners: {error}")).ok();
    rustix::net::sockopt::set_tcp_nodelay(&four, true).expect("option");
    rustix::net::sockopt::set_socket_keepalive(&four, true).expect("option");
    rustix::net::sockopt::set_socket_recv_buffer_size(&four, 50_000).expect("option");
    rustix::net::sockopt::set_socket_reuseport(&four, true).expect("option");
    four.set_nonblocking(true).expect("nonblocking");
    let buffer = rustix::net::sockopt::socket_recv_buffer_size(&four);
    let path = std::env::current_dir().expect("a working directory").join("socket");
    let named = UnixListener::bind(&path).expect("bind");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o751)).expect("chmod");
    let name = format!("crac-test-{}", std::process::id());
    let abstract_name = SocketAddr::from_abstract_name(&name).expect("a name");
    let nameless = UnixListener::bind_addr(&abstract_name).expect("bind");
    let addresses: Vec<_> = std::iter::once(&four).chain(&six).map(|listener| listener.local_addr().expect("bound")).collect();
    let backlog = queue_length(&four);

    next_life("");

    four.set_nonblocking(false).expect("nonblocking");
    for (listener, address) in std::iter::once(&four).chain(&six).zip(addresses) {
        assert_eq!(listener.local_addr().expect("bound"), address);
        let mut client = TcpStream::connect(address).expect("connect");
        client.write_all(b"hello").expect("write");
        let mut text = [0; 5];
        listener.accept().expect("accept").0.read_exact(&mut text).expect("read");
        assert_eq!(&text, b"hello");
    }
    use rustix::net::sockopt;
    assert_eq!(sockopt::tcp_nodelay(&four), Ok(true));
    assert_eq!(sockopt::socket_keepalive(&four), Ok(true));
    assert_eq!(sockopt::socket_reuseport(&four), Ok(true));
    assert_eq!(sockopt::socket_recv_buffer_size(&four), buffer);
    assert_eq!(queue_length(&four), backlog);
    let _connected = UnixStream::connect(&path).expect("connect");
    named.accept().expect("accept");
    assert_eq!(fs::metadata(&path).expect("stat").permissions().mode() & 0o7777, 0o751);
    let _connected = UnixStream::connect_addr(&abstract_name).expect("connect");
    nameless.accept().expect("accept");
}

/// Length of the accept queue, from `tcp_info`.
fn queue_length(listener: &TcpListener) -> u32 {
    let mut info = [0; 32];
    crac_sys::socket::option(listener.as_raw_fd(), crac_sys::socket::OptionName::TCP_INFO, &mut info).expect("TCP_INFO");
    u32::from_ne_bytes([info[28], info[29], info[30], info[31]])
}

fn datagrams() {
    let server = UdpSocket::bind("127.0.0.1:0").expect("bind");
    server.set_broadcast(true).expect("option");
    server.set_ttl(33).expect("option");
    let client = UdpSocket::bind("127.0.0.1:0").expect("bind");
    client.connect(server.local_addr().expect("bound")).expect("connect");
    let address = (server.local_addr().expect("bound"), client.local_addr().expect("bound"));
    let path = std::env::current_dir().expect("a working directory").join("datagrams");
    let log = UnixDatagram::bind(&path).expect("bind");
    let sender = UnixDatagram::unbound().expect("socket");
    sender.connect(&path).expect("connect");
    let absent = UnixDatagram::unbound().expect("socket");
    let gone = path.with_extension("gone");
    let listener = UnixDatagram::bind(&gone).expect("bind");
    absent.connect(&gone).expect("connect");
    drop(listener);
    fs::remove_file(&gone).expect("remove");

    next_life("");

    assert_eq!((server.local_addr().expect("bound"), client.local_addr().expect("bound")), address);
    assert!(server.broadcast().expect("option"));
    assert_eq!(server.ttl().expect("option"), 33);
    client.send(b"ping").expect("send");
    let mut text = [0; 16];
    let (len, from) = server.recv_from(&mut text).expect("recv");
    assert_eq!((&text[..len], from), (&b"ping"[..], address.1));
    sender.send(b"logged").expect("send");
    let len = log.recv(&mut text).expect("recv");
    assert_eq!(&text[..len], b"logged");
    assert!(absent.send(b"x").is_err(), "nobody is there");
}

fn severed() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("bound");
    let instance = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
    let connections: Vec<_> = (0..100)
        .map(|at| {
            let client = TcpStream::connect(address).expect("connect");
            let server = listener.accept().expect("accept").0;
            client.set_nonblocking(at % 2 == 0).expect("nonblocking");
            watch(&instance, &client, at, epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET);
            (client, server)
        })
        .collect();
    assert!(ready(&instance).is_empty());

    next_life("tcp-established = sever");

    assert!(ready(&instance).len() >= 64, "every one of them is told");
    for (mut client, mut server) in connections {
        assert_eq!(client.read(&mut [0; 8]).expect("read"), 0);
        assert_eq!(server.write(b"x").expect_err("written").kind(), std::io::ErrorKind::BrokenPipe);
    }
    let _fresh = TcpStream::connect(address).expect("connect");
    listener.accept().expect("accept");
}

fn many() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let maximum = limit.maximum.unwrap_or(20_000);
    let raised = rustix::process::Rlimit { current: Some(maximum), maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).expect("setrlimit");
    let count = maximum.saturating_sub(100).min(10_000);
    println!("{count} descriptors");
    let instance = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
    let mut events = Vec::new();
    for at in 0..count as u32 / 2 {
        let event = eventfd(at, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC);
        watch(&instance, &event, u64::from(at) << 32 | 0x1234, epoll::EventFlags::OUT | epoll::EventFlags::ET);
        events.push((event.try_clone().expect("dup"), event));
    }
    let before = watched(&instance);

    next_life("");

    assert_eq!(watched(&instance), before);
    for (at, (duplicate, event)) in events.iter().enumerate().skip(1) {
        let mut value = [0; 8];
        rustix::io::read(duplicate, &mut value).expect("read");
        assert_eq!(u64::from_ne_bytes(value), at as u64);
        assert!(rustix::io::read(event, &mut value).is_err(), "the duplicate has taken it");
    }
}

/// Standard output and a duplicate of it are those of whoever restores.
fn streams() {
    let duplicate = std::io::stdout().as_fd().try_clone_to_owned().expect("dup");
    let instance = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
    if epoll::add(&instance, std::io::stdin(), epoll::EventData::new_u64(1), epoll::EventFlags::IN).is_err() {
        println!("standard input cannot be watched");
    }
    println!("before");
    next_life("");
    println!("after");
    File::from(duplicate).write_all(b"through the duplicate\n").expect("write");
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).expect("read");
    print!("{text}");
}

/// Listens, says where, and is captured; the driver makes trouble.
fn one_port() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    println!("{}", listener.local_addr().expect("bound"));
    next_life("");
    TcpStream::connect(listener.local_addr().expect("bound")).expect("connect");
}

fn one_path() {
    let path = std::env::current_dir().expect("a working directory").join("path");
    let _listener = UnixListener::bind(&path).expect("bind");
    next_life("");
    UnixStream::connect(&path).expect("connect");
    println!("listening");
    std::io::stdin().read_to_string(&mut String::new()).expect("read");
}

fn one_file() {
    let mut file = File::open(std::env::current_dir().expect("a working directory").join("config")).expect("open");
    file.seek(SeekFrom::Start(2)).expect("seek");
    next_life("");
    let mut text = String::new();
    file.read_to_string(&mut text).expect("read");
    assert_eq!(text, "me=value\n");
}
