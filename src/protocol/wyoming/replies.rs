//! Answers to bytes: the events that a server sends.
//!
//! The data follow the header, as the reference implementation sends them: its readers take no line longer than 64 KiB.

use super::RecognizedIntent;
use crate::external_text::JsonValue;
use crate::protocol::{Code, Refusal};
use serde::Serialize;

/// The version of the reference implementation whose events these are.
const VERSION: &str = "1.10.0";

/// Writes an event with its data.
pub(super) fn event(kind: &str, data: &impl Serialize) -> Vec<u8> {
    let data = serde_json::to_vec(data).expect("plain data");
    let mut bytes =
        format!("{{\"type\":\"{kind}\",\"version\":\"{VERSION}\",\"data_length\":{}}}\n", data.len())
            .into_bytes();
    bytes.extend(data);
    bytes
}

/// `text`, and the client's context where it sent one.
#[derive(Serialize)]
struct TextData<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<&'a JsonValue>,
}

/// The answer to a ping, with its text.
pub fn pong(text: Option<&str>) -> Vec<u8> {
    event("pong", &TextData { text, context: None })
}

/// An intent to be executed, and what is spoken then.
pub fn recognized(intent: &RecognizedIntent, text: Option<&str>, context: Option<&JsonValue>) -> Vec<u8> {
    #[derive(Serialize)]
    struct Entity<'a> {
        name: &'a str,
        value: &'a JsonValue,
    }
    #[derive(Serialize)]
    struct Data<'a> {
        name: &'a str,
        entities: Vec<Entity<'a>>,
        #[serde(flatten)]
        text: TextData<'a>,
    }
    let entities = intent.slots.iter().map(|(name, value)| Entity { name, value }).collect();
    event("intent", &Data { name: &intent.name, entities, text: TextData { text, context } })
}

/// The sentence is no command; `text` is spoken.
pub fn not_recognized(text: &str, context: Option<&JsonValue>) -> Vec<u8> {
    event("not-recognized", &TextData { text: Some(text), context })
}

/// The answer of a model that chats; it is spoken.
pub fn handled(text: &str, context: Option<&JsonValue>) -> Vec<u8> {
    event("handled", &TextData { text: Some(text), context })
}

/// The request got no answer. Versions of Home Assistant before `error` skip it and wait for another event, so that one
/// follows which says the same; the connection has to end after it.
pub fn failed(refusal: &Refusal) -> Vec<u8> {
    #[derive(Serialize)]
    struct Data<'a> {
        text: &'a str,
        code: Code,
    }
    let text = refusal.message.as_str();
    let mut bytes = event("error", &Data { text, code: refusal.code });
    bytes.extend(event("not-handled", &TextData { text: Some(text), context: None }));
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::EventReader;
    use super::*;

    /// What a client reads.
    fn read(bytes: &[u8]) -> Vec<(String, String)> {
        let mut reader = EventReader::default();
        reader.push(bytes);
        let mut events = Vec::new();
        while let Some(event) = reader.next_event().expect("sound events") {
            events.push((event.kind, JsonValue::Object(event.data).to_string()));
        }
        assert!(!reader.is_inside_event());
        events
    }

    fn one(kind: &str, data: &str) -> Vec<(String, String)> {
        vec![(kind.into(), data.into())]
    }

    #[test]
    fn answers_are_events_with_the_context_that_came() {
        let context = JsonValue::parse(r#"{"conversation_id":"é\n"}"#).expect("JSON");
        let intent = r#"{"intent":"HassLightSet","slots":{"area":"kitchen","brightness":50}}"#;
        let intent = RecognizedIntent::parse(intent).expect("an intent");
        assert_eq!(
            read(&recognized(&intent, Some("Done"), Some(&context))),
            one(
                "intent",
                r#"{"name":"HassLightSet","entities":[{"name":"area","value":"kitchen"},{"name":"brightness","value":50}],"text":"Done","context":{"conversation_id":"é\n"}}"#
            )
        );
        assert_eq!(
            read(&not_recognized("Sorry", Some(&context))),
            one("not-recognized", r#"{"text":"Sorry","context":{"conversation_id":"é\n"}}"#)
        );
        assert_eq!(read(&handled("Hi \"there\"", None)), one("handled", r#"{"text":"Hi \"there\""}"#));
        assert_eq!(read(&pong(None)), one("pong", "{}"));
        assert_eq!(read(&pong(Some("a"))), one("pong", r#"{"text":"a"}"#));
    }

    #[test]
    fn a_refusal_is_an_error_and_an_event_that_older_clients_know() {
        let events = read(&failed(&Refusal::new(Code::QueueFull, "ask again")));
        let kinds: Vec<&str> = events.iter().map(|(kind, _)| kind.as_str()).collect();
        assert_eq!(kinds, ["error", "not-handled"]);
        assert_eq!(events[0].1, r#"{"text":"ask again","code":"queue_full"}"#);
        assert_eq!(events[1].1, r#"{"text":"ask again"}"#);
    }
}
