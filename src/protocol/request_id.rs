//! The id of a request: a string, or a number that is given back exactly as it was sent.
//!
//! Templates and scripts often make a number where a string was meant. Deliberately no arithmetic: a number is kept as
//! its text, so `1732.0` stays `1732.0`, and a number of 23 digits loses none of them.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;

/// The id of a request. The events carry it in the form in which it was sent. Its text names the request in topics, in
/// logs and in cancellations: so two ids are equal where their texts are, the number `1` and the string `"1"` too.
#[derive(Clone)]
pub struct RequestId {
    text: String,
    /// Whether it is written as a JSON number.
    is_number: bool,
}

impl RequestId {
    /// The id's text, without quotation marks.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Reads one whole JSON value; `None` where it is neither a string nor a number.
    pub fn from_json(value: &str) -> Option<Self> {
        match value.as_bytes().first()? {
            b'"' => serde_json::from_str::<String>(value).ok().map(RequestId::from),
            b'-' | b'0'..=b'9' => {
                // A serde_json::Number would not do: it rounds. This only checks the form.
                serde_json::from_str::<serde::de::IgnoredAny>(value).ok()?;
                Some(RequestId { text: value.to_owned(), is_number: true })
            }
            _ => None,
        }
    }
}

impl From<String> for RequestId {
    fn from(text: String) -> Self {
        RequestId { text, is_number: false }
    }
}

impl From<&str> for RequestId {
    fn from(text: &str) -> Self {
        RequestId::from(text.to_owned())
    }
}

impl PartialEq for RequestId {
    fn eq(&self, other: &RequestId) -> bool {
        self.text == other.text
    }
}

impl Eq for RequestId {}

impl Hash for RequestId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

/// The id's text, without quotation marks.
impl Deref for RequestId {
    type Target = str;

    fn deref(&self) -> &str {
        &self.text
    }
}

/// For maps that are searched by an id's text.
impl Borrow<str> for RequestId {
    fn borrow(&self) -> &str {
        &self.text
    }
}

impl PartialEq<str> for RequestId {
    fn eq(&self, text: &str) -> bool {
        self.text == text
    }
}

impl PartialEq<&str> for RequestId {
    fn eq(&self, text: &&str) -> bool {
        self.text == *text
    }
}

/// The id's text.
impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A string with quotation marks, a number without.
impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_number { f.write_str(&self.text) } else { write!(f, "{:?}", self.text) }
    }
}

impl Serialize for RequestId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !self.is_number {
            return serializer.serialize_str(&self.text);
        }
        RawValue::from_string(self.text.clone()).map_err(serde::ser::Error::custom)?.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RequestId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Box::<RawValue>::deserialize(deserializer)?;
        RequestId::from_json(value.get()).ok_or_else(|| D::Error::custom("neither a string nor a number"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_and_a_number_come_back_as_they_came() {
        for text in [
            "1",
            "1.5",
            "1732.0",
            "-0",
            "-1.5e+3",
            "1E400",
            "12345678901234567890123",
            "0.1000",
            r#""1""#,
            r#""a \"b\" \n""#,
        ] {
            let id: RequestId = serde_json::from_str(text).expect(text);
            assert_eq!(serde_json::to_string(&id).expect("an id"), text);
        }
    }

    #[test]
    fn what_is_neither_a_string_nor_a_number_is_refused() {
        for text in ["null", "true", "[1]", "{}", "\"a", "01", "1x", "+1", "NaN", "-"] {
            assert!(serde_json::from_str::<RequestId>(text).is_err(), "{text}");
            assert_eq!(RequestId::from_json(text), None, "{text}");
        }
    }

    #[test]
    fn a_number_and_a_string_of_the_same_text_name_the_same_request() {
        let (number, string) = (RequestId::from_json("1").expect("a number"), RequestId::from("1"));
        assert!(number == string && number == "1" && number != "1.0");
        assert_eq!(format!("{number:?} {string:?} {string}"), "1 \"1\" 1");
    }
}
