//! The survey against real descriptors. Each test has a process to itself, as the engine has a stopped one.

use std::{
    fs::File,
    io::Write as _,
    net::{TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::{UnixDatagram, UnixListener, UnixStream},
    },
    process::Command,
};

use rustix::{
    event::{EventfdFlags, epoll},
    net::{AddressFamily, SocketType},
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

use super::*;
use crate::layout::descriptors::{self as layout, Detail, SocketOption, find, kind, sequence, sound};

/// Runs `body` in a process of its own, in which no other test opens or closes descriptors.
fn alone(name: &str, body: impl FnOnce()) {
    const VARIABLE: &str = "CRAC_NATIVE_TEST_ALONE";
    if std::env::var(VARIABLE).is_ok_and(|alone| alone == name) {
        return body();
    }
    let path = format!("descriptors::tests::{name}");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &path, "--test-threads=1", "--nocapture"])
        .env(VARIABLE, name)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

struct Surveyed<'a> {
    table: DescriptorTable<'a>,
    obstacles: Vec<String>,
}

impl Surveyed<'_> {
    fn kind(&self, descriptor: &impl AsRawFd) -> u32 {
        find(&self.table.records, descriptor.as_raw_fd()).map_or(0, |record| record.kind)
    }

    fn detail<D: Detail>(&self, descriptor: &impl AsRawFd) -> D {
        find(&self.table.records, descriptor.as_raw_fd()).unwrap().detail(&self.table.blob).unwrap()
    }

    fn bytes(&self, span: layout::Span) -> &[u8] {
        span.of(&self.table.blob).unwrap()
    }
}

fn survey_with<'a>(arena: &'a Arena, policy: &str, own: &[i32]) -> Surveyed<'a> {
    let policy = policy.parse().unwrap();
    let mut obstacles = ObstacleSink::new(arena);
    let survey = Survey { arena, own, policy: &policy, is_copied: false, duplicate_query: true, kcmp: true };
    let table = super::survey(&survey, &mut obstacles).unwrap();
    let obstacles: Vec<_> = obstacles.into_obstacles().iter().map(|o| format!("{} {}", o.kind, o.subject)).collect();
    if obstacles.is_empty() {
        assert!(sound(&table.records, &table.blob), "{:?}", table.records);
    }
    Surveyed { table, obstacles }
}

#[test]
fn every_way_finds_the_same_duplicates() {
    alone("every_way_finds_the_same_duplicates", || {
        let file = File::open("/proc/self/exe").unwrap();
        let same = file.try_clone().unwrap();
        let again = File::open("/proc/self/exe").unwrap();
        let (left, _right) = UnixStream::pair().unwrap();
        let left_again = left.try_clone().unwrap();
        let events = [eventfd(3), eventfd(3)];
        let event_again = events[1].try_clone().unwrap();
        for (duplicate_query, kcmp) in [(true, true), (false, true), (false, false)] {
            let arena = Arena::new().unwrap();
            let survey = Survey { arena: &arena, own: &[], policy: &Policy::new(), is_copied: false, duplicate_query, kcmp };
            let facts = observe::observe(&survey).unwrap();
            let original = |fd: i32| facts.iter().find(|fact| fact.number == fd).unwrap().original;
            assert_eq!(original(same.as_raw_fd()), file.as_raw_fd());
            assert_eq!(original(again.as_raw_fd()), again.as_raw_fd());
            assert_eq!(original(left_again.as_raw_fd()), left.as_raw_fd());
            assert_eq!(original(events[1].as_raw_fd()), events[1].as_raw_fd());
            assert_eq!(original(event_again.as_raw_fd()), events[1].as_raw_fd());
        }
        assert_eq!(crac_sys::fs::fcntl(file.as_raw_fd(), libc::F_GETFL, 0).unwrap() as i32 & libc::O_NONBLOCK, 0);
    });
}

