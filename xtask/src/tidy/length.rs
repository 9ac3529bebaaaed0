//! Files a person can read in one go.

use super::Problem;
use crate::workspace::File;

/// Most files have 80 to 350 lines; from here on two things probably want two files.
const LINES_MAX: usize = 600;

/// Longer files, each being one thing, with what that is.
const LONGER: [(&str, &str); 0] = [];

pub(crate) fn check(files: &[File]) -> Vec<Problem> {
    check_against(files, &LONGER)
}

fn check_against(files: &[File], longer: &[(&str, &str)]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for file in files.iter().filter(|file| file.path.ends_with(".rs")) {
        let lines = file.text.lines().count();
        let listed = longer.iter().any(|(path, _)| *path == file.path);
        if lines > LINES_MAX && !listed {
            problems.push(Problem::new(
                &file.path,
                format!(
                    "has {lines} lines, more than {LINES_MAX}; split it, or list it with a reason in xtask/src/tidy/length.rs"
                ),
            ));
        }
        if lines <= LINES_MAX && listed {
            problems.push(Problem::new(&file.path, "is listed in xtask/src/tidy/length.rs but short enough; strike it out"));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::check_against;
    use crate::workspace::File;

    fn found(lines: usize, longer: &[(&str, &str)]) -> Vec<String> {
        let files = ["a.rs", "a.txt"].map(|path| File { path: path.to_owned(), text: "x\n".repeat(lines) });
        check_against(&files, longer).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_limit_is_for_source_files_and_the_list_is_kept_short() {
        assert_eq!(found(600, &[]), [""; 0]);
        assert!(found(601, &[])[0].starts_with("a.rs: has 601 lines, more than 600"));
        assert_eq!(found(601, &[("a.rs", "one table")]), [""; 0]);
        assert!(found(600, &[("a.rs", "one table")])[0].contains("strike it out"));
    }
}
