//! The directory in which a local cluster keeps its files.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::exit::Failure;

/// A directory that is kept, or a temporary one that is removed when this is dropped.
pub(crate) enum Place {
    Kept(PathBuf),
    Temporary(TempDir),
}

impl Place {
    /// Uses `dir`, which must be empty or not exist yet, or without it a temporary directory.
    pub(crate) fn empty(dir: Option<&Path>, prefix: &str) -> Result<Self, Failure> {
        let place = Self::any(dir, prefix)?;
        let cannot = |what: String| {
            Failure::refused(format_args!("--dir {}: {what}", place.path().display()))
        };
        let mut entries = fs::read_dir(place.path())
            .map_err(|error| cannot(format!("it cannot be read: {error}")))?;
        match entries.next() {
            None => Ok(place),
            Some(_) => Err(cannot(
                "it is not empty; name a directory that is empty or does not exist".to_owned(),
            )),
        }
    }

    /// Creates a temporary directory inside `dir`, or in the system's place for temporary files.
    pub(crate) fn temporary(dir: Option<&Path>, prefix: &str) -> Result<Self, Failure> {
        let Some(dir) = dir else { return Self::any(None, prefix) };
        let inside = Self::any(Some(dir), prefix)?;
        let made = tempfile::Builder::new().prefix(prefix).tempdir_in(inside.path());
        made.map(Self::Temporary).map_err(|error| {
            Failure::refused(format_args!(
                "--dir {}: no directory can be created in it: {error}",
                dir.display()
            ))
        })
    }

    /// Uses `dir` with any contents, or without it a temporary directory.
    pub(crate) fn any(dir: Option<&Path>, prefix: &str) -> Result<Self, Failure> {
        let Some(dir) = dir else {
            return tempfile::Builder::new().prefix(prefix).tempdir().map(Self::Temporary).map_err(
                |error| Failure::failed(format!("no temporary directory can be created: {error}")),
            );
        };
        let cannot = |what: &str, error: std::io::Error| {
            Failure::refused(format_args!("--dir {}: {what}: {error}", dir.display()))
        };
        fs::create_dir_all(dir).map_err(|error| cannot("it cannot be created", error))?;
        let dir = dir.canonicalize().map_err(|error| cannot("it cannot be read", error))?;
        Ok(Self::Kept(dir))
    }

    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Kept(dir) => dir,
            Self::Temporary(dir) => dir.path(),
        }
    }

    pub(crate) fn is_kept(&self) -> bool {
        matches!(self, Self::Kept(_))
    }

    /// Keeps the files, even those in a temporary directory; returns the path.
    pub(crate) fn keep(self) -> PathBuf {
        match self {
            Self::Kept(dir) => dir,
            Self::Temporary(dir) => dir.keep(),
        }
    }
}
