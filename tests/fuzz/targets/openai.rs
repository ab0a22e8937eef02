//! Whatever body comes as a call of OpenAI's API: no panic, refusals in OpenAI's form, and answers that are JSON. The first
//! byte chooses the call.

#![no_main]

use bitnetd::protocol::api::{Call, CallContext, MAX_BODY, ModelCard, TranslatedRequest};
use bitnetd::protocol::{
    AnswerDetails, Choice, Code, Done, Event, FinishReason, LikelyToken, Refusal, Timings, TokenLogprob,
    ToolCall, Usage, json, openai,
};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

fuzz_target!(|bytes: &[u8]| {
    let Some((route, body)) = bytes.split_first() else { return };
    let context =
        CallContext { model: Arc::new(card()), id: "7".into(), now: UNIX_EPOCH, max_body: MAX_BODY };
    let call = match route {
        b'c' => openai::chat_completions(body, &context),
        b'p' => openai::completions(body, &context),
        b'r' => openai::responses(body, &context),
        b'm' => return check_model(&context.model, body),
        _ => return,
    };
    match call {
        Ok(Call::Ask(ask)) => check_ask(body, *ask),
        Ok(Call::Answer { .. }) => panic!("every call asks the model"),
        Err(refusal) => check_refusal(body, &refusal),
    }
});

fn check_refusal(body: &[u8], refusal: &Refusal) {
    assert!(refusal.message.len() < 2 * body.len() + 1000, "longer than what it is about");
    let refused = openai::refused(refusal);
    assert!((400..600).contains(&refused.status));
    let error: Value = serde_json::from_slice(&refused.body).expect("JSON");
    assert_eq!(error["error"]["message"], refusal.message.as_str());
    assert!(error["error"]["param"].as_str().is_none_or(|param| refusal.message.starts_with(param)));
}

fn check_model(card: &ModelCard, name: &[u8]) {
    let Ok(name) = std::str::from_utf8(name) else { return };
    let body = openai::model(card, name).unwrap_or_else(|refused| refused.body);
    serde_json::from_slice::<Value>(&body).expect("JSON");
}

fn check_ask(body: &[u8], mut ask: TranslatedRequest) {
    assert!(body.len() <= MAX_BODY && ask.ignored_keys as usize <= body.len());
    let request = &ask.request;
    assert_eq!(request.id.as_deref(), Some("7"));
    assert_ne!(request.max_tokens, Some(0));
    assert!((1..=json::MAX_CHOICES).contains(&request.choices));
    assert!(request.stop.iter().all(|text| !text.is_empty()));
    let done = done(request.choices, request.logprobs.is_some(), request.offers_tools());
    if ask.encoder.stream_type().is_none() {
        serde_json::from_slice::<Value>(&ask.encoder.whole(&done)).expect("JSON");
        return;
    }
    let mut stream = ask.encoder.begin();
    for index in 0..ask.request.choices {
        let index = (ask.request.choices > 1).then_some(index);
        let logprobs = done.details.logprobs.clone().unwrap_or_default();
        let token = Event::Token { id: "7".into(), text: "é\n".into(), index, logprobs, metadata: None };
        stream.extend(ask.encoder.event(&token));
    }
    let last = match body.len() % 2 {
        0 => Event::Done(Box::new(done)),
        _ => Event::error(None, Refusal::new(Code::Internal, "a fault")),
    };
    stream.extend(ask.encoder.event(&last));
    check_stream(&stream);
}

/// Each event is one line of JSON, but for the end of the stream.
fn check_stream(stream: &[u8]) {
    let stream = std::str::from_utf8(stream).expect("UTF-8");
    for event in stream.strip_suffix("\n\n").expect("ends with an event").split("\n\n") {
        let data = event.lines().last().and_then(|line| line.strip_prefix("data: ")).expect("has data");
        assert!(event.lines().count() <= 2);
        assert!(data == "[DONE]" || serde_json::from_str::<Value>(data).is_ok(), "{data}");
    }
}

fn done(choices: u32, has_logprobs: bool, has_calls: bool) -> Done {
    let token = LikelyToken { token: "é".into(), logprob: f32::NEG_INFINITY, bytes: vec![195, 169] };
    let logprobs =
        has_logprobs.then(|| vec![TokenLogprob { token: token.clone(), top_logprobs: vec![token] }]);
    let arguments = bitnetd::external_text::JsonValue::parse("{\"a\":\"\\n\"}").expect("JSON");
    let call = ToolCall { id: "call_7_0_0".into(), name: "f".into(), arguments };
    let tool_calls = if has_calls { vec![call.clone(), call] } else { Vec::new() };
    let text = if has_calls { String::new() } else { "é\nand more".to_owned() };
    let choice = |index| Choice {
        index,
        text: text.clone(),
        finish_reason: FinishReason::Length,
        tool_calls: tool_calls.clone(),
        logprobs: logprobs.clone(),
    };
    let choices = if choices > 1 { (0..choices).map(choice).collect() } else { Vec::new() };
    Done {
        id: "7".into(),
        text: text.clone(),
        finish_reason: FinishReason::Stop,
        usage: Usage { prompt_tokens: u32::MAX, completion_tokens: u32::MAX, cached_tokens: 0 },
        timings: Timings::default(),
        energy: None,
        cached: true,
        model: "m".into(),
        details: AnswerDetails {
            logprobs: logprobs.clone(),
            tool_calls: tool_calls.clone(),
            choices,
            ..AnswerDetails::default()
        },
    }
}

fn card() -> ModelCard {
    ModelCard {
        name: "home/intents".into(),
        architecture: "bitnet-b1.58".into(),
        parameters: 1,
        quantization: "I2_S".into(),
        bytes: 1,
        digest: "0".repeat(64),
        modified: UNIX_EPOCH,
        context: 512,
        template: String::new(),
    }
}
