//! The command without a service: usage, exit statuses, images that are none, doctor, cold starts.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

fn crac(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_crac"))
        .args(args)
        .current_dir(dir)
        .env("CRAC_RUN_DIR", dir)
        .env_remove("CRAC_IMAGE")
        .env_remove("CRAC_CHECKPOINT_ON")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn mistakes_on_the_command_line_exit_with_2() {
    let dir = tempfile::tempdir().unwrap();
    for wrong in [
        &["checkpoint"][..],
        &["restart", "x"],
        &["checkpoint", ""],
        &["checkpoint", "x", "--timeout", "soon"],
        &["restore", "x", "--env", "novalue"],
        &["run", "--"],
        &["run", "--checkpoint-on", "later", "--", "true"],
        &["restore", "image", "argument-without-dashes"],
    ] {
        let (code, out, err) = said(&crac(dir.path(), wrong));
        assert_eq!(code, Some(2), "{wrong:?}: {err}");
        assert!(out.is_empty() && !err.is_empty(), "{wrong:?}: mistakes are talk, not data");
    }
}

#[test]
fn help_lists_exit_statuses_and_variables() {
    let dir = tempfile::tempdir().unwrap();
    let (code, out, _) = said(&crac(dir.path(), &["--help"]));
    assert_eq!(code, Some(0));
    for part in ["Exit status:", "20  the image does not fit", "CRAC_RUN_DIR"] {
        assert!(out.contains(part), "{part} is missing in:\n{out}");
    }
}

#[test]
fn nobody_of_that_name_exits_with_3_and_names_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    for verb in ["checkpoint", "check"] {
        let (code, _, err) = said(&crac(dir.path(), &[verb, "orders"]));
        assert_eq!(code, Some(3), "{err}");
        assert!(err.contains("orders") && err.contains(dir.path().to_str().unwrap()), "{err}");
    }
}

#[test]
fn a_directory_without_services_lists_none() {
    let dir = tempfile::tempdir().unwrap();
    let (code, out, _) = said(&crac(dir.path(), &["ps", "--json"]));
    assert_eq!((code, out.trim()), (Some(0), "[]"));
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn a_file_that_is_no_image_is_untrusted_and_a_missing_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("text.crac");
    std::fs::write(&file, "not an image").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o700)).unwrap();
    for verb in ["restore", "inspect", "verify"] {
        let (code, _, err) = said(&crac(dir.path(), &[verb, "text.crac"]));
        assert_eq!(code, Some(21), "{verb}: {err}");
        assert!(err.contains("not an image"), "{verb}: {err}");
    }
    assert_eq!(said(&crac(dir.path(), &["restore", "missing.crac"])).0, Some(20));
    assert_eq!(said(&crac(dir.path(), &["inspect", "missing.crac"])).0, Some(1));
    let (code, out, _) = said(&crac(dir.path(), &["verify", "--json", "text.crac"]));
    assert_eq!((code, serde_json::from_str::<Value>(&out).unwrap()["whole"].as_bool()), (Some(21), Some(false)));
}

#[test]
fn a_cold_start_says_why_tells_the_service_where_its_image_goes_and_is_the_service() {
    let dir = tempfile::tempdir().unwrap();
    let script = "echo $CRAC_IMAGE $CRAC_CHECKPOINT_ON $0 $1; exit 7";
    let args = ["run", "--image", "s.crac", "--checkpoint-on", "after=5m", "--", "sh", "-c", script, "zero", "one"];
    let (code, out, err) = said(&crac(dir.path(), &args));
    assert_eq!(code, Some(7), "{err}");
    let image = dir.path().join("s.crac");
    assert_eq!(out.trim(), format!("{} after=5m zero one", image.display()));
    assert_eq!(err.lines().count(), 1, "{err}");
    assert!(err.contains("cold") && err.contains("no image"), "{err}");
}

#[test]
fn a_cold_start_keeps_what_the_environment_says_about_checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_crac"))
        .args(["run", "--", "sh", "-c", "echo $CRAC_CHECKPOINT_ON"])
        .env("CRAC_CHECKPOINT_ON", "ready")
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert_eq!(said(&output).1.trim(), "ready");
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn an_image_that_cannot_be_trusted_starts_cold_and_loudly() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("s.crac"), "rubbish").unwrap();
    let (code, out, err) = said(&crac(dir.path(), &["run", "--image", "s.crac", "--", "sh", "-c", "echo cold"]));
    assert_eq!((code, out.trim()), (Some(0), "cold"));
    assert!(err.contains("WARNING") && err.contains("s.crac"), "{err}");
}

#[test]
fn a_program_that_is_not_there_exits_with_1() {
    let dir = tempfile::tempdir().unwrap();
    for program in ["no-such-program-anywhere", "./not-here"] {
        let (code, _, err) = said(&crac(dir.path(), &["run", "--", program]));
        assert_eq!(code, Some(1), "{err}");
        assert!(err.contains(program), "{err}");
    }
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn doctor_proves_that_a_process_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let (code, out, err) = said(&crac(dir.path(), &["doctor", "--json"]));
    let answer: Value = serde_json::from_str(&out).unwrap();
    let checks = answer["checks"].as_array().unwrap();
    let check = |id: &str| checks.iter().find(|check| check["id"] == id).unwrap_or_else(|| panic!("{id}: {out}"));
    assert_eq!(check("trial")["found"], true, "{out}\n{err}");
    assert_eq!((code, answer["works"].as_bool()), (Some(0), Some(true)));
    for check in checks {
        assert_eq!(check["advice"].is_null(), check["found"] == true, "what is missing has advice: {check}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the trial leaves nothing behind");
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn doctor_says_that_nothing_works_where_no_image_can_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let (code, out, _) = said(&crac(dir.path(), &["doctor", "--dir", "/proc"]));
    assert_eq!(code, Some(1), "{out}");
    let trial = out.lines().find(|line| line.contains("trial")).unwrap();
    assert!(trial.starts_with("MISSING") && trial.contains("/proc"), "{trial}");
}

#[test]
fn doctor_lists_every_obstacle_with_cause_and_advice() {
    let dir = tempfile::tempdir().unwrap();
    let (code, out, _) = said(&crac(dir.path(), &["doctor", "--obstacles", "--json"]));
    let list: Vec<Value> = serde_json::from_str(&out).unwrap();
    assert_eq!((code, list.len()), (Some(0), crac_core::ObstacleKind::ALL.len()));
    let text = said(&crac(dir.path(), &["doctor", "--obstacles"])).1;
    for kind in crac_core::ObstacleKind::ALL {
        assert!(text.contains(kind.id()) && text.contains(kind.advice()), "{kind}");
    }
}
