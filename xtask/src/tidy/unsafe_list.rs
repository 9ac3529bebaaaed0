//! The wall: which files may say `unsafe`, and why.

use super::Problem;
use crate::workspace::File;
use proc_macro2::{TokenStream, TokenTree};
use std::collections::BTreeSet;

/// Path, and the reason why the file cannot do without. A path ending in `/` stands for all files below it.
const ALLOWED: &[(&str, &str)] = &[
    ("crac-sys/src/", "wraps the kernel for everyone else"),
    ("crac-native/stub/src/", "runs before Rust is ready: no heap, no thread-local storage"),
    ("crac-native/src/arch.rs", "saves and reloads the stack pointer"),
    ("crac-native/src/arena.rs", "hands out parts of mappings it owns, where nothing may be allocated"),
    ("crac-native/src/beside.rs", "makes a copy of the process and reads a record that both share"),
    ("crac-native/src/capture.rs", "parks the calling thread"),
    ("crac-native/src/capture/practice.rs", "makes a thread without what Rust does for one"),
    ("crac-native/src/capture/write.rs", "replaces the process by its image"),
    ("crac-native/src/clock/layer.rs", "changes the text of the C library, and calls it to see that it worked"),
    ("crac-native/src/clock/shim.rs", "stands between the C library and the kernel"),
    ("crac-native/src/confined.rs", "replaces a function of the C library"),
    ("crac-native/src/exec.rs", "calls execve without the C library, while every other thread is stopped"),
    ("crac-native/src/freeze.rs", "installs a signal handler, and shares slots with it"),
    ("crac-native/src/freeze/", "is a signal handler, and reads the kernel's state of a thread"),
    ("crac-native/src/landlock.rs", "starts a child on the caller's stack"),
    ("crac-native/src/launch.rs", "replaces the process by the stub, and runs before main"),
    ("crac-native/src/layout/cpu.rs", "asks the processor by cpuid and xgetbv, in the stub as well"),
    ("crac-native/src/madvise.rs", "replaces a function of the C library and mappings of the image"),
    ("crac-native/src/owners.rs", "writes to mutexes at noted addresses, while no thread runs"),
    ("crac-native/src/pages.rs", "tests against memory in a known state"),
    ("crac-native/src/record.rs", "sees plain records as bytes"),
    ("crac-native/src/resumed.rs", "reads what the stub left at an agreed address, and unmaps the stub"),
    ("crac-native/src/settings.rs", "runs before main"),
    ("crac-native/src/writer.rs", "writes the process's own memory as it stands"),
    ("crac-native/tests/programs/", "use what the kernel offers and no crate does"),
    ("crac-native/tests/rounds/", "set children up before they execute"),
    ("crac-native/tests/kinds/", "makes descriptors that no crate offers, sets up children before they execute"),
    ("crac-criu/src/capture.rs", "closes descriptors that a restored life has and nobody in it owns"),
    ("crac-criu/src/wiped.rs", "discards memory whose owners have asked for that in copies of the process"),
    ("tests/src/bin/wiped.rs", "maps and marks a page"),
    ("tests/src/bin/guest/shared.rs", "maps memory that two virtual machines share"),
    ("tests/src/bin/odd_criu.rs", "takes the connection that it was started with, by its number"),
    ("tests/src/bin/restricted.rs", "asks the kernel to refuse new code, and whether it does"),
    ("benches/src/bin/pause.rs", "forks, to have something to compare with"),
    ("tests/allocators/tests/raw/pages.rs", "an allocator that gives memory back by its own means"),
    ("tests/programs/tests/suite/", "do what other people's code does, with calls that no crate offers"),
    ("crac-audit/tests/audit.rs", "traces a child"),
    ("crac-macros/tests/ui/pass/signature_is_kept.rs", "shows that an unsafe function stays unsafe"),
];

pub(crate) fn check(files: &[File]) -> Vec<Problem> {
    check_against(files, ALLOWED)
}

