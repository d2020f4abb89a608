//! Why a config cannot be used.

use std::io;
use std::path::{Path, PathBuf};

/// Why a config was refused. Nothing was opened or changed; correct the config and start again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("config file {file}: {source}")]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// The failure.
        source: io::Error,
    },
    /// The text is no TOML, or a value has the wrong type.
    #[error("{}{message}", place(file.as_deref()))]
    Malformed {
        /// The file, if it came from one.
        file: Option<PathBuf>,
        /// The line and what is wrong with it.
        message: String,
    },
    /// There is no such field.
    #[error("{}there is no field `{field}`{}", place(file.as_deref()), suggest(*nearest))]
    UnknownField {
        /// The file, if it came from one.
        file: Option<PathBuf>,
        /// The field that was written.
        field: String,
        /// The nearest field that exists.
        nearest: Option<&'static str>,
    },
    /// A value cannot be used.
    #[error("{}`{field}` is {value}; {allowed}", place(file.as_deref()))]
    Refused {
        /// The file, if it came from one.
        file: Option<PathBuf>,
        /// The field.
        field: String,
        /// Its value.
        value: String,
        /// What is allowed.
        allowed: String,
    },
}

impl ConfigError {
    /// The same error, told of a file.
    pub(super) fn in_file(mut self, path: &Path) -> Self {
        match &mut self {
            Self::Unreadable { .. } => {}
            Self::Malformed { file, .. } | Self::UnknownField { file, .. } | Self::Refused { file, .. } => {
                *file = Some(path.to_owned());
            }
        }
        self
    }
}

fn place(file: Option<&Path>) -> String {
    file.map(|file| format!("config file {}: ", file.display())).unwrap_or_default()
}

fn suggest(nearest: Option<&str>) -> String {
    nearest.map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}
