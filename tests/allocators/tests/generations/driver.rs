//! The program and what is expected of its images.

use std::{
    fs,
    hint::black_box,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crac_core::{CaptureRequest, Captured, Engine as _, ImageId, ImageMetadata, Mode, Policy, Restoration};
use crac_native::NativeEngine;
use libtest_mimic::{Arguments, Trial};

const GENERATIONS: u64 = 50;
/// The first whose image counts: the lives before it touch what all later ones touch.
const SETTLED: usize = 2;
/// Memory that the program reads everywhere and writes to here and there.
const SPARSE: usize = 96 << 20;
const PAGE: usize = 4096;
/// One page in so many is written to.
const STEP: usize = 24 * PAGE;
/// Memory that is allocated anew, filled and freed in every life.
const PASSING: usize = 8 << 20;

pub(crate) fn main() {
    if std::env::var_os("CRAC_TEST_PROGRAM").is_some() {
        return program();
    }
    let disk = Trial::test("images_stay_as_small_as_the_process_for_50_generations_on_a_disk", || {
        generations(&std::env::temp_dir());
        Ok(())
    });
    let memory = Trial::test("images_stay_as_small_as_the_process_for_50_generations_on_tmpfs", || {
        generations(Path::new("/dev/shm"));
        Ok(())
    });
    libtest_mimic::run(&Arguments::from_args(), vec![disk, memory]).exit();
}

fn generations(place: &Path) {
    let directory = match tempfile::tempdir_in(place) {
        Ok(directory) if runs_programs(directory.path()) => directory,
        Ok(_) => return println!("skipped: nothing may be run in {}", place.display()),
        Err(error) => return println!("skipped: {}: {error}", place.display()),
    };
    println!("in {}, a filesystem of type {:#x}", place.display(), rustix::fs::statfs(place).unwrap().f_type);
    let image = |generation: u64| directory.path().join(generation.to_string());
    // The bytes that an image has when it is written, and when its process has ended.
    let mut sizes: Vec<[u64; 2]> = Vec::new();
    for generation in 0..=GENERATIONS {
        let program = if generation == 0 { std::env::current_exe().unwrap() } else { image(generation - 1) };
        let mut command = Command::new(&program);
        command.stdin(Stdio::null()).env("CRAC_TEST_PROGRAM", "1").arg("--").arg(image(generation));
        let output = command.output().unwrap();
        let complained = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "life {generation}: {}\n{complained}", output.status);
        if let Some(last) = sizes.last_mut() {
            last[1] = bytes(&program);
            fs::remove_file(program).unwrap();
        }
        sizes.push([bytes(&image(generation)), 0]);
    }
    let first = sizes[SETTLED][0];
    // What is there: the written pages, the program and its libraries.
    assert!(first > (SPARSE / STEP * PAGE) as u64 && first < SPARSE as u64 / 2, "{sizes:?}");
    for size in &sizes[SETTLED..] {
        assert!(size.iter().all(|bytes| *bytes < first + first / 8), "{first}: {sizes:?}");
    }
}

/// What a file takes of its filesystem.
fn bytes(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

fn runs_programs(directory: &Path) -> bool {
    let flags = rustix::fs::statvfs(directory).unwrap().f_flag;
    !flags.contains(rustix::fs::StatVfsMountFlags::NOEXEC)
}

/// One life after the other.
fn program() {
    let mut sparse = vec![0_u8; SPARSE];
    (0..SPARSE).step_by(STEP).for_each(|at| sparse[at] = 1);
    let (engine, policy) = (NativeEngine::new(), Policy::new());
    let mut life: Option<Restoration> = None;
    for generation in 0.. {
        // A hole that is read is still a hole, and what is freed is gone.
        let found = (0..SPARSE).step_by(PAGE).filter(|at| sparse[*at] != 0).count();
        assert_eq!(found, SPARSE / STEP);
        // In every life other pages change.
        (0..SPARSE).step_by(STEP).skip(generation as usize % 7).step_by(7).for_each(|at| sparse[at + 1] ^= 0xff);
        let mut passing = vec![0_u8; PASSING];
        passing.fill(generation as u8 | 1);
        drop(black_box(passing));
        let image: Option<PathBuf> = match &life {
            None => std::env::args_os().nth(2).map(PathBuf::from),
            Some(life) => life.args.get(1).map(PathBuf::from),
        };
        let metadata = ImageMetadata::new("generations", ImageId([generation as u8; 16]), generation, None);
        match engine.capture(CaptureRequest::new(image.unwrap(), Mode::Exit, metadata, &policy)) {
            Ok(Captured::Restored(restored)) => {
                engine.spread();
                life = Some(restored);
            }
            other => panic!("{other:?}"),
        }
    }
}
