//! An intent as a model writes it: `{"intent":NAME,"slots":{…}}`.
//!
//! Deliberately knows no list of intents.

use crate::external_text::JsonValue;
use serde::Deserialize;

/// An intent with its slots.
#[derive(Debug, Clone, PartialEq)]
pub struct RecognizedIntent {
    /// Its name, such as `HassTurnOn`.
    pub name: String,
    /// Its slots, in the order of the answer.
    pub slots: Vec<(String, JsonValue)>,
}

impl RecognizedIntent {
    /// Reads an answer; `None` where it is no intent.
    pub fn parse(text: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Keys {
            intent: String,
            slots: Option<JsonValue>,
        }
        let Keys { intent, slots } = serde_json::from_str(text).ok()?;
        let slots = match slots {
            None | Some(JsonValue::Null) => Vec::new(),
            Some(JsonValue::Object(slots)) => slots,
            Some(_) => return None,
        };
        Some(RecognizedIntent { name: intent, slots })
    }

    /// Whether it has a slot of this key.
    pub fn has(&self, key: &str) -> bool {
        self.slots.iter().any(|(name, _)| name == key)
    }

    /// Whether a slot has this text, in upper or lower case.
    pub fn is_slot(&self, key: &str, text: &str) -> bool {
        let mut values = self.slots.iter().filter(|(name, _)| name == key).map(|(_, value)| value);
        values.any(|value| value.as_text().is_some_and(|value| value.eq_ignore_ascii_case(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_an_intent_or_nothing() {
        let intent =
            RecognizedIntent::parse(r#"{"intent":"HassTurnOn","slots":{"domain":"light","area":"All"}}"#);
        let intent = intent.expect("an intent");
        assert_eq!((intent.name.as_str(), intent.slots.len()), ("HassTurnOn", 2));
        assert!(intent.has("domain") && !intent.has("name"));
        assert!(intent.is_slot("area", "all") && !intent.is_slot("domain", "all"));
        assert!(
            RecognizedIntent::parse(r#"{"intent":"HassNevermind"}"#)
                .is_some_and(|intent| intent.slots.is_empty())
        );
        for text in ["", "Hello.", "{", "[]", "{}", r#"{"intent":1}"#, r#"{"intent":"a","slots":[]}"#] {
            assert_eq!(RecognizedIntent::parse(text), None, "{text}");
        }
    }
}
