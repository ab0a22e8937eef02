//! The checks of values that several sections have: words, folders, levels of topics.
//!
//! Deliberately knows no section and no default.

use super::key_error::{KeyError, KeyResult};
use std::path::{Path, PathBuf};

/// The meaning of a key's word; the first of the choices where the key is left out.
pub(super) fn one_of<T: Copy>(
    section: &'static str,
    key: &'static str,
    word: Option<String>,
    choices: &[(&str, T)],
) -> KeyResult<T> {
    let Some(word) = word else { return Ok(choices[0].1) };
    choices.iter().find(|(name, _)| *name == word).map(|(_, meaning)| *meaning).ok_or_else(|| {
        let all = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
        KeyError(section, key, format!("\"{word}\" is not known; use one of {all}"))
    })
}

/// A folder to store files in; an empty path is none.
pub(super) fn folder(
    section: &'static str,
    key: &'static str,
    value: Option<PathBuf>,
    default: &Path,
) -> KeyResult<Option<PathBuf>> {
    let folder = value.unwrap_or_else(|| default.to_owned());
    if folder.as_os_str().is_empty() {
        return Ok(None);
    }
    if folder.is_relative() {
        let reason = format!("{folder:?} is no absolute path; begin it with /, or use \"\" to keep nothing");
        return Err(KeyError(section, key, reason));
    }
    Ok(Some(folder))
}

/// A value for an error message, escaped. What is too long is cut with the whole message.
pub(super) fn shown(value: &str) -> impl std::fmt::Display {
    value.escape_debug()
}

pub(super) fn topic_level(text: &str, section: &'static str, key: &'static str) -> KeyResult<()> {
    let bad = |c: char| matches!(c, '/' | '+' | '#' | '$') || c.is_control();
    if text.is_empty() || text.len() > 128 || text.contains(bad) {
        let reason =
            format!("\"{}\" cannot be an MQTT topic level; use 1 to 128 bytes without / + # $", shown(text));
        return Err(KeyError(section, key, reason));
    }
    Ok(())
}

/// One or more levels of a topic.
pub(super) fn topic_levels(value: Option<String>, default: &str, key: &'static str) -> KeyResult<String> {
    let levels = value.unwrap_or_else(|| default.into());
    for level in levels.split('/') {
        topic_level(level, "mqtt", key)?;
    }
    Ok(levels)
}
