//! What a kernel unpacks into memory and starts from: an archive in the `newc` format of cpio(5).
//!
//! ```text
//! "070701"  inode  mode  uid  gid  links  mtime  size  device ×2  of a device ×2  name bytes  0      8 hexadecimal digits each
//! name, NUL, zeros up to a multiple of 4       content, zeros up to a multiple of 4       ...       an entry called TRAILER!!!
//! ```

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::shell;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;

/// Files by where they go.
#[derive(Debug, Default)]
pub(super) struct Initramfs {
    entries: BTreeMap<String, Entry>,
    /// Copies of programs without what only debuggers need.
    stripped: PathBuf,
}

#[derive(Debug)]
struct Entry {
    mode: u32,
    content: Vec<u8>,
}

impl Initramfs {
    /// Nothing yet. `stripped` is a directory for intermediate files.
    pub(super) fn new(stripped: PathBuf) -> Result<Self> {
        fs::create_dir_all(&stripped).with_context(|| format!("cannot make {}", stripped.display()))?;
        Ok(Self { stripped, ..Self::default() })
    }

    /// Adds the program `from` as `to`, and the libraries it is linked to where the loader looks for them.
    pub(super) fn program(&mut self, to: &str, from: &Path) -> Result<()> {
        for library in libraries(from)? {
            if !self.entries.contains_key(library.as_str()) {
                let content = fs::read(&library).with_context(|| format!("cannot read {library}"))?;
                self.add(&library, PROGRAM, content);
            }
        }
        let small = self.stripped.join(to.trim_start_matches('/').replace('/', "-"));
        let mut strip = shell::command("strip", ["-o"]);
        // Where there is no strip(1) all of it goes in.
        let is_small = shell::is_installed("strip") && shell::succeeds(strip.arg(&small).arg(from));
        let path = if is_small { &small } else { from };
        let content = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        self.add(to, PROGRAM, content);
        Ok(())
    }

    /// Adds a file with this content.
    pub(super) fn file(&mut self, to: &str, content: Vec<u8>) {
        self.add(to, FILE, content);
    }

    fn add(&mut self, to: &str, mode: u32, content: Vec<u8>) {
        for (at, _) in to.match_indices('/').skip(1) {
            self.entries.entry(to[..at].to_owned()).or_insert(Entry { mode: DIRECTORY, content: Vec::new() });
        }
        self.entries.insert(to.to_owned(), Entry { mode, content });
    }

    /// Writes the archive.
    pub(super) fn write(&self, to: &Path) -> Result<()> {
        let writing = || format!("cannot write {}", to.display());
        let mut file = BufWriter::new(File::create(to).with_context(writing)?);
        // Directories stand in front of what is in them, because their names are shorter.
        let mut inode = 0;
        for (name, entry) in &self.entries {
            inode += 1;
            file.write_all(&record(name.trim_start_matches('/'), inode, entry.mode, &entry.content)).with_context(writing)?;
        }
        file.write_all(&record("TRAILER!!!", 0, 0, &[])).with_context(writing)?;
        file.flush().with_context(writing)
    }
}

/// One entry of the archive.
fn record(name: &str, inode: u32, mode: u32, content: &[u8]) -> Vec<u8> {
    let fields = [inode, mode, 0, 0, 1, 0, content.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
    let mut record = b"070701".to_vec();
    record.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
    record.extend(name.bytes());
    record.push(0);
    record.resize(record.len().next_multiple_of(4), 0);
    record.extend(content);
    record.resize(record.len().next_multiple_of(4), 0);
    record
}

/// Paths of the libraries that the program at `path` is linked to, the loader included.
pub(crate) fn libraries(path: &Path) -> Result<Vec<String>> {
    Ok(libraries_in(&shell::output(shell::command("ldd", []).arg(path))?))
}

/// Paths of the libraries in what ldd(1) says.
fn libraries_in(said: &str) -> Vec<String> {
    let words = said.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    words.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_in_every_kind_of_line() {
        let said = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(libraries_in(said), ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
        assert!(libraries_in("\tstatically linked\n").is_empty());
    }

    #[test]
    fn entries_are_aligned_and_as_long_as_they_say() {
        let entry = record("bin/x", 3, PROGRAM, b"12345");
        assert!(entry.starts_with(b"0707010000000300008") && entry.len() == (110 + 6 + 8));
        assert_eq!(&entry[54..62], b"00000005");
        assert_eq!((&entry[110..116], &entry[116..]), (&b"bin/x\0"[..], &b"12345\0\0\0"[..]));
    }
}
