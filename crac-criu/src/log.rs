//! CRIU's log: the lines that decided, and what to do about them. Pure.

/// How many lines an error quotes.
const QUOTED_MAX: usize = 6;

/// The decisive lines of a log: its errors, without time stamps, the first ones; each once.
pub(crate) fn decisive(log: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for line in log.lines() {
        let Some(at) = line.find("Error (") else { continue };
        let line = line[at..].trim_end().to_owned();
        if !found.contains(&line) && !is_harmless(&line) {
            found.push(line);
        }
    }
    // That it failed is known.
    if found.len() > 1 {
        found.retain(|line| !line.ends_with("Dumping FAILED.") && !line.ends_with("Restoring FAILED."));
    }
    found.truncate(QUOTED_MAX);
    found
}

/// Said on every run without `CAP_SYS_RESOURCE`.
fn is_harmless(line: &str) -> bool {
    line.contains("Can't setup RLIMIT_NOFILE for self")
}

/// What to do about a failure with these lines.
pub(crate) fn advice(lines: &[String]) -> &'static str {
    let says = |part: &str| lines.iter().any(|line| line.contains(part));
    let found = ADVICE.iter().find(|(parts, _)| parts.iter().all(|part| says(part)));
    found
        .map_or("look the lines up in CRIU's documentation; `crac doctor` tells whether CRIU works here at all", |(_, advice)| {
            advice
        })
}

/// Parts of lines that all occur, and what to do then; the first that fits counts.
const ADVICE: &[(&[&str], &str)] = &[
    (
        &["Can't fork for", "File exists"],
        "a process or thread has the id of one in the image; restore in a process id namespace of its own: `unshare --pid --fork --kill-child --mount-proc crac restore IMAGE`",
    ),
    (
        &["Can't bind inet socket", "Address already in use"],
        "somebody listens there, perhaps the service that went on when this image was taken; end it, or restore on another host",
    ),
    (&["CAP_"], "run it as root, or with the capabilities CAP_CHECKPOINT_RESTORE and CAP_SETPCAP"),
    (&["rt vDSO"], "this CRIU is too old for this kernel; install CRIU 4.2 or later"),
    (&["Operation not supported", "Can't get 1:16 opt"], "this CRIU is too old for this kernel; install CRIU 4.2 or later"),
    (&["Connected TCP socket"], "close the connection in before_checkpoint, or set the policy `tcp-established = sever`"),
    (&["unix:", "external"], "close the Unix connection in before_checkpoint, or set the policy `unix-connected = sever`"),
    (&["Unix socket", "peer"], "close the Unix connection in before_checkpoint, or set the policy `unix-connected = sever`"),
    (&["Dangling connection"], "close the Unix connection in before_checkpoint, or set the policy `unix-connected = sever`"),
    (&["io_uring"], "drop the io_uring instance in before_checkpoint; build tokio without its `io-uring` feature"),
    (&["anon_inode:[io_uring]"], "drop the io_uring instance in before_checkpoint; build tokio without its `io-uring` feature"),
    (
        &["bad size"],
        "a file has changed since the checkpoint; keep the files of the service as they were, or open them to append",
    ),
    (&["build-ID"], "a program or library has been replaced since the checkpoint; start the service cold"),
    (&["Can't open file", "No such file"], "a file of the service is missing here; put it back, or start the service cold"),
    (&["file locks"], "release the lock in before_checkpoint, or set the policy `file-lock = keep`"),
    (&["Can't lookup mount"], "a descriptor is on a mount that CRIU does not see; start the service without it"),
    (&["No space left"], "free some space, or choose another directory for the image"),
    (&["instruction capabilities"], "this processor lacks what the one of the checkpoint had; start the service cold"),
    (&["session leader", "outside of its pid namespace"], "start the service in a session of its own, with `setsid --wait`"),
    (&["ptrace", "not permitted"], "run it as root, and without a debugger"),
];

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
(00.000010) Warn  (criu/rlimit.c:1): Something
(00.000012) Error (criu/rlimit.c:18): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted
(00.011812) Error (criu/sk-inet.c:191): inet: Connected TCP socket, consider using --tcp-established option.
(00.011839) ----------------------------------------
(00.011850) Error (criu/cr-dump.c:1558): Dump files (pid: 42) failed with -1
(00.012001) Error (criu/cr-dump.c:1558): Dump files (pid: 42) failed with -1
(00.012601) Error (criu/cr-dump.c:2111): Dumping FAILED.
";

    #[test]
    fn the_lines_that_decided_are_quoted_and_noise_is_not() {
        assert_eq!(
            decisive(LOG),
            [
                "Error (criu/sk-inet.c:191): inet: Connected TCP socket, consider using --tcp-established option.",
                "Error (criu/cr-dump.c:1558): Dump files (pid: 42) failed with -1",
            ]
        );
        assert!(advice(&decisive(LOG)).contains("tcp-established = sever"));
        assert!(decisive("").is_empty());
    }

    #[test]
    fn a_lonely_verdict_is_better_than_nothing() {
        assert_eq!(decisive("(0.1) Error (criu/cr-dump.c:2): Dumping FAILED.").len(), 1);
    }

    #[test]
    fn a_taken_process_id_and_an_old_criu_come_with_their_remedies() {
        let advice_for = |line: &str| advice(&decisive(line));
        assert!(advice_for("1: Error (criu/cr-restore.c:1): Can't fork for 1234: File exists").contains("unshare --pid"));
        assert!(advice_for("Error (criu/vdso.c:381): vdso: Unexpected rt vDSO area bounds").contains("4.2"));
        assert!(advice_for("Error (criu/x.c:1): something new").contains("crac doctor"));
    }
}
