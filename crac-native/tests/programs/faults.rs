//! A process that is asked for captures which fail, and looks whether it is what it was before.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use crac_core::{CaptureRequest, Captured, Engine, EngineError, ImageId, ImageMetadata, Mode, Policy, Underway};
use crac_native::NativeEngine;

use super::{argument, engine};

const PATIENCE: Duration = Duration::from_secs(60);

/// What must not grow: numbers of the open descriptors, threads, mappings.
#[derive(Debug, PartialEq, Eq)]
struct Footprint {
    descriptors: BTreeSet<String>,
    threads: usize,
    mappings: usize,
}

impl Footprint {
    fn now() -> Self {
        let entries = |dir: &str| std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
        // But for the directory that is being read. Which number that has depends on whether another thread is just accepting.
        let is_listing = |path: &Path| std::fs::read_link(path).is_ok_and(|to| to.ends_with("fd"));
        let descriptors = entries("/proc/self/fd").filter(|entry| !is_listing(&entry.path()));
        let descriptors = descriptors.map(|entry| entry.file_name().into_string().unwrap()).collect();
        let mappings = std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
        Self { descriptors, threads: entries("/proc/self/task").count(), mappings }
    }
}

/// A service in small: a thread that answers over TCP, one that sleeps, one that computes.
struct Service {
    addr: SocketAddr,
    rounds: Arc<[AtomicU64; 3]>,
}

impl Service {
    fn start() -> Self {
        let [_, high, middle, low] = std::process::id().to_be_bytes();
        // Of this process alone, so that nobody takes the port between two lives.
        let listener = TcpListener::bind((Ipv4Addr::new(127, 64 | high, middle, low), 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        let rounds = Arc::new([const { AtomicU64::new(0) }; 3]);
        let mut works: Vec<Box<dyn FnMut() + Send>> = vec![
            Box::new(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut asked = String::new();
                stream.read_to_string(&mut asked).unwrap();
                stream.write_all(asked.to_uppercase().as_bytes()).unwrap();
            }),
            Box::new(|| std::thread::sleep(Duration::from_millis(1))),
            Box::new(|| assert!((1..1000).map(f64::from).map(f64::sqrt).sum::<f64>() > 0.0)),
        ];
        for (at, mut work) in works.drain(..).enumerate() {
            let rounds = rounds.clone();
            std::thread::spawn(move || {
                loop {
                    work();
                    rounds[at].fetch_add(1, SeqCst);
                }
            });
        }
        Self { addr, rounds }
    }

    /// It answers, and every thread goes on.
    fn check(&self) {
        let before: Vec<u64> = self.rounds.iter().map(|count| count.load(SeqCst)).collect();
        let mut stream = TcpStream::connect(self.addr).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"still here?").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        // To the end: then the other side is closed as well.
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "STILL HERE?");
        while self.rounds.iter().zip(&before).any(|(count, before)| count.load(SeqCst) == *before) {
            std::thread::yield_now();
        }
    }
}

/// Where images go, how, and how many there were.
struct Captures {
    directory: PathBuf,
    mode: Mode,
    point: String,
    policy: Policy,
    count: u64,
}

impl Captures {
    /// `--dir=`, `--mode=` and `--point=` of the first life.
    fn from_arguments() -> Self {
        let mode = argument("--mode=", None).unwrap();
        let mode = [Mode::Exit, Mode::Become, Mode::Continue].into_iter().find(|known| known.to_string() == mode).unwrap();
        let directory = argument("--dir=", None).unwrap().into();
        Self { directory, mode, point: argument("--point=", None).unwrap(), policy: Policy::new(), count: 0 }
    }

    fn engine(&self, nth: u32, how: &str) -> NativeEngine {
        engine().with_fault(&format!("{}:{nth}:{how}", self.point)).unwrap()
    }

    /// The name of the next image; where a name is replaced there is something under it.
    fn next_image(&mut self) -> PathBuf {
        self.count += 1;
        let image = self.directory.join(format!("{:04}.crac", self.count));
        if self.point == "rename" {
            std::fs::write(&image, "old").unwrap();
        }
        image
    }

    fn request(&self, image: &Path, mode: Mode) -> CaptureRequest<'_> {
        let metadata = ImageMetadata::new("test", ImageId([7; 16]), 0, None);
        CaptureRequest::new(image.to_owned(), mode, metadata, &self.policy)
    }

    /// A capture that goes through: this life or the next one comes back.
    fn succeeds(&mut self, engine: &NativeEngine, service: &Service) -> Result<(), EngineError> {
        let image = self.next_image();
        match engine.capture(self.request(&image, self.mode))? {
            Captured::Restored(_) => engine.settle(),
            Captured::Underway(mut underway) => {
                let ended = loop {
                    service.check();
                    if let Some(ended) = underway.wait(Duration::from_millis(1)) {
                        break ended;
                    }
                };
                ended?;
            }
            Captured::Original(report) => panic!("a capture that wrote nothing: {report:?}"),
        }
        crac_native::image::verify(&std::fs::File::open(&image).unwrap()).unwrap();
        service.check();
        Ok(())
    }

    /// A capture that must fail, and leaves nothing behind; or one that comes through the point without failing.
    fn fails(&mut self, engine: &NativeEngine, service: &Service) -> bool {
        let (before, files) = (Footprint::now(), self.files());
        match self.succeeds(engine, service) {
            Ok(()) => false,
            Err(error) => {
                let said = error.to_string();
                assert!(said.contains("image") || said.contains("capture"), "{said}");
                service.check();
                assert_eq!(Footprint::now(), before, "{said}");
                self.nothing_new(&files, &said);
                true
            }
        }
    }

    fn nothing_new(&self, files: &[PathBuf], said: &str) {
        let last = self.directory.join(format!("{:04}.crac", self.count));
        let mut found = self.files();
        if self.point == "rename" {
            assert_eq!(std::fs::read_to_string(&last).unwrap(), "old", "{said}");
            std::fs::remove_file(&last).unwrap();
            found.retain(|file| *file != last);
        }
        assert_eq!(found, files, "{said}");
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> = std::fs::read_dir(&self.directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }
}

