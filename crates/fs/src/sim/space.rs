//! The size of a simulated disk, and the errors of a full one.

use std::io;

use super::failure::Failure;

/// The limits of a disk; unlimited by default.
#[derive(Debug, Default)]
pub(super) struct Space {
    /// Size in bytes.
    pub(super) capacity: Option<u64>,
    /// The free bytes to report instead of the actual ones.
    pub(super) claimed: Option<u64>,
    /// Handles that may be open at a time.
    pub(super) max_open: Option<usize>,
}

/// Returns the space that a file of this length occupies.
pub(super) const fn taken(len: usize) -> u64 {
    let len = len as u64;
    if len == 0 { 512 } else { len.next_multiple_of(512) }
}

pub(super) fn no_space() -> io::Error {
    io::Error::from_raw_os_error(Failure::NoSpace.errno())
}

impl Failure {
    /// Returns the operating system's number of the error. [`Failure::Short`] is none and returns
    /// EIO.
    pub(super) const fn errno(self) -> i32 {
        match self {
            Self::Io | Self::Short => 5,
            Self::TooManyFilesInSystem => 23,
            Self::TooManyFiles => 24,
            Self::NoSpace => 28,
            Self::Quota => 122,
        }
    }
}
