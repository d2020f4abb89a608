//! House rules of d-engine as tests: see `tests/`. The library finds and reads the files they
//! check, and the planted bugs.

pub mod imports;
pub mod planted;
pub mod prose;

use std::fs;
use std::path::{Path, PathBuf};

/// The root of the workspace.
///
/// # Panics
/// If this crate does not lie two folders below the root.
#[must_use]
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors()
        .nth(2)
        .unwrap_or_else(|| panic!("{} is not two folders below a workspace", here.display()))
        .to_owned()
}

/// Returns every file below `folder` whose name ends in `ending`, sorted, without build folders.
/// Paths are relative to the root.
#[must_use]
pub fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    collect(&root().join(folder), ending, &mut found);
    let root = root();
    let mut found: Vec<PathBuf> =
        found.iter().filter_map(|path| path.strip_prefix(&root).ok()).map(Path::to_owned).collect();
    found.sort();
    found
}

fn collect(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                collect(&path, ending, found);
            }
        } else if name.ends_with(ending) {
            found.push(path);
        }
    }
}

/// Returns the text of a file of the workspace.
///
/// # Panics
/// If the file cannot be read.
#[must_use]
pub fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("could not read {}: {error}", path.display()))
}
