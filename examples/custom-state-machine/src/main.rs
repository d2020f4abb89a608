//! The `d-engine` command.
fn main() {}
