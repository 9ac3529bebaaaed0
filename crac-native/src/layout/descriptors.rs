//! The records of the descriptor table; see the parent module for where they are made and used.
//!
//! Every open descriptor has one [`DescriptorRecord`], by ascending number. What else its kind needs is a *detail*: integers
//! one after the other in the blob, at [`DescriptorRecord::detail`]. A detail refers to further bytes of the blob by [`Span`].
//!
//! ```text
//! kind              detail        made by the stub
//! INHERITED         Inherited     from the new process's descriptor 0, 1 or 2
//! DUPLICATE         Duplicate     dup3(2) of the record it names, which is no duplicate itself
//! FILE, DIRECTORY   File          open(2), checked, positioned
//! DEVICE            File          open(2), device number checked
//! PIPE              Pipe          pipe2(2); its other end is a PARTNER
//! SOCKET_PAIR       SocketPair    socketpair(2); its other end is a PARTNER, or is closed: a dead connection
//! PARTNER           -             together with the record that names it
//! SOCKET            Socket        socket(2), options, bind(2), listen(2) or connect(2)
//! EVENTFD ...       Eventfd ...   the call of that name
//! MEMFD             Memfd         open(2) of the object, by its number in `/proc/self/fd`
//! PIDFD             -             pidfd_open(2) of the process itself
//! EPOLL             Epoll         epoll_create1(2); registrations last of all
//! ```

/// One open descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct DescriptorRecord {
    pub number: i32,
    /// One of [`kind`].
    pub kind: u32,
    /// `FD_CLOEXEC` or nothing.
    pub descriptor_flags: u32,
    /// Access mode and status flags, as `F_GETFL` has them. Meaningless for duplicates and inherited descriptors.
    pub status_flags: u32,
    pub detail: Span,
}
const _: () = assert!(size_of::<DescriptorRecord>() == 24 && align_of::<DescriptorRecord>() == 4);

/// Bytes in the blob.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Span {
    pub offset: u32,
    pub len: u32,
}
const _: () = assert!(size_of::<Span>() == 8 && align_of::<Span>() == 4);

impl Span {
    /// The bytes, or nothing if the image contradicts itself.
    pub fn of(self, blob: &[u8]) -> Option<&[u8]> {
        blob.get(self.offset as usize..)?.get(..self.len as usize)
    }
}

/// [`DescriptorRecord::kind`].
pub mod kind {
    pub const INHERITED: u32 = 1;
    pub const DUPLICATE: u32 = 2;
    pub const FILE: u32 = 3;
    pub const DIRECTORY: u32 = 4;
    pub const DEVICE: u32 = 5;
    pub const PIPE: u32 = 6;
    pub const SOCKET_PAIR: u32 = 7;
    pub const PARTNER: u32 = 8;
    pub const SOCKET: u32 = 9;
    pub const EVENTFD: u32 = 10;
    pub const TIMERFD: u32 = 11;
    pub const SIGNALFD: u32 = 12;
    pub const EPOLL: u32 = 13;
    pub const MEMFD: u32 = 14;
    pub const PIDFD: u32 = 15;
}

/// A kind's further facts: how they lie in the blob.
pub trait Detail: Sized {
    /// Bytes in the blob.
    const BYTES: usize;

    /// Hands the bytes to `put`, piece by piece.
    fn encode(&self, put: &mut dyn FnMut(&[u8]));

    /// Takes the value from the front of `bytes`.
    fn decode(bytes: &mut &[u8]) -> Option<Self>;
}

macro_rules! integers {
    ($($integer:ty),*) => {$(
        impl Detail for $integer {
            const BYTES: usize = size_of::<$integer>();

            fn encode(&self, put: &mut dyn FnMut(&[u8])) {
                put(&self.to_le_bytes());
            }

            fn decode(bytes: &mut &[u8]) -> Option<Self> {
                let (head, rest) = bytes.split_first_chunk()?;
                *bytes = rest;
                Some(Self::from_le_bytes(*head))
            }
        }
    )*};
}

integers!(u32, i32, u64, i64);

