//! How each known key of a checkpoint's JSON files and of GGUF metadata is treated: it is used; or it cannot change
//! a result, and why; or only some of its values are supported, because the others mean what this engine does not
//! do.
//!
//! A key that is in no table is refused by name, because it could change what a model computes.
//!
//! Deliberately reads no value for use: that is left to the code that uses the key.

mod checkpoint;
mod gguf;

pub use checkpoint::{ADDED_TOKEN, CONFIG, GENERATION, QUANTIZATION, ROPE, TOKENIZER, TOKENIZER_CONFIG};
pub use checkpoint::{BPE_MODEL, REQUEST, SPECIAL_TOKEN, SPECIAL_TOKENS_MAP};
pub use gguf::{check_architecture, check_tokenizer};

use super::error::escaped;
use serde_json::Value;

/// How a key is treated.
#[derive(Debug, Clone, Copy)]
pub enum Treatment {
    /// The key is read, and its value checked where it is read.
    Used,
    /// The key changes no result, for this reason.
    Irrelevant(&'static str),
    /// Only these values are supported; any other would mean this.
    Only(&'static [KeyValue<'static>], &'static str),
}

/// A key and how it is treated.
pub type KnownKey = (&'static str, Treatment);

/// As much of a value as is needed to decide whether it is supported.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum KeyValue<'a> {
    /// Null, which says nothing.
    Null,
    /// A bool.
    Bool(bool),
    /// Any number.
    Number(f64),
    /// A text, or a list of nothing but this text.
    Text(&'a str),
    /// An empty list or object.
    Empty,
    /// Anything else.
    Other,
}

impl<'a> KeyValue<'a> {
    /// The summary of a JSON value.
    fn of(value: &'a Value) -> Self {
        match value {
            Value::Null => KeyValue::Null,
            Value::Bool(flag) => KeyValue::Bool(*flag),
            Value::Number(number) => number.as_f64().map_or(KeyValue::Other, KeyValue::Number),
            Value::String(text) => KeyValue::Text(text),
            Value::Object(object) if object.is_empty() => KeyValue::Empty,
            Value::Object(_) => KeyValue::Other,
            Value::Array(list) => match list.split_first() {
                None => KeyValue::Empty,
                Some((Value::String(first), rest)) if rest.iter().all(|value| value == first) => {
                    KeyValue::Text(first)
                }
                Some(_) => KeyValue::Other,
            },
        }
    }

    /// The value as a message repeats it.
    fn shown(self) -> String {
        match self {
            KeyValue::Null => "null".into(),
            KeyValue::Bool(flag) => flag.to_string(),
            KeyValue::Number(number) => number.to_string(),
            KeyValue::Text(text) => format!("\"{}\"", escaped(text)),
            KeyValue::Empty => "empty".into(),
            KeyValue::Other => "a list or an object".into(),
        }
    }
}

/// Checks a key and its value; the error says what is wrong. A null is accepted for every key.
fn check(tables: &[&[KnownKey]], key: &str, fact: KeyValue<'_>) -> Result<(), String> {
    if fact == KeyValue::Null {
        return Ok(());
    }
    let entry = tables.iter().flat_map(|table| table.iter()).find(|(known, _)| *known == key);
    match entry {
        Some((_, Treatment::Used | Treatment::Irrelevant(_))) => Ok(()),
        Some((_, Treatment::Only(sound, _))) if sound.contains(&fact) => Ok(()),
        Some((_, Treatment::Only(_, meaning))) => {
            Err(format!("is {}: {meaning}, which is not supported; use another model", fact.shown()))
        }
        None => {
            Err("is not known to this version and could change what the model computes; remove it where it \
             does not, or use another model"
                .into())
        }
    }
}

/// Checks all keys of a JSON object; the error is the key and what is wrong with it.
pub fn check_object(
    tables: &[&[KnownKey]],
    object: &serde_json::Map<String, Value>,
) -> Result<(), (String, String)> {
    for (key, value) in object {
        // Notes that libraries write for themselves, such as `_name_or_path`.
        if !key.starts_with('_') {
            check(tables, key, KeyValue::of(value)).map_err(|message| (escaped(key), message))?;
        }
    }
    Ok(())
}

/// The keys of an object that are irrelevant for exactly this reason.
pub fn irrelevant_keys<'o>(
    table: &[KnownKey],
    object: &'o serde_json::Map<String, Value>,
    reason: &str,
) -> Vec<&'o str> {
    let is_left_out = |key: &str| {
        let mut entries = table.iter().filter(|(known, _)| *known == key);
        entries.any(|(_, treatment)| matches!(treatment, Treatment::Irrelevant(why) if *why == reason))
    };
    let given = object.iter().filter(|(_, value)| !value.is_null()).map(|(key, _)| key.as_str());
    given.filter(|key| is_left_out(key)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::HashSet;

    #[test]
    fn no_key_stands_in_a_table_twice() {
        for table in [
            CONFIG,
            GENERATION,
            QUANTIZATION,
            ROPE,
            TOKENIZER,
            TOKENIZER_CONFIG,
            ADDED_TOKEN,
            SPECIAL_TOKEN,
            SPECIAL_TOKENS_MAP,
            BPE_MODEL,
            gguf::ARCHITECTURE,
            gguf::TOKENIZER,
        ] {
            let keys: HashSet<&str> = table.iter().map(|(key, _)| *key).collect();
            assert_eq!(keys.len(), table.len());
            let reasons = table.iter().all(|(_, treatment)| match treatment {
                Treatment::Irrelevant(reason) | Treatment::Only(_, reason) => !reason.is_empty(),
                Treatment::Used => true,
            });
            assert!(reasons);
        }
    }

    #[test]
    fn sound_values_pass_others_and_unknown_keys_are_named() {
        let check = |value: Value| check_object(&[CONFIG, GENERATION], value.as_object().expect("an object"));
        let sound = json!({"hidden_size": 7, "attention_bias": false, "layer_types": ["full_attention", "full_attention"],
            "logit_scale": 1, "_anything": 1, "unheard_of": null, "temperature": 0.6, "no_repeat_ngram_size": 0});
        assert_eq!(check(sound), Ok(()));
        for (key, value, word) in [
            ("attention_bias", json!(true), "biases"),
            ("layer_types", json!(["full_attention", "sliding_attention"]), "a list"),
            ("layer_types", json!(["sliding_attention"]), "sliding_attention"),
            ("logit_scale", json!(0.5), "0.5"),
            ("unheard_of", json!(1), "not known"),
            ("suppress_tokens", json!([5]), "never"),
        ] {
            let (named, message) = check(json!({ key: value })).expect_err(key);
            assert!(named == key && message.contains(word), "{named}: {message}");
        }
    }
}
