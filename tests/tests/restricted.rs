//! Where an image may not be executed: `noexec` mounts, `MemoryDenyWriteExecute=`, `vm.memfd_noexec`, fapolicyd, files without
//! permission.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, ExitStatus, Stdio},
};

use age::{secrecy::ExposeSecret, x25519::Identity};
use crac_testing::{
    http,
    lab::{Lab, Service, free_addr, text},
    programs::program,
    skip::skip,
    wait_until,
};

/// A shell in namespaces of its own: the lab's directory `images` is a mount on which nothing is executed, and everything it starts
/// is restricted.
struct World {
    lab: Lab,
    shell: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl World {
    /// One with `restrictions` as the program `restricted` takes them, and `memfd` for `vm.memfd_noexec=2`; nothing where this user
    /// may not make one.
    fn new(name: &str, restrictions: &str) -> Option<Self> {
        let lab = Lab::new();
        let images = lab.file("images");
        std::fs::create_dir(&images).unwrap();
        let ids = rustix::process::geteuid().as_raw().to_string();
        let group = rustix::process::getegid().as_raw().to_string();
        let is_root = ids == "0";
        // Only root may set the real thing.
        let (sysctl, rest) = match restrictions.strip_suffix(",memfd").filter(|_| is_root) {
            Some(rest) => ("echo 2 > /proc/sys/vm/memfd_noexec\n", rest),
            None => ("", restrictions),
        };
        let again = if is_root { String::new() } else { format!("unshare --user --map-user={ids} --map-group={group} ") };
        let script = format!(
            "set -e\nmount -t tmpfs -o noexec,mode=700 none {images}\n{sysctl}exec {again}{restricted} {rest} sh",
            images = images.display(),
            restricted = quoted(&program("restricted")),
            rest = quoted(Path::new(rest)),
        );
        let world = Self::enter(lab, &script);
        if world.is_none() {
            skip(name, "this user may not make namespaces, or the kernel lacks one of the restrictions");
        }
        world
    }

    /// One in which fapolicyd lets nobody execute what is on a file system in memory, as `images` is. Only root can have that.
    fn under_fapolicyd(name: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            // What only root can do is left to the run of the suite as root.
            return None;
        }
        let Some(fapolicyd) = std::env::var_os("CRAC_TEST_FAPOLICYD").map(PathBuf::from) else {
            skip(name, "there is no fapolicyd; `cargo xtask test` fetches one");
            return None;
        };
        let lab = Lab::new();
        std::fs::create_dir(lab.file("images")).unwrap();
        // It has its settings, its database and its own files at fixed paths; nothing else there is needed.
        let script = format!(
            "set -e\n\
             for at in /etc /run /var/lib /usr/share; do mount -t tmpfs none $at; mkdir $at/fapolicyd; done\n\
             cp {package}/usr/share/fapolicyd/*.mgc /usr/share/fapolicyd\n\
             printf '%s\\n' 'permissive = 0' 'uid = 0' 'gid = 0' 'watch_fs = tmpfs' 'trust = file' 'integrity = none' \
             'do_stat_report = 0' > /etc/fapolicyd/fapolicyd.conf\n\
             echo \"/bin/true $(stat -Lc %s /bin/true) $(sha256sum < /bin/true | cut -d ' ' -f 1)\" > /etc/fapolicyd/fapolicyd.trust\n\
             for part in 10-languages 30-patterns 40-bad-elf 41-shared-obj 42-trusted-elf 70-trusted-lang 72-shell 90-deny-execute \
             95-allow-open; do cat {package}/usr/share/fapolicyd/sample-rules/$part.rules; done > /etc/fapolicyd/compiled.rules\n\
             mount -t tmpfs -o mode=700 none {images}\n\
             {program} --debug-deny > {log} 2>&1 &\necho $! > fapolicyd.pid\nexec sh",
            package = quoted(&fapolicyd.join("root")),
            images = quoted(&lab.file("images")),
            program = quoted(&fapolicyd.join("fapolicyd")),
            log = quoted(&lab.file("fapolicyd.log")),
        );
        let Some(mut world) = Self::enter(lab, &script) else {
            skip(name, "this user may not make namespaces");
            return None;
        };
        world.run_ok("cp /bin/true images/unknown");
        let log = world.lab.file("fapolicyd.log");
        wait_until("fapolicyd refuses what it does not know", || {
            let (status, said) = world.run("images/unknown");
            assert!(status == 0 || status == 126, "{said}");
            assert_eq!(world.run("kill -0 $(cat fapolicyd.pid)").0, 0, "{}", std::fs::read_to_string(&log).unwrap_or_default());
            (status == 126).then_some(())
        });
        Some(world)
    }

