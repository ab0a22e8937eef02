//! The section `[guard]`: what a client may ask for, and how often.
//!
//! Deliberately opens no file.

use super::key_error::{KeyResult, within};
use super::key_values::one_of;
use super::toml_schema::GuardKeys;

/// The most requests a minute that can be configured: their times are held in memory for each client.
const MAX_REQUESTS_PER_MINUTE: u64 = 6000;
/// The longest body of a call over HTTP, which no prompt can exceed.
const MAX_PROMPT_BYTES: u64 = 1 << 20;
/// The most tokens of a context.
const MAX_TOKENS: u64 = 1 << 20;

const CONTROL_CHARACTERS: [(&str, ControlCharacters); 3] = [
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

/// The settings of the guard; 0 switches a limit off.
pub(super) fn checked(keys: GuardKeys) -> KeyResult<Guard> {
    let limit = |key, value: Option<u64>, most| {
        let value = within("guard", key, value.unwrap_or(0), 0..=most)? as usize;
        Ok((value > 0).then_some(value))
    };
    let characters = keys.control_characters;
    Ok(Guard {
        requests_per_minute: limit("requests_per_minute", keys.requests_per_minute, MAX_REQUESTS_PER_MINUTE)?,
        max_prompt_bytes: limit("max_prompt_bytes", keys.max_prompt_bytes, MAX_PROMPT_BYTES)?,
        max_prompt_tokens: limit("max_prompt_tokens", keys.max_prompt_tokens, MAX_TOKENS)?,
        max_output_tokens: limit("max_output_tokens", keys.max_output_tokens, MAX_TOKENS)?,
        control_characters: one_of("guard", "control_characters", characters, &CONTROL_CHARACTERS)?,
    })
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
            ("control_characters = \"no\"", "guard.control_characters: \"no\" is not known; use one of"),
        ] {
            let message = error(&format!("[guard]\n{key}"));
            assert!(message.contains(expected), "{message}");
        }
    }
}