/// Every arrival at a point fails, once and for good, until a capture comes through it.
pub(super) fn faults() {
    let service = Service::start();
    let mut captures = Captures::from_arguments();
    // What is made once per process is there before anything is counted.
    let rehearsed = engine().capture(captures.request(Path::new("/nowhere"), Mode::Rehearse));
    assert!(matches!(rehearsed, Ok(Captured::Original(_))), "{rehearsed:?}");
    service.check();
    let mut nth = 0;
    loop {
        nth += 1;
        let engine = captures.engine(nth, "once");
        if !captures.fails(&engine, &service) {
            break;
        }
        if nth <= 2 {
            captures.succeeds(&engine, &service).unwrap();
        }
        let engine = captures.engine(nth, "for-good");
        for _ in 0..if nth <= 2 { 2 } else { 1 } {
            assert!(captures.fails(&engine, &service), "{} is for good", captures.point);
        }
    }
    println!("failed at {} of {}", nth - 1, captures.point);
}

/// One capture that stops where it is told to. In continue mode it may be the copy that has stopped: then `--then=kill` ends it,
/// `--then=late` lets the original lose patience, `--then=drop` gives it up, `--then=wait` leaves both to somebody else. `--then=never`
/// and `--then=unwaited` do the same to a copy that nobody has waited for, which has not begun.
pub(super) fn stops() {
    let service = Service::start();
    let mut captures = Captures::from_arguments();
    let rehearsed = engine().capture(captures.request(Path::new("/nowhere"), Mode::Rehearse));
    assert!(matches!(rehearsed, Ok(Captured::Original(_))), "{rehearsed:?}");
    let nth = argument("--nth=", None).unwrap().parse().unwrap();
    let then = argument("--then=", None).unwrap_or_default();
    let mut engine = captures.engine(nth, "stop");
    if then == "late" {
        engine = engine.with_copy_stall(Duration::from_millis(200));
    }
    service.check();
    let (before, files) = (Footprint::now(), captures.files());
    let image = captures.next_image();
    let outcome = match engine.capture(captures.request(&image, captures.mode)) {
        Ok(Captured::Restored(_)) => {
            service.check();
            println!("whole");
            return;
        }
        Ok(Captured::Underway(underway)) => stopped(underway, &then, &service),
        other => panic!("{other:?}"),
    };
    service.check();
    assert_eq!(Footprint::now(), before);
    match outcome {
        Some(Err(said)) => {
            captures.nothing_new(&files, &said);
            captures.succeeds(&crac_native::NativeEngine::new(), &service).unwrap();
            println!("stopped {said}");
        }
        Some(Ok(())) => {
            crac_native::image::verify(&std::fs::File::open(&image).unwrap()).unwrap();
            println!("stopped and whole");
        }
        None => println!("whole"),
    }
}

/// What became of a copy that has stopped; nothing if it came to its end.
fn stopped(mut underway: Box<dyn Underway>, then: &str, service: &Service) -> Option<Result<(), String>> {
    let copy = std::fs::read_to_string(format!("/proc/self/task/{}/children", std::process::id())).unwrap();
    let copy: i32 = copy.trim().parse().unwrap();
    match then {
        // The copy has not been let begin.
        "never" => {
            drop(underway);
            return Some(Err("given up".to_owned()));
        }
        "unwaited" => {
            println!("copy {copy}");
            loop {
                service.check();
            }
        }
        _ => {}
    }
    let is_stopped = || {
        let stat = std::fs::read_to_string(format!("/proc/{copy}/stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.starts_with('T')
    };
    let ended = loop {
        service.check();
        if is_stopped() {
            break None;
        }
        if let Some(ended) = underway.wait(Duration::from_millis(1)) {
            break Some(ended);
        }
    };
    let text = |ended: Result<_, EngineError>| ended.map(drop).map_err(|error| error.to_string());
    match ended.map(text) {
        None => {}
        Some(Ok(())) => return None,
        // On a loaded machine it was late before it got there.
        Some(Err(said)) if then == "late" => return Some(Err(said)),
        Some(Err(said)) => panic!("{said}"),
    }
    match then {
        "drop" => {
            drop(underway);
            return Some(Err("given up".to_owned()));
        }
        "wait" => {
            println!("copy {copy}");
            loop {
                service.check();
            }
        }
        "late" => {}
        _ => {
            // SAFETY: ends the copy of this process.
            assert_eq!(unsafe { libc::kill(copy, libc::SIGKILL) }, 0);
        }
    }
    loop {
        service.check();
        if let Some(ended) = underway.wait(Duration::from_millis(1)) {
            return Some(text(ended));
        }
    }
}
