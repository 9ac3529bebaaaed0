//! The tests: each starts a program, lets it capture itself, and runs the image.
#![allow(unsafe_code, reason = "one system call without a wrapper")]

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use crac_core::Mode;
use libtest_mimic::{Arguments, Trial};

mod clock;
mod data_only;
mod eager;
mod faults;
mod foreign;
mod populate;
mod restores;
mod sandbox;

type Test = fn(&Path);

const TESTS: &[(&str, Test)] = &[
    ("a_single_thread_comes_back", |dir| exit_rounds(dir, "single", 3)),
    ("many_threads_come_back", |dir| exit_rounds(dir, "threads", 5)),
    ("any_thread_may_capture", |dir| exit_rounds(dir, "other-thread", 3)),
    ("hundreds_of_threads_come_back", |dir| exit_rounds(dir, "many", 3)),
    ("a_tokio_runtime_comes_back", |dir| exit_rounds(dir, "tokio", 5)),
    ("a_process_becomes_its_image_and_keeps_its_pid", becomes_its_image),
    ("data_alone_comes_back_where_a_program_restores_it", data_only::rounds),
    ("code_made_at_run_time_comes_back_with_data_alone", data_only::made_code),
    ("arguments_and_names_reach_a_life_of_data_alone", data_only::arguments),
    ("a_process_becomes_data_alone_and_keeps_its_pid", data_only::becomes),
    ("data_alone_goes_with_any_file_that_has_the_same_code", data_only::other_files),
    ("the_original_goes_on_while_a_copy_writes", goes_on),
    ("what_a_copy_would_not_see_is_refused_by_name", refusals_beside),
    ("faults_in_exit_mode_leave_a_running_process_and_nothing_else", |dir| faults::everywhere(dir, Mode::Exit)),
    ("faults_in_become_mode_leave_a_running_process_and_nothing_else", |dir| faults::everywhere(dir, Mode::Become)),
    ("faults_in_continue_mode_leave_a_running_process_and_nothing_else", |dir| faults::everywhere(dir, Mode::Continue)),
    ("a_kill_at_any_stage_in_exit_mode_leaves_no_image_or_a_whole_one", |dir| faults::kills(dir, Mode::Exit)),
    ("a_kill_at_any_stage_in_become_mode_leaves_no_image_or_a_whole_one", |dir| faults::kills(dir, Mode::Become)),
    ("a_kill_at_any_stage_in_continue_mode_leaves_no_image_or_a_whole_one", |dir| faults::kills(dir, Mode::Continue)),
    ("a_copy_that_is_killed_or_late_or_given_up_leaves_a_running_process_and_no_file", faults::copies),
    ("threads_that_the_limit_of_processes_forbids_are_a_reason", faults::no_more_processes),
    ("a_restore_in_which_a_call_fails_is_whole_or_says_why", restores::fail),
    ("a_populated_restore_in_which_a_call_fails_is_whole_or_says_why", restores::fail_populated),
    ("a_restore_can_be_killed_before_any_of_its_calls", restores::killed_at_each_call),
    ("a_restore_can_be_killed_at_any_moment", restores::killed_at_random),
    ("a_copy_does_not_outlive_a_process_that_is_killed", faults::orphans),
    ("a_copy_without_memory_leaves_a_running_process_and_no_file", no_memory_for_a_copy),
    ("page_maps_are_read_where_the_kernel_cannot_scan", without_pagemap_scan),
    ("nobody_without_privileges_can_do_it", as_nobody),
    ("an_image_does_not_grow_over_25_generations", does_not_grow),
    ("discarded_memory_reads_as_zeros", |dir| exit_rounds(dir, "discard", 3)),
    ("memory_comes_back_as_it_was", |dir| exit_rounds(dir, "memory", 3)),
    ("stacks_with_little_on_them_are_read_others_mapped", eager::stacks),
    ("signals_masks_and_stacks_come_back", |dir| exit_rounds(dir, "signals", 3)),
    ("what_cannot_be_saved_is_refused_by_name", refusals),
    ("a_namespace_that_a_later_life_enters_is_refused_by_name", sandbox::entered_later),
    ("threads_that_come_and_go_can_be_stopped", |_| assert_eq!(lines_of(&finish(&mut program("churn"))), ["churned"])),
    ("a_rehearsal_writes_nothing", rehearsal),
    ("a_directory_that_cannot_take_the_image_is_named", wrong_places),
    ("a_full_disk_leaves_a_running_process", full_disk),
    ("an_image_does_not_grow_on_tmpfs", does_not_grow_on_tmpfs),
    ("clones_run_side_by_side", clones),
    ("a_container_sandbox_is_enough", in_a_sandbox),
    ("filters_that_are_missing_at_the_restore_are_a_reason", without_the_sandbox),
    ("a_checked_image_is_executed_by_its_descriptor", restored_by_descriptor),
    ("a_damaged_image_is_refused", damaged_images),
    ("an_image_that_others_may_write_is_refused", untrusted_images),
    ("an_image_of_a_stranger_is_refused", foreign::of_a_stranger),
    ("an_image_of_another_host_is_a_reason_to_start_cold", foreign::of_other_hosts),
    ("an_image_of_another_build_of_the_kernel_goes_on", foreign::of_another_build),
    ("a_filesystem_without_nameless_files_will_do", named_file),
    ("an_image_may_be_deleted_while_it_runs", deleted_image),
    ("arguments_and_environment_reach_the_new_life", arguments_and_environment),
    ("an_eager_life_is_what_it_was", eager::everything),
    ("an_eager_life_has_hundreds_of_threads", eager::hundreds_of_threads),
    ("eager_and_lazy_lives_follow_each_other", eager::in_turns),
    ("an_eager_life_maps_nothing_of_its_image_and_no_more_than_there_is", eager::nothing_mapped),
    ("an_eager_life_does_not_fill_holes", eager::scattered),
    ("an_eager_life_is_captured_in_every_mode", eager::second_images),
    ("an_eager_restore_finds_a_flipped_bit_that_a_lazy_one_does_not", eager::damage),
    ("a_wish_that_nobody_understands_is_a_usage_error", eager::setting),
    ("an_eager_restore_by_nobody", |dir| nobody_rounds(dir, "on")),
    ("an_eager_restore_works_where_code_is_never_writable", eager::without_writable_code),
    ("an_eager_restore_works_on_one_processor", eager::alone),
    ("an_allocator_that_is_not_intercepted_comes_back_eagerly_or_not_at_all", eager::raw_madvise),
    ("a_populated_life_is_what_it_was", populate::everything),
    ("a_populated_life_has_everything_mapped_and_fetched_and_no_more_than_there_is", populate::fetched),
    ("a_populated_life_is_captured_in_every_mode", populate::second_images),
    ("a_populated_restore_by_nobody", |dir| nobody_rounds(dir, "populate")),
    ("waits_are_exact_under_shifted_clocks", clock::matrix),
    ("waits_are_exact_ten_days_back", clock::matrix_backwards),
    ("waits_end_in_the_life_after", clock::across),
    ("one_image_fits_hosts_of_every_uptime", clock::hosts),
    ("no_reader_sees_a_clock_run_backwards", clock::generations),
    ("what_a_downtime_is_to_the_clock_is_a_setting", clock::downtime),
    ("a_time_namespace_continues_the_clocks_where_it_may", clock::namespaces),
    ("bare_waits_until_a_moment_are_refused_by_name", clock::bare_waits),
    ("clocks_go_on_where_code_is_never_writable", clock::without_writable_code),
];