#[test]
fn epoll_registrations_are_traced_through_closed_numbers() {
    alone("epoll_registrations_are_traced_through_closed_numbers", || {
        let epoll = epoll();
        let (left, right) = UnixStream::pair().unwrap();
        let duplicate = left.try_clone().unwrap();
        watch(&epoll, &duplicate, 0xdead_beef_0000_0001);
        let stale = duplicate.as_raw_fd();
        drop(duplicate);
        let event = eventfd(0);
        watch(&epoll, &event, 2);
        let own = eventfd(0);
        watch(&epoll, &own, 3);
        // The epoll instance also watches one that is closed while its number is somebody else's.
        let lost = right.try_clone().unwrap();
        watch(&epoll, &lost, 4);
        let reused = lost.as_raw_fd();
        drop(lost);
        let newcomer = File::open("/dev/null").unwrap();
        assert_eq!((event.as_raw_fd(), newcomer.as_raw_fd()), (stale, reused), "both numbers are somebody else's now");
        // One is closed and stays closed.
        let duplicate = rustix::io::fcntl_dupfd_cloexec(&left, 50).unwrap();
        watch(&epoll, &duplicate, 5);
        let closed = duplicate.as_raw_fd();
        drop(duplicate);

        let arena = Arena::new().unwrap();
        let surveyed = survey_with(&arena, "", &[own.as_raw_fd()]);
        assert_eq!(surveyed.obstacles, [""; 0]);
        let detail: layout::Epoll = surveyed.detail(&epoll);
        let mut targets: Vec<_> =
            sequence::<layout::EpollTarget>(detail.targets, &surveyed.table.blob).map(|t| (t.data, t.number, t.source)).collect();
        targets.sort_unstable();
        let expected = [
            (2, event.as_raw_fd(), event.as_raw_fd()),
            (4, reused, right.as_raw_fd()),
            (5, closed, left.as_raw_fd()),
            (0xdead_beef_0000_0001, stale, left.as_raw_fd()),
        ];
        assert_eq!(targets, expected);
        assert_eq!(surveyed.kind(&own), 0, "absent in the restored life");
    });
}

#[test]
fn in_process_pairs_keep_what_is_on_its_way() {
    alone("in_process_pairs_keep_what_is_on_its_way", || {
        let (mut left, right) = UnixStream::pair().unwrap();
        left.write_all(b"one").unwrap();
        left.write_all(b"two").unwrap();
        left.shutdown(std::net::Shutdown::Write).unwrap();
        let (first, second) = UnixDatagram::pair().unwrap();
        first.send(b"message one").unwrap();
        first.send(b"2").unwrap();
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"piped").unwrap();
        let (mut dying, survivor) = UnixStream::pair().unwrap();
        dying.write_all(b"last words").unwrap();
        drop(dying);

        let arena = Arena::new().unwrap();
        let surveyed = survey_with(&arena, "", &[]);
        assert_eq!(surveyed.obstacles, [""; 0]);
        let messages = |span| {
            sequence::<layout::Message>(span, &surveyed.table.blob)
                .map(|m| surveyed.bytes(m.content).to_vec())
                .collect::<Vec<_>>()
        };
        let pair: layout::SocketPair = surveyed.detail(&left);
        assert_eq!((pair.partner, pair.shutdown, pair.partner_shutdown), (right.as_raw_fd(), 2, 1));
        assert_eq!(messages(pair.outbound), [b"onetwo"]);
        assert_eq!(surveyed.kind(&right), kind::PARTNER);
        let pair: layout::SocketPair = surveyed.detail(&first);
        assert_eq!(messages(pair.outbound), [&b"message one"[..], b"2"]);
        let pipe: layout::Pipe = surveyed.detail(&reader);
        assert_eq!((pipe.partner, surveyed.bytes(pipe.content)), (writer.as_raw_fd(), &b"piped"[..]));
        assert_eq!(surveyed.kind(&writer), kind::PARTNER);
        let alone: layout::SocketPair = surveyed.detail(&survivor);
        assert_eq!((alone.partner, messages(alone.inbound)), (-1, vec![b"last words".to_vec()]));

        // Looking has taken nothing.
        let mut buffer = [0; 32];
        assert_eq!(std::io::Read::read(&mut &right, &mut buffer).unwrap(), 6);
        assert_eq!(second.recv(&mut buffer).unwrap(), 11);
        assert_eq!(std::io::Read::read(&mut &reader, &mut buffer).unwrap(), 5);
    });
}

