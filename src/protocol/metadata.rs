//! The metadata of a request: an object of the client's own, which every event of the request repeats.

use super::{Code, Refusal};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use std::fmt;
use std::sync::Arc;

/// Maximum length of the metadata in bytes, written without spaces: every token of a streamed answer repeats them.
pub const MAX_METADATA: usize = 1024;

/// A JSON object without spaces or line breaks, its keys in the client's order. Clones share the text.
#[derive(Clone)]
pub struct Metadata(Arc<RawValue>);

impl Metadata {
    /// The metadata that a request gives.
    ///
    /// # Errors
    /// A value that is no object, and one that is longer than [`MAX_METADATA`].
    pub fn new(value: &RawValue) -> Result<Self, Refusal> {
        let invalid = |message: &str| Refusal::new(Code::InvalidRequest, format!("metadata: {message}"));
        if !value.get().starts_with('{') {
            return Err(invalid("not an object; give one like {\"room\":\"kitchen\"}"));
        }
        let text = without_spaces(value.get());
        if text.len() > MAX_METADATA {
            let length = text.len();
            let message = format!("{length} bytes; at most {MAX_METADATA} are repeated in each event");
            return Err(invalid(&message));
        }
        let raw = RawValue::from_string(text).map_err(|error| invalid(&error.to_string()))?;
        Ok(Metadata(Arc::from(raw)))
    }

    /// The object as JSON.
    pub fn as_json(&self) -> &str {
        self.0.get()
    }

    /// Memory in bytes, shared by all clones.
    pub fn bytes(&self) -> usize {
        self.as_json().len()
    }
}

/// The same JSON without what stands between its values. Numbers stay as the client wrote them, of any size and form.
fn without_spaces(json: &str) -> String {
    let (mut is_in_string, mut is_escaped) = (false, false);
    let keeps = |c: &char| {
        let is_kept = is_in_string || !c.is_ascii_whitespace();
        is_in_string ^= *c == '"' && !is_escaped;
        is_escaped = is_in_string && *c == '\\' && !is_escaped;
        is_kept
    };
    json.chars().filter(keeps).collect()
}

impl fmt::Debug for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_json())
    }
}

impl PartialEq for Metadata {
    fn eq(&self, other: &Self) -> bool {
        self.as_json() == other.as_json()
    }
}

impl Eq for Metadata {}

impl Serialize for Metadata {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Metadata, Refusal> {
        Metadata::new(serde_json::from_str(text).expect("JSON"))
    }

    #[test]
    fn an_object_is_kept_in_its_order_and_without_line_breaks() {
        let kept = read("{ \"z\": [1,\n2.5],\n\"a\":\"x\\ny\" , \"n\": null}").expect("an object");
        assert_eq!(kept.as_json(), r#"{"z":[1,2.5],"a":"x\ny","n":null}"#);
        let strings = read(r#"{ "a \" b": "\\" , "c" : " { \t } " }"#).expect("an object");
        assert_eq!(strings.as_json(), r#"{"a \" b":"\\","c":" { \t } "}"#);
    }

    #[test]
    fn numbers_stay_as_they_were_written() {
        let text = r#"{"n":[12345678901234567890123,1E2,-0,1e-400,0.10]}"#;
        assert_eq!(read(text).expect("an object").as_json(), text);
    }

    #[test]
    fn what_is_no_object_or_too_long_is_refused_by_name() {
        for text in ["[]", "1", "\"a\"", "null"] {
            let refusal = read(text).expect_err(text);
            assert!(refusal.message.starts_with("metadata: not an object"), "{refusal:?}");
        }
        let of = |length: usize| read(&format!("{{\"a\":\"{}\"}}", "x".repeat(length - 8)));
        assert_eq!(of(MAX_METADATA).expect("it just fits").bytes(), MAX_METADATA);
        let refusal = of(MAX_METADATA + 1).expect_err("a byte too long");
        assert!(refusal.message.starts_with("metadata: 1025 bytes"), "{refusal:?}");
    }
}