macro_rules! details {
    ($($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name { $($(#[$field_meta])* pub $field: $type,)* }

        impl Detail for $name {
            const BYTES: usize = 0 $(+ <$type as Detail>::BYTES)*;

            fn encode(&self, put: &mut dyn FnMut(&[u8])) {
                $(self.$field.encode(put);)*
            }

            fn decode(bytes: &mut &[u8]) -> Option<Self> {
                Some(Self { $($field: <$type as Detail>::decode(bytes)?,)* })
            }
        }
    )*};
}

impl Detail for Span {
    const BYTES: usize = 8;

    fn encode(&self, put: &mut dyn FnMut(&[u8])) {
        self.offset.encode(put);
        self.len.encode(put);
    }

    fn decode(bytes: &mut &[u8]) -> Option<Self> {
        Some(Self { offset: u32::decode(bytes)?, len: u32::decode(bytes)? })
    }
}

details! {
    /// A standard stream of the process that restores.
    Inherited {
        /// 0, 1 or 2.
        stream: i32,
    }

    /// A duplicate: one open file description under several numbers.
    Duplicate {
        /// Number of the record that is no duplicate.
        of: i32,
    }

    /// A file, directory or device with a path.
    File {
        /// Absolute, NUL-terminated (the NUL counts).
        path: Span,
        /// One of [`identity`].
        identity: u32,
        /// `st_mode`; for append files also the permissions to create it with.
        mode: u32,
        /// Of the file system, or for devices `st_rdev`.
        device: u64,
        inode: u64,
        size: u64,
        modified_s: i64,
        modified_ns: i64,
        /// When the inode was made: numbers of inodes are used again. Zero where the file system does not tell.
        born_s: i64,
        born_ns: u32,
        /// File offset.
        position: u64,
    }

    /// A pipe of this process alone.
    Pipe {
        /// Number of the writing end; -1 if it is closed. If the record itself is `O_WRONLY`, the reading end is closed.
        partner: i32,
        capacity: u32,
        /// Unread bytes.
        content: Span,
    }

    /// A pair of connected Unix sockets, or one whose peer is gone.
    SocketPair {
        socket_type: u32,
        /// Number of the peer; -1 if it is closed.
        partner: i32,
        /// Which directions of each are shut down: 1 receiving, 2 sending.
        shutdown: u32,
        partner_shutdown: u32,
        /// [`Message`]s that wait to be received by the record's own descriptor.
        inbound: Span,
        /// [`Message`]s that wait to be received by the partner.
        outbound: Span,
        /// [`SocketOption`]s of each.
        options: Span,
        partner_options: Span,
    }

    /// Bytes in a queue. A stream is one message.
    Message {
        content: Span,
    }

    /// Any other socket.
    Socket {
        domain: i32,
        socket_type: i32,
        protocol: i32,
        /// Length of the queue of a listening socket; -1 if it does not listen.
        backlog: i32,
        /// [`SocketOption`]s that differ from a fresh socket's.
        options: Span,
        /// `sockaddr` to bind to; empty if unbound.
        local: Span,
        /// `sockaddr` to connect to; empty if unconnected.
        peer: Span,
        /// The local address for messages.
        name: Span,
        /// Mode and owner of the socket file; zero without one.
        file_mode: u32,
        file_uid: u32,
        file_gid: u32,
    }

    /// An option of a socket, `setsockopt(2)`.
    SocketOption {
        level: i32,
        name: i32,
        value: Span,
    }

    /// eventfd(2).
    Eventfd {
        count: u64,
        /// `EFD_SEMAPHORE` or nothing.
        flags: u32,
    }

    /// timerfd_create(2).
    Timerfd {
        clock: i32,
        /// Flags for timerfd_settime(2). With `TFD_TIMER_ABSTIME` the value is a time of the clock, otherwise it is relative.
        settime_flags: u32,
        value_s: i64,
        value_ns: i64,
        interval_s: i64,
        interval_ns: i64,
        /// Expirations nobody has read.
        ticks: u64,
    }

    /// signalfd(2).
    Signalfd {
        mask: u64,
    }

    /// memfd_create(2).
    Memfd {
        /// Inode in the captured life, by which the object is known.
        inode: u64,
        /// File offset.
        position: u64,
    }

    /// epoll(7).
    Epoll {
        /// [`EpollTarget`]s.
        targets: Span,
    }

    /// A registration.
    EpollTarget {
        /// The number it was made under.
        number: i32,
        /// A descriptor of the file it was made for: the same number, unless that has been closed or reused since.
        source: i32,
        events: u32,
        data: u64,
    }
}

/// What a file must still be, [`File::identity`].
pub mod identity {
    /// Only its type counts: files of `/proc` and `/sys`, directories, whatever `O_PATH` was used for.
    pub const TYPE: u32 = 0;
    /// The same inode, made at the same time, and at least as long as the offset, or the same size and modification time (another host).
    pub const FILE: u32 = 1;
    /// The same device number.
    pub const DEVICE: u32 = 2;
    /// Only its type counts, and it is created if it is gone: append files, which may have been rotated.
    pub const APPEND: u32 = 3;
}

/// What is found where a file was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub mode: u32,
    pub device: u64,
    pub inode: u64,
    /// `st_rdev`.
    pub device_number: u64,
    pub size: u64,
    pub modified: (i64, i64),
    /// When the inode was made; zero where the file system does not tell.
    pub born: (i64, u32),
}

impl File {
    /// Whether `found` may stand for the recorded file.
    pub fn is_same(&self, found: &Found) -> bool {
        const S_IFMT: u32 = 0o170_000;
        let is_type = found.mode & S_IFMT == self.mode & S_IFMT;
        is_type
            && match self.identity {
                identity::TYPE | identity::APPEND => true,
                identity::DEVICE => found.device_number == self.device,
                identity::FILE => {
                    let born = (self.born_s, self.born_ns);
                    let is_inode = (found.device, found.inode, found.born) == (self.device, self.inode, born);
                    // On another host everything but the inode can be the same.
                    let is_content = (found.size, found.modified) == (self.size, (self.modified_s, self.modified_ns));
                    is_content || is_inode && found.size >= self.position
                }
                _ => false,
            }
    }
}

/// The values of type `D` in `span`, one after the other. Ends early if the image contradicts itself; [`sound`] tells before.
pub fn sequence<D: Detail>(span: Span, blob: &[u8]) -> impl Iterator<Item = D> + '_ {
    let mut bytes = span.of(blob).unwrap_or_default();
    core::iter::from_fn(move || D::decode(&mut bytes))
}

impl DescriptorRecord {
    /// The detail, or nothing if the image contradicts itself.
    pub fn detail<D: Detail>(&self, blob: &[u8]) -> Option<D> {
        D::decode(&mut self.detail.of(blob)?)
    }
}

/// The record of descriptor `number` in a table sorted by number.
pub fn find(records: &[DescriptorRecord], number: i32) -> Option<&DescriptorRecord> {
    records.get(records.binary_search_by_key(&number, |record| record.number).ok()?)
}

/// Whether a table does not contradict itself: every span lies in the blob, every reference leads to a fitting record.
///
/// Total over any bytes.
pub fn sound(records: &[DescriptorRecord], blob: &[u8]) -> bool {
    let ascending = records.iter().zip(records.iter().skip(1)).all(|(record, next)| record.number < next.number);
    ascending && records.iter().all(|record| record.number >= 0 && sound_record(record, records, blob).is_some())
}

fn sound_record(record: &DescriptorRecord, records: &[DescriptorRecord], blob: &[u8]) -> Option<()> {
    let is = |number: i32, fits: &dyn Fn(u32) -> bool| find(records, number).filter(|found| fits(found.kind)).map(drop);
    let is_partner = |number: i32| if number == -1 { Some(()) } else { is(number, &|kind| kind == kind::PARTNER) };
    let whole = |span: Span, bytes: usize| (span.of(blob)?.len().checked_rem(bytes)? == 0).then_some(());
    let options = |span: Span| {
        whole(span, SocketOption::BYTES)?;
        sequence::<SocketOption>(span, blob).try_for_each(|option| option.value.of(blob).map(drop))
    };
    let messages = |span: Span| {
        whole(span, Message::BYTES)?;
        sequence::<Message>(span, blob).try_for_each(|message| message.content.of(blob).map(drop))
    };
    match record.kind {
        kind::INHERITED => {
            let detail: Inherited = record.detail(blob)?;
            (0..=2).contains(&detail.stream).then_some(())
        }
        kind::DUPLICATE => {
            let detail: Duplicate = record.detail(blob)?;
            is(detail.of, &|kind| kind != kind::DUPLICATE)
        }
        kind::FILE | kind::DIRECTORY | kind::DEVICE => {
            let detail: File = record.detail(blob)?;
            matches!(detail.path.of(blob)?, [b'/', .., 0]).then_some(())
        }
        kind::PIPE => {
            let detail: Pipe = record.detail(blob)?;
            detail.content.of(blob)?;
            is_partner(detail.partner)
        }
        kind::SOCKET_PAIR => {
            let detail: SocketPair = record.detail(blob)?;
            options(detail.options)?;
            options(detail.partner_options)?;
            messages(detail.inbound)?;
            messages(detail.outbound)?;
            is_partner(detail.partner)
        }
        kind::PARTNER => Some(()),
        kind::SOCKET => {
            let detail: Socket = record.detail(blob)?;
            options(detail.options)?;
            detail.local.of(blob)?;
            detail.peer.of(blob)?;
            detail.name.of(blob).map(drop)
        }
        kind::EVENTFD => record.detail::<Eventfd>(blob).map(drop),
        kind::TIMERFD => record.detail::<Timerfd>(blob).map(drop),
        kind::SIGNALFD => record.detail::<Signalfd>(blob).map(drop),
        kind::MEMFD => record.detail::<Memfd>(blob).map(drop),
        kind::PIDFD => Some(()),
        kind::EPOLL => {
            let detail: Epoll = record.detail(blob)?;
            whole(detail.targets, EpollTarget::BYTES)?;
            sequence::<EpollTarget>(detail.targets, blob)
                .try_for_each(|target| is(target.source, &|_| true).filter(|()| target.number >= 0))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(detail: &impl Detail) -> Vec<u8> {
        let mut bytes = Vec::new();
        detail.encode(&mut |piece| bytes.extend_from_slice(piece));
        bytes
    }

    #[test]
    fn details_come_back_as_they_were() {
        let detail = EpollTarget { number: 8, source: 6, events: 0x8000_2019, data: 0x5653_74e5_2490 };
        let bytes = encoded(&detail);
        assert_eq!(bytes.len(), EpollTarget::BYTES);
        assert_eq!(EpollTarget::decode(&mut &bytes[..]), Some(detail));
        assert_eq!(EpollTarget::decode(&mut &bytes[..bytes.len() - 1]), None);
    }

    #[test]
    fn a_file_is_known_by_inode_and_birth_or_by_size_and_time() {
        let file = File {
            identity: identity::FILE,
            mode: 0o100_644,
            device: 1,
            inode: 2,
            size: 10,
            modified_s: 5,
            born_s: 3,
            position: 7,
            ..File::default()
        };
        let same = Found { mode: 0o100_600, device: 1, inode: 2, size: 10, modified: (5, 0), born: (3, 0), device_number: 0 };
        for (found, is) in [
            (same, true),
            (Found { size: 11, modified: (9, 0), ..same }, true),
            (Found { size: 6, modified: (9, 0), ..same }, false),
            (Found { inode: 8, born: (8, 0), ..same }, true),
            (Found { born: (8, 0), modified: (9, 0), ..same }, false),
            (Found { inode: 8, size: 11, ..same }, false),
            (Found { mode: 0o040_600, ..same }, false),
        ] {
            assert_eq!(file.is_same(&found), is, "{found:?}");
        }
        let device = File { identity: identity::DEVICE, mode: 0o020_666, device: 259, ..File::default() };
        let null = Found { mode: 0o020_666, device_number: 259, ..Found::default() };
        assert!(device.is_same(&null) && !device.is_same(&Found { device_number: 260, ..null }));
    }

    fn record(number: i32, kind: u32, detail: Span) -> DescriptorRecord {
        DescriptorRecord { number, kind, detail, ..DescriptorRecord::default() }
    }

    #[test]
    fn references_must_lead_somewhere_fitting() {
        let mut blob = encoded(&Eventfd { count: 1, flags: 0 });
        let eventfd = Span { offset: 0, len: blob.len() as u32 };
        let duplicate = Span { offset: eventfd.len, len: 4 };
        blob.extend(encoded(&Duplicate { of: 3 }));
        assert!(sound(&[record(3, kind::EVENTFD, eventfd), record(5, kind::DUPLICATE, duplicate)], &blob));
        assert!(!sound(&[record(4, kind::EVENTFD, eventfd), record(5, kind::DUPLICATE, duplicate)], &blob), "3 is missing");
        assert!(!sound(&[record(3, kind::DUPLICATE, duplicate)], &blob), "a duplicate of itself");
        assert!(!sound(&[record(5, kind::EVENTFD, eventfd), record(3, kind::EVENTFD, eventfd)], &blob), "not ascending");
        assert!(!sound(&[record(3, kind::EVENTFD, Span { offset: 10, len: 12 })], &blob), "outside");
        assert!(!sound(&[record(3, 99, eventfd)], &blob), "unknown kind");
    }
}
