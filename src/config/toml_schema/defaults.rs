//! The checks of the section `[defaults]`: the ranges are those of a request.

use super::DefaultsKeys;
use crate::config::Defaults;
use crate::config::key_error::{KeyError, KeyResult, within};
use std::ops::RangeInclusive;

/// The longest system text in bytes: it is read anew for each prompt that does not begin with it.
const MAX_SYSTEM: usize = 16 << 10;
/// The most tokens of a context.
const MAX_TOKENS: u64 = 1 << 20;

impl DefaultsKeys {
    pub(super) fn checked(self) -> KeyResult<Defaults> {
        let system = self.system.filter(|text| !text.trim().is_empty());
        if let Some(text) = system.as_ref().filter(|text| text.len() > MAX_SYSTEM) {
            let reason = format!("{} bytes are too many; at most {MAX_SYSTEM}", text.len());
            return Err(KeyError("defaults", "system", reason));
        }
        let whole = |key, value: Option<u64>, range| {
            value.map(|value| within("defaults", key, value, range).map(|value| value as u32)).transpose()
        };
        Ok(Defaults {
            system,
            temperature: number("temperature", self.temperature, 0.0..=10.0)?,
            top_p: number("top_p", self.top_p, 0.0..=1.0)?,
            top_k: whole("top_k", self.top_k, 0..=u32::MAX.into())?,
            min_p: number("min_p", self.min_p, 0.0..=1.0)?,
            repetition_penalty: number("repetition_penalty", self.repetition_penalty, 0.1..=10.0)?,
            max_tokens: whole("max_tokens", self.max_tokens, 0..=MAX_TOKENS)?.filter(|most| *most > 0),
            speculate: self.speculate.unwrap_or(true),
        })
    }
}

/// A number within the range that a request may have too; NaN is outside every range.
fn number(key: &'static str, value: Option<f64>, range: RangeInclusive<f64>) -> KeyResult<Option<f32>> {
    match value {
        Some(value) if !range.contains(&value) => {
            let reason = format!("{value} is outside {} to {}", range.start(), range.end());
            Err(KeyError("defaults", key, reason))
        }
        value => Ok(value.map(|value| value as f32)),
    }
}
