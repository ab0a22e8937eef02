//! What the events of a client mean: a question for the model, or about the daemon.

use super::{AnswerKind, WyomingEvent};
use crate::external_text::JsonValue;
use crate::protocol::json::{self, MAX_REQUEST};
use crate::protocol::{Code, Refusal, Request};

/// Maximum length of a context in bytes, as JSON: it is returned with the answer.
pub const MAX_CONTEXT: usize = 4 << 10;

/// What an event asks for.
#[derive(Debug)]
pub enum WyomingCall {
    /// What the server can do.
    Describe,
    /// A sign of life, with a text to return.
    Ping(Option<String>),
    /// A sentence.
    Transcript(Box<Transcript>),
    /// Nothing. Servers drop events that they do not know, so that clients may send newer ones.
    Ignored,
}

/// A sentence that was spoken or typed.
#[derive(Debug)]
pub struct Transcript {
    /// The question for the model.
    pub request: Request,
    /// What the answer has to know about it.
    pub context: TranscriptContext,
}

/// Where a sentence comes from.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TranscriptContext {
    /// The client's own context, such as the id of the conversation, which is returned with the answer.
    pub returned: Option<JsonValue>,
    /// Whether it came from a voice device, which Home Assistant names in the context.
    pub has_device: bool,
    /// Whether the client renders templates in the text of an intent. Home Assistant began to name the language of a
    /// sentence when it already did.
    pub renders_templates: bool,
}

impl WyomingCall {
    /// Reads an event, where the model gives answers of this kind.
    ///
    /// # Errors
    /// An event of a known type whose data are wrong. The connection can go on.
    pub fn of(event: &WyomingEvent, kind: AnswerKind) -> Result<Self, Refusal> {
        match event.kind.as_str() {
            "describe" => Ok(WyomingCall::Describe),
            "ping" => Ok(WyomingCall::Ping(text_of(event)?.map(str::to_owned))),
            // Home Assistant sends the first, other clients of intent recognition the second.
            "transcript" | "recognize" => Ok(WyomingCall::Transcript(Box::new(transcript(event, kind)?))),
            _ => Ok(WyomingCall::Ignored),
        }
    }
}

fn transcript(event: &WyomingEvent, kind: AnswerKind) -> Result<Transcript, Refusal> {
    let Some(text) = text_of(event)? else {
        return Err(invalid(format!("text: missing; send the sentence with the {}", event.kind)));
    };
    if text.len() > MAX_REQUEST {
        let message = format!("text: longer than {MAX_REQUEST} bytes; send less");
        return Err(Refusal::new(Code::TooLarge, message));
    }
    let returned = event.get("context").filter(|context| **context != JsonValue::Null).cloned();
    if returned.as_ref().is_some_and(|context| context.to_string().len() > MAX_CONTEXT) {
        return Err(invalid(format!("context: longer than {MAX_CONTEXT} bytes; send less")));
    }
    let has_device = returned.as_ref().and_then(|context| context.get("device_id")).is_some();
    let renders_templates = event.get("language").and_then(JsonValue::as_text).is_some();
    let mut keys = serde_json::Map::new();
    keys.insert("prompt".into(), text.into());
    if kind == AnswerKind::HomeIntents {
        keys.insert("response_format".into(), serde_json::json!({"type": "home_intent"}));
    }
    let context = TranscriptContext { returned, has_device, renders_templates };
    Ok(Transcript { request: json::translated(keys)?, context })
}

fn text_of(event: &WyomingEvent) -> Result<Option<&str>, Refusal> {
    match event.get("text") {
        None | Some(JsonValue::Null) => Ok(None),
        Some(JsonValue::Text(text)) => Ok(Some(text)),
        Some(_) => Err(invalid("text: no text; send a string".into())),
    }
}

fn invalid(message: String) -> Refusal {
    Refusal::new(Code::InvalidRequest, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Input, ResponseFormat};

    fn call(kind: &str, data: &str, answers: AnswerKind) -> Result<WyomingCall, Refusal> {
        let Ok(JsonValue::Object(data)) = JsonValue::parse(data) else { panic!("{data}") };
        WyomingCall::of(&WyomingEvent { kind: kind.into(), data }, answers)
    }

    fn sentence(data: &str, answers: AnswerKind) -> Transcript {
        match call("transcript", data, answers) {
            Ok(WyomingCall::Transcript(transcript)) => *transcript,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_transcript_is_a_request_in_the_form_of_the_model() {
        let plain = sentence(r#"{"text":"turn on the light"}"#, AnswerKind::Intents);
        assert_eq!(plain.request.input, Input::Prompt("turn on the light".into()));
        assert_eq!(plain.request.response_format, ResponseFormat::Text);
        assert!(!plain.request.stream);
        assert_eq!(plain.context, TranscriptContext::default());
        let home = sentence(r#"{"text":"a"}"#, AnswerKind::HomeIntents);
        assert_eq!(home.request.response_format, ResponseFormat::HomeIntent);
        let chat = sentence(r#"{"text":"a"}"#, AnswerKind::Text);
        assert_eq!(chat.request.response_format, ResponseFormat::Text);
    }

    #[test]
    fn the_context_says_where_a_sentence_comes_from() {
        let typed = r#"{"text":"a","context":{"conversation_id":"1"},"language":"en"}"#;
        let typed = sentence(typed, AnswerKind::Intents).context;
        assert!(!typed.has_device && typed.renders_templates);
        assert_eq!(
            typed.returned.map(|context| context.to_string()),
            Some(r#"{"conversation_id":"1"}"#.into())
        );
        let spoken = r#"{"text":"a","context":{"device_id":"d"},"language":null}"#;
        let spoken = sentence(spoken, AnswerKind::Intents).context;
        assert!(spoken.has_device && !spoken.renders_templates);
    }

    #[test]
    fn wrong_data_are_refused_by_key() {
        for (data, key) in [
            (r#"{}"#, "text: missing"),
            (r#"{"text":null}"#, "text: missing"),
            (r#"{"text":1}"#, "text: no text"),
            (r#"{"text":""}"#, "prompt"),
        ] {
            let refusal = call("transcript", data, AnswerKind::Intents).expect_err(data);
            assert!(refusal.message.contains(key), "{refusal:?}");
            assert_eq!(refusal.code, Code::InvalidRequest);
        }
        let long = |length| format!(r#"{{"text":"{}"}}"#, "x".repeat(length));
        assert!(call("recognize", &long(MAX_REQUEST), AnswerKind::Intents).is_ok());
        let refusal = call("recognize", &long(MAX_REQUEST + 1), AnswerKind::Intents).expect_err("too long");
        assert_eq!(refusal.code, Code::TooLarge);
        let context = format!(r#"{{"text":"a","context":{{"x":"{}"}}}}"#, "x".repeat(MAX_CONTEXT));
        assert!(call("transcript", &context, AnswerKind::Intents).is_err());
    }

    #[test]
    fn other_events_are_answered_or_ignored() {
        assert!(matches!(call("describe", r#"{"x":1}"#, AnswerKind::Text), Ok(WyomingCall::Describe)));
        assert!(matches!(call("ping", r#"{"text":null}"#, AnswerKind::Text), Ok(WyomingCall::Ping(None))));
        for kind in ["audio-chunk", "select-program", "run-pipeline", "", "Describe"] {
            let call = call(kind, r#"{"text":{}}"#, AnswerKind::Text);
            assert!(matches!(call, Ok(WyomingCall::Ignored)), "{kind}: {call:?}");
        }
    }
}
