//! Modules that import each other in a circle cannot be read one after the other.

use d_engine_tidy::imports::Imports;

/// The highest number of circles in the workspace. The core and the simulator have none.
const CIRCLES_MAX: usize = 3;

#[test]
fn modules_import_each_other_in_few_circles_and_in_core_and_simulator_in_none() {
    let mut all = Vec::new();
    for path in d_engine_tidy::files(".", "Cargo.toml") {
        let folder = path.with_file_name("src");
        let folder = folder.to_string_lossy();
        if folder.starts_with("benches") || folder.starts_with("examples") || folder == "src" {
            continue;
        }
        for circle in Imports::of(&folder).circles() {
            let has_none = ["crates/core/src", "crates/sim/src"].contains(&&*folder);
            assert!(!has_none, "a circle in {folder}: {circle:?}");
            all.push(format!("{folder}: {circle:?}"));
        }
    }
    assert!(all.len() <= CIRCLES_MAX, "{} circles:\n{}", all.len(), all.join("\n"));
}
