//! Sockets of every kind.

use std::{
    io::{IoSlice, Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd as _, OwnedFd},
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream},
    },
};

use rustix::net::{AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sockopt};

use crate::lives::{Lives, Program, not_here};

pub(crate) const PROGRAMS: &[(&str, Program)] = &[
    ("tcp-listener-4", |lives| tcp_listener(lives, "127.0.0.1:0")),
    ("tcp-listener-6", |lives| tcp_listener(lives, "[::1]:0")),
    ("tcp-listener-dual", |lives| tcp_listener(lives, "[::]:0")),
    ("tcp-listeners-same-port", same_port),
    ("tcp-established", tcp_established),
    ("tcp-severed", tcp_severed),
    ("unix-listener-path", unix_listener_path),
    ("unix-listener-abstract", unix_listener_abstract),
    ("unix-pair", unix_pair),
    ("unix-pair-descriptors", unix_pair_descriptors),
    ("unix-pair-credentials", unix_pair_credentials),
    ("unix-pair-packets", unix_pair_packets),
    ("unix-connected", unix_connected),
    ("unix-datagram-connected", unix_datagram_connected),
    ("udp-4", |lives| udp(lives, "127.0.0.1:0")),
    ("udp-6", |lives| udp(lives, "[::1]:0")),
    ("udp-waiting", udp_waiting),
    ("netlink", |lives| other(lives, AddressFamily::NETLINK, SocketType::RAW)),
    ("packet", |lives| other(lives, AddressFamily::PACKET, SocketType::RAW)),
];

fn greet(listener: &TcpListener) {
    let mut address = listener.local_addr().unwrap();
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    let mut client = TcpStream::connect(address).unwrap();
    client.write_all(b"hello").unwrap();
    let mut text = [0; 5];
    listener.accept().unwrap().0.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"hello");
}

fn tcp_listener(lives: Lives, address: &str) {
    let listener = match TcpListener::bind(address) {
        Ok(listener) => listener,
        Err(error) => not_here(&format!("{address}: {error}")),
    };
    sockopt::set_tcp_nodelay(&listener, true).unwrap();
    sockopt::set_socket_keepalive(&listener, true).unwrap();
    let address = listener.local_addr().unwrap();
    lives.each(|_| {
        assert_eq!(listener.local_addr().unwrap(), address);
        assert_eq!((sockopt::tcp_nodelay(&listener), sockopt::socket_keepalive(&listener)), (Ok(true), Ok(true)));
        greet(&listener);
    })
}

fn same_port(lives: Lives) {
    let bind = |port| {
        let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        sockopt::set_socket_reuseport(&socket, true).unwrap();
        rustix::net::bind(&socket, &std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, port)).unwrap();
        rustix::net::listen(&socket, 16).unwrap();
        TcpListener::from(socket)
    };
    let one = bind(0);
    let two = bind(one.local_addr().unwrap().port());
    lives.each(|_| {
        assert_eq!(one.local_addr().unwrap(), two.local_addr().unwrap());
        [&one, &two].iter().for_each(|listener| listener.set_nonblocking(true).unwrap());
        for _ in 0..8 {
            let _client = TcpStream::connect(one.local_addr().unwrap()).unwrap();
            while one.accept().is_err() && two.accept().is_err() {
                std::thread::yield_now();
            }
        }
    })
}

fn tcp_pair() -> (TcpStream, TcpStream, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0, listener)
}

fn tcp_established(lives: Lives) {
    let (mut client, mut server, _) = tcp_pair();
    lives.each(|_| {
        client.write_all(b"x").unwrap();
        server.read_exact(&mut [0]).unwrap();
    })
}

/// By policy: who reads sees the end, who writes an error.
fn tcp_severed(lives: Lives) {
    use crate::lives::Life;
    let (mut client, mut server, _) = tcp_pair();
    lives.policy("tcp-established = sever").each(|life| {
        if life == Life::Restored {
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
            assert_eq!(server.write(b"x").unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
        } else {
            client.write_all(b"x").unwrap();
            server.read_exact(&mut [0]).unwrap();
        }
    })
}

fn unix_listener_path(lives: Lives) {
    let path = std::env::current_dir().unwrap().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    lives.each(|_| {
        let _client = UnixStream::connect(&path).unwrap();
        listener.accept().unwrap();
    })
}

fn unix_listener_abstract(lives: Lives) {
    let name = SocketAddr::from_abstract_name(format!("crac-programs-{}", std::process::id())).unwrap();
    let listener = UnixListener::bind_addr(&name).unwrap();
    lives.each(|_| {
        let _client = UnixStream::connect_addr(&name).unwrap();
        listener.accept().unwrap();
    })
}

fn unix_pair(lives: Lives) {
    let (mut left, mut right) = UnixStream::pair().unwrap();
    left.write_all(b"to right").unwrap();
    right.write_all(b"to left").unwrap();
    lives.each(|_| {
        let mut text = [0; 8];
        right.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"to right");
        left.read_exact(&mut text[..7]).unwrap();
        assert_eq!(&text[..7], b"to left");
        left.write_all(b"to right").unwrap();
        right.write_all(b"to left").unwrap();
    })
}

