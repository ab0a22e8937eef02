//! The error of one key of the configuration.
//!
//! Deliberately knows neither the file nor the line.

/// An error in one key: section, key, what is wrong and a remedy.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct KeyError(pub(super) &'static str, pub(super) &'static str, pub(super) String);

pub(super) type KeyResult<T> = Result<T, KeyError>;