pub(crate) fn main() {
    keep_descriptors_to_ourselves();
    let trials = TESTS.iter().map(|(name, test)| {
        Trial::test(*name, || {
            let dir = KeptIfFailed(Some(tempfile::tempdir().expect("a temporary directory")));
            test(dir.path());
            Ok(())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

/// A directory to look at after a failure.
struct KeptIfFailed(Option<tempfile::TempDir>);

impl KeptIfFailed {
    fn path(&self) -> &Path {
        self.0.as_ref().expect("until it is dropped").path()
    }
}

impl Drop for KeptIfFailed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let kept = self.0.take().map(tempfile::TempDir::keep);
            println!("see {}", kept.unwrap_or_default().display());
        }
    }
}

/// Whoever started the tests may have left descriptors open, which a program cannot take into another life.
fn keep_descriptors_to_ourselves() {
    const CLOSE_RANGE_CLOEXEC: usize = 4;
    // SAFETY: sets a flag of descriptors; nothing is closed here.
    unsafe { crac_sys::syscall(libc::SYS_close_range, [3, u32::MAX as usize, CLOSE_RANGE_CLOEXEC, 0, 0, 0]) }
        .expect("close_range, Linux 5.11");
}

/// Starts this file as a program.
fn program(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("own path"));
    command.env("CRAC_TEST_PROGRAM", name);
    command
}

fn finish(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().expect("the program starts")
}

/// The lines of a program that ended well.
fn lines_of(output: &Output) -> Vec<String> {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n--- stdout\n{out}\n--- stderr\n{err}", output.status);
    out.lines().map(str::to_owned).collect()
}

fn image(dir: &Path, generation: usize) -> PathBuf {
    dir.join(format!("{generation}.crac"))
}

/// Captures and restores `generations` times, then lets the last life end in order.
fn exit_rounds(dir: &Path, name: &str, generations: usize) {
    exit_rounds_with(dir, name, generations, |_| "off");
}

/// As [`exit_rounds`]; `eager` is the setting of that name for each generation.
fn exit_rounds_with(dir: &Path, name: &str, generations: usize, eager: fn(usize) -> &'static str) {
    let restore = |generation| {
        let mut command = Command::new(image(dir, generation - 1));
        command.env("CRAC_EAGER", eager(generation));
        command
    };
    let to = |generation| format!("--image={}", image(dir, generation).display());
    let lines = lines_of(&finish(program(name).arg(to(0))));
    assert_eq!(lines, ["life 0"], "the original runs nothing after the capture");
    for generation in 1..generations {
        let lines = lines_of(&finish(restore(generation).args(["--", &to(generation)])));
        assert_eq!(lines, [format!("life {generation}")]);
    }
    let last = lines_of(&finish(&mut restore(generations)));
    assert_eq!(last[..2], [format!("life {generations}"), "done".to_owned()]);
}

fn becomes_its_image(dir: &Path) {
    let to = format!("--image={}", image(dir, 0).display());
    let mut child =
        program("single").args([to, "--mode=become".into()]).stdout(Stdio::piped()).spawn().expect("the program starts");
    let pid = child.id();
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines().map(|line| line.expect("text"));
    assert_eq!(lines.by_ref().take(2).collect::<Vec<_>>(), ["life 0".to_owned(), format!("pid {pid}")]);
    assert_eq!(lines.collect::<Vec<_>>(), ["life 1".to_owned(), format!("pid {pid}"), "done".to_owned()]);
    assert!(child.wait().expect("own child").success());
    let mut command = program("threads");
    // The arguments of a life that became its image are none, so the second life ends in order.
    let lines = lines_of(&finish(command.args([format!("--image={}", image(dir, 0).display()), "--mode=become".into()])));
    assert_eq!(lines, ["life 0", "life 1", "done", "joined"]);
    // The image stays, and works on its own.
    assert_eq!(lines_of(&finish(&mut Command::new(image(dir, 0)))), ["life 1", "done", "joined"]);
}

fn without_pagemap_scan(dir: &Path) {
    // The variable is part of the environment that the program reads at its first start, as are the engine's options.
    let to = |generation| format!("--image={}", image(dir, generation).display());
    assert_eq!(lines_of(&finish(program("memory").env("CRAC_TEST_NO_SCAN", "1").arg(to(0)))), ["life 0"]);
    assert_eq!(lines_of(&finish(Command::new(image(dir, 0)).args(["--", &to(1)]))), ["life 1"]);
    assert_eq!(lines_of(&finish(&mut Command::new(image(dir, 1)))), ["life 2", "done"]);
}

/// Copies by another process: a child that another test of this one is about to start could hold the copy open for writing, and a
/// file that somebody may write to is not executed ("text file busy").
fn copy_to_execute(from: &Path, to: &Path) {
    assert!(Command::new("cp").args([from, to]).status().expect("cp").success(), "room for a copy");
}

/// Makes `bytes` an executable file at `path`; what was there is replaced.
fn write_to_execute(path: &Path, bytes: &[u8]) {
    let written = path.with_extension("written");
    std::fs::write(&written, bytes).expect("room");
    // Another file, or whoever has the old one open for writing is in the way.
    let copy = path.with_extension("copy");
    copy_to_execute(&written, &copy);
    std::fs::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("own file");
    std::fs::rename(&copy, path).expect("own directory");
    std::fs::remove_file(&written).expect("own file");
}

/// The test program in a place that nobody can enter.
struct Nobody {
    program: PathBuf,
}

impl Nobody {
    /// Makes `dir` nobody's, where root asks for it. An ordinary user is as good.
    fn new(dir: &Path) -> Self {
        let program = std::env::current_exe().expect("own path");
        if !rustix::process::geteuid().is_root() {
            return Self { program };
        }
        let open_to_all = |path: &Path, mode| {
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("own file");
        };
        open_to_all(dir, 0o777);
        let copy = dir.join("program");
        copy_to_execute(&program, &copy);
        open_to_all(&copy, 0o755);
        Self { program: copy }
    }

    fn command(&self, what: &Path) -> Command {
        if !rustix::process::geteuid().is_root() {
            return Command::new(what);
        }
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs", "--bounding-set=-all"]).arg(what);
        command.current_dir("/");
        command
    }

    fn program(&self, name: &str) -> Command {
        let mut command = self.command(&self.program);
        command.env("CRAC_TEST_PROGRAM", name);
        command
    }
}

fn as_nobody(dir: &Path) {
    nobody_rounds(dir, "off");
}

fn nobody_rounds(dir: &Path, eager: &str) {
    let nobody = Nobody::new(dir);
    let to = |generation| format!("--image={}", image(dir, generation).display());
    assert_eq!(lines_of(&finish(nobody.program("threads").arg(to(0)))), ["life 0"]);
    assert_eq!(lines_of(&finish(nobody.command(&image(dir, 0)).env("CRAC_EAGER", eager).args(["--", &to(1)]))), ["life 1"]);
    assert_eq!(lines_of(&finish(nobody.command(&image(dir, 1)).env("CRAC_EAGER", eager))), ["life 2", "done", "joined"]);
    if rustix::process::geteuid().is_root() {
        // Root is somebody else: it neither owns the image's privileges nor takes them over.
        let output = finish(&mut Command::new(image(dir, 1)));
        assert_eq!(output.status.code(), Some(21), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Bytes that a file takes on the disk.
fn room(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(&path.metadata().expect("the image exists")) * 512
}

fn does_not_grow(dir: &Path) {
    const GENERATIONS: usize = 25;
    exit_rounds(dir, "threads", GENERATIONS);
    let rooms: Vec<u64> = (0..GENERATIONS).map(|generation| room(&image(dir, generation))).collect();
    // Later lives have touched more of their memory than the first one; then it stays.
    assert!(rooms[GENERATIONS - 1] <= rooms[1] + rooms[1] / 5, "{rooms:?}");
}

fn refusals(dir: &Path) {
    let to = format!("--image={}", image(dir, 0).display());
    for (what, kind) in [
        ("shared-file", "memory-file-shared"),
        ("posix-timer", "timer"),
        ("pending-signal", "signal-pending"),
        ("child", "child"),
        ("deaf-thread", "thread-unstoppable"),
        ("seccomp", "seccomp"),
    ] {
        let lines = lines_of(&finish(program(&format!("refused:{what}")).arg(&to).current_dir(dir)));
        let obstacles: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix("obstacle ")).collect();
        assert!(obstacles.iter().any(|obstacle| obstacle.starts_with(&format!("{kind}: "))), "{what}: {lines:?}");
        assert_eq!(obstacles.len(), 1, "{what}: {lines:?}");
        assert_eq!(lines.last().map(String::as_str), Some("done"), "{what}: {lines:?}");
        assert!(!image(dir, 0).exists());
    }
}

fn refusals_beside(dir: &Path) {
    let to = format!("--image={}", image(dir, 0).display());
    for (what, kind) in [("shared-memory", "memory-shared"), ("dont-fork", "memory-other"), ("child", "child")] {
        let lines = lines_of(&finish(program(&format!("refused:{what}")).args([&to, "--mode=continue"])));
        let obstacles: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix("obstacle ")).collect();
        assert!(matches!(obstacles[..], [one] if one.starts_with(&format!("{kind}: "))), "{what}: {lines:?}");
        assert_eq!(lines.last().map(String::as_str), Some("done"), "{what}: {lines:?}");
        assert_eq!(std::fs::read_dir(dir).expect("own directory").count(), 0, "{what} left a file behind");
    }
}

fn no_memory_for_a_copy(dir: &Path) {
    let to = format!("--image={}", image(dir, 0).display());
    let program = program("single");
    let executable = program.get_program();
    // The limit counts addresses, so it fails at one reservation or the other, from the start of the engine to its success.
    let (mut refused, mut taken) = (0, 0);
    for mib in 12..=200 {
        let mut command = Command::new("prlimit");
        command.arg(format!("--as={}", mib << 20)).arg(executable).args([&to, "--mode=continue"]);
        let output = finish(command.env("CRAC_TEST_PROGRAM", "single"));
        let lines: Vec<_> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
        match lines.get(1) {
            Some(line) if line.starts_with("error ") => {
                assert!(line.contains("memory") || line.contains("emory"), "{lines:?}");
                assert_eq!(lines[2..], ["done"], "{lines:?}");
                assert_eq!(std::fs::read_dir(dir).expect("own directory").count(), 0, "{lines:?}");
                refused += 1;
            }
            Some(line) if line.starts_with("original ") => {
                taken += 1;
                break;
            }
            // Not even the program itself had enough.
            _ => assert!(!output.status.success(), "{lines:?}"),
        }
    }
    assert!(refused > 0 && taken > 0, "{refused} refused, {taken} taken");
}

fn rehearsal(dir: &Path) {
    let to = format!("--image={}", image(dir, 0).display());
    let lines = lines_of(&finish(program("threads").args([&to, "--mode=rehearse"])));
    assert!(lines[1].starts_with("original ") && lines[1].contains("look"), "{lines:?}");
    assert_eq!((lines[2].as_str(), lines[3].as_str()), ("done", "joined"));
    assert_eq!(std::fs::read_dir(dir).expect("own directory").count(), 0);
}

fn damaged_images(dir: &Path) {
    use crac_native::image::{self as format, ImageError};
    use crac_native::layout::{Header, PAGE, VdsoRecord};
    use std::mem::offset_of;

    let path = image(dir, 0);
    lines_of(&finish(program("single").arg(format!("--image={}", path.display()))));
    let whole = std::fs::read(&path).expect("the image");
    let file = std::fs::File::open(&path).expect("the image");
    let good = format::verify(&file).expect("a fresh image is whole");
    assert_eq!(good.threads().count(), 1);
    let front = good.data_offset() as usize;
    // Cut off anywhere: never an image, never a panic.
    for len in (0..front).step_by(97).chain([front - 1]) {
        assert!(format::decode(&whole[..len]).is_err(), "cut at {len}");
    }
    // Every byte in front of the page data counts.
    let mut bytes = whole[..front].to_vec();
    for at in (0..front).step_by(61) {
        bytes[at] ^= 1 << (at % 8);
        assert!(format::decode(&bytes).is_err(), "flipped at {at}");
        bytes[at] ^= 1 << (at % 8);
    }
    assert!(format::decode(&bytes).is_ok());
    // With the checksums made right the parts are still held against each other: an answer, whatever it is, and no panic.
    let mut refused = 0;
    for at in (boot_end(&whole)..front).step_by(29) {
        bytes[at] ^= 0x80 >> (at % 8);
        format::reseal(&mut bytes);
        refused += usize::from(format::decode(&bytes).is_err());
        bytes.copy_from_slice(&whole[..front]);
    }
    assert!(refused > 20, "{refused} contradictions found");
    // The vdso goes where nothing else is.
    let place = boot_end(&whole) + offset_of!(Header, vdso) + offset_of!(VdsoRecord, start);
    let (in_memory, ..) = good.stretches().next().expect("there is memory");
    for start in [in_memory, in_memory - PAGE, u64::MAX - PAGE + 1, 0x7fff_ffff_f000] {
        bytes[place..place + 8].copy_from_slice(&start.to_ne_bytes());
        format::reseal(&mut bytes);
        let error = format::decode(&bytes).expect_err("nothing may lie there").to_string();
        assert!(error.contains("the vdso's place"), "{start:#x}: {error}");
    }
    // Page data counts for `verify`.
    let broken = dir.join("broken.crac");
    let mut bytes = whole.clone();
    let (_, first_data, _) = good.stretches().next().expect("there is memory");
    bytes[first_data as usize + 345] ^= 1;
    std::fs::write(&broken, &bytes).expect("room");
    let verified = format::verify(&std::fs::File::open(&broken).expect("just written"));
    assert!(matches!(verified, Err(ImageError::Damaged { .. })), "{verified:?}");

    // The stub itself refuses a damaged table and a cut file, before anything is touched.
    let executable = |bytes: &[u8]| {
        write_to_execute(&broken, bytes);
        finish(&mut Command::new(&broken))
    };
    let mut bytes = whole.clone();
    bytes[front - 200] ^= 1;
    let output = executable(&bytes);
    assert_eq!(output.status.code(), Some(21), "{output:?}");
    let output = executable(&whole[..whole.len() - 4096]);
    assert_eq!(output.status.code(), Some(21), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("bytes instead of"), "{output:?}");
}

/// Where the metadata begins: the third word of the record behind the ELF header's page.
fn boot_end(image: &[u8]) -> usize {
    usize::try_from(u64::from_le_bytes(image[4096 + 16..][..8].try_into().expect("eight bytes"))).expect("in range")
}

fn untrusted_images(dir: &Path) {
    use crac_native::restore::{Restore, Verdict};

    let path = image(dir, 0);
    lines_of(&finish(program("single").arg(format!("--image={}", path.display()))));
    Restore::open(&path, None).expect("a fresh image fits");
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o722)).expect("own file");
    let reasons = Restore::open(&path, None).expect_err("others may write it");
    assert!(reasons.iter().all(|reason| reason.verdict == Verdict::Untrusted), "{reasons:?}");
    let output = finish(&mut Command::new(&path));
    assert_eq!(output.status.code(), Some(21), "{output:?}");
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("own file");
    let other = crac_native::Executable::of(Path::new("/bin/sh")).expect("a shell");
    let reasons = Restore::open(&path, Some(&other)).expect_err("another program");
    assert_eq!(reasons[0].verdict.exit_code(), 20);
    let own = crac_native::Executable::of(&std::env::current_exe().expect("own path")).expect("own file");
    Restore::open(&path, Some(&own)).expect("the same build");
}