#[test]
fn a_pipe_to_another_process_is_refused_unless_it_was_inherited() {
    alone("a_pipe_to_another_process_is_refused_unless_it_was_inherited", || {
        let mut child =
            Command::new("cat").stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null()).spawn().unwrap();
        let pipe = child.stdin.take().unwrap();
        let arena = Arena::new().unwrap();
        let surveyed = survey_with(&arena, "", &[]);
        let found = surveyed.obstacles.join("; ");
        assert!(found.starts_with(&format!("pipe-foreign fd {}, pipe:[", pipe.as_raw_fd())), "{found}");
        let surveyed = survey_with(&arena, "pipe-foreign = sever", &[]);
        assert_eq!(surveyed.detail::<layout::Pipe>(&pipe).partner, -1);
        // What was inherited has no close-on-exec flag, or it would not have been inherited.
        crac_sys::fs::fcntl(pipe.as_raw_fd(), libc::F_SETFD, 0).unwrap();
        let surveyed = survey_with(&arena, "", &[]);
        assert_eq!(surveyed.obstacles, [""; 0]);
        assert_eq!(surveyed.detail::<layout::Pipe>(&pipe).partner, -1);
        drop(pipe);
        child.wait().unwrap();
    });
}

#[test]
fn listeners_and_datagram_sockets_are_described() {
    alone("listeners_and_datagram_sockets_are_described", || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        udp.set_broadcast(true).unwrap();
        let connected = UdpSocket::bind("127.0.0.1:0").unwrap();
        connected.connect(udp.local_addr().unwrap()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let unix = UnixListener::bind(&path).unwrap();

        let arena = Arena::new().unwrap();
        let surveyed = survey_with(&arena, "", &[]);
        assert_eq!(surveyed.obstacles, [""; 0]);
        let socket: layout::Socket = surveyed.detail(&listener);
        assert_eq!(surveyed.bytes(socket.name), address.to_string().as_bytes());
        // std asks for a queue of 4096 or 128, by version; the kernel clips it.
        assert!((1..=4096).contains(&socket.backlog), "{}", socket.backlog);
        let options: Vec<_> = sequence::<SocketOption>(socket.options, &surveyed.table.blob).map(|o| (o.level, o.name)).collect();
        assert_eq!(options, [(libc::SOL_SOCKET, libc::SO_REUSEADDR)]);
        let socket: layout::Socket = surveyed.detail(&udp);
        let options: Vec<_> = sequence::<SocketOption>(socket.options, &surveyed.table.blob).map(|o| (o.level, o.name)).collect();
        assert_eq!((options, socket.peer.len), (vec![(libc::SOL_SOCKET, libc::SO_BROADCAST)], 0));
        let socket: layout::Socket = surveyed.detail(&connected);
        assert_eq!(facts::Address(surveyed.bytes(socket.peer)).internet(), Some(udp.local_addr().unwrap()));
        let socket: layout::Socket = surveyed.detail(&unix);
        assert_eq!(facts::Address(surveyed.bytes(socket.local)).path(), Some(path.to_str().unwrap().as_bytes()));
        assert_eq!(socket.file_mode & libc::S_IFMT, libc::S_IFSOCK);
        assert!(socket.backlog > 0);

        // Another file under its name: nobody could connect any more, and nothing can be bound over it.
        std::fs::remove_file(&path).unwrap();
        let _impostor = UnixListener::bind(&path).unwrap();
        let surveyed = survey_with(&arena, "", &[]);
        assert!(surveyed.obstacles.iter().any(|text| text.starts_with("unix-listener") && text.contains("removed or replaced")));
    });
}

#[test]
fn connections_are_refused_by_name_or_severed_by_policy() {
    alone("connections_are_refused_by_name_or_severed_by_policy", || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let clients: Vec<_> = (0..3).map(|_| TcpStream::connect(listener.local_addr().unwrap()).unwrap()).collect();
        let _accepted: Vec<_> = (0..3).map(|_| listener.accept().unwrap()).collect();
        let arena = Arena::new().unwrap();
        let surveyed = survey_with(&arena, "", &[]);
        assert_eq!(surveyed.obstacles.len(), 6, "{:?}", surveyed.obstacles);
        let expected = format!(
            "tcp-established fd {}, TCP {} -> {}, ESTABLISHED",
            clients[0].as_raw_fd(),
            clients[0].local_addr().unwrap(),
            clients[0].peer_addr().unwrap()
        );
        assert!(surveyed.obstacles.contains(&expected), "{:?}", surveyed.obstacles);

        let surveyed = survey_with(&arena, "tcp-established:127.0.0.1:* = sever", &[]);
        assert_eq!(surveyed.obstacles, [""; 0]);
        let first: layout::SocketPair = surveyed.detail(&clients[0]);
        assert_eq!((first.partner, first.socket_type), (-1, libc::SOCK_STREAM as u32));
        let second: layout::Duplicate = surveyed.detail(&clients[1]);
        assert_eq!(second.of, clients[0].as_raw_fd(), "one dead socket serves all");
    });
}

