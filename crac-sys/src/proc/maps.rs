//! `/proc/PID/maps` and `/proc/PID/smaps` (proc_pid_maps(5), proc_pid_smaps(5)).

use super::text::{Fields, Malformed, device, lines, number, split_once};

/// One line of `maps`: a stretch of the address space with one set of properties.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping<'a> {
    /// First address.
    pub start: u64,
    /// First address behind it; larger than `start`.
    pub end: u64,
    /// Can be read.
    pub read: bool,
    /// Can be written.
    pub write: bool,
    /// Can be executed.
    pub execute: bool,
    /// `MAP_SHARED`; otherwise private, copy on write.
    pub shared: bool,
    /// Offset of the first byte in the file.
    pub offset: u64,
    /// Device of the file, major and minor; zero for anonymous memory.
    pub device: (u32, u32),
    /// Inode of the file; zero for anonymous memory.
    pub inode: u64,
    /// The last column as it stands, perhaps empty. Line feeds inside a path read `\012`.
    pub path: &'a [u8],
}

/// What the last column of `maps` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MappingName<'a> {
    /// Nothing: private anonymous memory.
    Anonymous,
    /// `[anon:NAME]`: private anonymous memory with a name (`PR_SET_VMA_ANON_NAME`).
    AnonymousNamed(&'a [u8]),
    /// `[anon_shmem:NAME]`: shared anonymous memory with a name.
    SharedNamed(&'a [u8]),
    /// `/dev/zero (deleted)`: shared anonymous memory.
    SharedAnonymous,
    /// `[heap]`: the brk(2) area.
    Heap,
    /// `[stack]`: the first thread's stack.
    Stack,
    /// `[vdso]`.
    Vdso,
    /// `[vvar]` or `[vvar_vclock]`: the data of the vdso.
    Vvar,
    /// `[vsyscall]`: at a fixed address, not changed by anyone.
    Vsyscall,
    /// Another `[NAME]`: `[uprobes]`, `[shadow stack]`.
    Special(&'a [u8]),
    /// `/memfd:NAME (deleted)`.
    Memfd(&'a [u8]),
    /// `/SYSVKEY (deleted)`: a System V segment.
    Sysv,
    /// `anon_inode:[NAME]`: rings of io_uring and perf.
    AnonInode(&'a [u8]),
    /// A path; `deleted` if it ends in ` (deleted)`, which it then no longer holds.
    File {
        /// Path relative to the reader's root.
        path: &'a [u8],
        /// Whether the kernel says that the file has been deleted.
        deleted: bool,
    },
}

impl<'a> Mapping<'a> {
    /// Reads one line.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if it is no line of `maps`, or if the range is empty.
    pub fn parse(line: &'a [u8]) -> Result<Self, Malformed> {
        Self::read(line).ok_or(Malformed { what: "maps" })
    }

    fn read(line: &'a [u8]) -> Option<Self> {
        let mut fields = Fields::of(line);
        let (start, end) = split_once(fields.next()?, b'-')?;
        let (start, end) = (number(start, 16)?, number(end, 16)?);
        let &[read, write, execute, shared] = fields.next()? else { return None };
        let offset = number(fields.next()?, 16)?;
        let device = device(fields.next()?)?;
        let inode = number(fields.next()?, 10)?;
        let known =
            matches!((read, write), (b'r' | b'-', b'w' | b'-')) && matches!((execute, shared), (b'x' | b'-', b's' | b'p'));
        (known && start < end).then(|| Self {
            start,
            end,
            read: read == b'r',
            write: write == b'w',
            execute: execute == b'x',
            shared: shared == b's',
            offset,
            device,
            inode,
            path: fields.rest(),
        })
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.end - self.start
    }

    /// What the last column says.
    pub fn name(&self) -> MappingName<'a> {
        match self.path {
            b"" => MappingName::Anonymous,
            b"[heap]" => MappingName::Heap,
            b"[stack]" => MappingName::Stack,
            b"[vdso]" => MappingName::Vdso,
            b"[vvar]" | b"[vvar_vclock]" => MappingName::Vvar,
            b"[vsyscall]" => MappingName::Vsyscall,
            b"/dev/zero (deleted)" => MappingName::SharedAnonymous,
            path => {
                if let Some(inner) = path.strip_prefix(b"[").and_then(|path| path.strip_suffix(b"]")) {
                    if let Some(name) = inner.strip_prefix(b"anon:") {
                        return MappingName::AnonymousNamed(name);
                    }
                    return inner.strip_prefix(b"anon_shmem:").map_or(MappingName::Special(inner), MappingName::SharedNamed);
                }
                if let Some(name) = path.strip_prefix(b"anon_inode:") {
                    return MappingName::AnonInode(name);
                }
                let deleted = path.strip_suffix(b" (deleted)");
                match deleted {
                    Some(path) if path.starts_with(b"/memfd:") => MappingName::Memfd(path.get(7..).unwrap_or_default()),
                    Some(path) if path.starts_with(b"/SYSV") => MappingName::Sysv,
                    _ => MappingName::File { path: deleted.unwrap_or(path), deleted: deleted.is_some() },
                }
            }
        }
    }
}

/// One entry of `smaps`: the mapping and the lines below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SmapsEntry<'a> {
    /// The header line.
    pub mapping: Mapping<'a>,
    /// `VmFlags:`; empty if the kernel prints none.
    pub flags: VmFlags<'a>,
    /// Bytes in memory.
    pub resident: u64,
    /// Bytes of anonymous pages in memory: what is not in the file.
    pub anonymous: u64,
    /// Bytes in swap.
    pub swap: u64,
    /// Bytes locked by mlock(2), each page's share.
    pub locked: u64,
    /// Protection key; zero if none.
    pub protection_key: u64,
}

/// The entries of a whole `smaps` text. After an error the iteration ends.
#[derive(Debug, Clone)]
pub struct SmapsEntries<'a> {
    text: &'a [u8],
}

impl<'a> SmapsEntries<'a> {
    /// The entries of `text`, which is the whole file.
    pub fn of(text: &'a [u8]) -> Self {
        Self { text }
    }

    fn take_line(&mut self) -> &'a [u8] {
        let (line, rest) = split_once(self.text, b'\n').unwrap_or((self.text, b""));
        self.text = rest;
        line
    }

    /// The next line, if it belongs to the entry begun before: its first piece ends in a colon.
    fn take_field(&mut self) -> Option<(&'a [u8], &'a [u8])> {
        let (line, rest) = split_once(self.text, b'\n').unwrap_or((self.text, b""));
        let (label, value) = split_once(line, b':')?;
        if label.iter().any(u8::is_ascii_whitespace) {
            return None;
        }
        self.text = rest;
        Some((label, value))
    }
}

