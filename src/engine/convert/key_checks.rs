//! Checks every key of a checkpoint's JSON files against the tables of `known_keys`, before anything is made of
//! them.

use super::checkpoint_files::CheckpointFolder;
use crate::engine::error::{LoadError, escaped};
use crate::engine::known_keys::{self, KnownKey, check_object, irrelevant_keys};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt;

type Object = Map<String, Value>;

/// Checks the keys of all files of a checkpoint folder; returns short sentences about what is left out.
pub(super) fn check(folder: &CheckpointFolder) -> Result<Vec<String>, LoadError> {
    check_config(folder)?;
    let mut notes = Vec::new();
    let file = "generation_config.json";
    if let Some(object) = folder.json::<Object>(file)? {
        check_keys(file, "", &[known_keys::GENERATION], &object)?;
        let keys = irrelevant_keys(known_keys::GENERATION, &object, known_keys::REQUEST);
        if !keys.is_empty() {
            notes.push(format!("{file}: {} left out: {}", keys.join(", "), known_keys::REQUEST));
        }
    }
    for (file, table) in [
        ("tokenizer_config.json", known_keys::TOKENIZER_CONFIG),
        ("special_tokens_map.json", known_keys::SPECIAL_TOKENS_MAP),
    ] {
        if let Some(object) = folder.json::<Object>(file)? {
            check_keys(file, "", &[table], &object)?;
            check_special_tokens(file, &object)?;
        }
    }
    let file = "tokenizer.json";
    if let Some(TokenizerOutline(object)) = folder.json(file)? {
        check_keys(file, "", &[known_keys::TOKENIZER], &object)?;
        if let Some(model) = object.get("model").and_then(Value::as_object) {
            check_keys(file, "model.", &[known_keys::BPE_MODEL], model)?;
        }
        let added = object.get("added_tokens").and_then(Value::as_array);
        for (index, token) in added.into_iter().flatten().enumerate() {
            if let Some(token) = token.as_object() {
                check_keys(file, &format!("added_tokens[{index}]."), &[known_keys::ADDED_TOKEN], token)?;
            }
        }
    }
    Ok(notes)
}

fn check_config(folder: &CheckpointFolder) -> Result<(), LoadError> {
    let file = "config.json";
    let Some(object) = folder.json::<Object>(file)? else { return Ok(()) };
    // Older files have the keys of `generation_config.json` here.
    check_keys(file, "", &[known_keys::CONFIG, known_keys::GENERATION], &object)?;
    let parts = [
        ("quantization_config", known_keys::QUANTIZATION),
        ("rope_scaling", known_keys::ROPE),
        ("rope_parameters", known_keys::ROPE),
    ];
    for (key, table) in parts {
        if let Some(part) = object.get(key).and_then(Value::as_object) {
            check_keys(file, &format!("{key}."), &[table], part)?;
        }
    }
    let declared = |key: &str| object.get(key).filter(|value| value.is_object());
    match (declared("rope_scaling"), declared("rope_parameters")) {
        (Some(one), Some(other)) if one != other => {
            let message = "differs from rope_scaling; remove the one that the model was not trained with";
            Err(LoadError::new(format!("{file}: rope_parameters"), message))
        }
        _ => Ok(()),
    }
}

/// Tokens that are objects have keys of their own.
fn check_special_tokens(file: &str, object: &Object) -> Result<(), LoadError> {
    let lists = ["additional_special_tokens", "extra_special_tokens"];
    for (key, value) in object {
        let tokens: Vec<(String, &Value)> = match value {
            Value::Object(tokens) if key == "added_tokens_decoder" || lists.contains(&key.as_str()) => {
                tokens.iter().map(|(id, token)| (format!("{key}.{id}."), token)).collect()
            }
            Value::Array(tokens) if lists.contains(&key.as_str()) => {
                tokens.iter().enumerate().map(|(at, token)| (format!("{key}[{at}]."), token)).collect()
            }
            token if ["bos_token", "eos_token", "unk_token", "pad_token"].contains(&key.as_str()) => {
                vec![(format!("{key}."), token)]
            }
            _ => continue,
        };
        for (prefix, token) in tokens {
            if let Some(token) = token.as_object() {
                check_keys(file, &prefix, &[known_keys::SPECIAL_TOKEN], token)?;
            }
        }
    }
    Ok(())
}

fn check_keys(file: &str, prefix: &str, tables: &[&[KnownKey]], object: &Object) -> Result<(), LoadError> {
    check_object(tables, object)
        .map_err(|(key, message)| LoadError::new(format!("{file}: {}{key}", escaped(prefix)), message))
}

/// The object of `tokenizer.json` without its vocabulary, which has megabytes.
struct TokenizerOutline(Object);

impl<'de> Deserialize<'de> for TokenizerOutline {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = TokenizerOutline;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TokenizerOutline, A::Error> {
                let mut object = Object::new();
                while let Some(key) = map.next_key::<String>()? {
                    let value = match key.as_str() {
                        "vocab" | "merges" => map.next_value::<IgnoredAny>().map(|_| Value::Bool(true))?,
                        "model" => Value::Object(map.next_value::<TokenizerOutline>()?.0),
                        _ => map.next_value()?,
                    };
                    object.insert(key, value);
                }
                Ok(TokenizerOutline(object))
            }
        }
        reader.deserialize_map(Keys)
    }
}
