//! Errors that a caller can remedy by choosing another data set or directory.

use std::fmt;
use std::path::PathBuf;

/// The reason why files are missing if the data set is on the hub but this build does not download.
#[cfg(not(feature = "hub"))]
pub(super) const NO_DOWNLOAD: &str =
    "no directory given, and this build does not download (the feature `hub` is not enabled)";

/// A data set could not be chosen.
///
/// The name is wrong, a directory is missing or superfluous, languages are missing, or columns are unclear.
///
/// The loaders return it inside an `anyhow::Error`; `downcast_ref` finds it, so that a program can name its own remedy
/// (such as a command-line option).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataError {
    /// No data set has this name.
    UnknownName {
        /// The name given.
        name: String,
        /// The names of all data sets of this kind.
        known: &'static [&'static str],
    },
    /// The data set is built in, so a directory of files is meaningless.
    BuiltIn {
        /// The name of the data set.
        name: String,
    },
    /// The data set's files are needed, but there is neither a directory nor a download.
    FilesNeeded {
        /// The name of the data set.
        name: String,
        /// Why the files are missing.
        reason: String,
        /// The data sets of this kind that need no files.
        built_in: &'static [&'static str],
    },
    /// The data set needs two languages, and these are missing or the same.
    Languages {
        /// The name of the data set.
        name: String,
        /// What was found and expected.
        reason: String,
    },
    /// It is unclear which columns of a table hold label and text.
    Columns {
        /// The table's file.
        file: PathBuf,
        /// What was found and expected.
        reason: String,
    },
}

impl fmt::Display for DataError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::UnknownName { name, known } => {
                write!(f, "data set {name}: not known, expected one of {}", known.join(", "))
            }
            Self::BuiltIn { name } => {
                write!(f, "data set {name}: is built in, so it is not read from a directory")
            }
            Self::FilesNeeded { name, reason, built_in } => {
                write!(f, "data set {name}: {reason}; built in, without files: {}", built_in.join(", "))
            }
            Self::Languages { name, reason } => write!(f, "data set {name}: {reason}"),
            Self::Columns { file, reason } => write!(f, "{}: {reason}", file.display()),
        }
    }
}

impl std::error::Error for DataError {}

impl DataError {
    pub(super) fn unknown(name: &str, known: &'static [&'static str]) -> anyhow::Error {
        Self::UnknownName { name: name.into(), known }.into()
    }

    pub(super) fn built_in(name: &str) -> anyhow::Error {
        Self::BuiltIn { name: name.into() }.into()
    }

    pub(super) fn files_needed(name: &str, reason: &str, built_in: &'static [&'static str]) -> anyhow::Error {
        Self::FilesNeeded { name: name.into(), reason: reason.into(), built_in }.into()
    }
}
