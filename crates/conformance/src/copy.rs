//! Copies a directory as a killed process leaves it.

use std::fs;
use std::io;
use std::path::Path;

/// Copies every file. The copy holds what the process has written to the kernel, and nothing that
/// was still in the process's memory.
pub(crate) fn copy_dir(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_dir(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