#[test]
fn connections_nobody_has_accepted_yet_are_not_lost_silently() {
    alone("connections_nobody_has_accepted_yet_are_not_lost_silently", || {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let unix = UnixListener::bind(&path).unwrap();
        let clients = (TcpStream::connect(tcp.local_addr().unwrap()).unwrap(), UnixStream::connect(&path).unwrap());
        let arena = Arena::new().unwrap();
        let surveyed = survey_with(&arena, "", &[]);
        for (kind, listener) in [("tcp-established", tcp.as_raw_fd()), ("unix-connected", unix.as_raw_fd())] {
            let found = surveyed.obstacles.iter().find(|text| text.starts_with(&format!("{kind} fd {listener},")));
            assert!(found.is_some_and(|text| text.ends_with("1 connection(s) wait to be accepted")), "{:?}", surveyed.obstacles);
        }
        assert_eq!(surveyed.obstacles.len(), 4, "the clients too: {:?}", surveyed.obstacles);
        drop(clients);
        let surveyed = survey_with(&arena, "tcp-established = sever; unix-connected = sever", &[]);
        assert_eq!(surveyed.obstacles, [""; 0]);
    });
}

#[test]
fn a_damaged_table_is_survived_by_those_who_read_it() {
    alone("a_damaged_table_is_survived_by_those_who_read_it", || {
        let (epoll, event, pair) = (epoll(), eventfd(3), UnixStream::pair().unwrap());
        watch(&epoll, &event, 7);
        (&pair.0).write_all(b"queued").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let arena = Arena::new().unwrap();
        let surveyed = survey_with(&arena, "", &[]);
        let (records, blob) = (&surveyed.table.records, &surveyed.table.blob);
        let text = describe(find(records, listener.as_raw_fd()).unwrap(), blob);
        assert_eq!(text, format!("TCP {}, listening", listener.local_addr().unwrap()));
        assert_eq!(describe(find(records, epoll.as_raw_fd()).unwrap(), blob), "epoll, 1 registrations");
        assert!(changed_files(records, blob).is_empty());
        let look = |records: &[DescriptorRecord], blob: &[u8]| {
            records.iter().for_each(|record| drop(describe(record, blob)));
            sound(records, blob)
        };
        for len in 0..blob.len() {
            look(records, &blob[..len]);
        }
        assert!(!look(records, &[]));
        let mut damaged = blob.to_vec();
        for at in 0..damaged.len() {
            for bits in [0xff, 0x80, 1] {
                damaged[at] ^= bits;
                look(records, &damaged);
                damaged[at] ^= bits;
            }
        }
        for at in 0..records.len() {
            let mut damaged = records.to_vec();
            for kind in 0..20 {
                for offset in [0, 1, u32::MAX] {
                    damaged[at].kind = kind;
                    damaged[at].detail.offset = damaged[at].detail.offset.wrapping_add(offset);
                    look(&damaged, blob);
                }
            }
        }
    });
}

#[test]
fn files_come_back_by_policy() {
    alone("files_come_back_by_policy", || {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        let mut written = File::create(&path).unwrap();
        written.write_all(b"12345").unwrap();
        let appended = File::options().append(true).open(&path).unwrap();
        let read = File::open(&path).unwrap();
        std::io::Seek::seek(&mut &read, std::io::SeekFrom::Start(2)).unwrap();
        let null = File::open("/dev/null").unwrap();
        let folder = File::open(directory.path()).unwrap();
        let stat = File::open("/proc/self/stat").unwrap();
        let arena = Arena::new().unwrap();
        let surveyed = survey_with(&arena, "", &[]);
        assert_eq!(surveyed.obstacles, [format!("file-writable fd {}, {}", written.as_raw_fd(), path.display())]);
        let surveyed = survey_with(&arena, &format!("file-writable:{} = reopen", path.display()), &[]);
        assert_eq!(surveyed.obstacles, [""; 0]);
        assert_eq!(surveyed.detail::<layout::File>(&read).position, 2);
        assert_eq!(surveyed.detail::<layout::File>(&appended).identity, layout::identity::APPEND);
        assert_eq!((surveyed.kind(&null), surveyed.kind(&folder)), (kind::DEVICE, kind::DIRECTORY));
        assert_eq!(surveyed.bytes(surveyed.detail::<layout::File>(&stat).path), b"/proc/self/stat\0");

        written.lock().unwrap();
        let surveyed = survey_with(&arena, "file-writable = reopen", &[]);
        assert!(surveyed.obstacles.iter().any(|text| text.starts_with("file-lock") && text.contains("flock")));
        drop(written);
        std::fs::remove_file(&path).unwrap();
        let surveyed = survey_with(&arena, "", &[]);
        let deleted = surveyed.obstacles.iter().filter(|text| text.starts_with("file-deleted")).count();
        assert_eq!(deleted, 2, "{:?}", surveyed.obstacles);
    });
}

