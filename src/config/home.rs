//! The checks of the section `[home]`.
//!
//! Deliberately does not read the file of names.

use super::Home;
use super::key_error::{KeyError, KeyResult};
use std::path::{Path, PathBuf};

/// The settings of the home.
pub(super) fn checked(
    enabled: Option<bool>,
    constrain: Option<bool>,
    file: Option<PathBuf>,
) -> KeyResult<Home> {
    let file = file.filter(|path| !path.as_os_str().is_empty());
    let is_enabled = enabled.unwrap_or(false);
    if let Some(path) = &file
        && let Some(wrong) = wrong_file(path, is_enabled)
    {
        return Err(KeyError("home", "file", format!("{path:?} {wrong}, or take this key out")));
    }
    Ok(Home { is_enabled, is_constrained: constrain.unwrap_or(true), file })
}

/// What is wrong with the path of the file, and a remedy; `None` where nothing is.
fn wrong_file(path: &Path, is_enabled: bool) -> Option<&'static str> {
    let is_known = path.extension().is_some_and(|ending| ending == "json" || ending == "toml");
    if path.is_relative() {
        Some("is no absolute path; begin it with /")
    } else if !is_known {
        Some("ends in neither .toml nor .json; name it by what it is")
    } else if !is_enabled {
        Some("is set, but no names are read; add enabled = true")
    } else {
        None
    }
}
