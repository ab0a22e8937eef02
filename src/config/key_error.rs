//! The error of one key of the configuration.
//!
//! Deliberately knows neither the file nor the line.

/// An error in one key: section, key, what is wrong and a remedy.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct KeyError(pub(super) &'static str, pub(super) &'static str, pub(super) String);

pub(super) type KeyResult<T> = Result<T, KeyError>;

/// The value, where it is within the range.
pub(super) fn within(
    section: &'static str,
    key: &'static str,
    value: u64,
    range: std::ops::RangeInclusive<u64>,
) -> KeyResult<u64> {
    if range.contains(&value) {
        return Ok(value);
    }
    let reason = format!("{value} is outside {} to {}", range.start(), range.end());
    Err(KeyError(section, key, reason))
}