    /// Runs `script` in namespaces of its own, which ends as a shell; nothing if it does not come to that.
    fn enter(lab: Lab, script: &str) -> Option<Self> {
        let mut command = lab.command("unshare");
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut shell = command.spawn().unwrap();
        let (to, from) = (shell.stdin.take().unwrap(), BufReader::new(shell.stdout.take().unwrap()));
        let mut world = Self { lab, shell, to, from };
        if world.try_run("true").is_none() {
            let _ = world.shell.wait();
            return None;
        }
        Some(world)
    }

    /// Runs a command line in the shell: its exit status and what it has said.
    fn run(&mut self, line: &str) -> (i32, String) {
        self.try_run(line).expect("the shell is there")
    }

    fn try_run(&mut self, line: &str) -> Option<(i32, String)> {
        writeln!(self.to, "{{ {line}\n}} 2>&1; printf '\\nend-of-command %s\\n' $?").ok()?;
        let mut said = String::new();
        loop {
            let mut line = String::new();
            if self.from.read_line(&mut line).ok()? == 0 {
                return None;
            }
            match line.strip_prefix("end-of-command ") {
                Some(status) => return Some((status.trim().parse().ok()?, said)),
                None => said.push_str(&line),
            }
        }
    }

    /// As [`run`](Self::run), which must succeed.
    fn run_ok(&mut self, line: &str) -> String {
        let (status, said) = self.run(line);
        assert_eq!(status, 0, "{line}\n{said}");
        said
    }

    /// Starts `line` in the background, which makes a service that listens at a new address; waits until that answers.
    fn start(&mut self, line: &str) -> SocketAddr {
        let addr = free_addr();
        let log = self.lab.file("log");
        self.run_ok(&format!("{line} --listen {addr} --warm-mib 1 > {} 2>&1 & echo $! > pid", log.display()));
        let mut waited = 0_u32;
        wait_until("the service answers", || {
            waited += 1;
            if waited.is_multiple_of(64) && self.run("kill -0 $(cat pid)").0 != 0 {
                panic!("the service has ended: {}", std::fs::read_to_string(&log).unwrap_or_default());
            }
            http::exchange(addr, "GET", "/", "").ok().filter(|answer| answer.status == 200)
        });
        // The door of a restored life opens before it can be asked for anything.
        let ps = format!("{} ps", quoted(&program("crac")));
        wait_until("the service can be asked", || self.run(&ps).1.contains("web-server").then_some(()));
        addr
    }

    /// Waits for the end of what was started last.
    fn end(&mut self) -> i32 {
        self.run("wait $(cat pid)").0
    }

    fn crac(&mut self, verb: &str) -> String {
        self.run_ok(&format!("{} {verb}", quoted(&program("crac"))))
    }

    fn service(&self) -> String {
        quoted(&program("web-server"))
    }

    fn restore(&mut self, image: &str) -> SocketAddr {
        self.start(&format!("{} restore {image} --", quoted(&program("crac"))))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // With the first process of the namespace all others end.
        let _ = writeln!(self.to, "kill -9 $(cat pid); exit");
        let _: std::io::Result<ExitStatus> = self.shell.kill().and_then(|()| self.shell.wait());
    }
}

fn quoted(path: &Path) -> String {
    let path: &OsStr = path.as_ref();
    format!("'{}'", path.to_str().unwrap())
}

fn generation(addr: SocketAddr) -> u64 {
    http::get(addr, "/instance").json()["generation"].as_u64().unwrap()
}

