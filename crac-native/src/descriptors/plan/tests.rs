//! Decisions over made-up facts.

use super::*;
use crate::{
    descriptors::facts::{FileFact, PipeFact, SocketFact},
    layout::descriptors::{Pipe, Socket, SocketPair, find, sound},
};

fn fact<'a>(number: i32, link: &'a str, info: &'a str, state: State<'a>) -> Fact<'a> {
    Fact {
        number,
        descriptor_flags: libc::FD_CLOEXEC as u32,
        status_flags: libc::O_RDWR as u32,
        link: link.as_bytes(),
        file: FileFact { inode: number as u64 * 100, mode: libc::S_IFREG, ..FileFact::default() },
        info: crac_sys::proc::FdInfo::parse(info.as_bytes()).unwrap(),
        original: number,
        state,
    }
}

const PLAIN: &str = "pos:\t0\nflags:\t02\n";

fn planned<'a>(arena: &'a Arena, facts: &[Fact<'_>], policy: &str) -> (DescriptorTable<'a>, Vec<ObstacleKind>) {
    let mut obstacles = ObstacleSink::new(arena);
    let table = plan(facts, 4711, &policy.parse().unwrap(), false, arena, &mut obstacles).unwrap();
    let kinds: Vec<_> = obstacles.into_obstacles().iter().map(|obstacle| obstacle.kind).collect();
    assert!(!kinds.is_empty() || sound(&table.records, &table.blob));
    (table, kinds)
}

fn kinds(table: &DescriptorTable<'_>) -> Vec<u32> {
    table.records.iter().map(|record| record.kind).collect()
}

#[test]
fn standard_streams_are_inherited_whatever_file_they_are() {
    let arena = Arena::new().unwrap();
    let mut terminal = fact(0, "/dev/pts/3", PLAIN, State::Named { reachable: false, born: (0, 0) });
    terminal.file.mode = libc::S_IFCHR;
    let mut duplicate = terminal;
    (duplicate.number, duplicate.original) = (1, 0);
    let log = fact(2, "/var/log/x (deleted)", PLAIN, State::Named { reachable: false, born: (0, 0) });
    let mut later = terminal;
    (later.number, later.original) = (9, 0);
    let (table, refused) = planned(&arena, &[terminal, duplicate, log, later], "");
    assert_eq!(refused, []);
    assert_eq!(kinds(&table), [kind::INHERITED, kind::INHERITED, kind::INHERITED, kind::DUPLICATE]);
    let inherited: Inherited = find(&table.records, 1).unwrap().detail(&table.blob).unwrap();
    assert_eq!(inherited.stream, 1, "not the stream it happens to share a terminal with");
}

