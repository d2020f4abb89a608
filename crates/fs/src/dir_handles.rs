//! Open directories. A process that has run out of descriptors must still be able to sync the
//! directories that it works in, because a failed sync is final.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use d_engine_locks::Unpoisoned;

/// The most handles that are kept; more than the number of directories of a node.
const HANDLES_MAX: usize = 16;

/// Keeps a handle on each directory that was opened, up to [`HANDLES_MAX`].
#[derive(Debug, Default)]
pub(crate) struct DirHandles(Mutex<BTreeMap<PathBuf, Arc<File>>>);

impl DirHandles {
    /// Returns a handle on the directory that is at `path` now. A directory that was removed and
    /// created again is another one.
    pub(crate) fn open(&self, path: &Path) -> io::Result<Arc<File>> {
        let found = std::fs::metadata(path)?;
        let known = self.0.lock().unpoisoned().get(path).cloned();
        if let Some(known) = known
            && is_same(&known.metadata()?, &found)
        {
            return Ok(known);
        }
        let opened = Arc::new(File::open(path)?);
        let mut handles = self.0.lock().unpoisoned();
        if handles.len() >= HANDLES_MAX {
            handles.clear();
        }
        handles.insert(path.to_owned(), Arc::clone(&opened));
        Ok(opened)
    }
}

/// Whether both describe the same file.
pub(crate) fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may stop there")]
mod tests {
    use super::{DirHandles, is_same};
    use std::fs;
    use std::sync::Arc;

    #[test]
    fn a_directory_that_took_anothers_place_gets_a_handle_of_its_own() {
        let parent = tempfile::tempdir().unwrap();
        let (dir, aside) = (parent.path().join("dir"), parent.path().join("aside"));
        fs::create_dir(&dir).unwrap();
        let handles = DirHandles::default();
        let first = handles.open(&dir).unwrap();
        assert!(Arc::ptr_eq(&first, &handles.open(&dir).unwrap()));
        fs::rename(&dir, &aside).unwrap();
        assert!(handles.open(&dir).is_err());
        fs::create_dir(&dir).unwrap();
        let second = handles.open(&dir).unwrap();
        assert!(is_same(&second.metadata().unwrap(), &fs::metadata(&dir).unwrap()));
        assert!(!is_same(&second.metadata().unwrap(), &first.metadata().unwrap()));
    }
}
