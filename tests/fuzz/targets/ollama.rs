//! Whatever bytes come as a call of Ollama's API: no panic, sound requests, and answers that are JSON, one object a line
//! where they are streamed.

#![no_main]

use bitnetd::protocol::api::{Call, CallContext, HttpRefusal, MAX_BODY, ModelCard, TranslatedRequest};
use bitnetd::protocol::ollama;
use bitnetd::protocol::{AnswerDetails, Code, Done, Event, FinishReason, Input, Refusal, Timings, Usage};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

fuzz_target!(|bytes: &[u8]| {
    let card = card(bytes);
    for model in [ModelCard { name: "home-intents".into(), ..card.clone() }, card] {
        let context = CallContext {
            model: Arc::new(model.clone()),
            id: "f".into(),
            now: UNIX_EPOCH,
            max_body: MAX_BODY,
        };
        check_call(bytes, ollama::chat(bytes, &context));
        check_call(bytes, ollama::generate(bytes, &context));
        check_call(bytes, ollama::pull(bytes, &model));
        match ollama::show(bytes, &model) {
            Ok(body) => drop(object(&body)),
            Err(refused) => check_refused(bytes, &refused),
        }
        for list in [ollama::tags(&model), ollama::ps(&model, UNIX_EPOCH)] {
            let name = object(&list)["models"][0]["name"].clone();
            let call = serde_json::json!({ "model": name }).to_string();
            ollama::show(call.as_bytes(), &model).expect("the listed name is found");
        }
    }
});

/// A model whose file gives any names.
fn card(bytes: &[u8]) -> ModelCard {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(64)]).into_owned();
    ModelCard {
        name: text.clone(),
        architecture: text.clone(),
        parameters: bytes.len() as u64,
        quantization: text.clone(),
        bytes: u64::MAX,
        digest: text.clone(),
        modified: UNIX_EPOCH,
        context: 512,
        template: text,
    }
}

fn check_call(bytes: &[u8], call: Result<Call, HttpRefusal>) {
    match call {
        Ok(Call::Answer { body, .. }) => check_lines(&body),
        Ok(Call::Ask(ask)) => check_ask(bytes, *ask),
        Err(refused) => check_refused(bytes, &refused),
    }
}

fn check_ask(bytes: &[u8], mut ask: TranslatedRequest) {
    assert!(bytes.len() <= MAX_BODY);
    assert!(ask.request.id.as_deref() == Some("f") && ask.request.choices == 1);
    assert!(matches!(&ask.request.input, Input::Prompt(_) | Input::Messages(_)));
    assert_eq!(ask.request.stream, ask.encoder.stream_type().is_some());
    let text = String::from_utf8_lossy(bytes).into_owned();
    let half = text.chars().take(text.chars().count() / 2).collect();
    let token = Event::Token { id: "f".into(), text: half, index: None, logprobs: Vec::new(), metadata: None };
    let done = done(text);
    object(&ask.encoder.whole(&done));
    let events = [token, Event::Done(Box::new(done))];
    let stream: Vec<u8> = events.iter().flat_map(|event| ask.encoder.event(event)).collect();
    check_lines(&stream);
    let refusal = Refusal::new(Code::Internal, "a fault");
    check_lines(&ask.encoder.event(&Event::error(None, refusal)));
}

fn done(text: String) -> Done {
    Done {
        id: "f".into(),
        text,
        finish_reason: FinishReason::Stop,
        usage: Usage::default(),
        timings: Timings { total_ms: f64::MAX, queue_ms: f64::NAN, prompt_ms: -1.0, ..Timings::default() },
        energy: None,
        cached: false,
        model: "m".into(),
        details: AnswerDetails::default(),
    }
}

fn check_refused(bytes: &[u8], refused: &HttpRefusal) {
    assert!((400..500).contains(&refused.status), "{}", refused.status);
    let message = object(&refused.body)["error"].as_str().expect("a message").to_owned();
    assert!(message.len() < 2 * bytes.len() + 1000, "longer than what it is about");
}

fn check_lines(body: &[u8]) {
    let body = body.strip_suffix(b"\n").unwrap_or(body);
    body.split(|byte| *byte == b'\n').for_each(|line| drop(object(line)));
}

fn object(bytes: &[u8]) -> Value {
    let value: Value = serde_json::from_slice(bytes).expect("JSON");
    assert!(value.is_object());
    value
}
