//! The section `[guard]`: what a client may ask for, and how often.
//!
//! Deliberately opens no file.

use super::key_error::{KeyResult, within};
use super::toml_schema::GuardKeys;

/// The most requests a minute that can be configured: their times are held in memory for each client.
const MAX_REQUESTS_PER_MINUTE: u64 = 6000;

/// The limits of what clients may ask for. Everything is off by default.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Guard {
    /// Requests that a client may send within any 60 seconds; `None` is any number.
    pub requests_per_minute: Option<usize>,
}

/// The settings of the guard; 0 switches a limit off.
pub(super) fn checked(keys: GuardKeys) -> KeyResult<Guard> {
    let limit = |key, value: Option<u64>, most| {
        let value = within("guard", key, value.unwrap_or(0), 0..=most)? as usize;
        Ok((value > 0).then_some(value))
    };
    Ok(Guard {
        requests_per_minute: limit("requests_per_minute", keys.requests_per_minute, MAX_REQUESTS_PER_MINUTE)?,
    })
}