impl<'a> Iterator for SmapsEntries<'a> {
    type Item = Result<SmapsEntry<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.text.is_empty() {
            return None;
        }
        let mapping = match Mapping::parse(self.take_line()) {
            Ok(mapping) => mapping,
            Err(error) => {
                self.text = b"";
                return Some(Err(error));
            }
        };
        let flags = VmFlags(b"");
        let mut entry = SmapsEntry { mapping, flags, resident: 0, anonymous: 0, swap: 0, locked: 0, protection_key: 0 };
        while let Some((label, value)) = self.take_field() {
            let target = match label {
                b"VmFlags" => {
                    entry.flags = VmFlags(value);
                    continue;
                }
                b"Rss" => &mut entry.resident,
                b"Anonymous" => &mut entry.anonymous,
                b"Swap" => &mut entry.swap,
                b"Locked" => &mut entry.locked,
                b"ProtectionKey" => &mut entry.protection_key,
                _ => continue,
            };
            let scale = if label == b"ProtectionKey" { 1 } else { 1024 };
            let Some(read) = Fields::of(value).next().and_then(|value| number(value, 10)?.checked_mul(scale)) else {
                self.text = b"";
                return Some(Err(Malformed { what: "smaps" }));
            };
            *target = read;
        }
        Some(Ok(entry))
    }
}

/// The two-letter flags of `VmFlags:`, kernel documentation `filesystems/proc`.
///
/// | flag | meaning | flag | meaning |
/// |---|---|---|---|
/// | `io` | device memory | `gd` | grows down |
/// | `lo` | locked | `wf` | wiped on fork |
/// | `dc` | not copied on fork | `dp` | droppable |
/// | `dd` | not dumped | `hg` / `nh` | huge pages advised / refused |
/// | `nr` | no swap reserved | `sl` | sealed |
/// | `ss` | shadow stack | `um` / `uw` | userfaultfd |
/// | `ht` | hugetlb | `mg` | mergeable |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VmFlags<'a>(&'a [u8]);

