//! Rules that clippy cannot express.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use d_engine_tidy::{files, read};

fn sources() -> Vec<std::path::PathBuf> {
    ["crates", "examples"].iter().flat_map(|folder| files(folder, ".rs")).collect()
}

fn is_test(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "tests")
        || path.file_name().is_some_and(|name| name.to_string_lossy().contains("tests"))
}

#[test]
fn a_file_can_be_read_in_one_sitting() {
    for path in sources() {
        let lines = read(&path).lines().count();
        assert!(
            lines <= 700,
            "{} has {lines} lines; split it where it does two things",
            path.display()
        );
    }
}

#[test]
fn no_test_sleeps() {
    for path in sources().iter().filter(|path| is_test(path)) {
        // This file has to name what it forbids, and the helper of the process tests is an
        // exception.
        if path.ends_with("tests/style.rs") || path.ends_with("tests/wait/mod.rs") {
            continue;
        }
        let text = read(path);
        assert!(
            !text.contains("sleep("),
            "{} sleeps; wait for a condition instead",
            path.display()
        );
    }
}

#[test]
fn no_test_is_ignored_and_nothing_is_left_to_do() {
    for path in sources() {
        if path.ends_with("tests/style.rs") {
            continue;
        }
        let text = read(&path);
        for stub in ["#[ignore", "todo!(", "unimplemented!(", "FIXME"] {
            assert!(!text.contains(stub), "{} holds {stub}", path.display());
        }
    }
}

#[test]
fn a_run_is_a_function_of_its_inputs() {
    let clocks =
        ["std::time::Instant", "SystemTime", "std::thread", "HashMap", "HashSet", "rand::"];
    for krate in ["core", "storage", "state-machine", "replica", "kv", "sim"] {
        for path in files(&format!("crates/{krate}/src"), ".rs") {
            // The simulator's programs run whole seeds on threads and measure their time from
            // outside.
            if path.ends_with("sim/src/main.rs")
                || path.ends_with("sim/src/bin/mutants.rs")
                || is_test(&path)
            {
                continue;
            }
            let text = read(&path);
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            for line in code.take_while(|line| !line.contains("#[cfg(test)]")) {
                for clock in clocks {
                    assert!(!line.contains(clock), "{}: {clock} in {line:?}", path.display());
                }
            }
        }
    }
}

#[test]
fn every_crate_has_the_house_lints() {
    for folder in ["crates", "examples"] {
        for path in files(folder, "Cargo.toml") {
            assert!(
                read(&path).contains("[lints]\nworkspace = true"),
                "{} lacks them",
                path.display()
            );
        }
    }
}
