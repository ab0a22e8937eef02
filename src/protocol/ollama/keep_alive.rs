//! `keep_alive`: how long a model is to stay loaded after a call. Here it always does, so that only the form is checked, and
//! whether the call asks to unload it.

use super::invalid;
use crate::protocol::Refusal;
use crate::protocol::text::Shown;
use serde_json::Value;

/// The units of a duration, longer names before those that they begin with.
const UNITS: [&str; 8] = ["ns", "us", "µs", "μs", "ms", "s", "m", "h"];

/// Whether the value asks to unload the model: a duration of zero.
pub(super) fn is_zero(value: &Value) -> Result<bool, Refusal> {
    let is_zero = match value {
        Value::Number(seconds) => seconds.as_f64().map(|seconds| seconds == 0.0),
        Value::String(text) => duration_is_zero(text.trim()),
        _ => None,
    };
    is_zero.ok_or_else(|| {
        let shown = value.to_string();
        invalid(format!(
            "keep_alive: {} is no duration; give seconds, or a text such as \"5m\"",
            Shown(&shown)
        ))
    })
}

/// A text such as `5m`, `1h30m` or `-1.0s`, or a number alone, which means seconds. `None` where it is no duration.
fn duration_is_zero(text: &str) -> Option<bool> {
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if is_number(rest) {
        return Some(is_zero_number(rest));
    }
    let has_part = !rest.is_empty();
    let mut all_zero = true;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let (number, unit_and_rest) = rest.split_at(end);
        if !is_number(number) {
            return None;
        }
        all_zero &= is_zero_number(number);
        rest = UNITS.iter().find_map(|unit| unit_and_rest.strip_prefix(unit))?;
    }
    has_part.then_some(all_zero)
}

fn is_number(text: &str) -> bool {
    let is_digit_or_point = |c: char| c.is_ascii_digit() || c == '.';
    text.chars().all(is_digit_or_point)
        && text.contains(|c: char| c.is_ascii_digit())
        && text.matches('.').count() <= 1
}

fn is_zero_number(number: &str) -> bool {
    number.chars().all(|c| matches!(c, '0' | '.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_form_that_clients_use_is_read() {
        for (value, expected) in [
            (json!(5), false),
            (json!(-1), false),
            (json!(-1.0), false),
            (json!(0), true),
            (json!(0.0), true),
            (json!("5m"), false),
            (json!("-1"), false),
            (json!("-1.0s"), false),
            (json!("1h30m"), false),
            (json!("1.5h"), false),
            (json!("100ms"), false),
            (json!("10µs"), false),
            (json!("0"), true),
            (json!("0s"), true),
            (json!("0h0m0.0s"), true),
        ] {
            assert_eq!(is_zero(&value), Ok(expected), "{value}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused_by_name() {
        for value in [
            json!("soon"),
            json!(""),
            json!("-"),
            json!("5 m"),
            json!("5x"),
            json!("1.2.3s"),
            json!("."),
            json!("s"),
            json!("5m3"),
            json!(true),
            json!([5]),
        ] {
            let refusal = is_zero(&value).expect_err("no duration");
            assert!(refusal.message.starts_with("keep_alive: "), "{}", refusal.message);
        }
    }
}