/// Two generations of an image that is nowhere executed, and a service that becomes one.
fn round_trip(name: &str, restrictions: &str, refused: &[&str]) {
    let Some(mut world) = World::new(name, restrictions) else { return };
    let said = world.run_ok(&format!("{} probe", quoted(&program("restricted"))));
    for what in ["at once", "later", "memfd"] {
        let is = if refused.contains(&what) { "refused" } else { "allowed" };
        assert!(said.contains(&format!("{what}: {is}")), "the restrictions are in force: {said}");
    }
    let said = world.crac("doctor --dir images");
    assert!(said.contains("mounted noexec"), "{said}");
    let line = world.service();
    let mut addr = world.start(&line);
    assert_eq!(http::get(addr, "/counter").body.trim(), "1");
    for next in 1..=3 {
        world.crac("checkpoint web-server --image images/web.crac");
        assert_eq!(world.end(), 0);
        assert_ne!(world.run("images/web.crac").0, 0, "the image cannot be executed");
        let said = world.crac("inspect images/web.crac");
        assert!(said.contains("data alone") && said.contains("fits here     yes"), "{said}");
        world.crac("verify images/web.crac");
        addr = world.restore("images/web.crac");
        assert_eq!(generation(addr), next);
        assert_eq!(http::get(addr, "/counter").body.trim(), (next + 1).to_string());
        let maps = world.run_ok("cat /proc/$(cat pid)/maps");
        let is_code = |line: &&str| line.split(' ').nth(1).is_some_and(|protection| protection.contains('x'));
        let code: Vec<&str> = maps.lines().filter(is_code).collect();
        assert!(
            code.iter().any(|line| line.ends_with("web-server")) && code.iter().any(|line| line.contains("libc.so")),
            "{code:#?}"
        );
        assert!(!code.iter().any(|line| line.contains("web.crac")), "nothing of the image is executable: {code:#?}");
    }
    world.crac("checkpoint web-server --become --image images/web.crac");
    wait_until("the service has become its image", || {
        let answer = http::exchange(addr, "GET", "/instance", "").ok()?;
        (answer.status == 200 && answer.json()["generation"] == 4).then_some(())
    });
    assert_eq!(http::get(addr, "/counter").body.trim(), "5");
    // The original goes on while a copy of it writes the image.
    world.crac("checkpoint web-server --continue --image images/copy.crac");
    assert_eq!(generation(addr), 4);
    world.crac("inspect images/copy.crac");
}

#[test]
fn an_image_on_a_mount_without_execution_holds_data_alone_and_comes_back() {
    round_trip("an_image_on_a_mount_without_execution_holds_data_alone_and_comes_back", "", &[]);
}

#[test]
fn it_comes_back_where_the_kernel_denies_new_code() {
    round_trip("it_comes_back_where_the_kernel_denies_new_code", "mdwe", &["at once", "later"]);
}

#[test]
fn it_comes_back_where_a_filter_of_systemd_denies_new_code() {
    round_trip("it_comes_back_where_a_filter_of_systemd_denies_new_code", "filter", &["at once", "later"]);
}

#[test]
fn it_comes_back_where_everything_is_denied() {
    round_trip("it_comes_back_where_everything_is_denied", "mdwe,filter,memfd", &["at once", "later", "memfd"]);
}

#[test]
fn signed_and_encrypted_images_come_back_where_everything_is_denied() {
    let name = "signed_and_encrypted_images_come_back_where_everything_is_denied";
    let Some(mut world) = World::new(name, "mdwe,filter,memfd") else { return };
    let identity = Identity::generate();
    std::fs::write(world.lab.file("identity"), identity.to_string().expose_secret()).unwrap();
    let line = world.service();
    let addr = world.start(&line);
    assert_eq!(http::get(addr, "/counter").body.trim(), "1");
    world.crac("keygen key");
    world.crac("checkpoint web-server --image images/web.crac");
    world.end();
    let restore = format!("{} restore", quoted(&program("crac")));
    let (status, said) = world.run(&format!("{restore} images/web.crac --verify-key key.pub"));
    assert!(status == 21 && said.contains("signature"), "not signed yet: {said}");
    world.crac("sign --key key images/web.crac");
    let addr = world.start(&format!("{restore} images/web.crac --verify-key key.pub --"));
    assert_eq!(http::get(addr, "/counter").body.trim(), "2");

    let recipient = identity.to_public();
    world.crac(&format!("checkpoint web-server --data-only --encrypt-to {recipient} --image images/web.crac.age"));
    world.end();
    let (status, said) = world.run(&format!("{restore} images/web.crac.age"));
    assert!(status == 21 && said.contains("--identity"), "{said}");
    assert!(world.crac("inspect images/web.crac.age --identity identity").contains("data alone"));
    let addr = world.start(&format!("{restore} images/web.crac.age --identity identity --"));
    assert_eq!(http::get(addr, "/counter").body.trim(), "3");
}

