//! The error type of application callbacks.

use std::error::Error as StdError;
use std::fmt;

/// What a state machine's method returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any error of the application, converted by `?`.
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

    /// An error that says that the state machine does not offer `operation`.
    #[must_use]
    pub fn unsupported(operation: &'static str) -> Self {
        Self { inner: Box::new(Unsupported { operation }) }
    }

    /// The application's own error, if it is of type `T`.
    #[must_use]
    pub fn downcast_ref<T: StdError + 'static>(&self) -> Option<&T> {
        self.inner.downcast_ref()
    }

    /// Whether the error is, or was caused by, a [`std::io::Error`] that says that the system lacks
    /// space or file handles: the same call may succeed later.
    #[must_use]
    pub fn is_out_of_space(&self) -> bool {
        let mut error: Option<&(dyn StdError + 'static)> = Some(self.inner.as_ref());
        while let Some(cause) = error {
            if cause.downcast_ref().is_some_and(d_engine_fs::is_out_of_space) {
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

/// The error and its causes. A cause that the text before it already ends with is left out.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.inner.to_string();
        let mut source = self.inner.source();
        while let Some(cause) = source {
            let why = cause.to_string();
            if !text.ends_with(&why) {
                text = format!("{text}: {why}");
            }
            source = cause.source();
        }
        f.write_str(&text)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}
