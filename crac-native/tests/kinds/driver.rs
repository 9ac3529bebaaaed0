//! Starts the programs, runs their images, and makes trouble in between.
#![allow(unsafe_code, reason = "system calls without a wrapper")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    net::TcpListener,
    os::unix::{
        fs::{PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use libtest_mimic::{Arguments, Trial};

use super::programs::PROGRAMS;

pub(super) fn main() {
    close_what_was_left_open();
    let users: &[User] = if rustix::process::geteuid().is_root() { &[User::Own, User::Nobody] } else { &[User::Own] };
    let mut trials = Vec::new();
    for user in users {
        let whole = PROGRAMS.iter().filter(|(name, _)| !name.starts_with("one_") && *name != "streams");
        let whole = whole.map(|(name, _)| ((*name).to_owned(), Test::Round(name)));
        let special = SPECIAL.iter().map(|(name, test)| ((*name).to_owned(), Test::Special(*test)));
        trials.extend(whole.chain(special).map(|(name, test)| {
            Trial::test(format!("{name}_as_{}", user.name()), move || {
                let lab = Lab::new(*user);
                match test {
                    Test::Round(program) => lab.round_trip(program, &[]),
                    Test::Special(test) => test(&lab),
                }
                Ok(())
            })
        }));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

enum Test {
    Round(&'static str),
    Special(Special),
}

type Special = fn(&Lab);

const SPECIAL: &[(&str, Special)] = &[
    ("registrations_without_duplicate_query", |lab| lab.round_trip("registrations", &["CRAC_TEST_NO_QUERY"])),
    ("registrations_by_flag", |lab| lab.round_trip("registrations", &["CRAC_TEST_NO_QUERY", "CRAC_TEST_NO_KCMP"])),
    ("files_by_flag", |lab| lab.round_trip("files", &["CRAC_TEST_NO_QUERY", "CRAC_TEST_NO_KCMP"])),
    ("many_with_a_low_limit", many_with_a_low_limit),
    ("standard_streams_are_those_of_the_restorer", standard_streams),
    ("what_cannot_be_read_back_is_refused", refusal),
    ("an_address_in_use_is_named", address_in_use),
    ("a_socket_path_is_taken_over_from_the_dead_only", socket_path),
    ("a_changed_file_is_named", changed_file),
    ("a_listener_is_taken_from_a_supervisor", supervisor),
];

#[derive(Clone, Copy)]
enum User {
    Own,
    Nobody,
}

impl User {
    fn name(self) -> &'static str {
        match self {
            User::Own => "self",
            User::Nobody => "nobody",
        }
    }
}

/// A directory, the program in it, and who runs it. The directory of a test that failed stays.
struct Lab {
    directory: tempfile::TempDir,
    user: User,
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.directory.disable_cleanup(true);
            println!("see {}", self.directory.path().display());
        }
    }
}

const NOBODY: u32 = 65534;

impl Lab {
    fn new(user: User) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        // The build directory may be out of nobody's reach.
        // Copied by another process: a child that another test of this one is about to start could hold the copy open for writing,
        // and a file that somebody may write to is not executed ("text file busy").
        let mut copy = Command::new("cp");
        copy.arg(std::env::current_exe().expect("own path")).arg(directory.path().join("program"));
        assert!(copy.status().expect("cp").success(), "room for a copy");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        if let User::Nobody = user {
            chown(directory.path(), Some(NOBODY), Some(NOBODY)).expect("chown");
        }
        Self { directory, user }
    }

    fn image(&self) -> PathBuf {
        self.directory.path().join("image.crac")
    }

    fn command(&self, path: &Path) -> Command {
        let mut command = Command::new(path);
        command.current_dir(self.directory.path()).stdin(Stdio::null());
        if let User::Nobody = self.user {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    fn program(&self, name: &str) -> Command {
        let mut command = self.command(&self.directory.path().join("program"));
        command.env("CRAC_TEST_PROGRAM", name).env("CRAC_TEST_IMAGE", self.image());
        command
    }

    /// Runs a program until it is captured, restored and captured again; what it said before.
    fn capture(&self, name: &str, switches: &[&str]) -> String {
        let mut program = self.program(name);
        program.envs(switches.iter().map(|switch| (switch, "1")));
        let said = well(program.output().expect("the program starts"));
        let second = well(self.command(&self.image().with_extension("first")).output().expect("the first image starts"));
        assert!(!said.contains("all as it was") && second.is_empty(), "who was captured must not go on: {said}{second}");
        said
    }

    fn round_trip(&self, name: &str, switches: &[&str]) {
        self.capture(name, switches);
        let said = well(self.command(&self.image()).output().expect("the image starts"));
        assert!(said.ends_with("all as it was\n"), "{said}");
    }

    fn refused(&self) -> (i32, String) {
        let output = self.command(&self.image()).output().expect("the image starts");
        (output.status.code().expect("an exit status"), String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Standard output of a program that ended well.
fn well(output: Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n--- stdout\n{out}\n--- stderr\n{err}", output.status);
    out.into_owned()
}

/// A service raises its limit at start; its image is started by somebody with an ordinary one.
fn many_with_a_low_limit(lab: &Lab) {
    lab.capture("many", &[]);
    let mut image = lab.command(&lab.image());
    // SAFETY: setrlimit(2) is async-signal-safe.
    unsafe {
        image.pre_exec(|| {
            let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
            let low = rustix::process::Rlimit { current: Some(256), ..limit };
            Ok(rustix::process::setrlimit(rustix::process::Resource::Nofile, low)?)
        })
    };
    well(image.output().expect("the image starts"));
}

fn standard_streams(lab: &Lab) {
    let input = lab.directory.path().join("input");
    fs::write(&input, "from the file\n").expect("write");
    let mut program = lab.program("streams");
    let (reader, _writer) = std::io::pipe().expect("pipe");
    let said = well(program.stdin(reader).output().expect("the program starts"));
    assert_eq!(said, "before\n");
    well(lab.command(&lab.image().with_extension("first")).output().expect("the first image starts"));
    let mut image = lab.command(&lab.image());
    let said = well(image.stdin(fs::File::open(&input).expect("open")).output().expect("the image starts"));
    assert_eq!(said, "after\nthrough the duplicate\nfrom the file\nall as it was\n");
    // Closed ones become the null device.
    let mut image = lab.command(&lab.image());
    // SAFETY: fcntl(2) is async-signal-safe.
    unsafe { image.pre_exec(|| Ok(rustix::io::fcntl_setfd(std::io::stdin(), rustix::io::FdFlags::CLOEXEC)?)) };
    let said = well(image.output().expect("the image starts"));
    assert_eq!(said, "after\nthrough the duplicate\nall as it was\n");
}

fn refusal(lab: &Lab) {
    let said = well(lab.program("one_refusal").output().expect("the program starts"));
    assert!(said.ends_with("all as it was\n"), "the original goes on: {said}");
}

fn address_in_use(lab: &Lab) {
    let address = lab.capture("one_port", &[]);
    let address = address.trim();
    let image = crac_native::image::Image::read(&fs::File::open(lab.image()).expect("open")).expect("an image");
    let listed: Vec<_> = image.descriptors().map(|(_, text)| text).collect();
    assert_eq!(listed, ["standard input", "standard output", "standard error", &format!("TCP {address}, listening")]);
    let occupied = TcpListener::bind(address).expect("bind");
    let (status, said) = lab.refused();
    assert!(said.contains(&format!("cannot listen on {address}: address in use")), "{said}");
    assert_eq!(status, 22, "{said}");
    drop(occupied);
    well(lab.command(&lab.image()).output().expect("the image starts"));
}

fn socket_path(lab: &Lab) {
    lab.capture("one_path", &[]);
    let path = lab.directory.path().join("path");
    let inode = || std::os::unix::fs::MetadataExt::ino(&fs::metadata(&path).expect("stat"));
    let start = || {
        let mut life = lab.command(&lab.image()).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the image starts");
        let mut line = String::new();
        BufReader::new(life.stdout.as_mut().expect("piped")).read_line(&mut line).expect("read");
        assert_eq!(line, "listening\n");
        life
    };
    let mut first = start();
    let of_first = inode();
    let (status, said) = lab.refused();
    assert!(said.contains(&format!("cannot listen on {}: address in use", path.display())), "{said}");
    assert_eq!((status, inode()), (22, of_first), "a clone does not take it from a living one");
    // Killed, it leaves a file that is not the captured one, but that nobody is behind.
    first.kill().expect("kill");
    first.wait().expect("wait");
    let mut second = start();
    drop(second.stdin.take());
    let mut rest = String::new();
    second.stdout.take().expect("piped").read_to_string(&mut rest).expect("read");
    assert!(second.wait().expect("wait").success() && rest == "all as it was\n", "{rest}");
    // Something else under the name stays.
    fs::remove_file(&path).expect("remove");
    fs::write(&path, "precious").expect("write");
    let (status, _) = lab.refused();
    assert_eq!((status, fs::read(&path).expect("read")), (22, b"precious".to_vec()));
}

fn changed_file(lab: &Lab) {
    let path = lab.directory.path().join("config");
    fs::write(&path, "name=value\n").expect("write");
    lab.capture("one_file", &[]);
    well(lab.command(&lab.image()).output().expect("the image starts"));
    // A copy with the same size and time, as on another host.
    let time = fs::metadata(&path).expect("stat").modified().expect("a time");
    let replace = |text: &str| {
        let copy = path.with_extension("new");
        fs::write(&copy, text).expect("write");
        fs::File::options().append(true).open(&copy).expect("open").set_modified(time).expect("utimes");
        fs::rename(&copy, &path).expect("rename");
    };
    replace("name=value\n");
    well(lab.command(&lab.image()).output().expect("the image starts"));
    replace("name=other value\n");
    if let User::Own = lab.user {
        let mismatches = crac_native::restore::Restore::open(&lab.image(), None).expect_err("it does not fit");
        assert!(mismatches.iter().any(|mismatch| mismatch.what.contains("has changed since")), "{mismatches:?}");
    }
    let (status, said) = lab.refused();
    assert!(said.contains(&format!("{} has changed since the checkpoint", path.display())), "{said}");
    assert_eq!(status, 20, "start cold: {said}");
    fs::remove_file(&path).expect("remove");
    let (status, said) = lab.refused();
    assert!(said.contains(&format!("{} cannot be opened", path.display())), "{said}");
    assert_eq!(status, 20, "start cold: {said}");
}

/// `LISTEN_FDS`: the supervisor keeps the socket open, so that nobody is refused meanwhile and nothing is bound.
fn supervisor(lab: &Lab) {
    let address = lab.capture("one_port", &[]);
    let listener = TcpListener::bind(address.trim()).expect("bind");
    let mut image = lab.command(Path::new("/bin/sh"));
    // The shell knows its own number before it becomes the image.
    let script = format!("export LISTEN_PID=$$ LISTEN_FDS=1; exec {}", lab.image().display());
    image.arg("-c").arg(script);
    let number = std::os::fd::AsRawFd::as_raw_fd(&listener) as usize;
    // SAFETY: dup2(2) is async-signal-safe.
    unsafe { image.pre_exec(move || hand_over(number)) };
    well(image.output().expect("the image starts"));
}

/// Makes `number` the first descriptor that a supervisor hands over.
fn hand_over(number: usize) -> std::io::Result<()> {
    // SAFETY: the child has no use for whatever its descriptor 3 is: standard input and output come before.
    unsafe { crac_sys::syscall(libc::SYS_dup2, [number, 3, 0, 0, 0, 0]) }?;
    crac_sys::fs::fcntl(3, libc::F_SETFD, 0)?;
    Ok(())
}

/// Whoever started the tests may have left descriptors open that are not ours to test.
fn close_what_was_left_open() {
    const CLOSE_RANGE_CLOEXEC: usize = 4;
    // SAFETY: sets a flag of descriptors; nothing is closed here.
    unsafe { crac_sys::syscall(libc::SYS_close_range, [3, u32::MAX as usize, CLOSE_RANGE_CLOEXEC, 0, 0, 0]) }
        .expect("close_range, Linux 5.11");
}