fn arguments_and_environment(dir: &Path) {
    let to = format!("--image={}", image(dir, 0).display());
    lines_of(&finish(program("environment").arg(to)));
    let mut command = Command::new(image(dir, 0));
    command.env_clear().env("CRAC_TEST_VALUE", "a=b").env("EMPTY", "").args(["--", "one", "two words", ""]);
    let lines = lines_of(&finish(&mut command));
    assert_eq!(lines[0], r#"args ["one", "two words", ""]"#);
    assert_eq!(lines[1], r#"env [("CRAC_TEST_VALUE", "a=b"), ("EMPTY", "")]"#);
}

fn wrong_places(dir: &Path) {
    for (place, part) in [("missing/0.crac", "create the directory first"), ("file/0.crac", "create the directory first")] {
        std::fs::write(dir.join("file"), "").expect("room");
        let to = format!("--image={}", dir.join(place).display());
        let lines = lines_of(&finish(program("threads").arg(to)));
        assert!(lines[1].starts_with("error cannot write the image") && lines[1].contains(part), "{lines:?}");
        assert_eq!(lines[2..], ["done", "joined"]);
    }
    // procfs takes no files, whoever asks.
    let lines = lines_of(&finish(program("threads").arg("--image=/proc/0.crac")));
    assert!(lines[1].starts_with("error cannot write the image /proc/0.crac"), "{lines:?}");
    let Some(noexec) = tmpfs(dir, "noexec,size=64m") else { return };
    let to = format!("--image={}", noexec.0.join("0.crac").display());
    let lines = lines_of(&finish(program("threads").arg(&to).env("CRAC_TEST_FORM", "program")));
    assert!(lines[1].contains("mounted noexec"), "{lines:?}");
    // An image of data alone is as good there as elsewhere.
    finish(program("threads").arg(&to));
    let found = std::fs::metadata(noexec.0.join("0.crac")).expect("an image");
    let mode = std::os::unix::fs::PermissionsExt::mode(&found.permissions());
    assert_eq!(mode & 0o7777, 0o600);
}

fn full_disk(dir: &Path) {
    let Some(small) = tmpfs(dir, "size=3m") else { return };
    let to = format!("--image={}", small.0.join("0.crac").display());
    for mode in ["exit", "continue"] {
        let lines = lines_of(&finish(program("threads").args([&to, &format!("--mode={mode}")])));
        assert!(lines[1].contains("no space") || lines[1].contains("No space"), "{mode}: {lines:?}");
        assert_eq!(lines[2..], ["done", "joined"], "{mode}");
        assert_eq!(std::fs::read_dir(&small.0).expect("own directory").count(), 0, "{mode}");
    }
}

fn does_not_grow_on_tmpfs(dir: &Path) {
    let Some(place) = tmpfs(dir, "size=1g") else { return };
    does_not_grow(&place.0);
}

fn clones(dir: &Path) {
    lines_of(&finish(program("threads").arg(format!("--image={}", image(dir, 0).display()))));
    let start = || Command::new(image(dir, 0)).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("the image runs");
    let clones: Vec<_> = (0..10).map(|_| start()).collect();
    for clone in clones {
        assert_eq!(lines_of(&clone.wait_with_output().expect("own child")), ["life 1", "done", "joined"]);
    }
}

/// A filesystem of one's own, unmounted at the end.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "cannot unmount {}", self.0.display());
    }
}

