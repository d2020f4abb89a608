//! How much a simulated disk holds, and the errors of one that holds no more.

use std::io;

use super::Failure;

/// The limits of a disk. Without any, it has no end.
#[derive(Debug, Default)]
pub(super) struct Space {
    /// Size in bytes.
    pub(super) capacity: Option<u64>,
    /// What is answered to the question for free bytes instead of what there is.
    pub(super) claimed: Option<u64>,
    /// Handles that may be open at a time.
    pub(super) max_open: Option<usize>,
}

/// What a file of this length takes.
pub(super) const fn taken(len: usize) -> u64 {
    let len = len as u64;
    if len == 0 { 512 } else { len.next_multiple_of(512) }
}

pub(super) fn no_space() -> io::Error {
    io::Error::from_raw_os_error(Failure::NoSpace.errno())
}

impl Failure {
    /// The system's number of the error; of [`Failure::Short`], which is none, EIO.
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
