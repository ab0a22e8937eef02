//! Reads `response_format` of a request. Deliberately looks into no schema and no grammar: the engine does.

use super::invalid;
use crate::protocol::text::Shown;
use crate::protocol::{Refusal, ResponseFormat};
use serde_json::{Map, Value};

/// Longest name of a schema, which says nothing here.
const MAX_NAME: usize = 64;
const TYPES: &str = "text, json_object, json_schema, regex, grammar or home_intent";

/// The format that a request asks for.
pub(super) fn read(keys: Option<Map<String, Value>>) -> Result<ResponseFormat, Refusal> {
    let Some(mut keys) = keys else { return Ok(ResponseFormat::Text) };
    let kind = match keys.remove("type") {
        Some(Value::String(kind)) => kind,
        Some(_) => return Err(invalid(format!("response_format.type: no string; give {TYPES}"))),
        None => return Err(invalid(format!("response_format.type: missing; give {TYPES}"))),
    };
    let format = match kind.as_str() {
        "text" => ResponseFormat::Text,
        "json_object" => ResponseFormat::JsonObject,
        "json_schema" => ResponseFormat::JsonSchema(schema(keys.remove("json_schema"))?),
        "regex" => ResponseFormat::Regex(text("regex", keys.remove("regex"))?),
        "grammar" => ResponseFormat::Grammar(text("grammar", keys.remove("grammar"))?),
        "home_intent" => ResponseFormat::HomeIntent,
        other => {
            let message = format!("response_format.type: \"{}\" is not known; give {TYPES}", Shown(other));
            return Err(invalid(message));
        }
    };
    nothing_left("response_format", &keys, &format!("a format of type {kind}"))?;
    Ok(format)
}

fn schema(value: Option<Value>) -> Result<String, Refusal> {
    let mut keys = match value {
        Some(Value::Object(keys)) => keys,
        Some(_) => return Err(invalid("response_format.json_schema: no object; give {\"schema\":{…}}")),
        None => return Err(invalid("response_format.json_schema: missing; give {\"schema\":{…}}")),
    };
    let Some(schema) = keys.remove("schema") else {
        return Err(invalid("response_format.json_schema.schema: missing; give a JSON schema"));
    };
    match keys.remove("name") {
        None | Some(Value::Null) => {}
        Some(Value::String(name)) if name.len() <= MAX_NAME => {}
        Some(_) => {
            let message =
                format!("response_format.json_schema.name: give a string of {MAX_NAME} bytes at most");
            return Err(invalid(message));
        }
    }
    // An answer always fits its schema, so that both values mean the same.
    if !matches!(keys.remove("strict"), None | Some(Value::Null | Value::Bool(_))) {
        return Err(invalid("response_format.json_schema.strict: give true or false"));
    }
    if !matches!(keys.remove("description"), None | Some(Value::Null | Value::String(_))) {
        return Err(invalid("response_format.json_schema.description: give a string"));
    }
    nothing_left("response_format.json_schema", &keys, "a schema")?;
    Ok(schema.to_string())
}

fn text(key: &str, value: Option<Value>) -> Result<String, Refusal> {
    match value {
        Some(Value::String(text)) if text.is_empty() => Err(invalid(format!("response_format.{key}: empty"))),
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(invalid(format!("response_format.{key}: no string"))),
        None => Err(invalid(format!("response_format.{key}: missing"))),
    }
}

fn nothing_left(place: &str, keys: &Map<String, Value>, of: &str) -> Result<(), Refusal> {
    match keys.keys().next() {
        None => Ok(()),
        Some(key) => Err(invalid(format!("{place}.{}: no key of {of}; leave it out", Shown(key)))),
    }
}
