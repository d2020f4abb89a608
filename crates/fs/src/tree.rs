//! The files below a directory, under names that every system can store, and their checksum. A
//! snapshot is such a tree: a state machine writes it, and another node's state machine reads it.

mod names;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

pub use self::names::{MAX_DEPTH, MAX_FILES, MAX_NAME_BYTES, conflict, fault_of};
use crate::{FileKind, Fs, OpenMode, read_up_to};

/// Bytes of a file that are read at a time.
const READ_AT_ONCE: usize = 64 << 10;

/// A file of a tree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TreeFile {
    /// Path below the directory, joined by `/`.
    pub name: String,
    /// Length in bytes.
    pub len: u64,
}

/// Why a tree cannot be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TreeError {
    /// The operating system refused a file operation.
    #[error("cannot {operation} {path}: {source}")]
    Io {
        /// The operation that failed, as a verb.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: Arc<io::Error>,
    },
    /// A file has a name that a tree must not contain; give it another one.
    #[error("{path}: the file name {name:?} {what}")]
    Name {
        /// The directory that contains the file.
        path: PathBuf,
        /// The name.
        name: String,
        /// The rule that the name violates.
        what: &'static str,
    },
    /// A file changed while it was read; it must not be written to meanwhile.
    #[error(
        "{path} changed while it was read: {expected} bytes were expected, and {found} were found"
    )]
    Changed {
        /// The file.
        path: PathBuf,
        /// Length at the start.
        expected: u64,
        /// Bytes that could be read.
        found: u64,
    },
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TreeError {
    let path = path.to_owned();
    move |source| TreeError::Io { operation, path, source: Arc::new(source) }
}

/// Returns the files below `dir` in byte order of their names. Empty directories do not count.
///
/// # Errors
/// An I/O error, or [`TreeError::Name`].
pub fn files_below(fs: &dyn Fs, dir: &Path) -> Result<Vec<TreeFile>, TreeError> {
    let mut files = Vec::new();
    collect(fs, dir, "", 1, &mut files)?;
    files.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

fn collect(
    fs: &dyn Fs,
    dir: &Path,
    prefix: &str,
    depth: usize,
    files: &mut Vec<TreeFile>,
) -> Result<(), TreeError> {
    for name in fs.list(dir).map_err(io_error("list", dir))? {
        let path = dir.join(&name);
        let name = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        let refuse = |what| Err(TreeError::Name { path: dir.to_owned(), name: name.clone(), what });
        match fs.kind(&path).map_err(io_error("read the type of", &path))? {
            FileKind::Dir if depth < MAX_DEPTH => collect(fs, &path, &name, depth + 1, files)?,
            FileKind::Dir => return refuse("has more than 16 parts"),
            FileKind::File if files.len() < MAX_FILES => {
                if let Some(what) = fault_of(&name) {
                    return refuse(what);
                }
                let file = fs.open(&path, OpenMode::Existing).map_err(io_error("open", &path))?;
                let len = file.len().map_err(io_error("read the length of", &path))?;
                files.push(TreeFile { name, len });
            }
            FileKind::File => return refuse("is one of more than 65536 files"),
            FileKind::Other => return refuse("is neither a regular file nor a directory"),
        }
    }
    Ok(())
}

/// SHA-256 over files in byte order of their names: length of the name as u32, the name, length of
/// the content as u64, the content; numbers little-endian.
#[derive(Clone, Debug, Default)]
pub struct TreeHash(Sha256);

impl TreeHash {
    /// Begins a file; its content follows.
    pub fn begin_file(&mut self, file: &TreeFile) {
        // Names are shorter than 4 GiB on any file system.
        self.0.update((file.name.len() as u32).to_le_bytes());
        self.0.update(file.name.as_bytes());
        self.0.update(file.len.to_le_bytes());
    }

    /// Adds the next part of a file's content.
    pub fn add(&mut self, content: &[u8]) {
        self.0.update(content);
    }

    /// Returns the checksum.
    #[must_use]
    pub fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

/// Returns the [`TreeHash`] of the files below `dir`. Empty directories do not count.
///
/// # Errors
/// An I/O error, [`TreeError::Name`], or [`TreeError::Changed`].
pub fn tree_checksum(fs: &dyn Fs, dir: &Path) -> Result<[u8; 32], TreeError> {
    let mut hash = TreeHash::default();
    let mut buffer = vec![0; READ_AT_ONCE];
    for file in files_below(fs, dir)? {
        let path = dir.join(&file.name);
        let source = fs.open(&path, OpenMode::Existing).map_err(io_error("open", &path))?;
        hash.begin_file(&file);
        let mut found = 0;
        loop {
            let read = read_up_to(&*source, found, &mut buffer).map_err(io_error("read", &path))?;
            hash.add(buffer.get(..read).unwrap_or_default());
            found += read as u64;
            if read < READ_AT_ONCE {
                break;
            }
        }
        if found != file.len {
            return Err(TreeError::Changed { path, expected: file.len, found });
        }
    }
    Ok(hash.finish())
}