#[test]
fn the_line_for_a_unit_takes_an_image_and_restores_it_where_everything_is_denied() {
    let name = "the_line_for_a_unit_takes_an_image_and_restores_it_where_everything_is_denied";
    let Some(mut world) = World::new(name, "mdwe,filter,memfd") else { return };
    let line = format!("{} run --image images/web.crac --checkpoint-on ready -- {}", quoted(&program("crac")), world.service());
    let addr = world.start(&line);
    wait_until("the service has become its image", || {
        let answer = http::exchange(addr, "GET", "/instance", "").ok()?;
        (answer.status == 200 && answer.json()["generation"] == 1).then_some(())
    });
    world.run("kill -9 $(cat pid); wait $(cat pid)");
    let addr = world.start(&line);
    assert_eq!(generation(addr), 1);
    let said = std::fs::read_to_string(world.lab.file("log")).unwrap();
    assert!(!said.contains("cold"), "{said}");
}

#[test]
fn it_comes_back_under_fapolicyd() {
    let Some(mut world) = World::under_fapolicyd("it_comes_back_under_fapolicyd") else { return };
    let is_generation = |addr: SocketAddr, generation: u64| {
        let answer = http::exchange(addr, "GET", "/instance", "").ok()?;
        (answer.status == 200 && answer.json()["generation"] == generation).then_some(())
    };
    let line = world.service();
    let addr = world.start(&line);
    assert_eq!(http::get(addr, "/counter").body.trim(), "1");
    world.crac("checkpoint web-server --image images/web.crac");
    assert_eq!(world.end(), 0);
    // A program like any other, which nobody knows.
    assert!(world.crac("inspect images/web.crac").contains("a program"));
    assert_eq!(world.run("images/web.crac").0, 126);
    let addr = world.restore("images/web.crac");
    assert_eq!(http::get(addr, "/counter").body.trim(), "2");

    // That it would execute.
    let become_it = format!("{} checkpoint web-server --become --image images/next.crac", quoted(&program("crac")));
    let (status, said) = world.run(&become_it);
    assert!(status != 0 && said.contains("not permitted") && said.contains("--data-only"), "{status} {said}");
    assert_eq!((generation(addr), world.run("ls images").1.trim()), (1, "unknown\nweb.crac"));
    world.run_ok(&format!("{become_it} --data-only"));
    wait_until("the service has become its image", || is_generation(addr, 2));
    assert_eq!(http::get(addr, "/counter").body.trim(), "3");
    world.run("kill -9 $(cat pid); wait $(cat pid)");
    let denied = std::fs::read_to_string(world.lab.file("fapolicyd.log")).unwrap();
    for name in ["web.crac", "next.crac"] {
        assert!(denied.lines().any(|line| line.contains("dec=deny") && line.contains(name)), "{name}: {denied}");
    }

    let line = format!("{} run --image images/next.crac -- {line}", quoted(&program("crac")));
    assert_eq!(generation(world.start(&line)), 2);
}

#[test]
fn an_image_without_permission_is_restored_and_one_with_other_code_is_not() {
    let lab = Lab::new();
    let (own, upgrade) = (lab.file("server"), lab.file("upgrade"));
    std::fs::copy(program("web-server"), &own).unwrap();
    let addr = free_addr();
    let mut command = lab.command(&own);
    command.args(["--listen", &addr.to_string(), "--warm-mib", "0"]);
    let mut service = Service::start(command, addr).answering();
    let image = lab.file("web.crac");
    let pid = service.pid().to_string();
    lab.crac_ok(["checkpoint".as_ref(), pid.as_ref(), "--data-only".as_ref(), "--image".as_ref(), image.as_os_str()]);
    assert!(service.wait().success());
    assert_eq!(image.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
    assert!(image.metadata().unwrap().len() > 0);
    drop(lab.restore(&image, &[]));
    // An upgrade: another build, under the same name. No page of it is the same, wherever the code is.
    let mut bytes = std::fs::read(&own).unwrap();
    bytes.iter_mut().step_by(4096).for_each(|byte| *byte ^= 1);
    std::fs::write(&upgrade, bytes).unwrap();
    std::fs::rename(&upgrade, &own).unwrap();
    let refused = lab.crac(["restore".as_ref(), image.as_os_str()]);
    assert_eq!(refused.status.code(), Some(20), "{}", text(&refused.stderr));
    assert!(text(&refused.stderr).contains("has changed since the checkpoint"), "{}", text(&refused.stderr));
}
