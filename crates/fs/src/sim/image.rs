//! What a simulated disk contains.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// The content of a disk: every file by its path, and every directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SimImage {
    /// The directories.
    pub dirs: Vec<PathBuf>,
    /// The files.
    pub files: BTreeMap<PathBuf, Vec<u8>>,
}
