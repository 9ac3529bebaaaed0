//! The programs that are captured. Each checks itself after every restore and says on standard output how far it is:
//! `life N` when a life begins, `done` when it was told to stop. A wrong state is a panic.
#![allow(unsafe_code, reason = "some programs use the C library directly")]

mod clock;
mod eager;
mod everything;
mod faults;
mod memory;
mod refused;
mod signals;
mod tokio_runtime;

use std::{
    cell::Cell,
    path::PathBuf,
    sync::{
        Arc, Barrier, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use crac_core::{
    CaptureReport, CaptureRequest, Captured, Engine, EngineError, ImageId, ImageMetadata, Mode, Policy, Restoration, Underway,
};
use crac_native::NativeEngine;

pub(crate) fn run(name: &str) {
    shift();
    match name {
        "single" => single(),
        "threads" => threads(),
        "discard" => memory::discard(),
        "memory" => memory::memory(),
        "sizes" => eager::sizes(),
        "scattered" => eager::scattered(),
        "stacks" => eager::stacks(),
        "made-code" => memory::made_code(),
        "signals" => signals::signals(),
        "environment" => environment(),
        // The engine is called on a thread of its own in a service; the main thread is one of many.
        "other-thread" => std::thread::spawn(threads).join().unwrap(),
        "many" => many(),
        "churn" => churn(),
        "restore" => {
            let image = PathBuf::from(std::env::args_os().nth(1).unwrap());
            let restore = crac_native::restore::Restore::open(&image, None).unwrap();
            panic!("{}", restore.exec(std::env::args_os().skip(2), std::env::vars_os()));
        }
        "limited" => limited(),
        "everything" => everything::everything(),
        "try" => everything::try_restore(),
        "faults" => faults::faults(),
        "stops" => faults::stops(),
        "tokio" => tokio_runtime::run(),
        "clock-matrix" => clock::matrix(),
        "clock-across" => clock::across(),
        "clock-readers" => clock::readers(),
        "clock-gap" => clock::gap(),
        _ if name.starts_with("clock-bare:") => clock::bare(&name["clock-bare:".len()..]),
        _ if name.starts_with("enters:") => refused::enters(&name["enters:".len()..]),
        _ if name.starts_with("refused:") => refused::refused(&name["refused:".len()..]),
        _ => panic!("no program is called {name}"),
    }
}

/// What the process was started, or restored, with.
fn argument(name: &str, life: Option<&Restoration>) -> Option<String> {
    let args: Vec<String> = match life {
        None => std::env::args().collect(),
        Some(life) => life.args.iter().map(|argument| argument.to_string_lossy().into_owned()).collect(),
    };
    args.iter().find_map(|argument| Some(argument.strip_prefix(name)?.to_owned()))
}

/// Shifts the clocks of this process by `CRAC_TEST_SHIFT` seconds.
fn shift() {
    if let Ok(by) = std::env::var("CRAC_TEST_SHIFT") {
        crac_native::shift_clocks(by.parse().unwrap()).unwrap();
    }
}

fn engine() -> NativeEngine {
    let setting = |name: &str| std::env::var(name).ok();
    let clock = setting("CRAC_TEST_CLOCK").map(|clock| clock.parse().unwrap());
    let downtime = setting("CRAC_TEST_DOWNTIME").map(|downtime| downtime.parse().unwrap());
    let engine = NativeEngine::new().with_clock(clock.unwrap_or_default()).with_downtime(downtime.unwrap_or_default());
    let form = setting("CRAC_TEST_FORM").map(|form| form.parse().unwrap());
    engine
        .with_image_form(form.unwrap_or_default())
        .with_interposition(std::env::var_os("CRAC_TEST_NO_MADVISE").is_none())
        .with_pagemap_scan(std::env::var_os("CRAC_TEST_NO_SCAN").is_none())
        .with_nameless_file(std::env::var_os("CRAC_TEST_NO_TMPFILE").is_none())
        .with_duplicate_query(std::env::var_os("CRAC_TEST_NO_KCMP").is_none())
        .with_kcmp(std::env::var_os("CRAC_TEST_NO_KCMP").is_none())
}

/// Captures once, to where the arguments say, and comes back in the next life.
fn capture_once() -> Restoration {
    let (policy, image) = (Policy::new(), argument("--image=", None).unwrap());
    println!("life 0");
    let metadata = ImageMetadata::new("test", ImageId([7; 16]), 0, None);
    match engine().capture(CaptureRequest::new(PathBuf::from(image), Mode::Exit, metadata, &policy)) {
        Ok(Captured::Restored(life)) => life,
        other => panic!("{other:?}"),
    }
}

/// One life after another: says where it is, captures as told, and returns when it is told to stop.
fn lives(mut check: impl FnMut(u64)) {
    let engine = engine();
    if ENGINE_FIRST.get() {
        refused::install_filter();
    }
    let policy: Policy = std::env::var("CRAC_TEST_POLICY").unwrap_or_default().parse().unwrap();
    let mut life: Option<Restoration> = None;
    for generation in 0.. {
        if let Some(life) = &life {
            assert_eq!(life.generation, generation, "generation");
        }
        check(generation);
        println!("life {generation}");
        if argument("--mode=", None).as_deref() == Some("become") && std::env::var("CRAC_TEST_PROGRAM").as_deref() == Ok("single")
        {
            println!("pid {}", std::process::id());
        }
        if let Some(file) = argument("--delete=", life.as_ref()) {
            std::fs::remove_file(file).unwrap();
        }
        let Some(image) = argument("--image=", life.as_ref()) else { break };
        let mode = match argument("--mode=", life.as_ref()).as_deref() {
            Some("become") => Mode::Become,
            Some("rehearse") => Mode::Rehearse,
            Some("continue") => Mode::Continue,
            _ => Mode::Exit,
        };
        let parent = life.as_ref().map(|life| life.image_id);
        let metadata = ImageMetadata::new("test", ImageId([generation as u8; 16]), generation, parent);
        let data_only = argument("--data-only", life.as_ref()).is_some();
        let request = CaptureRequest::new(PathBuf::from(image), mode, metadata, &policy).data_only(data_only);
        let captured = engine.capture(request);
        let captured = match captured {
            Ok(Captured::Underway(underway)) => beside(underway, &mut check).map(Captured::Original),
            other => other,
        };
        match captured {
            Ok(Captured::Underway(_)) => unreachable!("it was waited for"),
            Ok(Captured::Restored(restoration)) => {
                engine.spread();
                life = Some(restoration);
            }
            Ok(Captured::Original(report)) => {
                let names: Vec<_> = report.stages.iter().map(|stage| stage.name.as_str()).collect();
                println!("original {} {names:?}", report.bytes);
                break;
            }
            Err(EngineError::Refused(obstacles)) => {
                obstacles.iter().for_each(|obstacle| println!("obstacle {obstacle}"));
                break;
            }
            Err(error) => {
                println!("error {error}");
                break;
            }
        }
    }
    check(u64::MAX);
    println!("done");
}

/// Works while a copy of the process writes the image, and waits for its end.
fn beside(mut underway: Box<dyn Underway>, check: &mut impl FnMut(u64)) -> Result<CaptureReport, EngineError> {
    loop {
        check(0);
        if let Some(ended) = underway.wait(Duration::from_millis(1)) {
            return ended;
        }
    }
}

fn single() {
    let heap: Vec<u64> = (0..100_000).collect();
    let zeros = vec![0_u8; 8 << 20];
    let mut seen = 0;
    lives(|_| {
        seen += 1;
        assert_eq!(heap.iter().sum::<u64>(), 4_999_950_000);
        assert!(zeros.iter().all(|byte| *byte == 0));
        assert!(format!("{seen}").parse::<u64>().unwrap() > 0);
    });
}

thread_local! {
    /// Install a seccomp filter once the engine is made.
    static ENGINE_FIRST: Cell<bool> = const { Cell::new(false) };
    static OWN: Cell<u64> = const { Cell::new(0) };
}

/// Threads that compute, wait on a condition, sleep, and end and begin all the time.
fn threads() {
    const WORKERS: u64 = 8;
    let stop = Arc::new(AtomicBool::new(false));
    let rounds: Arc<Vec<AtomicU64>> = Arc::new((0..WORKERS).map(|_| AtomicU64::new(0)).collect());
    let ready = Arc::new(Barrier::new(WORKERS as usize + 1));
    let asked = Arc::new((Mutex::new(0_u64), Condvar::new()));
    let mut joins = Vec::new();
    for number in 0..WORKERS {
        let (stop, rounds, ready, asked) = (stop.clone(), rounds.clone(), ready.clone(), asked.clone());
        let body = move || {
            OWN.set(number + 1000);
            ready.wait();
            let mut float = 1.0_f64;
            let mut at = 0;
            while !stop.load(Ordering::SeqCst) {
                assert_eq!(OWN.get(), number + 1000, "thread-local value");
                assert_eq!(std::thread::current().name(), Some(format!("worker-{number}").as_str()));
                match number % 4 {
                    0 => float = (float * 1.000_000_1).sqrt(),
                    1 => {
                        let (asked, changed) = &*asked;
                        let mut now = asked.lock().unwrap();
                        while *now == at && !stop.load(Ordering::SeqCst) {
                            now = changed.wait_timeout(now, Duration::from_millis(50)).unwrap().0;
                        }
                        at = *now;
                    }
                    2 => std::thread::sleep(Duration::from_millis(1)),
                    _ => {
                        let child = std::thread::spawn(move || vec![number; 1000].iter().sum::<u64>());
                        assert_eq!(child.join().unwrap(), number * 1000);
                    }
                }
                rounds[number as usize].fetch_add(1, Ordering::SeqCst);
            }
            assert!(float.is_finite());
        };
        joins.push(std::thread::Builder::new().name(format!("worker-{number}")).spawn(body).unwrap());
    }
    ready.wait();
    lives(|_| {
        let before: Vec<u64> = rounds.iter().map(|count| count.load(Ordering::SeqCst)).collect();
        *asked.0.lock().unwrap() += 1;
        asked.1.notify_all();
        // Every thread goes on: each gets through another round.
        while rounds.iter().zip(&before).any(|(count, before)| count.load(Ordering::SeqCst) == *before) {
            std::thread::yield_now();
        }
    });
    stop.store(true, Ordering::SeqCst);
    joins.into_iter().for_each(|join| join.join().unwrap());
    println!("joined");
}

/// As `threads`, but its steady ones only, and it forbids itself to start any other.
fn limited() {
    let stop = Arc::new(AtomicBool::new(false));
    let wait = |stop: Arc<AtomicBool>| {
        while !stop.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    let joins: Vec<_> = (0..4).map(|_| stop.clone()).map(|stop| std::thread::spawn(move || wait(stop))).collect();
    let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(rustix::process::Resource::Nproc, none).unwrap();
    lives(|_| assert_eq!(rustix::process::getrlimit(rustix::process::Resource::Nproc), none));
    stop.store(true, Ordering::SeqCst);
    joins.into_iter().for_each(|join| join.join().unwrap());
    println!("joined");
}

/// More threads than fit into one buffer of anything.
fn many() {
    const THREADS: usize = 700;
    let gate = Arc::new((Barrier::new(THREADS + 1), Barrier::new(THREADS + 1)));
    for number in 0..THREADS {
        let gate = gate.clone();
        let builder = std::thread::Builder::new().stack_size(64 * 1024);
        builder
            .spawn(move || {
                OWN.set(number as u64);
                loop {
                    gate.0.wait();
                    assert_eq!(OWN.get(), number as u64);
                    gate.1.wait();
                }
            })
            .unwrap();
    }
    lives(|_| {
        gate.0.wait();
        gate.1.wait();
    });
}

/// Threads begin and end, ask the clock, allocate, and compute without a pause, through hundreds of freezes.
fn churn() {
    let stop = Arc::new(AtomicBool::new(false));
    let spawn = |work: fn()| {
        let stop = stop.clone();
        std::thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                work();
            }
        })
    };
    let threads = [
        spawn(|| std::thread::spawn(|| ()).join().unwrap()),
        spawn(|| (0..8).map(|_| std::thread::spawn(|| vec![1_u8; 4096])).for_each(|thread| drop(thread.join()))),
        spawn(|| assert!((0..1000).map(|_| std::time::Instant::now()).is_sorted())),
        spawn(|| drop((0..100).map(|size| vec![1_u8; size * 100]).collect::<Vec<_>>())),
        spawn(|| assert!((0..10_000).map(f64::from).map(f64::sqrt).sum::<f64>() > 0.0)),
    ];
    let (engine, policy) = (engine(), Policy::new());
    for round in 0..300 {
        let metadata = ImageMetadata::new("test", ImageId([7; 16]), 0, None);
        let request = CaptureRequest::new(PathBuf::from("/nowhere"), Mode::Rehearse, metadata, &policy);
        match engine.capture(request) {
            Ok(Captured::Original(report)) => assert!(report.bytes > 0),
            other => panic!("round {round}: {other:?}"),
        }
    }
    stop.store(true, Ordering::SeqCst);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    println!("churned");
}

