//! A JSON value whose objects keep the order of their keys, because a model reads them in that order.

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, Serializer};
use std::fmt;

/// A JSON value.
#[derive(Debug, Clone, PartialEq)]
pub enum JsonValue {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A whole number.
    Int(i128),
    /// Another number.
    Float(f64),
    /// A string.
    Text(String),
    /// An array.
    List(Vec<JsonValue>),
    /// An object, in the order of its source.
    Object(Vec<(String, JsonValue)>),
}

impl JsonValue {
    /// Parses a whole text.
    ///
    /// # Errors
    /// A text that is not one JSON value.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// The value at the beginning of a text, and the bytes that it takes.
    pub fn parse_first(text: &str) -> Option<(Self, usize)> {
        let mut values = serde_json::Deserializer::from_str(text).into_iter();
        let value = values.next()?.ok()?;
        Some((value, values.byte_offset()))
    }

    /// The value of a key of an object.
    pub fn get(&self, key: &str) -> Option<&JsonValue> {
        let JsonValue::Object(entries) = self else { return None };
        entries.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// The text of a string.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            JsonValue::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Memory in bytes.
    pub fn bytes(&self) -> usize {
        size_of::<Self>()
            + match self {
                JsonValue::Text(text) => text.capacity(),
                JsonValue::List(items) => items.iter().map(JsonValue::bytes).sum(),
                JsonValue::Object(entries) => {
                    let of = |(key, value): &(String, JsonValue)| {
                        size_of::<String>() + key.capacity() + value.bytes()
                    };
                    entries.iter().map(of).sum()
                }
                _ => 0,
            }
    }
}

/// As compact JSON.
impl fmt::Display for JsonValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

impl Serialize for JsonValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            JsonValue::Null => serializer.serialize_unit(),
            JsonValue::Bool(value) => serializer.serialize_bool(*value),
            JsonValue::Int(value) => serializer.serialize_i128(*value),
            JsonValue::Float(value) => serializer.serialize_f64(*value),
            JsonValue::Text(text) => serializer.serialize_str(text),
            JsonValue::List(items) => serializer.collect_seq(items),
            JsonValue::Object(entries) => {
                serializer.collect_map(entries.iter().map(|(key, value)| (key, value)))
            }
        }
    }
}

impl<'de> Deserialize<'de> for JsonValue {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        reader.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = JsonValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<JsonValue, E> {
        Ok(JsonValue::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<JsonValue, E> {
        Ok(JsonValue::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<JsonValue, E> {
        Ok(JsonValue::Int(value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<JsonValue, E> {
        Ok(JsonValue::Int(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<JsonValue, E> {
        Ok(JsonValue::Float(value))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<JsonValue, E> {
        Ok(JsonValue::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<JsonValue, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(JsonValue::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<JsonValue, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(JsonValue::Object(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_written_as_it_was_read() {
        let text = r#"{"z":[1,-2,1.5,true,null],"a":{"é\n":"\"x\""},"m":18446744073709551615}"#;
        let value = JsonValue::parse(text).expect("JSON");
        assert_eq!(value.to_string(), text);
        assert_eq!(value.get("a").and_then(|a| a.get("é\n")).and_then(JsonValue::as_text), Some("\"x\""));
        assert_eq!(JsonValue::parse_first(&format!("{text} and more")), Some((value, text.len())));
        assert_eq!(JsonValue::parse_first("{\"a\":"), None);
    }
}
