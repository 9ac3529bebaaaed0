//! What the process holds that CRIU has to be told about: standard streams, severed connections.

use std::{
    collections::{HashMap, HashSet},
    fs,
    io::{self, IsTerminal},
    os::fd::RawFd,
};

use crac_core::{Action, Obstacle, ObstacleKind, Policy};
use crac_sys::{
    descriptor,
    proc::{FdLink, TcpState, decimal_name},
    socket::{self, ADDRESS_BYTES_MAX, OptionName},
    text::Address,
    unix_diag::Asker,
};

use crate::handover::key;

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Holdings {
    /// Standard input, output and error as CRIU names them, where the restored life gets those of its own restore.
    pub(crate) streams: [Option<String>; 3],
    /// Unix connections that come back dead: inodes.
    pub(crate) severed: Vec<u64>,
    /// What CRIU takes for granted although its other half is elsewhere.
    pub(crate) external: Vec<String>,
    /// Whether there is a TCP connection that comes back dead.
    pub(crate) tcp_close: bool,
    /// What stands in the way.
    pub(crate) obstacles: Vec<Obstacle>,
}

impl Holdings {
    /// Looks through the process's descriptors. `own` are those of the round itself: absent in the restored life.
    ///
    /// # Errors
    ///
    /// If `/proc` cannot be read.
    pub(crate) fn look(policy: &Policy, own: &[i32]) -> io::Result<Self> {
        let open = open()?;
        let mut found = Self::default();
        found.streams(&open, terminal);
        let standard: HashSet<&str> = open.iter().filter(|(number, _)| *number <= 2).map(|(_, link)| link.as_str()).collect();
        let ours: HashSet<u64> = open.iter().filter_map(|(_, link)| inode(link)).collect();
        let asker = Asker::open().ok();
        for (number, link) in &open {
            let Some(inode) = inode(link) else { continue };
            let option = |name| socket::option_number(*number, name).unwrap_or(-1);
            match (option(OptionName::DOMAIN), option(OptionName::TYPE)) {
                (number::INET | number::INET6, number::STREAM) => found.tcp(*number, policy),
                (number::UNIX, number::STREAM | number::SEQPACKET) => {
                    let diag = asker.as_ref().and_then(|asker| asker.ask(inode).ok());
                    let peer = diag.and_then(|diag| diag.peer);
                    let is_foreign = !matches!(peer, None | Some(0)) && peer.is_some_and(|peer| !ours.contains(&peer));
                    if standard.contains(link.as_str()) {
                        if is_foreign {
                            found.external.push(format!("unix[{inode}]"));
                        }
                    } else if own.contains(number) {
                        found.sever(inode);
                    } else if is_foreign {
                        found.unix(*number, inode, policy);
                    }
                }
                _ => {}
            }
        }
        found.external.sort();
        found.external.dedup();
        Ok(found)
    }

    fn streams(&mut self, open: &[(RawFd, String)], terminal: impl Fn(RawFd) -> Option<String>) {
        let mut users: HashMap<&str, bool> = HashMap::new();
        for (number, link) in open {
            *users.entry(link).or_default() |= *number > 2;
        }
        for (number, link) in open.iter().filter(|(number, _)| *number <= 2) {
            let place = &mut self.streams[*number as usize];
            match FdLink::parse(link.as_bytes()) {
                FdLink::Path(_) => {
                    if let Some(terminal) = terminal(*number) {
                        self.external.push(terminal.clone());
                        *place = Some(terminal);
                    } else if link != "/dev/null" && !users[link.as_str()] && !link.ends_with(" (deleted)") {
                        // A file that is used for something else as well is opened again at its path.
                        *place = Some(key(link.as_ref()));
                    }
                }
                // `pipe:[INODE]` and `socket:[INODE]` are CRIU's names, too.
                FdLink::Pipe { .. } | FdLink::Socket { .. } => *place = Some(link.clone()),
                _ => {}
            }
        }
    }

    fn sever(&mut self, inode: u64) {
        self.severed.push(inode);
        self.external.push(format!("unix[{inode}]"));
    }

    /// A TCP socket, in the words of the audit.
    fn tcp(&mut self, number: RawFd, policy: &Policy) {
        let mut info = [0];
        if socket::option(number, OptionName::TCP_INFO, &mut info).is_err() {
            return;
        }
        let state = TcpState::from_number(info[0]);
        if matches!(state, TcpState::Listen | TcpState::Close) {
            return;
        }
        let (local, peer) = (local(number), peer(number));
        let name = Address(&peer).to_string();
        match policy.decide(ObstacleKind::TcpEstablished, &name) {
            Action::Sever => self.tcp_close = true,
            _ => {
                let arrow = if peer.is_empty() { String::new() } else { format!(" -> {name}") };
                let subject = format!("fd {number}, TCP {}{arrow}, {}", Address(&local), state.name());
                self.obstacles.push(Obstacle::new(ObstacleKind::TcpEstablished, subject));
            }
        }
    }