impl<'a> VmFlags<'a> {
    /// Whether `flag` is there.
    pub fn contains(&self, flag: &[u8; 2]) -> bool {
        self.iter().any(|present| present == flag)
    }

    /// The flags in the kernel's order.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + Clone + use<'a> {
        Fields::of(self.0)
    }
}

impl<'a> Mapping<'a> {
    /// The mappings of a whole `maps` text; the first error is not necessarily the last item.
    pub fn all(text: &'a [u8]) -> impl Iterator<Item = Result<Mapping<'a>, Malformed>> + Clone + use<'a> {
        lines(text).map(Mapping::parse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_whole() {
        let line = b"7feaa9a87000-7feaa9bdd000 r-xp 00026000 fe:00 326279                     /usr/lib/libc.so.6";
        let mapping = Mapping::parse(line).unwrap();
        assert_eq!((mapping.start, mapping.end, mapping.size()), (0x7fea_a9a8_7000, 0x7fea_a9bd_d000, 0x15_6000));
        assert_eq!((mapping.read, mapping.write, mapping.execute, mapping.shared), (true, false, true, false));
        assert_eq!((mapping.offset, mapping.device, mapping.inode), (0x26000, (0xfe, 0), 326_279));
        assert_eq!(mapping.name(), MappingName::File { path: b"/usr/lib/libc.so.6", deleted: false });
    }

    #[test]
    fn the_last_column_is_classified() {
        for (column, name) in [
            ("", MappingName::Anonymous),
            ("[heap]", MappingName::Heap),
            ("[stack]", MappingName::Stack),
            ("[vvar_vclock]", MappingName::Vvar),
            ("[anon:jemalloc pages]", MappingName::AnonymousNamed(b"jemalloc pages")),
            ("[anon_shmem:ring]", MappingName::SharedNamed(b"ring")),
            ("[uprobes]", MappingName::Special(b"uprobes")),
            ("/dev/zero (deleted)", MappingName::SharedAnonymous),
            ("/SYSV00000000 (deleted)", MappingName::Sysv),
            ("/memfd:a b (deleted)", MappingName::Memfd(b"a b")),
            ("anon_inode:[io_uring]", MappingName::AnonInode(b"[io_uring]")),
            ("/opt/a b (deleted)", MappingName::File { path: b"/opt/a b", deleted: true }),
        ] {
            let line = format!("1000-2000 rw-p 00000000 00:00 0                          {column}");
            assert_eq!(Mapping::parse(line.as_bytes()).unwrap().name(), name);
        }
    }

    #[test]
    fn wrong_lines_are_refused() {
        for line in [
            &b""[..],
            b"1000-2000",
            b"2000-1000 rw-p 00000000 00:00 0",
            b"1000-1000 rw-p 00000000 00:00 0",
            b"1000-2000 rw-x 00000000 00:00 0",
            b"1000-2000 rw-p 00000000 0000 0",
            b"1000-2000 rw-p 00000000 00:00",
            b"Rss:     4 kB",
        ] {
            assert!(Mapping::parse(line).is_err(), "{line:?}");
        }
    }

    #[test]
    fn a_real_smaps_text_is_read_to_the_end() {
        let text = include_bytes!("../../testdata/smaps.txt");
        let entries: Vec<_> = SmapsEntries::of(text).collect::<Result<_, _>>().unwrap();
        let headers = lines(text).filter(|line| Mapping::parse(line).is_ok()).count();
        assert_eq!(entries.len(), headers);
        let stack = entries.iter().find(|entry| entry.mapping.name() == MappingName::Stack).unwrap();
        assert!(stack.flags.contains(b"gd") && !stack.flags.contains(b"sh"));
        assert!(stack.resident > 0 && stack.anonymous <= stack.resident);
        let vvar = entries.iter().find(|entry| entry.mapping.name() == MappingName::Vvar).unwrap();
        assert!(vvar.flags.contains(b"pf") || vvar.flags.contains(b"io"));
    }

    #[test]
    fn an_entry_cut_short_inside_its_header_is_an_error() {
        let mut entries = SmapsEntries::of(b"1000-2000 rw-p 00000000 00:00 0\nRss:  4 kB\n2000-30");
        assert_eq!(entries.next().unwrap().unwrap().resident, 4096);
        assert!(entries.next().unwrap().is_err());
        assert!(entries.next().is_none());
    }
}
