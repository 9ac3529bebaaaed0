//! Files, directories, devices, pipes.

use crac_core::{Action, ObstacleKind};
use crac_sys::{Errno, proc::decimal_name};

use super::{Planner, links};
use crate::{
    descriptors::facts::{Bytes, Fact, PipeFact, State},
    layout::descriptors::{File, Pipe, Span, identity, kind},
};

impl<'f> Planner<'_, 'f, '_> {
    /// Something with a path.
    pub(super) fn named(&mut self, fact: &Fact<'_>, reachable: bool) -> Result<(), Errno> {
        let path = Bytes(fact.link);
        match fact.file_type() {
            libc::S_IFCHR if !fact.has_status(libc::O_PATH) => return self.device(fact, reachable),
            libc::S_IFREG | libc::S_IFDIR => {}
            _ if fact.has_status(libc::O_PATH) => {}
            libc::S_IFIFO => {
                return self.refuse_ok(or_inherited(fact, ObstacleKind::PipeForeign), fact, format_args!("FIFO {path}"));
            }
            libc::S_IFBLK => return self.refuse_ok(ObstacleKind::Device, fact, format_args!("block device {path}")),
            _ => return self.refuse_ok(ObstacleKind::DescriptorOther, fact, format_args!("{path}")),
        }
        if !reachable {
            return self.refuse_ok(ObstacleKind::FileDeleted, fact, format_args!("{path}"));
        }
        let is_virtual = fact.link.starts_with(b"/proc/") || fact.link.starts_with(b"/sys/");
        let is_written = fact.access() != libc::O_RDONLY && !fact.has_status(libc::O_PATH);
        let (kind, identity) = match fact.file_type() {
            libc::S_IFDIR => (kind::DIRECTORY, identity::TYPE),
            libc::S_IFREG if is_virtual => (kind::FILE, identity::TYPE),
            libc::S_IFREG if is_written && fact.has_status(libc::O_APPEND) => (kind::FILE, identity::APPEND),
            libc::S_IFREG if is_written && !self.allows(ObstacleKind::FileWritable, fact.link, Action::Reopen) => {
                return self.refuse_ok(ObstacleKind::FileWritable, fact, format_args!("{path}"));
            }
            libc::S_IFREG if !fact.has_status(libc::O_PATH) => (kind::FILE, identity::FILE),
            _ => (kind::FILE, identity::TYPE),
        };
        self.file(fact, kind, identity)
    }

    fn device(&mut self, fact: &Fact<'_>, reachable: bool) -> Result<(), Errno> {
        let path = Bytes(fact.link);
        match (libc::major(fact.file.device_number), libc::minor(fact.file.device_number)) {
            // null, zero, full, random, urandom: no state.
            (1, 3 | 5 | 7 | 8 | 9) if reachable => self.file(fact, kind::DEVICE, identity::DEVICE),
            (4 | 5 | 136..=143, _) => {
                self.refuse_ok(or_inherited(fact, ObstacleKind::Terminal), fact, format_args!("terminal {path}"))
            }
            _ => self.refuse_ok(ObstacleKind::Device, fact, format_args!("device {path}")),
        }
    }

    fn file(&mut self, fact: &Fact<'_>, kind: u32, identity: u32) -> Result<(), Errno> {
        let Some(path) = self.path(fact.link)? else {
            let what = format_args!("{}, which belongs to a thread", Bytes(fact.link));
            return self.refuse_ok(ObstacleKind::DescriptorOther, fact, what);
        };
        let device = if identity == identity::DEVICE { fact.file.device_number } else { fact.file.device };
        let born = match fact.state {
            State::Named { born, .. } => born,
            _ => (0, 0),
        };
        let detail = File {
            path,
            identity,
            mode: fact.file.mode,
            device,
            inode: fact.file.inode,
            size: fact.file.size,
            modified_s: fact.file.modified_s,
            modified_ns: fact.file.modified_ns,
            born_s: born.0,
            born_ns: born.1,
            position: fact.info.position,
        };
        self.record(fact, kind, &detail)
    }

    /// The path with a NUL. What lies below this process's directory in `/proc` is called `self`, as the number will change;
    /// nothing for what lies below a thread's.
    fn path(&mut self, link: &[u8]) -> Result<Option<Span>, Errno> {
        let below = link.strip_prefix(b"/proc/").map(|rest| {
            let end = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
            rest.split_at(end)
        });
        let start = self.blob.len();
        match below {
            Some((number, rest)) if decimal_name(number) == Some(self.pid) => {
                if rest.starts_with(b"/task/") {
                    return Ok(None);
                }
                self.bytes(b"/proc/self")?;
                self.bytes(rest)?;
            }
            _ => _ = self.bytes(link)?,
        }
        self.bytes(&[0])?;
        super::span(start, self.blob.len()).map(Some)
    }

    /// An end of a pipe.
    pub(super) fn pipe(&mut self, fact: &'f Fact<'f>, pipe: &PipeFact<'_>) -> Result<(), Errno> {
        let link = Bytes(fact.link);
        let partner = match self.links.pipe(fact) {
            links::Pipe::Whole { reader, .. } if reader != fact.number => return self.push(fact, kind::PARTNER, Span::default()),
            links::Pipe::Whole { writer, .. } => writer,
            // What the process was started with and would not find at a restore either: it comes back with its other end
            // closed, as if that process had ended. Whatever was opened later has the flag.
            links::Pipe::Half if is_inherited(fact) => -1,
            links::Pipe::Half if pipe.severed || self.allows(ObstacleKind::PipeForeign, fact.link, Action::Sever) => -1,
            links::Pipe::Half => {
                let end = if fact.access() == libc::O_RDONLY { "reading" } else { "writing" };
                return self.refuse_ok(ObstacleKind::PipeForeign, fact, format_args!("{link}, only the {end} end is ours"));
            }
            links::Pipe::Reopened => {
                let what = format_args!("{link}, opened more than once or for both directions");
                return self.refuse_ok(ObstacleKind::PipeForeign, fact, what);
            }
        };
        let is_reader = fact.access() == libc::O_RDONLY;
        let unread = match pipe.unread {
            Some(unread) => unread,
            // Nobody can read what was written: the reading end is closed.
            None if !is_reader => b"",
            None => {
                return self.refuse_ok(ObstacleKind::PipeForeign, fact, format_args!("{link}, what is in it cannot be copied"));
            }
        };
        if fact.has_status(libc::O_DIRECT) && !unread.is_empty() {
            return self.refuse_ok(ObstacleKind::PipeForeign, fact, format_args!("{link}, holds packets (O_DIRECT)"));
        }
        let content = self.bytes(unread)?;
        self.record(fact, kind::PIPE, &Pipe { partner, capacity: pipe.capacity, content })
    }
}

/// Whether the process was probably started with it: it would not have survived that with a close-on-exec flag, which almost
/// everything opened since then has.
fn is_inherited(fact: &Fact<'_>) -> bool {
    fact.descriptor_flags & libc::FD_CLOEXEC as u32 == 0
}

fn or_inherited(fact: &Fact<'_>, kind: ObstacleKind) -> ObstacleKind {
    if is_inherited(fact) { ObstacleKind::DescriptorInherited } else { kind }
}