/// Tells what the second life was started with.
fn environment() {
    let policy = Policy::new();
    let image = argument("--image=", None).unwrap();
    println!("life 0");
    let metadata = ImageMetadata::new("test", ImageId([7; 16]), 0, None);
    match engine().capture(CaptureRequest::new(PathBuf::from(image), Mode::Exit, metadata, &policy)) {
        Ok(Captured::Restored(life)) => {
            println!("args {:?}", life.args.get(1..).unwrap_or_default());
            println!("env {:?}", life.env);
            assert!(life.stages.len() >= 7, "{:?}", life.stages);
            if std::env::var_os("CRAC_TEST_STAGES").is_some() || life.env.iter().any(|(name, _)| name == "CRAC_TEST_STAGES") {
                eprintln!("{:?}", life.stages);
            }
            let trace = std::backtrace::Backtrace::force_capture().to_string();
            assert!(trace.contains("environment\n") && trace.contains("programs/mod.rs"), "a backtrace names functions: {trace}");
            // The old values stay for everybody who does not ask.
            assert!(std::env::args().any(|argument| argument.starts_with("--image=")));
            assert_eq!(std::env::var("CRAC_TEST_PROGRAM").as_deref(), Ok("environment"));
        }
        other => panic!("{other:?}"),
    }
}
