//! The example prints what it promises, in as few lines as it promises.

use std::process::Command;

#[test]
fn it_puts_and_gets() {
    let ended = Command::new(env!("CARGO_BIN_EXE_embedded-quickstart")).output().unwrap();
    let out = String::from_utf8_lossy(&ended.stdout);
    assert!(ended.status.success(), "{out}{}", String::from_utf8_lossy(&ended.stderr));
    assert_eq!(out, "put: Done { existed: false }\nget: Some(b\"hello\")\n");
}

#[test]
fn it_has_at_most_thirty_lines() {
    let lines = include_str!("../src/main.rs").lines().count();
    assert!(lines <= 30, "{lines} lines");
}