#[test]
fn ten_thousand_descriptors_are_surveyed_whole() {
    alone("ten_thousand_descriptors_are_surveyed_whole", || {
        let limit = raise_limit();
        let count = limit.saturating_sub(200).min(10_000) / 2;
        let epoll = epoll();
        let mut kept = Vec::new();
        for at in 0..count {
            let event = eventfd(at);
            watch(&epoll, &event, 0x5653_74e5_0000 + at);
            kept.push((event.try_clone().unwrap(), event));
        }
        let arena = Arena::new().unwrap();
        let surveyed = survey_with(&arena, "", &[]);
        assert_eq!(surveyed.obstacles, [""; 0]);
        let detail: layout::Epoll = surveyed.detail(&epoll);
        let targets: std::collections::HashMap<_, _> =
            sequence::<layout::EpollTarget>(detail.targets, &surveyed.table.blob).map(|t| (t.number, t.data)).collect();
        assert_eq!(targets.len() as u64, count);
        for (at, (clone, event)) in kept.iter().enumerate() {
            assert_eq!(targets[&event.as_raw_fd()], 0x5653_74e5_0000 + at as u64);
            let (lower, higher) = (event.as_raw_fd().min(clone.as_raw_fd()), event.as_raw_fd().max(clone.as_raw_fd()));
            assert_eq!(surveyed.detail::<layout::Duplicate>(&higher).of, lower);
            assert_eq!(surveyed.detail::<layout::Eventfd>(&lower).count, at as u64);
        }
    });
}

#[test]
fn kernel_objects_that_cannot_be_read_back_are_named() {
    alone("kernel_objects_that_cannot_be_read_back_are_named", || {
        let parent = rustix::process::getppid().unwrap();
        let (left, right) = UnixStream::pair().unwrap();
        send_descriptor(&left, &right);
        let opened: [(&str, OwnedFd); 4] = [
            ("inotify", rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::CLOEXEC).unwrap()),
            ("pidfd", rustix::process::pidfd_open(parent, rustix::process::PidfdFlags::empty()).unwrap()),
            ("socket-other", rustix::net::socket(AddressFamily::NETLINK, SocketType::RAW, None).unwrap()),
            // What is in its queue carries a descriptor.
            ("unix-connected", left.into()),
        ];
        let arena = Arena::new().unwrap();
        let surveyed = survey_with(&arena, "", &[]);
        for (kind, descriptor) in &opened {
            let start = format!("{kind} fd {},", descriptor.as_raw_fd());
            assert!(surveyed.obstacles.iter().any(|text| text.starts_with(&start)), "{start} {:?}", surveyed.obstacles);
        }
        assert_eq!(surveyed.obstacles.len(), opened.len());
    });
}

/// Leaves a descriptor in the receive queue of `from`'s peer.
fn send_descriptor(from: &UnixStream, sent: &UnixStream) {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    let descriptors = [std::os::fd::AsFd::as_fd(sent)];
    assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&descriptors)));
    let parts = [std::io::IoSlice::new(b"x")];
    rustix::net::sendmsg(from, &parts, &mut control, rustix::net::SendFlags::empty()).unwrap();
}

fn eventfd(count: u64) -> OwnedFd {
    rustix::event::eventfd(count as u32, EventfdFlags::CLOEXEC).unwrap()
}

fn epoll() -> OwnedFd {
    epoll::create(epoll::CreateFlags::CLOEXEC).unwrap()
}

fn watch(epoll: &OwnedFd, target: &impl std::os::fd::AsFd, data: u64) {
    let events = epoll::EventFlags::IN | epoll::EventFlags::ET;
    epoll::add(epoll, target, epoll::EventData::new_u64(data), events).unwrap();
}

/// Raises the limit of descriptors to its maximum and returns it.
fn raise_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    limit.maximum.unwrap_or(20_000)
}
