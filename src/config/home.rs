//! The checks of the section `[home]`.
//!
//! Deliberately does not read the file of names.

use super::Home;
use super::key_error::{KeyError, KeyResult};
use std::path::PathBuf;

/// The settings of the home.
pub(super) fn checked(
    enabled: Option<bool>,
    constrain: Option<bool>,
    file: Option<PathBuf>,
) -> KeyResult<Home> {
    let file = file.filter(|path| !path.as_os_str().is_empty());
    if let Some(path) = &file {
        let is_known = path.extension().is_some_and(|ending| ending == "json" || ending == "toml");
        let wrong = if path.is_relative() {
            "is no absolute path; begin it with /"
        } else if !is_known {
            "ends in neither .toml nor .json; name it by what it is"
        } else if enabled != Some(true) {
            "is set, but no names are read; add enabled = true"
        } else {
            ""
        };
        if !wrong.is_empty() {
            return Err(KeyError("home", "file", format!("{path:?} {wrong}, or take this key out")));
        }
    }
    Ok(Home { is_enabled: enabled.unwrap_or(false), is_constrained: constrain.unwrap_or(true), file })
}
