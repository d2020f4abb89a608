//! All file operations of d-engine: the [`Fs`] trait, the real file system, streams over it, and
//! [trees](tree) of files.
//!
//! The engine opens files only through [`Fs`]. So every operation is counted, each can be made to
//! fail, and tests and the simulator run on a disk that crashes (`sim`, feature `testing`).

mod dir_handles;
mod fs;
mod read_only;
mod real;
#[cfg(feature = "testing")]
pub mod sim;
mod stream;
pub mod tree;

pub use fs::{
    FileKind, Fs, FsCounts, FsFile, FsLock, FsOp, LockAttempt, OpenMode, ensure_dir,
    is_out_of_space, read_file, read_up_to, read_whole, write_all_at,
};
pub use read_only::ReadOnlyFs;
pub use real::RealFs;
pub use stream::{SYNC_EVERY_BYTES, StreamReader, StreamWriter};
