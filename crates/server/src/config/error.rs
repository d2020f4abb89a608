//! Errors of a config.

use std::io;
use std::path::{Path, PathBuf};

/// The reason why a config was refused. Nothing was opened or changed; correct the config and start
/// again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read. Check its path and permissions.
    #[error("config file {file}: it cannot be read: {source}; check its path and permissions")]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The text is not valid TOML, or a value has the wrong type.
    #[error("{}{message}", place(file.as_deref()))]
    Malformed {
        /// The file, if it came from one.
        file: Option<PathBuf>,
        /// The line, and what is wrong with it.
        message: String,
    },
    /// No field has this name.
    #[error("{}there is no field `{field}`{}", place(file.as_deref()), suggest(*nearest))]
    UnknownField {
        /// The file, if it came from one.
        file: Option<PathBuf>,
        /// The unknown name, with its table.
        field: String,
        /// The existing field with the most similar name.
        nearest: Option<&'static str>,
    },
    /// A value is not allowed, or a required one is missing.
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
    /// The system has no ports for a local cluster. Stop processes that listen on 127.0.0.1, or
    /// write the configurations with ports of your own.
    #[error("no ports can be chosen for the nodes: {source}")]
    NoPorts {
        /// What is missing, or the error of the operating system.
        source: io::Error,
    },
}

impl ConfigError {
    /// Adds the file's name to the error.
    pub(super) fn in_file(mut self, path: &Path) -> Self {
        match &mut self {
            Self::Unreadable { .. } | Self::NoPorts { .. } => {}
            Self::Malformed { file, .. }
            | Self::UnknownField { file, .. }
            | Self::Refused { file, .. } => {
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
