//! How an operation of the simulated disk fails.

/// What an operation does that was made to fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// EIO. A failed sync drops the dirty pages: they stay readable and will never be durable.
    Io,
    /// ENOSPC. Nothing is written. A failed sync drops the dirty pages as with [`Failure::Io`].
    NoSpace,
    /// EDQUOT, as [`Failure::NoSpace`].
    Quota,
    /// EMFILE: the process has no free descriptor.
    TooManyFiles,
    /// ENFILE: the operating system has no free descriptor.
    TooManyFilesInSystem,
    /// A write accepts only half of the bytes and reports that. Other operations succeed.
    Short,
}