    /// A Unix socket that is connected to another process, in the words of the audit.
    fn unix(&mut self, number: RawFd, inode: u64, policy: &Policy) {
        let (local, peer) = (local(number), peer(number));
        let name = Address(if peer.len() > 2 { &peer } else { &local }).to_string();
        if policy.decide(ObstacleKind::UnixConnected, &name) == Action::Sever {
            return self.sever(inode);
        }
        let kind = match socket::option_number(number, OptionName::TYPE) {
            Ok(number::STREAM) => "stream",
            _ => "seqpacket",
        };
        let what = format!("fd {number}, Unix {kind} {} -> {}, its peer is another process", Address(&local), Address(&peer));
        self.obstacles.push(Obstacle::new(ObstacleKind::UnixConnected, what));
    }
}

/// The open descriptors with the texts of their links. Those that vanish meanwhile are left out.
fn open() -> io::Result<Vec<(RawFd, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        let Some(number) = decimal_name(entry.file_name().as_encoded_bytes()) else { continue };
        if let Ok(link) = fs::read_link(entry.path()) {
            found.push((number, link.to_string_lossy().into_owned()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn inode(link: &str) -> Option<u64> {
    match FdLink::parse(link.as_bytes()) {
        FdLink::Socket { inode } => Some(inode),
        _ => None,
    }
}

/// CRIU's name of the terminal at `number`, if it is one.
fn terminal(number: RawFd) -> Option<String> {
    let is_terminal = match number {
        0 => io::stdin().is_terminal(),
        1 => io::stdout().is_terminal(),
        _ => io::stderr().is_terminal(),
    };
    let found = descriptor::stat(number).ok().filter(|_| is_terminal)?;
    Some(format!("tty[{:x}:{:x}]", found.st_rdev, found.st_dev))
}

fn local(number: RawFd) -> Vec<u8> {
    let mut address = [0; ADDRESS_BYTES_MAX];
    let len = socket::local_address(number, &mut address).unwrap_or(0);
    address.get(..len).unwrap_or_default().to_vec()
}

fn peer(number: RawFd) -> Vec<u8> {
    let mut address = [0; ADDRESS_BYTES_MAX];
    let len = socket::peer_address(number, &mut address).unwrap_or(0);
    address.get(..len).unwrap_or_default().to_vec()
}

/// Numbers of socket(2).
mod number {
    pub(super) const UNIX: i32 = 1;
    pub(super) const INET: i32 = 2;
    pub(super) const INET6: i32 = 10;
    pub(super) const STREAM: i32 = 1;
    pub(super) const SEQPACKET: i32 = 5;
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use std::{
        net::{TcpListener, TcpStream},
        os::fd::AsRawFd,
    };

    // The tests of this module share their process's descriptors: each looks for its own alone.

    #[test]
    fn a_connection_is_an_obstacle_unless_it_is_severed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let about = format!("fd {}, TCP", client.as_raw_fd());
        let mine = |policy: &str| {
            let found = Holdings::look(&policy.parse().unwrap(), &[]).unwrap();
            (found.obstacles.iter().any(|obstacle| obstacle.subject.starts_with(&about)), found.tcp_close)
        };
        assert!(mine("").0);
        assert_eq!(mine("tcp-established = sever"), (false, true));
        // CRIU cannot keep one across the gap, so that this is refused, too.
        assert!(mine("tcp-established = keep").0);
    }

    #[test]
    fn a_socket_pair_of_this_process_is_nobodys_business() {
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let found = Holdings::look(&Policy::new(), &[]).unwrap();
        for end in [&near, &far] {
            let about = format!("fd {}, ", end.as_raw_fd());
            assert!(!found.obstacles.iter().any(|obstacle| obstacle.subject.starts_with(&about)), "{:?}", found.obstacles);
        }
    }

    #[test]
    fn streams_are_named_as_criu_names_them() {
        let mut found = Holdings::default();
        let open = [(0, "/dev/null"), (1, "pipe:[12]"), (2, "/var/log/x"), (7, "/etc/hosts")];
        found.streams(&open.map(|(number, link)| (number, link.to_owned())), |_| None);
        assert_eq!(found.streams[0], None, "what is discarded stays so");
        assert_eq!(found.streams[1].as_deref(), Some("pipe:[12]"));
        let mut found = Holdings::default();
        found.streams(&[(1, "/var/log/x".to_owned()), (2, "/var/log/y".to_owned()), (7, "/var/log/y".to_owned())], |_| None);
        assert_eq!(found.streams, [None, Some("var/log/x".to_owned()), None]);
        let mut found = Holdings::default();
        found.streams(&[(0, "/dev/pts/3".to_owned())], |_| Some("tty[8803:18]".to_owned()));
        assert_eq!((found.streams[0].as_deref(), &found.external[..]), (Some("tty[8803:18]"), &["tty[8803:18]".to_owned()][..]));
    }
}
