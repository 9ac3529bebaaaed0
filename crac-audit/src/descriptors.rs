//! Descriptors with another half outside the process.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    net::SocketAddr,
    os::unix::ffi::OsStringExt,
    path::Path,
};

use crac_core::{Action, Obstacle, ObstacleKind, Policy};
use crac_sys::{
    proc::{AnonInode, FdInfo, FdLink, LockKind, TcpState, decimal_name},
    socket::{self, ADDRESS_BYTES_MAX, OptionName},
    text::{Address, Bytes},
    unix_diag::Asker,
};

use crate::{AuditError, linux::unreadable, owner::Clues};

/// The open descriptors but `own`, with the texts of their links. Those that vanish meanwhile are left out.
pub(crate) fn open(own: &[i32]) -> Result<Vec<(i32, Vec<u8>)>, AuditError> {
    let directory = "/proc/self/fd";
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(unreadable(directory))? {
        let entry = entry.map_err(unreadable(directory))?;
        let Some(number) = decimal_name(entry.file_name().as_encoded_bytes()) else { continue };
        if own.contains(&number) {
            continue;
        }
        match fs::read_link(entry.path()) {
            Ok(link) => found.push((number, link.into_os_string().into_vec())),
            // Also the directory's own descriptor, which is closed by now or will be.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(unreadable(&entry.path().to_string_lossy())(error)),
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Local addresses of the listening TCP sockets.
pub(crate) fn listeners(open: &[(i32, Vec<u8>)]) -> Vec<SocketAddr> {
    open.iter()
        .filter(|(_, link)| matches!(FdLink::parse(link), FdLink::Socket { .. }))
        .filter(|(number, _)| matches!(socket::option_number(*number, OptionName::LISTENING), Ok(1)))
        .filter_map(|(number, _)| Address(&local(*number)?).internet())
        .collect()
}

/// Everything in `open` that has another half elsewhere, unless the policy takes care of it.
pub(crate) fn obstacles(open: &[(i32, Vec<u8>)], policy: &Policy, clues: &Clues) -> Result<Vec<Obstacle>, AuditError> {
    let ours: HashSet<u64> = open.iter().filter_map(|(_, link)| socket_inode(link)).collect();
    let standard: HashSet<&[u8]> = open.iter().filter(|(number, _)| *number <= 2).map(|(_, link)| &link[..]).collect();
    let mut found = Vec::new();
    let mut asker = None;
    let mut reported_locks = HashMap::new();
    for (number, link) in open {
        let number = *number;
        match FdLink::parse(link) {
            FdLink::Socket { inode } => {
                let kind = |name| socket::option_number(number, name);
                let (Ok(domain), Ok(kind)) = (kind(OptionName::DOMAIN), kind(OptionName::TYPE)) else { continue };
                match (domain, kind) {
                    (libc::AF_INET | libc::AF_INET6, libc::SOCK_STREAM) => found.extend(tcp(number, policy, clues)),
                    (libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_SEQPACKET) if !standard.contains(&link[..]) => {
                        let asker = asker.get_or_insert_with(Asker::open).as_ref().ok();
                        found.extend(unix(number, kind, inode, &ours, asker, policy));
                    }
                    _ => {}
                }
            }
            FdLink::Anon(AnonInode::IoUring) if policy.decide(ObstacleKind::IoUring, "") != Action::Keep => {
                let obstacle = Obstacle::new(ObstacleKind::IoUring, format!("fd {number}, {}", Bytes(link)));
                found.push(with_owner(obstacle, clues.ring()));
            }
            FdLink::Path(path) if number > 2 => locks(number, path, policy, clues, &mut reported_locks, &mut found)?,
            _ => {}
        }
    }
    Ok(found)
}

/// A TCP socket that has a peer, or is about to have one.
fn tcp(number: i32, policy: &Policy, clues: &Clues) -> Option<Obstacle> {
    let mut info = [0];
    socket::option(number, OptionName::TCP_INFO, &mut info).ok()?;
    let state = TcpState::from_number(info[0]);
    if matches!(state, TcpState::Listen | TcpState::Close) {
        return None;
    }
    let local = local(number)?;
    let peer = peer(number).unwrap_or_default();
    let name = Address(&peer).to_string();
    if matches!(policy.decide(ObstacleKind::TcpEstablished, &name), Action::Sever | Action::Keep) {
        return None;
    }
    // The words of the native engine, which finds the same.
    let arrow = if peer.is_empty() { String::new() } else { format!(" -> {name}") };
    let subject = format!("fd {number}, TCP {}{arrow}, {}", Address(&local), state.name());
    let owner = Address(&local).internet().and_then(|local| clues.connection(local, Address(&peer).internet()));
    Some(with_owner(Obstacle::new(ObstacleKind::TcpEstablished, subject), owner))
}

/// A connected Unix socket whose peer is not one of `ours`.
fn unix(number: i32, kind: i32, inode: u64, ours: &HashSet<u64>, asker: Option<&Asker>, policy: &Policy) -> Option<Obstacle> {
    let (local, peer) = (local(number)?, peer(number)?);
    let why = match asker.and_then(|asker| asker.ask(inode).ok()) {
        Some(diag) => match diag.peer {
            // Closed, and both directions shut: nobody is left behind.
            Some(0) if diag.shutdown == 3 => return None,
            Some(inode) if ours.contains(&inode) => return None,
            _ => "its peer is another process",
        },
        None => "its peer cannot be found out: the kernel offers no sock_diag(7) for Unix sockets",
    };
    let name = Address(if peer.len() > 2 { &peer } else { &local }).to_string();
    if matches!(policy.decide(ObstacleKind::UnixConnected, &name), Action::Sever | Action::Keep) {
        return None;
    }
    let kind = if kind == libc::SOCK_STREAM { "stream" } else { "seqpacket" };
    let subject = format!("fd {number}, Unix {kind} {} -> {}, {why}", Address(&local), Address(&peer));
    Some(Obstacle::new(ObstacleKind::UnixConnected, subject))
}

/// The locks held through `number`; each file once.
fn locks(
    number: i32,
    path: &[u8],
    policy: &Policy,
    clues: &Clues,
    reported: &mut HashMap<(u64, LockKindName), ()>,
    found: &mut Vec<Obstacle>,
) -> Result<(), AuditError> {
    let file = format!("/proc/self/fdinfo/{number}");
    let text = match fs::read(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unreadable(&file)(error)),
    };
    let info = FdInfo::parse(&text).map_err(|_| AuditError::Malformed { path: file })?;
    let name = String::from_utf8_lossy(path);
    for lock in info.locks() {
        let how = kind_name(lock.kind);
        let is_new = reported.insert((lock.inode, how), ()).is_none();
        if is_new && policy.decide(ObstacleKind::FileLock, &name) != Action::Keep {
            let subject = format!("fd {number}, {}, locked by {how}", Bytes(path));
            found.push(with_owner(Obstacle::new(ObstacleKind::FileLock, subject), clues.lock(&name)));
        }
    }
    Ok(())
}

type LockKindName = &'static str;

fn kind_name(kind: LockKind) -> LockKindName {
    match kind {
        LockKind::Flock => "flock(2)",
        LockKind::Posix => "fcntl(2)",
        LockKind::OpenFile => "F_OFD_SETLK",
        LockKind::Lease => "F_SETLEASE",
        LockKind::Other => "an unknown call",
    }
}

/// How many epoll instances are in `open`; duplicates have the same registrations and count once.
pub(crate) fn epoll_instances(open: &[(i32, Vec<u8>)]) -> Result<usize, AuditError> {
    let mut instances = HashSet::new();
    for (number, link) in open {
        if FdLink::parse(link) != FdLink::Anon(AnonInode::Epoll) {
            continue;
        }
        let path = format!("/proc/self/fdinfo/{number}");
        let Ok(text) = fs::read(Path::new(&path)) else { continue };
        let info = FdInfo::parse(&text).map_err(|_| AuditError::Malformed { path })?;
        let mut targets: Vec<_> = info.epoll_targets().map(|target| (target.fd, target.events, target.data)).collect();
        targets.sort_unstable();
        instances.insert(targets);
    }
    Ok(instances.len())
}

fn socket_inode(link: &[u8]) -> Option<u64> {
    match FdLink::parse(link) {
        FdLink::Socket { inode } => Some(inode),
        _ => None,
    }
}

fn local(number: i32) -> Option<Vec<u8>> {
    let mut address = [0; ADDRESS_BYTES_MAX];
    let len = socket::local_address(number, &mut address).ok()?;
    Some(address.get(..len)?.to_vec())
}

fn peer(number: i32) -> Option<Vec<u8>> {
    let mut address = [0; ADDRESS_BYTES_MAX];
    let len = socket::peer_address(number, &mut address).ok()?;
    Some(address.get(..len)?.to_vec())
}

fn with_owner(obstacle: Obstacle, owner: Option<String>) -> Obstacle {
    match owner {
        Some(owner) => obstacle.owned_by(owner),
        None => obstacle,
    }
}
