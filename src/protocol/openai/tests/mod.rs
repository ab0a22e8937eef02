//! What calls are translated to, and what answers look like to OpenAI's clients.

mod chat;
mod chat_answers;
mod completions;
mod errors;
mod responses;

use super::*;
use crate::external_text::JsonValue;
use crate::protocol::api::{Call, CallContext, MAX_BODY, ModelCard, TranslatedRequest};
use crate::protocol::{
    AnswerDetails, Choice, Done, Event, FinishReason, LikelyToken, Refusal, Timings, TokenLogprob, ToolCall,
    Usage,
};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

type Route = fn(&[u8], &CallContext) -> Result<Call, Refusal>;

fn card() -> ModelCard {
    ModelCard {
        name: "home/intents".into(),
        architecture: "bitnet-b1.58".into(),
        parameters: 5_000_000,
        quantization: "I2_S".into(),
        bytes: 2_300_000,
        digest: "0123456789abcdef".repeat(4),
        modified: UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        context: 512,
        template: String::new(),
    }
}

fn context() -> CallContext {
    let now = UNIX_EPOCH + Duration::from_millis(1_800_000_000_500);
    CallContext { model: Arc::new(card()), id: "7".into(), now, max_body: MAX_BODY }
}

fn ask(route: Route, body: &Value) -> TranslatedRequest {
    match route(body.to_string().as_bytes(), &context()) {
        Ok(Call::Ask(ask)) => *ask,
        other => panic!("{body}: {other:?}"),
    }
}

fn refusal(route: Route, body: &Value) -> String {
    route(body.to_string().as_bytes(), &context()).expect_err("not a sound call").message
}

/// The call with these keys besides.
fn with(call: Value, keys: Value) -> Value {
    let (Value::Object(mut call), Value::Object(keys)) = (call, keys) else { panic!("objects") };
    call.extend(keys);
    Value::Object(call)
}

fn done(text: &str, finish_reason: FinishReason) -> Done {
    Done {
        id: "7".into(),
        text: text.into(),
        finish_reason,
        usage: Usage { prompt_tokens: 11, completion_tokens: 3, cached_tokens: 0 },
        timings: Timings { total_ms: 2_000.0, ..Timings::default() },
        energy: None,
        cached: false,
        model: "m".into(),
        details: AnswerDetails::default(),
    }
}

fn tool_call(index: u32) -> ToolCall {
    let arguments = JsonValue::parse(r#"{"z":1,"a":[true]}"#).expect("JSON");
    ToolCall { id: format!("call_7_0_{index}"), name: "set_light".into(), arguments }
}

fn with_calls(count: u32) -> Done {
    let mut done = done("", FinishReason::Stop);
    done.details.tool_calls = (0..count).map(tool_call).collect();
    done
}

fn likely(token: &str, logprob: f32) -> LikelyToken {
    LikelyToken { token: token.into(), logprob, bytes: token.as_bytes().to_vec() }
}

fn token(text: &str) -> Event {
    Event::Token { id: "7".into(), text: text.into(), index: None, logprobs: Vec::new(), metadata: None }
}

fn token_with_logprob(text: &str, logprob: f32) -> Event {
    let logprobs = vec![TokenLogprob { token: likely(text, logprob), top_logprobs: vec![likely("x", -0.5)] }];
    Event::Token { id: "7".into(), text: text.into(), index: None, logprobs, metadata: None }
}

fn whole(ask: &mut TranslatedRequest, done: &Done) -> Value {
    assert_eq!(ask.encoder.stream_type(), None);
    serde_json::from_slice(&ask.encoder.whole(done)).expect("JSON")
}

/// The events of a stream, each with its name where it has one.
fn streamed(ask: &mut TranslatedRequest, events: &[Event]) -> Vec<(Option<String>, Value)> {
    assert_eq!(ask.encoder.stream_type(), Some("text/event-stream"));
    let mut stream = ask.encoder.begin();
    events.iter().for_each(|event| stream.extend(ask.encoder.event(event)));
    let stream = String::from_utf8(stream).expect("UTF-8");
    let parts = stream.strip_suffix("\n\n").expect("ends with an event").split("\n\n");
    let parts = parts.map(|part| {
        let (name, data) = match part.strip_prefix("event: ").and_then(|part| part.split_once('\n')) {
            Some((name, data)) => (Some(name.to_owned()), data),
            None => (None, part),
        };
        let data = data.strip_prefix("data: ").expect("has data");
        assert!(!data.contains('\n'), "{data}");
        // The end of a stream is no JSON.
        let data = if data == "[DONE]" { json!("[DONE]") } else { serde_json::from_str(data).expect("JSON") };
        (name, data)
    });
    parts.collect()
}

/// The data of a stream whose events have no names, and whose last is the end.
fn chunks(ask: &mut TranslatedRequest, events: &[Event]) -> Vec<Value> {
    let mut chunks: Vec<Value> = streamed(ask, events)
        .into_iter()
        .map(|(name, data)| {
            assert_eq!(name, None);
            data
        })
        .collect();
    assert_eq!(chunks.pop(), Some(json!("[DONE]")));
    chunks
}