/// Mounts a tmpfs, where one may.
fn tmpfs(dir: &Path, options: &str) -> Option<Mounted> {
    let place = dir.join("tmpfs");
    std::fs::create_dir(&place).expect("room");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&place).stderr(Stdio::null()).status();
    if mounted.is_ok_and(|status| status.success()) {
        return Some(Mounted(place));
    }
    println!("skipped: a tmpfs ({options}) cannot be mounted by this user");
    None
}

fn in_a_sandbox(dir: &Path) {
    let to = |generation| format!("--image={}", image(dir, generation).display());
    for name in ["threads", "tokio"] {
        let start = |mut command: Command| lines_of(&finish(sandbox::confine(&mut command)));
        let mut first = program(name);
        first.arg(to(0));
        assert_eq!(start(first), ["life 0"]);
        let mut second = Command::new(image(dir, 0));
        second.args(["--", &to(1)]);
        assert_eq!(start(second), ["life 1"]);
        assert_eq!(start(Command::new(image(dir, 1)))[..2], ["life 2", "done"]);
    }
}

fn without_the_sandbox(dir: &Path) {
    let to = format!("--image={}", image(dir, 0).display());
    assert_eq!(lines_of(&finish(sandbox::confine(program("single").arg(to)))), ["life 0"]);
    let output = finish(&mut Command::new(image(dir, 0)));
    assert_eq!(output.status.code(), Some(20), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("seccomp filters"), "{output:?}");
    let reasons = crac_native::restore::Restore::open(&image(dir, 0), None).expect_err("no filters here");
    assert!(reasons[0].what.contains("seccomp filter"), "{reasons:?}");
}

