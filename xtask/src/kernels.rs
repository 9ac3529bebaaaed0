//! Other kernels than the one of this machine: the native engine's round trips in virtual machines, and images that go from one
//! kernel to the other.
//!
//! ```text
//! Debian's packages ─► vmlinuz          qemu (6.1)  ◄── shared memory ──►  qemu (newer)
//! programs + libraries ─► initramfs     doctor, round trips, features      the same
//!                                       gives an image  ─────────────────► restores it, and captures it again
//!                                       refuses it      ◄───────────────── gives an image
//! ```
//!
//! Without hardware support: the processor is emulated, so that this works wherever QEMU does. What runs inside is
//! `tests/src/bin/guest`.

pub(crate) mod initramfs;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use self::initramfs::Initramfs;
use crate::{built, debian::Suite, shell, test, workspace};

/// Suites of Debian: that with the oldest kernel that is tested, and a newer one.
const SUITES: [&str; 2] = ["bookworm", "trixie"];

const QEMU: &str = "qemu-system-x86_64";

/// All that happens in the machines, on a busy host.
const DEADLINE: Duration = Duration::from_secs(15 * 60);

/// Two halves, one for the images of each machine.
const SHARED_BYTES: u64 = 256 << 20;

/// What runs in each machine: a name, a program, arguments. Small enough for an emulated processor; what depends on the kernel
/// is all there.
const JOBS: &[&[&str]] = &[
    &["doctor", "/bin/crac", "doctor", "--dir", "/tmp"],
    &["give images", "give"],
    &["threads, five generations", ROUND_TRIP, "many_threads_come_back", "--exact"],
    &["a tokio runtime, five generations", ROUND_TRIP, "a_tokio_runtime_comes_back", "--exact"],
    &["become", ROUND_TRIP, "a_process_becomes_its_image_and_keeps_its_pid", "--exact"],
    &["continue", ROUND_TRIP, "the_original_goes_on_while_a_copy_writes", "--exact"],
    &["clones", ROUND_TRIP, "clones_run_side_by_side", "--exact"],
    &["nobody", ROUND_TRIP, "nobody_without_privileges_can_do_it", "--exact"],
    &["guard regions", SUITE, "memory::guard-regions", "--exact"],
    &["droppable memory", SUITE, "memory::droppable", "--exact"],
    &["restartable sequences", SUITE, "threads::restartable-sequences", "--exact"],
    &["duplicates", SUITE, "descriptors::duplicates", "--exact"],
    &["Unix sockets", SUITE, "sockets::unix-pair", "--exact"],
    &["Landlock", SUITE, "process::landlock", "--exact"],
    &["write or execute", SUITE, "process::write-or-execute", "--exact"],
    &["take images", "take"],
];

/// The tests of the native engine, and of the features of the kernel.
const ROUND_TRIP: &str = "/bin/round_trip";
const SUITE: &str = "/bin/suite";

/// How much longer the second machine's clocks say that it has been up.
const AHEAD_S: u64 = 864_000;

/// Runs the tests on Debian's kernels.
///
/// # Errors
///
/// A test failed on one of them; or they cannot be run here, and nothing may be skipped.
pub(crate) fn run() -> Result<()> {
    let begun = Instant::now();
    let prepared = || -> Result<(PathBuf, Vec<Kernel>)> {
        if !shell::is_installed(QEMU) {
            bail!("there is no {QEMU}; install the package `qemu-system-x86`");
        }
        let directory = workspace::metadata()?.target_directory.join("kernels");
        let kernels = SUITES.iter().map(|suite| Kernel::find(suite, &directory.join(suite))).collect::<Result<_>>()?;
        Ok((directory, kernels))
    };
    let (directory, kernels) = match prepared() {
        Ok(prepared) => prepared,
        Err(reason) => return test::skip("tests on other kernels", &format!("{reason:#}")),
    };
    pack(&directory, &kernels).context("packing what runs in the machines")?;
    let packed = begun.elapsed();
    let result = machines(&directory, &kernels);
    let all = begun.elapsed();
    println!("kernels: {:.0} s to prepare, {:.0} s to run", packed.as_secs_f64(), (all - packed).as_secs_f64());
    result
}

