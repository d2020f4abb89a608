//! The example prints what it promises.

use std::process::Command;

#[test]
fn the_dead_service_vanishes_and_the_others_stay() {
    let ended = Command::new(env!("CARGO_BIN_EXE_service-registry")).output().unwrap();
    let out = String::from_utf8_lossy(&ended.stdout);
    assert!(ended.status.success(), "{out}{}", String::from_utf8_lossy(&ended.stderr));
    let lists: Vec<&str> = out.lines().filter(|line| line.starts_with("registered: ")).collect();
    assert_eq!(
        lists,
        [
            "registered: a at 10.0.0.1:80, b at 10.0.0.2:80, c at 10.0.0.3:80",
            "registered: a at 10.0.0.1:80, c at 10.0.0.3:80",
        ]
    );
    assert!(out.ends_with("the registry is empty\n"), "{out}");
}