fn restored_by_descriptor(dir: &Path) {
    lines_of(&finish(program("threads").arg(format!("--image={}", image(dir, 0).display()))));
    let mut command = program("restore");
    command.arg(image(dir, 0)).arg(format!("--image={}", image(dir, 1).display()));
    assert_eq!(lines_of(&finish(&mut command)), ["life 1"]);
    assert_eq!(lines_of(&finish(&mut Command::new(image(dir, 1)))), ["life 2", "done", "joined"]);
}

fn named_file(dir: &Path) {
    let to = format!("--image={}", image(dir, 0).display());
    assert_eq!(lines_of(&finish(program("threads").env("CRAC_TEST_NO_TMPFILE", "1").arg(&to))), ["life 0"]);
    assert_eq!(lines_of(&finish(&mut Command::new(image(dir, 0)))), ["life 1", "done", "joined"]);
    assert_eq!(std::fs::read_dir(dir).expect("own directory").count(), 1);
}

fn deleted_image(dir: &Path) {
    let to = |generation| format!("--image={}", image(dir, generation).display());
    lines_of(&finish(program("threads").arg(to(0))));
    let gone = format!("--delete={}", image(dir, 0).display());
    assert_eq!(lines_of(&finish(Command::new(image(dir, 0)).args(["--", &to(1), &gone]))), ["life 1"]);
    assert!(!image(dir, 0).exists());
    assert_eq!(lines_of(&finish(&mut Command::new(image(dir, 1)))), ["life 2", "done", "joined"]);
}

fn goes_on(dir: &Path) {
    let to = format!("--image={}", image(dir, 0).display());
    for name in ["threads", "tokio"] {
        // Where there are no nameless files, the copy and the original have to agree on the name beside the target.
        let mut command = program(name);
        if name == "tokio" {
            command.env("CRAC_TEST_NO_TMPFILE", "1");
        }
        let lines = lines_of(&finish(command.args([&to, "--mode=continue"])));
        assert!(lines[1].starts_with("original ") && lines[1].contains("copy"), "{lines:?}");
        assert_eq!(lines[2], "done");
        let lines = lines_of(&finish(&mut Command::new(image(dir, 0))));
        assert_eq!(lines[..2], ["life 1", "done"]);
        crac_native::image::verify(&std::fs::File::open(image(dir, 0)).expect("the image")).expect("whole");
    }
}