/// A kernel of Debian, in a directory of its own.
struct Kernel {
    directory: PathBuf,
}

impl Kernel {
    fn image(&self) -> PathBuf {
        self.directory.join("vmlinuz")
    }

    /// What it loads to tell the peers of Unix sockets.
    fn module(&self) -> PathBuf {
        self.directory.join("unix_diag.ko")
    }

    fn initramfs(&self) -> PathBuf {
        self.directory.join("initramfs")
    }

    /// The one of the suite `suite`, fetched once and kept beside the build.
    fn find(suite: &str, directory: &Path) -> Result<Self> {
        let kernel = Self { directory: directory.to_owned() };
        if kernel.image().is_file() && kernel.module().is_file() {
            return Ok(kernel);
        }
        let packages = Suite::new(suite, directory)?;
        // The package that is always the newest depends on the one with the kernel.
        let package = "linux-image-cloud-amd64";
        let depends = packages.dependency(package, "linux-image-")?;
        let depends = depends.with_context(|| format!("{package} of {suite} depends on no kernel"))?;
        packages.fetch(&depends)?;
        let root = packages.unpack()?;
        let found = |start| find(&root, start).with_context(|| format!("there is no {start} in {depends} of {suite}"));
        let module = found("unix_diag.ko")?;
        if module.extension().is_some_and(|extension| extension == "xz") {
            let unpacked = File::create(kernel.module())?;
            let mut unpack = shell::command("xz", ["--decompress", "--stdout"]);
            shell::run(unpack.arg(&module).stdout(unpacked), DEADLINE)?;
        } else {
            fs::copy(&module, kernel.module())?;
        }
        fs::copy(found("vmlinuz")?, kernel.directory.join("partial"))?;
        fs::remove_dir_all(&root)?;
        packages.tidy_up()?;
        fs::rename(kernel.directory.join("partial"), kernel.image())?;
        Ok(kernel)
    }
}

/// The first file below `directory` whose name begins with `start`.
fn find(directory: &Path, start: &str) -> Option<PathBuf> {
    let mut entries: Vec<PathBuf> = fs::read_dir(directory).ok()?.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    let is_it = |path: &PathBuf| {
        path.is_file() && path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(start))
    };
    let here = entries.iter().find(|path| is_it(path)).cloned();
    here.or_else(|| entries.iter().filter(|path| path.is_dir() && !path.is_symlink()).find_map(|path| find(path, start)))
}

/// Builds the programs and packs them with the libraries they need, for each kernel.
fn pack(directory: &Path, kernels: &[Kernel]) -> Result<()> {
    let tests = built::all()?;
    let programs = workspace::metadata()?.target_directory.join("debug");
    let test = |of: &str, name: &str| built::find(&tests, of, name);
    let mut packed = Initramfs::new(directory.join("stripped"))?;
    packed.program("/init", &programs.join("guest"))?;
    for name in ["crac", "web-server"] {
        packed.program(&format!("/bin/{name}"), &programs.join(name))?;
    }
    packed.program(ROUND_TRIP, test("crac-native", "round_trip")?)?;
    packed.program(SUITE, test("programs", "suite")?)?;
    // Tools that the tests start.
    let path = std::env::var_os("PATH").unwrap_or_default();
    for name in ["setpriv", "prlimit", "true", "sh", "cp", "sleep", "kill", "unshare"] {
        let found = std::env::split_paths(&path).map(|directory| directory.join(name)).find(|path| path.is_file());
        packed.program(&format!("/bin/{name}"), &found.with_context(|| format!("there is no {name}"))?)?;
    }
    let jobs: Vec<String> = JOBS.iter().map(|job| job.join("\t")).collect();
    packed.file("/jobs", (jobs.join("\n") + "\n").into_bytes());
    for kernel in kernels {
        packed.file("/unix_diag.ko", fs::read(kernel.module())?);
        packed.write(&kernel.initramfs())?;
    }
    Ok(())
}

