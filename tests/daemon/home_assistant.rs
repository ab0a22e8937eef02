//! Translates the calls that a real Home Assistant made through its Ollama integration (`tests/data/home-assistant`).

use bitnetd::protocol::api::{Call, CallContext, ModelCard, TranslatedRequest};
use bitnetd::protocol::{Input, Role, ollama};
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

#[derive(Deserialize)]
struct Recorded {
    path: String,
    body: String,
}

fn recorded(path: &str) -> Vec<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/home-assistant/ollama.jsonl");
    let text = std::fs::read_to_string(file).expect("recorded");
    let calls = text.lines().map(|line| serde_json::from_str::<Recorded>(line).expect("JSON"));
    calls.filter(|call| call.path == path).map(|call| call.body).collect()
}

fn model() -> ModelCard {
    ModelCard {
        name: "home-intents".into(),
        architecture: "bitnet-b1.58".into(),
        parameters: 1,
        quantization: "I2_S".into(),
        bytes: 1,
        digest: "0".repeat(64),
        modified: SystemTime::UNIX_EPOCH,
        context: 8192,
        template: String::new(),
    }
}

fn asked(body: &str) -> TranslatedRequest {
    let context = CallContext { model: Arc::new(model()), id: "1".into(), now: SystemTime::UNIX_EPOCH };
    match ollama::chat(body.as_bytes(), &context) {
        Ok(Call::Ask(ask)) => *ask,
        Ok(Call::Answer { body, .. }) => panic!("answered: {}", String::from_utf8_lossy(&body)),
        Err(refused) => panic!("refused: {}", String::from_utf8_lossy(&refused.body)),
    }
}

#[test]
fn the_model_that_it_asks_for_is_the_one_that_it_finds_in_the_list() {
    assert_eq!(recorded("/api/tags"), [""]);
    let list: Value = serde_json::from_slice(&ollama::tags(&model())).expect("JSON");
    for body in recorded("/api/chat") {
        let call: Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(call["model"], list["models"][0]["model"]);
    }
}

#[test]
fn its_questions_keep_their_sentence_and_their_tools() {
    let calls = recorded("/api/chat");
    let mut with_tools = 0;
    for body in &calls {
        let TranslatedRequest { request, encoder, ignored_keys } = asked(body);
        assert_eq!((ignored_keys, request.stream), (0, true));
        assert!(encoder.stream_type().is_some());
        let Input::Messages(messages) = &request.input else { panic!("a conversation was sent") };
        let last = messages.last().expect("a message");
        assert_eq!((last.role, last.content.as_str()), (Role::User, "turn on the kitchen lights"));
        let call: Value = serde_json::from_str(body).expect("JSON");
        let tools = call["tools"].as_array().map_or(0, Vec::len);
        assert_eq!(request.tools.len(), tools);
        with_tools += usize::from(request.tools.iter().any(|tool| tool.name == "HassTurnOn"));
    }
    assert_eq!((calls.len(), with_tools), (2, 1));
}
