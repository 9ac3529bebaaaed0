//! A process with something of every kind that a restore has to bring back, and whoever makes trouble when it does.

use std::{
    collections::BTreeSet,
    ffi::c_void,
    fs::File,
    io::{PipeReader, Read, Seek, SeekFrom, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{
            fs::FileExt,
            net::{UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::PathBuf,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use crac_native::{image, layout::Trial};
use rustix::{event, fs, process, time};

use super::{argument, capture_once};

static SIGNALLED: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_: i32) {
    SIGNALLED.store(true, SeqCst);
}

/// What the process holds. Every part is looked at in the life to come.
struct Everything {
    tcp: TcpListener,
    unix: UnixListener,
    file: File,
    event: OwnedFd,
    pipe: PipeReader,
    pair: (UnixStream, UnixStream),
    timer: OwnedFd,
    epoll: OwnedFd,
    memfd: File,
    /// The memfd, mapped shared.
    mapped: *mut u8,
    directory: PathBuf,
    threads: Arc<[Barrier; 2]>,
    descriptors: BTreeSet<String>,
}

/// Numbers of the open descriptors.
fn descriptors() -> BTreeSet<String> {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap());
    let is_listing = |entry: &std::fs::DirEntry| std::fs::read_link(entry.path()).is_ok_and(|to| to.ends_with("fd"));
    entries.filter(|entry| !is_listing(entry)).map(|entry| entry.file_name().into_string().unwrap()).collect()
}

impl Everything {
    fn make() -> Self {
        let directory = PathBuf::from(argument("--dir=", None).unwrap());
        std::env::set_current_dir(&directory).unwrap();
        fs::Mode::from_raw_mode(process::umask(fs::Mode::from_raw_mode(0o137)).as_raw_mode());
        std::fs::write("file", "hello").unwrap();
        let mut file = File::open("file").unwrap();
        file.seek(SeekFrom::Start(3)).unwrap();
        let [_, high, middle, low] = std::process::id().to_be_bytes();
        let tcp = TcpListener::bind((Ipv4Addr::new(127, 64 | high, middle, low), 0)).unwrap();
        let (pipe, mut into) = std::io::pipe().unwrap();
        into.write_all(b"in the pipe").unwrap();
        // Part of the image as the end that is read: the other one stays open as well.
        std::mem::forget(into);
        let pair = UnixStream::pair().unwrap();
        (&pair.0).write_all(b"on its way").unwrap();
        let event = event::eventfd(7, event::EventfdFlags::CLOEXEC).unwrap();
        let timer = time::timerfd_create(time::TimerfdClockId::Monotonic, time::TimerfdFlags::CLOEXEC).unwrap();
        let hour = time::Timespec { tv_sec: 3600, tv_nsec: 0 };
        let setting = time::Itimerspec { it_interval: hour, it_value: hour };
        time::timerfd_settime(&timer, time::TimerfdTimerFlags::empty(), &setting).unwrap();
        let epoll = event::epoll::create(event::epoll::CreateFlags::CLOEXEC).unwrap();
        event::epoll::add(&epoll, &pipe, event::epoll::EventData::new_u64(42), event::epoll::EventFlags::IN).unwrap();
        let memfd = File::from(fs::memfd_create("shared", fs::MemfdFlags::CLOEXEC).unwrap());
        memfd.set_len(8192).unwrap();
        memfd.write_all_at(b"in memory", 4096).unwrap();
        // SAFETY: a new mapping, which nobody ever unmaps.
        let mapped = unsafe {
            libc::mmap(std::ptr::null_mut(), 8192, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, memfd.as_raw_fd(), 0)
        };
        assert_ne!(mapped, libc::MAP_FAILED);
        // SAFETY: the handler only stores to an atomic.
        assert_ne!(unsafe { libc::signal(libc::SIGUSR1, note as extern "C" fn(i32) as *const () as usize) }, libc::SIG_ERR);
        let limit = process::getrlimit(process::Resource::Nofile);
        process::setrlimit(process::Resource::Nofile, process::Rlimit { current: Some(500), ..limit }).unwrap();
        let threads = Arc::new([Barrier::new(4), Barrier::new(4)]);
        for number in 0..3 {
            let threads = threads.clone();
            let work = move || {
                loop {
                    threads[0].wait();
                    assert_eq!(std::thread::current().name(), Some(format!("number-{number}").as_str()));
                    threads[1].wait();
                }
            };
            std::thread::Builder::new().name(format!("number-{number}")).spawn(work).unwrap();
        }
        Self {
            tcp,
            unix: UnixListener::bind(directory.join("socket")).unwrap(),
            file,
            event,
            pipe,
            pair,
            timer,
            epoll,
            memfd,
            mapped: mapped.cast(),
            directory,
            threads,
            descriptors: descriptors(),
        }
    }

    fn check(mut self) {
        assert_eq!(descriptors(), self.descriptors);
        for barrier in self.threads.iter() {
            barrier.wait();
        }
        let mut client = TcpStream::connect(self.tcp.local_addr().unwrap()).unwrap();
        client.write_all(b"x").unwrap();
        self.tcp.accept().unwrap().0.read_exact(&mut [0]).unwrap();
        let mut client = UnixStream::connect(self.directory.join("socket")).unwrap();
        client.write_all(b"x").unwrap();
        self.unix.accept().unwrap().0.read_exact(&mut [0]).unwrap();
        let mut text = String::new();
        self.file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "lo");
        let mut events = Vec::with_capacity(4);
        let now = time::Timespec { tv_sec: 0, tv_nsec: 0 };
        event::epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&now)).unwrap();
        assert_eq!(events.iter().map(|event| event.data.u64()).collect::<Vec<_>>(), [42]);
        let mut bytes = [0; 16];
        assert_eq!(self.pipe.read(&mut bytes).unwrap(), 11);
        assert_eq!(self.pair.1.read(&mut bytes).unwrap(), 10);
        let mut counter = [0; 8];
        rustix::io::read(&self.event, &mut counter).unwrap();
        assert_eq!(u64::from_ne_bytes(counter), 7);
        let left = time::timerfd_gettime(&self.timer).unwrap();
        assert!((1..=3600).contains(&left.it_value.tv_sec) && left.it_interval.tv_sec == 3600, "{left:?}");
        // SAFETY: mapped in the first life, at the same place in this one.
        unsafe { self.mapped.add(4096).write_volatile(b'I') };
        self.memfd.read_exact_at(&mut bytes[..9], 4096).unwrap();
        assert_eq!(&bytes[..9], b"In memory");
        assert_eq!(process::umask(fs::Mode::empty()), fs::Mode::from_raw_mode(0o137));
        assert_eq!(std::env::current_dir().unwrap(), self.directory);
        assert_eq!(process::getrlimit(process::Resource::Nofile).current, Some(500));
        process::kill_process(process::getpid(), process::Signal::USR1).unwrap();
        // Whichever thread gets it, it is soon.
        while !SIGNALLED.load(SeqCst) {
            std::thread::yield_now();
        }
        // SAFETY: as above.
        let zero = unsafe { self.mapped.cast::<c_void>().cast::<u8>().read_volatile() };
        assert_eq!(zero, 0);
    }
}

/// Captures itself with something of every kind, and says `whole` when all of it has come back.
pub(super) fn everything() {
    let everything = Everything::make();
    println!("address {}", everything.tcp.local_addr().unwrap());
    let life = capture_once();
    assert!(life.asleep_wall < Duration::from_secs(3600));
    everything.check();
    println!("whole");
}

/// Writes `--kind=` and `--call=` into the header of the image `--image=` and becomes it. In one process without threads, so that
/// nobody holds the file open for writing when it is executed.
pub(super) fn try_restore() {
    let number = |name: &str| argument(name, None).unwrap().parse().unwrap();
    let path = PathBuf::from(argument("--image=", None).unwrap());
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let front = image::Image::read(&file).unwrap().data_offset();
    let mut bytes = vec![0; front as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    image::set_trial(&mut bytes, Trial { kind: number("--kind="), call: number("--call=") });
    file.write_all_at(&bytes, 0).unwrap();
    assert!(file.as_fd().as_raw_fd() > 2);
    drop(file);
    panic!("{}", std::process::Command::new(path).exec());
}