fn check_against(files: &[File], allowed: &[(&str, &str)]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut used = BTreeSet::new();
    for file in files.iter().filter(|file| file.path.ends_with(".rs")) {
        let says_unsafe = match says_unsafe(&file.text) {
            Ok(says_unsafe) => says_unsafe,
            // Without the word there is nothing to find, however broken the file is: some tests need one that is.
            Err(_) if !file.text.contains("unsafe") => false,
            Err(error) => {
                problems.push(Problem::new(&file.path, format!("cannot be read as Rust: {error}")));
                continue;
            }
        };
        let entry = allowed.iter().find(|(path, _)| file.path == *path || (path.ends_with('/') && file.path.starts_with(path)));
        match (says_unsafe, entry) {
            (true, None) => problems.push(Problem::new(
                &file.path,
                "says `unsafe` outside of the wall; call crac-sys, or list it with a reason in xtask/src/tidy/unsafe_list.rs",
            )),
            (true, Some((path, _))) => {
                used.insert(*path);
            }
            (false, _) => {}
        }
    }
    for (path, _) in allowed.iter().filter(|(path, _)| !used.contains(path)) {
        problems.push(Problem::new(*path, "is listed in xtask/src/tidy/unsafe_list.rs but says `unsafe` nowhere; strike it out"));
    }
    problems
}

/// Whether `unsafe` occurs as a keyword: not in a comment or a text, and not as a part of a lint's name.
fn says_unsafe(source: &str) -> Result<bool, proc_macro2::LexError> {
    let source = match source.strip_prefix("#!") {
        Some(rest) if !rest.trim_start().starts_with('[') => rest.split_once('\n').map_or("", |(_, rest)| rest),
        _ => source,
    };
    Ok(has_unsafe(source.parse()?))
}

fn has_unsafe(tokens: TokenStream) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(ident) => ident == "unsafe",
        TokenTree::Group(group) => has_unsafe(group.stream()),
        TokenTree::Punct(_) | TokenTree::Literal(_) => false,
    })
}

#[cfg(test)]
mod tests {
    use super::{check_against, says_unsafe};
    use crate::workspace::File;

    #[test]
    fn the_keyword_is_found_wherever_it_may_stand() {
        for source in [
            "fn f() { unsafe { g() } }",
            "unsafe fn f() {}",
            "unsafe impl Send for S {}",
            "unsafe extern \"C\" {}",
            "#[unsafe(no_mangle)] fn f() {}",
            "macro_rules! m { () => { unsafe { g() } } }",
            "fn f<'unsafely>() { /* \" */ unsafe {} /* \" */ }",
        ] {
            assert!(says_unsafe(source).unwrap(), "{source}");
        }
    }

    #[test]
    fn comments_texts_and_lint_names_do_not_count() {
        for source in [
            "#![forbid(unsafe_code)]",
            "#![deny(unsafe_op_in_unsafe_fn)]",
            "//! unsafe\n/// unsafe\n// unsafe\n/* unsafe /* unsafe */ */ fn f() {}",
            "const A: &str = \"unsafe {}\";",
            "const A: &str = r#\"\" unsafe {} \"\"#;",
            "const A: &[u8] = b\"\\\" unsafe\";",
            "const A: char = '\"'; // unsafe",
            "#!/usr/bin/env unsafe\nfn main() {}",
        ] {
            assert!(!says_unsafe(source).unwrap(), "{source}");
        }
    }

    fn file(path: &str, text: &str) -> File {
        File { path: path.to_owned(), text: text.to_owned() }
    }

    fn found(files: &[File]) -> Vec<String> {
        let allowed = [("a/wall.rs", "wraps"), ("sys/", "wraps")];
        check_against(files, &allowed).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn files_inside_of_the_wall_may_and_others_may_not() {
        let files = ["a/wall.rs", "sys/deep/file.rs", "a/other.rs"].map(|path| file(path, "unsafe fn f() {}"));
        let found = found(&files);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("a/other.rs: says `unsafe` outside of the wall"), "{found:?}");
    }

    #[test]
    fn an_entry_that_nothing_needs_is_reported() {
        let files = [file("a/wall.rs", "fn f() {}"), file("sys/file.rs", "unsafe fn f() {}")];
        let found = found(&files);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("a/wall.rs: is listed"), "{found:?}");
    }

    #[test]
    fn a_file_that_hides_the_word_in_broken_source_is_reported() {
        let files =
            [file("a/wall.rs", "unsafe"), file("sys/f.rs", "unsafe"), file("b.rs", "fn f( { unsafe {"), file("c.rs", "fn f( {")];
        let found = found(&files);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("b.rs: cannot be read as Rust"), "{found:?}");
    }
}
