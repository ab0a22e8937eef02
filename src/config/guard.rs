//! The section `[guard]`: what a client may ask for, and how often.
//!
//! Deliberately opens no file.

use super::key_error::{KeyError, KeyResult, within};
use std::path::PathBuf;

/// The most requests a minute that can be configured: their times are held in memory for each client.
const MAX_REQUESTS_PER_MINUTE: u64 = 6000;
/// The longest body of a call over HTTP, which no prompt can exceed.
const MAX_PROMPT_BYTES: u64 = 1 << 20;
/// The most tokens of a context.
const MAX_TOKENS: u64 = 1 << 20;

/// The words of the key.
pub(super) const CONTROL_CHARACTERS: [(&str, ControlCharacters); 3] = [
    ("allow", ControlCharacters::Allow),
    ("remove", ControlCharacters::Remove),
    ("refuse", ControlCharacters::Refuse),
];

/// The limits of what clients may ask for. Everything is off by default.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Guard {
    /// Requests that a client may send within any 60 seconds; `None` is any number.
    pub requests_per_minute: Option<usize>,
    /// Bytes of a prompt's texts; `None` is as many as a request may have.
    pub max_prompt_bytes: Option<usize>,
    /// Tokens of a prompt with its template; `None` is as many as the context holds.
    pub max_prompt_tokens: Option<usize>,
    /// Tokens of an answer; `None` is as many as the context holds.
    pub max_output_tokens: Option<usize>,
    /// What happens to control characters in a prompt.
    pub control_characters: ControlCharacters,
    /// The file of patterns that neither prompts nor answers may have.
    pub filter_file: Option<PathBuf>,
    /// Whether clients appear in logs and reports under their names, not as hashes.
    pub clear_ids: bool,
}

/// What happens to control characters in a prompt other than line breaks and tabs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ControlCharacters {
    /// The model reads them.
    #[default]
    Allow,
    /// They are removed.
    Remove,
    /// A prompt that has one is refused.
    Refuse,
}

/// A limit; 0 switches it off.
pub(super) fn limit(key: &'static str, value: Option<u64>) -> KeyResult<Option<usize>> {
    let most = match key {
        "requests_per_minute" => MAX_REQUESTS_PER_MINUTE,
        "max_prompt_bytes" => MAX_PROMPT_BYTES,
        _ => MAX_TOKENS,
    };
    let value = within("guard", key, value.unwrap_or(0), 0..=most)? as usize;
    Ok((value > 0).then_some(value))
}

/// The path of the filter's file; an empty one is none.
pub(super) fn filter_file(path: Option<PathBuf>) -> KeyResult<Option<PathBuf>> {
    let path = path.filter(|path| !path.as_os_str().is_empty());
    match path.as_ref().filter(|path| path.is_relative()) {
        Some(relative) => {
            let reason = format!("{relative:?} is no absolute path; begin it with /");
            Err(KeyError("guard", "filter_file", reason))
        }
        None => Ok(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::config::tests::{error, host};

    #[test]
    fn everything_is_off_by_default_and_by_0() {
        let text = "[guard]\nrequests_per_minute = 0\nmax_prompt_bytes = 0\nmax_output_tokens = 0\n";
        for text in ["", text] {
            let config = Config::parse(text, "bitnetd.toml", &host()).expect("sound");
            assert_eq!(config.guard, Guard::default());
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_the_key() {
        for (key, expected) in [
            ("requests_per_minute = 6001", "guard.requests_per_minute: 6001 is outside 0 to 6000"),
            ("max_prompt_bytes = 1048577", "guard.max_prompt_bytes: 1048577 is outside 0 to 1048576"),
            ("filter_file = \"words\"", "guard.filter_file: \"words\" is no absolute path"),
            ("control_characters = \"no\"", "guard.control_characters: \"no\" is not known; use one of"),
        ] {
            let message = error(&format!("[guard]\n{key}"));
            assert!(message.contains(expected), "{message}");
        }
    }
}
