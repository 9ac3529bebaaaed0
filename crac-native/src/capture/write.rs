//! The planned image put into its file, and executed.
#![expect(unsafe_code, reason = "replaces the process by its image")]

use std::{
    fmt::Write,
    os::fd::{AsFd, AsRawFd},
    sync::atomic::Ordering,
};

use crac_sys::{Errno, fs, process};

use super::{HEADER_AT, Work, look::Seen};
use crate::{
    arena::ArenaVec,
    facts::{self, Problem},
    launch::RESTORER,
    layout::{
        Boot, Header, MAGIC, OWNERS_MAX, Section,
        xxh64::{Xxh64, xxh64},
    },
    owners::Owners,
    record::{Record, bytes_of},
    stub::ELF_HEADER_BYTES,
    tables::Memory,
    text::FixedText,
    writer::{ImageFile, Reader, Sums},
};

impl Work<'_, '_> {
    /// Writes the image as planned: page data first, because the tables hold its checksums.
    pub(super) fn write(
        &mut self,
        image: &mut ImageFile,
        header: &mut Header,
        memory: &mut Memory<'_>,
        tables: &Seen<'_>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), Problem> {
        let writing = |errno| ("writing the image", errno);
        let reading = |errno| ("opening /proc/self/mem", errno);
        // From here on the address is part of the image.
        HEADER_AT.store(header.metadata_at, Ordering::SeqCst);
        image.set_len(header.file_bytes).map_err(writing)?;
        let own_memory = fs::open(c"/proc/self/mem", libc::O_RDONLY, 0).map_err(reading)?;
        let mut reader = Reader::new(self.arena, own_memory.as_fd()).map_err(|errno| ("reserving a buffer", errno))?;
        reader.instead = memory.stand_in.as_ref().map(|(at, bytes)| (*at, &**bytes));
        let found = self.arena.zeroed::<u64>(OWNERS_MAX).map_err(|errno| ("noting held mutexes", errno))?;
        let mut owners = Owners::new(&tables.threads, found);
        let blocks = header.sums.bytes as usize / size_of::<u64>();
        let mut sums = Sums::new(self.arena.zeroed(blocks).map_err(|errno| ("noting checksums", errno))?, header.data_offset);
        for (run, is_indirect) in memory.runs.iter_mut().zip(memory.indirect.iter()) {
            let is_indirect = *is_indirect != 0;
            let written = image.write_run(run, &mut reader, is_indirect, &mut owners, &mut sums, progress);
            written.map_err(|errno| ("writing the memory into the image", errno))?;
        }
        let objects = &mut memory.objects;
        for (run, source) in objects.runs.iter_mut().zip(objects.sources.iter()) {
            let written = image.write_shared(run, *source, &mut reader, &mut sums, progress);
            written.map_err(|errno| ("writing shared memory into the image", errno))?;
        }
        let sections: [(&[u8], Section); 16] = [
            (self.manifest, header.manifest),
            (bytes_of(&memory.mappings), header.mappings),
            (bytes_of(&memory.runs), header.runs),
            (bytes_of(&memory.guards), header.guards),
            (bytes_of(&memory.files), header.files),
            (bytes_of(&tables.threads), header.threads),
            (bytes_of(tables.actions), header.actions),
            (tables.auxv, header.auxv),
            (&memory.text, header.text),
            (bytes_of(&tables.descriptors.records), header.descriptors),
            (&tables.descriptors.blob, header.descriptor_blob),
            (bytes_of(&tables.settings), header.settings),
            (bytes_of(&memory.objects.records), header.objects),
            (bytes_of(&memory.objects.runs), header.object_runs),
            (bytes_of(owners.found()), header.owners),
            (bytes_of(sums.finish()), header.sums),
        ];
        let metadata = self.arena.zeroed::<u8>(header.metadata_bytes as usize).map_err(|errno| ("noting tables", errno))?;
        for (bytes, section) in sections {
            if let Some(place) = metadata.get_mut(section.offset as usize..).and_then(|rest| rest.get_mut(..bytes.len())) {
                place.copy_from_slice(bytes);
            }
        }
        let boot = Boot {
            magic: MAGIC,
            metadata_at: header.metadata_at,
            metadata_offset: header.metadata_offset,
            metadata_bytes: header.metadata_bytes,
            file_bytes: header.file_bytes,
            launched_with: 0,
        };
        self.stub.relocate(header.zone_start, &boot);
        let elf_header = self.stub.elf_header(header.zone_start, &boot, self.program);
        let mut front = Xxh64::new();
        let rest = front.blocks(&elf_header);
        debug_assert!(rest.is_empty(), "pages are whole blocks");
        header.front_sum = front.finish(&self.stub.bytes);
        let header_bytes = size_of::<Header>();
        header.tables_sum = Xxh64::new().finish(metadata.get(header_bytes..).unwrap_or_default());
        header.header_sum = xxh64(header.bytes());
        if let Some(place) = metadata.get_mut(..header_bytes) {
            place.copy_from_slice(header.bytes());
        }
        image.write(metadata, header.metadata_offset).map_err(writing)?;
        image.write(&self.stub.bytes, ELF_HEADER_BYTES).map_err(writing)?;
        image.write(&elf_header, 0).map_err(writing)
    }

    /// Executes the image in this process, or the program that restores it, with the environment it was started with. Returns only
    /// if that fails.
    pub(super) fn become_image(&self, image: &mut ImageFile) -> Errno {
        self.try_to_become(image).err().unwrap_or(Errno::new(libc::ENOEXEC))
    }

    fn try_to_become(&self, image: &mut ImageFile) -> Result<(), Errno> {
        let file = image.reopen_to_execute()?;
        let environment = facts::read_all(self.arena, c"/proc/self/environ")?;
        let mut variables = ArenaVec::new(self.arena);
        for variable in environment.split_inclusive(|byte| *byte == 0).filter(|variable| variable.ends_with(b"\0")) {
            variables.push(variable.as_ptr().addr())?;
        }
        variables.push(0)?;
        let path = self.image_path.as_ptr().addr();
        let mut number = FixedText::<16>::new();
        let (program, arguments) = if self.data_only {
            write!(number, "{}\0", file.as_raw_fd()).map_err(|_| Errno::new(libc::EINVAL))?;
            fs::fcntl(file.as_raw_fd(), libc::F_SETFD, 0)?;
            let program = fs::open(c"/proc/self/exe", libc::O_PATH, 0)?;
            (Some(program), [RESTORER.as_ptr().addr(), number.as_bytes().as_ptr().addr(), path, 0])
        } else {
            (None, [path, 0, 0, 0])
        };
        let program = program.as_ref().unwrap_or(&file);
        // SAFETY: both vectors end with a null and hold addresses of NUL-terminated texts: the path, a number, a constant, and lines
        // of `environ`, of which only those that end in NUL were taken.
        Err(unsafe { process::exec_fd(program.as_fd(), arguments.as_ptr().addr(), variables.as_ptr().addr()) })
    }
}
