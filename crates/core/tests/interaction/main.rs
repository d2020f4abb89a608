//! Scenarios as text: each file in `testdata/` contains commands and, after each, everything that
//! the nodes did. The test runs the commands again and compares.
//!
//! `REWRITE=1 cargo test -p d-engine-core --test interaction` rewrites the files with the present
//! behaviour; read the difference before you commit it.
#![allow(clippy::unwrap_used)]

mod commands;
#[path = "../support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::{env, fs};

use commands::Scenario;

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata")
}

/// The rewritten file: comments and commands unchanged, and what happens now after each command.
fn rerun(text: &str) -> Result<String, String> {
    let mut scenario = Scenario::default();
    let mut rewritten = String::new();
    for line in text.lines() {
        if let Some(command) = line.strip_prefix("> ") {
            let happened = scenario.run(command)?;
            rewritten += &format!("{line}\n");
            rewritten.extend(happened.into_iter().map(|line| line + "\n"));
        } else if line.starts_with('#') {
            rewritten += &format!("{line}\n");
        }
    }
    Ok(rewritten)
}

/// The first line in which the two texts differ, with its number.
fn first_difference(expected: &str, found: &str) -> String {
    let (mut expected, mut found) = (expected.lines(), found.lines());
    for number in 1.. {
        let (old, new) = (expected.next(), found.next());
        if old != new {
            let show = |line: Option<&str>| line.unwrap_or("(end of file)").to_owned();
            return format!("line {number}\n  expected: {}\n  happened: {}", show(old), show(new));
        }
        if old.is_none() {
            break;
        }
    }
    "nothing".to_owned()
}

#[test]
fn every_scenario_happens_as_written() {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(testdata()).unwrap().map(|file| file.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 10, "scenarios are missing: {paths:?}");
    let mut differences = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let rewritten = rerun(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        if env::var_os("REWRITE").is_some() {
            fs::write(&path, rewritten).unwrap();
        } else if rewritten != text {
            differences.push(format!("{name}: {}", first_difference(&text, &rewritten)));
        }
    }
    assert!(differences.is_empty(), "REWRITE=1 accepts this:\n{}", differences.join("\n"));
}

#[test]
fn no_scenario_is_too_long_to_read() {
    for file in fs::read_dir(testdata()).unwrap() {
        let path = file.unwrap().path();
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= 150, "{} has {lines} lines", path.display());
    }
}

#[test]
fn a_wrong_command_is_named() {
    assert!(rerun("> dance 1").unwrap_err().contains("dance"));
    assert!(rerun("> cluster 3\n> timeout x").unwrap_err().contains("timeout x"));
}
