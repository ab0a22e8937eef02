//! The checks of the section `[log]`.
//!
//! Deliberately writes no log.

use super::Level;
use super::key_error::{KeyError, KeyResult};

/// The level of a word; `info` where there is none.
pub(super) fn level(word: Option<&str>) -> KeyResult<Level> {
    match word {
        Some("error") => Ok(Level::Error),
        Some("warn") => Ok(Level::Warn),
        None | Some("info") => Ok(Level::Info),
        Some("debug") => Ok(Level::Debug),
        Some("trace") => Ok(Level::Trace),
        Some(other) => {
            let reason = format!("\"{other}\" is no level; use error, warn, info, debug or trace");
            Err(KeyError("log", "level", reason))
        }
    }
}
