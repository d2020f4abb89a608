//! The error type of application callbacks.

use std::error::Error as StdError;
use std::fmt;

/// What a state machine's method returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any error of the application, taken in through `?`.
///
/// It does not implement [`std::error::Error`] itself: if it did, the conversion from every
/// `std::error::Error` that makes `?` work would contradict the standard library's `From<T> for T`.
/// [`Error::into_boxed`] gives a standard error where one is needed.
pub struct Error {
    inner: Box<dyn StdError + Send + Sync + 'static>,
}

/// The text of an error that is only a message.
#[derive(Debug)]
struct Message(String);

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for Message {}

/// A method of a trait that the implementation does not offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsupported {
    /// The method's name.
    pub operation: &'static str,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this state machine does not support `{}`", self.operation)
    }
}

impl StdError for Unsupported {}

impl Error {
    /// An error that is only a message.
    #[must_use]
    pub fn msg(message: impl fmt::Display) -> Self {
        Self { inner: Box::new(Message(message.to_string())) }
    }

    /// Says that the state machine does not offer `operation`.
    #[must_use]
    pub fn unsupported(operation: &'static str) -> Self {
        Self { inner: Box::new(Unsupported { operation }) }
    }

    /// The application's own error, if it is of type `T`.
    #[must_use]
    pub fn downcast_ref<T: StdError + 'static>(&self) -> Option<&T> {
        self.inner.downcast_ref()
    }

    /// Whether the system lacked space or file handles: the same may succeed later.
    pub(crate) fn is_want_of_room(&self) -> bool {
        let mut error: Option<&(dyn StdError + 'static)> = Some(self.inner.as_ref());
        while let Some(cause) = error {
            if cause.downcast_ref().is_some_and(d_engine_storage::is_want_of_room) {
                return true;
            }
            error = cause.source();
        }
        false
    }

    /// A standard error, for code that needs one.
    #[must_use]
    pub fn into_boxed(self) -> Box<dyn StdError + Send + Sync + 'static> {
        self.inner
    }
}

impl<E: StdError + Send + Sync + 'static> From<E> for Error {
    fn from(error: E) -> Self {
        Self { inner: Box::new(error) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)?;
        let mut source = self.inner.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}