/// A descriptor on its way between two sockets.
fn unix_pair_descriptors(lives: Lives) {
    let (left, right) = UnixStream::pair().unwrap();
    let (sent, _other) = std::io::pipe().unwrap();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    let descriptors = [sent.as_fd()];
    assert!(message.push(SendAncillaryMessage::ScmRights(&descriptors)));
    rustix::net::sendmsg(&left, &[IoSlice::new(b"x")], &mut message, SendFlags::empty()).unwrap();
    lives.each(|_| assert!(sockopt::socket_type(&right).is_ok()))
}

fn unix_pair_credentials(lives: Lives) {
    let (mut left, mut right) = UnixStream::pair().unwrap();
    sockopt::set_socket_passcred(&right, true).unwrap();
    lives.each(|_| {
        assert_eq!(sockopt::socket_passcred(&right), Ok(true));
        assert_eq!(sockopt::socket_peercred(&left).unwrap().pid, rustix::process::getpid(), "made by this process");
        left.write_all(b"x").unwrap();
        right.read_exact(&mut [0]).unwrap();
    })
}

fn unix_pair_packets(lives: Lives) {
    let flags = SocketFlags::CLOEXEC;
    let (left, right) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let send = |text: &[u8]| rustix::io::write(&left, text).unwrap();
    send(b"one");
    send(b"three");
    lives.each(|_| {
        let mut text = [0; 16];
        assert_eq!((rustix::io::read(&right, &mut text), &text[..3]), (Ok(3), &b"one"[..]));
        assert_eq!((rustix::io::read(&right, &mut text), &text[..5]), (Ok(5), &b"three"[..]));
        send(b"one");
        send(b"three");
    })
}

/// Connected through a listener, both ends in this process.
fn unix_connected(lives: Lives) {
    let path = std::env::current_dir().unwrap().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let mut client = UnixStream::connect(&path).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    lives.each(|_| {
        client.write_all(b"x").unwrap();
        server.read_exact(&mut [0]).unwrap();
    })
}

/// As a logger does: the other end is a name, behind which somebody may be.
fn unix_datagram_connected(lives: Lives) {
    let path = std::env::current_dir().unwrap().join("log");
    let log = UnixDatagram::bind(&path).unwrap();
    let sender = UnixDatagram::unbound().unwrap();
    sender.connect(&path).unwrap();
    lives.each(|_| {
        sender.send(b"logged").unwrap();
        let mut text = [0; 16];
        assert_eq!(log.recv(&mut text).unwrap(), 6);
    })
}

fn udp(lives: Lives, address: &str) {
    let server = match UdpSocket::bind(address) {
        Ok(server) => server,
        Err(error) => not_here(&format!("{address}: {error}")),
    };
    sockopt::set_socket_broadcast(&server, true).unwrap();
    let client = UdpSocket::bind(address).unwrap();
    client.connect(server.local_addr().unwrap()).unwrap();
    let addresses = (server.local_addr().unwrap(), client.local_addr().unwrap());
    lives.each(|_| {
        assert_eq!((server.local_addr().unwrap(), client.local_addr().unwrap()), addresses);
        assert!(server.broadcast().unwrap());
        client.send(b"ping").unwrap();
        let mut text = [0; 8];
        assert_eq!(server.recv_from(&mut text).unwrap(), (4, addresses.1));
    })
}

/// What waits in a UDP socket is lost, as the network may lose it; the socket itself works.
fn udp_waiting(lives: Lives) {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_nonblocking(true).unwrap();
    let send = || client.send_to(b"lost", server.local_addr().unwrap()).unwrap();
    send();
    lives.each(|_| {
        while server.recv(&mut [0; 8]).is_ok() {}
        send();
        while server.recv(&mut [0; 8]).is_err() {
            std::thread::yield_now();
        }
        send();
    })
}

fn other(lives: Lives, family: AddressFamily, kind: SocketType) {
    let socket: OwnedFd = match rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None) {
        Ok(socket) => socket,
        Err(error) => not_here(&format!("no such sockets for this user: {error}")),
    };
    lives.each(|_| assert!(sockopt::socket_type(&socket).is_ok()))
}
