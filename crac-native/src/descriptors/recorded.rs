//! The descriptors of an image, for those who look at it without running it.

use std::{
    ffi::{CString, OsStr},
    fmt::Write as _,
    os::{fd::AsRawFd, unix::ffi::OsStrExt},
    path::Path,
};

use crac_sys::descriptor;

use super::{facts::Bytes, observe::file_fact};
use crate::layout::descriptors::{
    DescriptorRecord, Duplicate, Epoll, EpollTarget, Eventfd, File, Found, Inherited, Memfd, Pipe, Socket, SocketPair, identity,
    kind, sequence,
};

/// What a record says, for people: `TCP 127.0.0.1:8080, listening`. Total, also over a table that contradicts itself.
pub(crate) fn describe(record: &DescriptorRecord, blob: &[u8]) -> String {
    description(record, blob).unwrap_or_else(|| "contradicts itself".to_owned())
}

fn description(record: &DescriptorRecord, blob: &[u8]) -> Option<String> {
    Some(match record.kind {
        kind::INHERITED => {
            let names = ["standard input", "standard output", "standard error"];
            (*names.get(usize::try_from(record.detail::<Inherited>(blob)?.stream).ok()?)?).to_owned()
        }
        kind::DUPLICATE => format!("duplicate of {}", record.detail::<Duplicate>(blob)?.of),
        kind::FILE | kind::DIRECTORY | kind::DEVICE => {
            let file: File = record.detail(blob)?;
            let mut text = Bytes(path(&file, blob)?).to_string();
            if file.position != 0 {
                write!(text, ", at {}", file.position).ok()?;
            }
            text
        }
        kind::PIPE => {
            let pipe: Pipe = record.detail(blob)?;
            match pipe.partner {
                -1 => "pipe whose other end is closed".to_owned(),
                partner => format!("pipe, written to through {partner}, holds {} bytes", pipe.content.len),
            }
        }
        kind::SOCKET_PAIR => match record.detail::<SocketPair>(blob)?.partner {
            -1 => "connection that is over".to_owned(),
            partner => format!("Unix socket connected to {partner}"),
        },
        kind::PARTNER => "the other end".to_owned(),
        kind::MEMFD => format!("memfd, inode {}", record.detail::<Memfd>(blob)?.inode),
        kind::PIDFD => "pidfd of this process".to_owned(),
        kind::SOCKET => {
            let socket: Socket = record.detail(blob)?;
            let family = match (socket.domain, socket.socket_type) {
                (libc::AF_UNIX, libc::SOCK_DGRAM) => "Unix datagram",
                (libc::AF_UNIX, _) => "Unix",
                (_, libc::SOCK_DGRAM) => "UDP",
                _ => "TCP",
            };
            let listening = if socket.backlog >= 0 { ", listening" } else { "" };
            format!("{family} {}{listening}", Bytes(socket.name.of(blob)?))
        }
        kind::EVENTFD => format!("eventfd, {}", record.detail::<Eventfd>(blob)?.count),
        kind::TIMERFD => "timerfd".to_owned(),
        kind::SIGNALFD => "signalfd".to_owned(),
        kind::EPOLL => {
            let epoll: Epoll = record.detail(blob)?;
            format!("epoll, {} registrations", sequence::<EpollTarget>(epoll.targets, blob).count())
        }
        _ => return None,
    })
}

/// The open files that are not what they were, with what is wrong with each.
pub(crate) fn changed_files(records: &[DescriptorRecord], blob: &[u8]) -> Vec<String> {
    let files = records.iter().filter(|record| matches!(record.kind, kind::FILE | kind::DIRECTORY | kind::DEVICE));
    files
        .filter_map(|record| {
            let file: File = record.detail(blob)?;
            let path = Path::new(OsStr::from_bytes(path(&file, blob)?));
            match found(path) {
                Ok(found) if file.is_same(&found) => None,
                Ok(_) => Some(format!("the open file {} has changed since the checkpoint", path.display())),
                // A log that was rotated away is begun anew.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound && file.identity == identity::APPEND => None,
                Err(error) => Some(format!("the open file {} cannot be looked at: {error}", path.display())),
            }
        })
        .collect()
}

/// The path without its NUL.
fn path<'b>(file: &File, blob: &'b [u8]) -> Option<&'b [u8]> {
    file.path.of(blob)?.strip_suffix(&[0])
}

fn found(path: &Path) -> std::io::Result<Found> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    // Neither reads the file nor wakes up a device or a FIFO.
    let file = crac_sys::fs::open(&name, libc::O_PATH, 0)?;
    let stat = file_fact(&descriptor::stat(file.as_raw_fd())?);
    Ok(Found {
        mode: stat.mode,
        device: stat.device,
        inode: stat.inode,
        device_number: stat.device_number,
        size: stat.size,
        modified: (stat.modified_s, stat.modified_ns),
        born: descriptor::born(file.as_raw_fd()).unwrap_or_default(),
    })
}
