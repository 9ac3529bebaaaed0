//! One program for every allocator: threads allocate, use and free memory without a pause, while the process is captured and
//! restored again and again. What is allocated zeroed is zero, and nothing grows from life to life.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use crac_core::{CaptureRequest, Captured, Engine as _, ImageId, ImageMetadata, Mode, Policy, Restoration};
use crac_native::NativeEngine;
use libtest_mimic::{Arguments, Trial};

const GENERATIONS: u64 = 25;
const THREADS: usize = 3;
/// Rounds of a thread in each life.
const ROUNDS: u64 = 12;
/// The program that does not end soon, by the value of the variable that names it.
const LASTING: &str = "lasting";
const PAUSE: Duration = Duration::from_millis(25);
const BLOCKS: usize = 100;
const BLOCK_MAX: usize = 256 << 10;
static ZEROS: [u8; BLOCK_MAX] = [0; BLOCK_MAX];

pub(crate) fn main(environment: &'static [(&str, &str)]) {
    if std::env::var_os("CRAC_TEST_PROGRAM").is_some() {
        return program();
    }
    let generations = move || {
        generations(environment);
        Ok(())
    };
    let lasting = move || {
        lasting(environment);
        Ok(())
    };
    let trials = vec![
        Trial::test("zeroed_memory_is_zero_and_nothing_grows_over_25_generations", generations),
        Trial::test("zeroed_memory_is_zero_for_ten_seconds_after_a_restore", lasting),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// What a life tells about itself.
#[derive(Debug, Clone, Copy)]
struct Size {
    image_bytes: u64,
    resident_bytes: u64,
    mappings: u64,
}

fn generations(environment: &[(&str, &str)]) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let image = |generation: u64| directory.path().join(generation.to_string());
    let mut sizes = Vec::new();
    for generation in 0..=GENERATIONS {
        let program = match generation {
            0 => std::env::current_exe().expect("own path"),
            _ => image(generation - 1),
        };
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).env("CRAC_TEST_PROGRAM", "1").envs(environment.iter().copied());
        command.arg("--");
        if generation < GENERATIONS {
            command.arg(image(generation));
        }
        let output = command.output().expect("it starts");
        let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "life {generation}: {}\n{said}\n{complained}", output.status);
        let mut numbers = said.split_whitespace().map(|number| number.parse::<u64>().expect("a number"));
        let (resident_bytes, mappings) = (numbers.next().expect("bytes"), numbers.next().expect("mappings"));
        if let Ok(found) = fs::metadata(image(generation)) {
            let image_bytes = std::os::unix::fs::MetadataExt::blocks(&found) * 512;
            sizes.push(Size { image_bytes, resident_bytes, mappings });
        }
        if generation > 1 {
            fs::remove_file(image(generation - 2)).expect("written before");
        }
    }
    // The first lives have touched less of their memory than the later ones, which are all alike.
    let (early, late) = (sizes[4], sizes[sizes.len() - 1]);
    let bound = |before: u64, slack: u64| before + before / 2 + slack;
    assert!(late.image_bytes <= bound(early.image_bytes, 8 << 20), "{sizes:?}");
    assert!(late.resident_bytes <= bound(early.resident_bytes, 16 << 20), "{sizes:?}");
    assert!(late.mappings <= 4000, "vm.max_map_count is 65530: {sizes:?}");
}

/// One restored life that goes on for as long as allocators take to give memory back by themselves.
fn lasting(environment: &[(&str, &str)]) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let image = directory.path().join("image");
    let own = std::env::current_exe().expect("own path");
    for (program, to) in [(&own, Some(&image)), (&image, None)] {
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).env("CRAC_TEST_PROGRAM", LASTING).envs(environment.iter().copied());
        let output = command.arg("--").args(to).output().expect("it starts");
        let complained = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}\n{complained}", output.status);
    }
}

/// One life after the other; ends in the one that is told no image.
fn program() {
    // A thread that panics ends the life, rather than to be waited for.
    let complain = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        complain(panic);
        std::process::exit(101)
    }));
    let is_lasting = std::env::var("CRAC_TEST_PROGRAM").is_ok_and(|value| value == LASTING);
    let rounds: Arc<Vec<AtomicU64>> = Arc::new((0..THREADS).map(|_| AtomicU64::new(0)).collect());
    for number in 0..THREADS {
        let rounds = rounds.clone();
        std::thread::spawn(move || {
            let mut random = 0x9e37_79b9_7f4a_7c15 ^ number as u64;
            let mut kept: Vec<Vec<u8>> = Vec::new();
            loop {
                round(&mut random, &mut kept);
                rounds[number].fetch_add(1, SeqCst);
                if is_lasting {
                    // Memory is given back while nothing happens.
                    std::thread::sleep(PAUSE);
                }
            }
        });
    }
    let (engine, policy) = (NativeEngine::new(), Policy::new());
    let mut life: Option<Restoration> = None;
    for generation in 0.. {
        if is_lasting && generation > 0 {
            // That the time passes, with the other threads at work, is what is looked at.
            std::thread::sleep(Duration::from_secs(10));
        }
        let before: Vec<u64> = rounds.iter().map(|count| count.load(SeqCst)).collect();
        while rounds.iter().zip(&before).any(|(count, before)| count.load(SeqCst) < before + ROUNDS) {
            std::thread::yield_now();
        }
        let resident = fs::read_to_string("/proc/self/statm").unwrap();
        let resident: u64 = resident.split(' ').nth(1).unwrap().parse().unwrap();
        let mappings = fs::read_to_string("/proc/self/maps").unwrap().lines().count();
        println!("{} {mappings}", resident * 4096);
        let image: Option<PathBuf> = match &life {
            None => std::env::args_os().nth(2).map(PathBuf::from),
            Some(life) => life.args.get(1).map(PathBuf::from),
        };
        let Some(image) = image else { std::process::exit(0) };
        let metadata = ImageMetadata::new("allocators", ImageId([generation as u8; 16]), generation, None);
        match engine.capture(CaptureRequest::new(image, Mode::Exit, metadata, &policy)) {
            Ok(Captured::Restored(restored)) => {
                engine.spread();
                life = Some(restored);
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Allocates blocks of all sizes, zeroed, looks, writes, and frees them in another order; some stay for the next round.
fn round(random: &mut u64, kept: &mut Vec<Vec<u8>>) {
    let mut next = || {
        *random ^= *random << 13;
        *random ^= *random >> 7;
        *random ^= *random << 17;
        *random as usize
    };
    let mut blocks: Vec<Vec<u8>> = Vec::with_capacity(BLOCKS);
    for _ in 0..BLOCKS {
        let len = 1 + next() % (1 << (4 + next() % 15)).min(BLOCK_MAX);
        let mut block = vec![0_u8; len];
        assert!(block == ZEROS[..len], "allocated zeroed, and is not zero");
        block.fill(0xaa);
        blocks.push(block);
    }
    for block in kept.drain(..) {
        assert!(block.first() == Some(&0xaa) && block.last() == Some(&0xaa));
    }
    while let Some(last) = blocks.len().checked_sub(1) {
        let block = blocks.swap_remove(next() % (last + 1));
        if last < 10 {
            kept.push(block);
        }
    }
}