#[test]
fn a_listener_on_a_standard_number_is_no_standard_stream() {
    let arena = Arena::new().unwrap();
    let listening = SocketFact {
        domain: libc::AF_INET,
        socket_type: libc::SOCK_STREAM,
        protocol: libc::IPPROTO_TCP,
        listening: true,
        backlog: 77,
        tcp_state: 10,
        local: &[2, 0, 0x1f, 0x90, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        ..SocketFact::default()
    };
    let (table, refused) = planned(&arena, &[fact(0, "socket:[5]", PLAIN, State::Socket(listening))], "");
    assert_eq!((kinds(&table), refused), (vec![kind::SOCKET], vec![]));
    let socket: Socket = table.records[0].detail(&table.blob).unwrap();
    assert_eq!((socket.backlog, socket.name.of(&table.blob).unwrap()), (77, &b"127.0.0.1:8080"[..]));
    let filtered = SocketFact { filtered: true, ..listening };
    let (_, refused) = planned(&arena, &[fact(5, "socket:[5]", PLAIN, State::Socket(filtered))], "");
    assert_eq!(refused, [ObstacleKind::TcpListener]);
    let elsewhere = SocketFact { foreign_namespace: true, ..listening };
    let (_, refused) = planned(&arena, &[fact(5, "socket:[5]", PLAIN, State::Socket(elsewhere))], "");
    assert_eq!(refused, [ObstacleKind::SocketOther]);
}

#[test]
fn a_connection_that_is_over_comes_back_dead_without_asking() {
    let arena = Arena::new().unwrap();
    let over = SocketFact {
        domain: libc::AF_INET,
        socket_type: libc::SOCK_STREAM,
        protocol: libc::IPPROTO_TCP,
        tcp_state: 7,
        read_hangup: true,
        ..SocketFact::default()
    };
    let (table, refused) = planned(&arena, &[fact(5, "socket:[5]", PLAIN, State::Socket(over))], "");
    assert_eq!(refused, []);
    let pair: SocketPair = table.records[0].detail(&table.blob).unwrap();
    assert_eq!(pair.partner, -1);
    let fresh = SocketFact { read_hangup: false, ..over };
    let (table, _) = planned(&arena, &[fact(5, "socket:[5]", PLAIN, State::Socket(fresh))], "");
    assert_eq!(kinds(&table), [kind::SOCKET]);
}

#[test]
fn only_wall_clock_moments_stay_absolute() {
    let arena = Arena::new().unwrap();
    let timer = TimerFact { remaining: (5, 900_000_000), interval: (0, 0), realtime: (1000, 200_000_000) };
    let value = |clock: u32, flags: u32, timer: TimerFact| {
        let info = format!(
            "{PLAIN}clockid: {clock}\nticks: 2\nsettime flags: 0{flags}\nit_value: (5, 900000000)\nit_interval: (0, 0)\n"
        );
        let (table, refused) = planned(&arena, &[fact(5, "anon_inode:[timerfd]", &info, State::Timer(timer))], "");
        let record = table.records.first().map(|record| record.detail::<Timerfd>(&table.blob).unwrap());
        record.map(|timer| (timer.settime_flags, timer.value_s, timer.value_ns, timer.ticks)).ok_or(refused)
    };
    assert_eq!(value(0, 1, timer), Ok((1, 1006, 100_000_000, 2)));
    assert_eq!(value(0, 0, timer), Ok((0, 5, 900_000_000, 2)));
    assert_eq!(value(1, 1, timer), Ok((0, 5, 900_000_000, 2)));
    let expired = TimerFact { remaining: (0, 0), ..timer };
    assert_eq!(value(0, 1, expired), Ok((0, 0, 0, 2)));
    assert_eq!(value(9, 0, timer), Err(vec![ObstacleKind::Timerfd]), "an alarm clock");
}

/// It used to come back disarmed, and whoever waited for it waited for ever.
#[test]
fn a_timer_that_fires_between_two_looks_has_fired() {
    let arena = Arena::new().unwrap();
    let value = |ticks: u64, before: (i64, i64), remaining: (i64, i64), interval: (i64, i64)| {
        let info = format!(
            "{PLAIN}clockid: 1\nticks: {ticks}\nsettime flags: 00\nit_value: ({}, {})\nit_interval: ({}, {})\n",
            before.0, before.1, interval.0, interval.1
        );
        let timer = TimerFact { remaining, interval, realtime: (1000, 0) };
        let (table, refused) = planned(&arena, &[fact(5, "anon_inode:[timerfd]", &info, State::Timer(timer))], "");
        assert_eq!(refused, []);
        let timer: Timerfd = table.records[0].detail(&table.blob).unwrap();
        ((timer.value_s, timer.value_ns), timer.ticks)
    };
    let (never, soon) = ((0, 0), (0, 700));
    assert_eq!(value(0, soon, never, never), (never, 1), "between the two looks");
    assert_eq!(value(1, soon, never, never), (never, 1), "inside the first, which tells the ticks last");
    assert_eq!(value(1, never, never, never), (never, 1), "before");
    assert_eq!(value(0, soon, (0, 300), never), ((0, 300), 0), "not yet");
    assert_eq!(value(0, never, never, never), (never, 0), "disarmed");
    assert_eq!(value(3, soon, (1, 0), (1, 0)), ((1, 0), 4), "a periodic one, between the two looks");
    assert_eq!(value(3, soon, (0, 300), (1, 0)), ((0, 300), 3), "a periodic one, not yet");
}

#[test]
fn registrations_for_own_descriptors_are_dropped_and_unknown_ones_refused() {
    let arena = Arena::new().unwrap();
    let registration = |number, target| Registration { number, events: 1, data: 7, target };
    let event = fact(4, "anon_inode:[eventfd]", "pos:\t0\nflags:\t02\neventfd-count: 3\n", State::Plain);
    let watches = [registration(4, Target::Descriptor(4)), registration(9, Target::Own)];
    let (table, refused) = planned(&arena, &[event, fact(5, "anon_inode:[eventpoll]", PLAIN, State::Epoll(&watches))], "");
    assert_eq!(refused, []);
    let epoll: Epoll = find(&table.records, 5).unwrap().detail(&table.blob).unwrap();
    assert_eq!(epoll.targets.len as usize, EpollTarget::BYTES);
    let watches = [registration(9, Target::Unknown)];
    let (_, refused) = planned(&arena, &[event, fact(5, "anon_inode:[eventpoll]", PLAIN, State::Epoll(&watches))], "");
    assert_eq!(refused, [ObstacleKind::EpollTarget]);
}

#[test]
fn a_pipe_opened_again_is_refused() {
    let arena = Arena::new().unwrap();
    let end = |number, access: i32| {
        let pipe = PipeFact { capacity: 65536, unread: Some(b"x"), severed: false };
        let mut fact = fact(number, "pipe:[9]", PLAIN, State::Pipe(pipe));
        (fact.status_flags, fact.file.inode) = (access as u32, 9);
        fact
    };
    let (table, refused) = planned(&arena, &[end(4, libc::O_RDONLY), end(7, libc::O_WRONLY)], "");
    assert_eq!((kinds(&table), refused), (vec![kind::PIPE, kind::PARTNER], vec![]));
    let pipe: Pipe = table.records[0].detail(&table.blob).unwrap();
    assert_eq!((pipe.partner, pipe.content.of(&table.blob).unwrap()), (7, &b"x"[..]));
    let ends = [end(4, libc::O_RDONLY), end(7, libc::O_WRONLY), end(8, libc::O_WRONLY)];
    let (_, refused) = planned(&arena, &ends, "");
    assert_eq!(refused, [ObstacleKind::PipeForeign; 3]);
}

#[test]
fn files_of_threads_in_proc_are_refused_and_own_ones_renamed() {
    let arena = Arena::new().unwrap();
    let read = |link| {
        let mut fact = fact(5, link, PLAIN, State::Named { reachable: true, born: (0, 0) });
        fact.status_flags = 0;
        fact
    };
    let (_, refused) = planned(&arena, &[read("/proc/4711/task/4712/stat")], "");
    assert_eq!(refused, [ObstacleKind::DescriptorOther]);
    for (link, path) in [("/proc/4711/stat", &b"/proc/self/stat\0"[..]), ("/proc/4712/stat", b"/proc/4712/stat\0")] {
        let (table, _) = planned(&arena, &[read(link)], "");
        let file: crate::layout::descriptors::File = table.records[0].detail(&table.blob).unwrap();
        assert_eq!(file.path.of(&table.blob).unwrap(), path);
    }
}

#[test]
fn a_lock_is_refused_even_where_the_file_could_be_reopened() {
    let arena = Arena::new().unwrap();
    let info = "pos:\t0\nflags:\t0\nlock:\t1: FLOCK  ADVISORY  WRITE 4711 fe:00:12 0 EOF\n";
    let mut locked = fact(5, "/a", info, State::Named { reachable: true, born: (0, 0) });
    locked.status_flags = 0;
    let (_, refused) = planned(&arena, &[locked], "file-writable = reopen");
    assert_eq!(refused, [ObstacleKind::FileLock]);
}
