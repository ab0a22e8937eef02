//! Refusals and models.

use super::*;
use crate::protocol::Code;

fn error(refusal: &Refusal) -> Value {
    serde_json::from_slice::<Value>(&refused(refusal).body).expect("JSON")["error"].take()
}

#[test]
fn a_refusal_names_the_key_at_the_head_of_its_message() {
    for (message, param) in [
        ("max_tokens: 0; at least 1", json!("max_tokens")),
        ("messages[0].content[1]: type image_url is not supported", json!("messages[0].content[1]")),
        ("tools[1].function.name: missing", json!("tools[1].function.name")),
        ("prompt and messages: give one of them", Value::Null),
        ("after the object: trailing characters", Value::Null),
        ("not a JSON object", Value::Null),
        ("5: x", Value::Null),
    ] {
        let found = error(&Refusal::new(Code::InvalidRequest, message));
        let expected =
            json!({ "message": message, "type": "invalid_request_error", "param": param, "code": null });
        assert_eq!(found, expected);
    }
}

#[test]
fn codes_are_those_that_clients_know() {
    for (code, status, kind, name) in [
        (Code::ContextExceeded, 400, "invalid_request_error", "context_length_exceeded"),
        (Code::TooLarge, 413, "invalid_request_error", "request_too_large"),
        (Code::QueueFull, 429, "rate_limit_error", "rate_limit_exceeded"),
        (Code::RateLimited, 429, "rate_limit_error", "rate_limit_exceeded"),
        (Code::ShuttingDown, 503, "server_error", "shutting_down"),
        (Code::Internal, 500, "server_error", "internal_error"),
    ] {
        let refusal = Refusal { code, message: "prompt: m".into(), retry_after_ms: Some(1_500) };
        let found = refused(&refusal);
        assert_eq!((found.status, found.retry_after_s), (status, Some(2)));
        assert_eq!(
            error(&refusal),
            json!({ "message": "prompt: m", "type": kind, "param": null, "code": name })
        );
    }
}

#[test]
fn errors_of_http_have_the_same_form() {
    for (status, kind) in
        [(401, "invalid_request_error"), (404, "invalid_request_error"), (503, "server_error")]
    {
        let body: Value = serde_json::from_slice(&error_body(status, "invalid_api_key", "m")).expect("JSON");
        let expected = json!({ "message": "m", "type": kind, "param": null, "code": "invalid_api_key" });
        assert_eq!(body, json!({ "error": expected }));
    }
}

#[test]
fn the_one_model_is_found_by_its_name() {
    let list: Value = serde_json::from_slice(&models(&card())).expect("JSON");
    assert_eq!((&list["object"], list["data"].as_array().map(Vec::len)), (&json!("list"), Some(1)));
    let expected = json!({
        "id": "home/intents", "object": "model", "created": 1_700_000_000, "owned_by": "bitnetd",
        "bitnetd": {
            "architecture": "bitnet-b1.58", "parameters": 5_000_000, "quantization": "I2_S", "bytes": 2_300_000,
            "context": 512,
        },
    });
    assert_eq!(list["data"][0], expected);
    let found = model(&card(), "home/intents").expect("the model's name");
    assert_eq!(serde_json::from_slice::<Value>(&found).expect("JSON"), expected);
    for name in ["gpt-5", "", "home%2Fintents"] {
        let error = model(&card(), name).expect_err("another name");
        assert_eq!(error.status, 404);
        let body: Value = serde_json::from_slice(&error.body).expect("JSON");
        assert_eq!(
            (&body["error"]["code"], &body["error"]["param"]),
            (&json!("model_not_found"), &json!("model"))
        );
    }
}