/// Starts a machine with each kernel and reads their verdicts.
fn machines(directory: &Path, kernels: &[Kernel]) -> Result<()> {
    let shared = directory.join("shared");
    // Images of an earlier run would be taken for those of this one.
    let _ = fs::remove_file(&shared);
    File::create(&shared)?.set_len(SHARED_BYTES)?;
    let mut running = Vec::new();
    for (half, kernel) in kernels.iter().enumerate() {
        let console = kernel.directory.join("console");
        let mut command = shell::command(QEMU, []);
        // Version 7.2 emulates an instruction wrongly that kernels use where the processor has it: cmpxchg16b.
        command.args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max,cx16=off", "-smp", "2", "-m", "1536"]);
        command.args(["-display", "none", "-nodefaults", "-no-user-config", "-no-reboot", "-serial", "stdio"]);
        command.arg("-kernel").arg(kernel.image()).arg("-initrd").arg(kernel.initramfs());
        // The check of timers fails where the host is busy.
        let mut line = format!("console=ttyS0 quiet panic=-1 no_timer_check guest.half={half}");
        if half > 0 {
            line += &format!(" guest.ahead={AHEAD_S}");
        }
        command.args(["-append", &line]);
        let memory = format!("memory-backend-file,id=shared,share=on,size={SHARED_BYTES},mem-path={}", shared.display());
        command.args(["-object", &memory, "-device", "ivshmem-plain,memdev=shared"]);
        let output = File::create(&console).with_context(|| format!("cannot make {}", console.display()))?;
        command.stdin(Stdio::null()).stderr(output.try_clone()?).stdout(output);
        running.push((console, shell::Running::start(&mut command)?));
    }
    let deadline = Instant::now() + DEADLINE;
    let mut failed = Vec::new();
    for ((console, machine), suite) in running.into_iter().zip(SUITES) {
        let ended = machine.wait(deadline.saturating_duration_since(Instant::now()));
        let said = String::from_utf8_lossy(&fs::read(&console)?).replace('\r', "");
        let verdict = ended.and_then(|()| verdict(&said));
        match verdict {
            Ok(lines) => println!("{suite}\n  {}", lines.join("\n  ")),
            Err(error) => {
                eprintln!("{said}");
                failed.push(format!("{suite}: {error:#}"));
            }
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join("; ")) }
}

/// What the first process of a machine found.
fn verdict(said: &str) -> Result<Vec<String>> {
    let lines: Vec<&str> = said.lines().filter_map(|line| line.split_once("guest: ").map(|(_, rest)| rest)).collect();
    let failed: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix("FAILED ")).collect();
    if !failed.is_empty() {
        bail!("failed: {}", failed.join("; "));
    }
    let count = lines.iter().filter(|line| line.starts_with("ok ")).count();
    if lines.last() != Some(&"end") || count != JOBS.len() {
        bail!("the machine ended before its work did, {count} of {} done", JOBS.len());
    }
    Ok(lines.iter().filter(|line| **line != "end").map(|line| (*line).to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_believed_only_when_it_has_done_everything() {
        let all = JOBS.iter().map(|job| format!("guest: ok {} (1.0 s)\n", job[0])).collect::<String>();
        let lines = verdict(&format!("boot\nguest: kernel 6.1.0\n{all}guest: end\n")).unwrap();
        assert_eq!((lines[0].as_str(), lines.len()), ("kernel 6.1.0", JOBS.len() + 1));
        assert!(verdict(&all).unwrap_err().to_string().contains("ended before"));
        assert!(verdict("guest: ok doctor (1 s)\nguest: end\n").is_err());
        let failed = verdict(&format!("{all}guest: FAILED memory: exit status: 1\nguest: end\n")).unwrap_err().to_string();
        assert!(failed.contains("memory: exit status: 1"), "{failed}");
    }
}
