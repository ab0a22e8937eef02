use super::*;
use crate::external_text::JsonValue;
use crate::protocol::api::{Call, CallContext, MAX_BODY, ModelCard, TranslatedRequest};
use crate::protocol::{
    AnswerDetails, Done, Event, FinishReason, Input, LikelyToken, Method, Request, RequestEnergy,
    ResponseFormat, Role, Timings, TokenLogprob, ToolCall, Usage,
};
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// 2026-01-01.
pub(super) fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_767_225_600)
}

pub(super) fn card() -> ModelCard {
    ModelCard {
        name: "BitNet 2B".into(),
        architecture: "bitnet-b1.58".into(),
        parameters: 2_412_820_480,
        quantization: "I2_S".into(),
        bytes: 1_187_801_280,
        digest: "0123456789abcdef".repeat(4),
        modified: now(),
        context: 4096,
        template: "{{ messages }}".into(),
    }
}

pub(super) fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("JSON")
}

pub(super) fn body_of(call: Call) -> (&'static str, Vec<u8>) {
    match call {
        Call::Answer { content_type, body } => (content_type, body),
        Call::Ask(ask) => panic!("an answer was expected: {ask:?}"),
    }
}

fn context() -> CallContext {
    CallContext { model: Arc::new(card()), id: "call-1".into(), now: now(), max_body: MAX_BODY }
}

fn chat_call(body: Value) -> Result<Call, HttpRefusal> {
    chat(body.to_string().as_bytes(), &context())
}

fn generate_call(body: Value) -> Result<Call, HttpRefusal> {
    generate(body.to_string().as_bytes(), &context())
}

fn asked(call: Result<Call, HttpRefusal>) -> TranslatedRequest {
    match call {
        Ok(Call::Ask(ask)) => *ask,
        Ok(Call::Answer { body, .. }) => panic!("answered: {}", String::from_utf8_lossy(&body)),
        Err(refused) => panic!("refused: {}", message_of(&refused)),
    }
}

fn message_of(refused: &HttpRefusal) -> String {
    json(&refused.body)["error"].as_str().expect("a message").to_owned()
}

/// A call with a message and these keys besides.
fn with(keys: Value) -> Value {
    let mut call = json!({"model": "bitnet-2b", "messages": [{"role": "user", "content": "hello"}]});
    let (Some(call_keys), Value::Object(keys)) = (call.as_object_mut(), keys) else { panic!("objects") };
    call_keys.extend(keys);
    call
}

fn done(text: &str) -> Done {
    Done {
        id: "call-1".into(),
        text: text.into(),
        finish_reason: FinishReason::Stop,
        usage: Usage { prompt_tokens: 11, completion_tokens: 4, cached_tokens: 0 },
        timings: Timings {
            queue_ms: 1.5,
            prompt_ms: 20.25,
            ttft_ms: 22.0,
            total_ms: 62.0,
            tokens_per_second: 75.0,
        },
        energy: Some(RequestEnergy {
            joules: 0.5,
            joules_above_idle: None,
            joules_per_token: None,
            method: Method::Estimated,
        }),
        cached: false,
        model: "m".into(),
        details: AnswerDetails::default(),
    }
}

fn token(text: &str) -> Event {
    Event::Token { id: "call-1".into(), text: text.into(), index: None, logprobs: Vec::new(), metadata: None }
}

fn lines(bytes: &[u8]) -> Vec<Value> {
    assert!(bytes.is_empty() || bytes.ends_with(b"\n"));
    bytes.split_inclusive(|byte| *byte == b'\n').map(json).collect()
}

fn tool_call() -> ToolCall {
    let arguments = JsonValue::parse(r#"{"name":"Kitchen","area":"kitchen"}"#).expect("JSON");
    ToolCall { id: "call-1-0".into(), name: "HassTurnOn".into(), arguments }
}

#[test]
fn what_home_assistant_sends_is_a_request() {
    let body = json!({"model": "bitnet-2b:latest", "stream": true, "options": {"num_ctx": 8192.0},
        "keep_alive": "-1.0s", "think": false, "format": "",
        "messages": [
            {"role": "system", "content": "You control a home."},
            {"role": "user", "content": "turn on the kitchen lights"},
            {"role": "assistant", "content": "", "tool_calls": [
                {"function": {"name": "HassTurnOn", "arguments": {"area": "kitchen", "domain": ["light"]}}}]},
            {"role": "tool", "content": "{\"data\":{}}", "tool_name": "HassTurnOn"}],
        "tools": [{"type": "function", "function": {"name": "HassTurnOn", "description": "Turns on",
            "parameters": {"type": "object", "properties": {"area": {"type": "string"}}, "required": []}}}]});
    let ask = asked(chat_call(body));
    let Request { id, input, stream, tools, response_format, .. } = &ask.request;
    assert_eq!((id.as_deref(), stream, tools.len()), (Some("call-1"), &true, 1));
    assert_eq!(response_format, &ResponseFormat::Text);
    let Input::Messages(messages) = input else { panic!("messages") };
    let roles: Vec<Role> = messages.iter().map(|message| message.role).collect();
    assert_eq!(roles, [Role::System, Role::User, Role::Assistant, Role::Tool]);
    assert_eq!(messages[2].tool_calls[0].arguments.to_string(), r#"{"area":"kitchen","domain":["light"]}"#);
    assert_eq!(messages[2].tool_calls[0].id, "call00000");
    assert_eq!(messages[3].tool_call_id.as_deref(), Some("call00000"));
    assert_eq!(ask.ignored_keys, 1, "the context that the model does not have");
}

#[test]
fn results_get_the_ids_of_their_calls() {
    let function = |name: &str| json!({"function": {"index": 0, "name": name, "arguments": {}}});
    let body = with(json!({"messages": [
        {"role": "Assistant", "tool_calls": [function("a"), function("b"), {"id": "x", "type": "function",
            "function": {"name": "c", "arguments": null}}]},
        {"role": "tool", "content": "of b", "name": "b"},
        {"role": "tool", "content": "of x", "tool_call_id": "x"},
        {"role": "tool", "content": "of a"},
        {"role": "tool", "content": "of none"}]}));
    let Input::Messages(messages) = asked(chat_call(body)).request.input else { panic!("messages") };
    let ids: Vec<_> = messages.iter().map(|message| message.tool_call_id.as_deref()).collect();
    assert_eq!(ids, [None, Some("call00001"), Some("x"), Some("call00000"), None]);
    assert_eq!(messages[0].content, "");
}

#[test]
fn keys_without_a_meaning_here_are_ignored_and_counted() {
    let ask = asked(chat_call(with(json!({
        "messages": [{"role": "user", "content": "hi", "images": [], "thinking": "hm", "x": 1}],
        "tools": [{"function": {"name": "f", "parameters": {"type": "object"}, "x": 1}, "items": null}],
        "truncate": true, "shift": false, "options": {"num_gpu": 1}, "think": null, "keep_alive": "5m"}))));
    // x of the message, x and items of the tool, truncate, shift and num_gpu.
    assert_eq!(ask.ignored_keys, 6);
    assert_eq!(ask.request.tools[0].definition.get("type").and_then(JsonValue::as_text), Some("function"));
}

#[test]
fn options_and_format_become_our_keys() {
    let request = asked(chat_call(with(json!({"stream": false, "format": "json",
        "logprobs": true, "top_logprobs": 2.0,
        "options": {"num_predict": 5.0, "temperature": 0.5, "top_k": 40.0, "repeat_penalty": 1.1, "seed": -7,
            "stop": ["\n"]}}))))
    .request;
    assert_eq!((request.stream, request.max_tokens, request.logprobs), (false, Some(5), Some(2)));
    assert_eq!(request.sampling.temperature, Some(0.5));
    assert_eq!(request.sampling.top_k, Some(40));
    assert_eq!(request.sampling.repetition_penalty, Some(1.1));
    assert_eq!(request.sampling.seed, Some((-7_i64) as u64));
    assert_eq!((request.stop, request.response_format), (vec!["\n".to_owned()], ResponseFormat::JsonObject));

    let schema = r#"{"type":"object","properties":{"z":{"type":"string"},"a":{"type":"integer"}}}"#;
    let format: Value = serde_json::from_str(schema).expect("JSON");
    let request = asked(chat_call(with(json!({"format": format, "top_logprobs": 3})))).request;
    let closed =
        format!(r#"{},"additionalProperties":false}}"#, schema.strip_suffix('}').expect("an object"));
    assert_eq!(request.response_format, ResponseFormat::JsonSchema(closed));
    assert_eq!((request.stream, request.logprobs), (true, None));
}

#[test]
fn a_prompt_may_have_a_system_message() {
    let ask =
        asked(generate_call(json!({"model": "bitnet-2b", "prompt": "hello", "raw": false, "suffix": "",
        "template": "", "context": [], "images": null, "system": ""})));
    assert_eq!((ask.request.input, ask.ignored_keys), (Input::Prompt("hello".into()), 0));
    let ask = asked(generate_call(json!({"model": "bitnet-2b", "prompt": "hello", "system": "Be brief."})));
    let Input::Messages(messages) = ask.request.input else { panic!("messages") };
    let turns: Vec<_> = messages.iter().map(|m| (m.role, m.content.as_str())).collect();
    assert_eq!(turns, [(Role::System, "Be brief."), (Role::User, "hello")]);
}

#[test]
fn a_call_without_a_prompt_loads_or_unloads_the_model() {
    for (keys, reason) in [
        (json!({}), "load"),
        (json!({"keep_alive": -1}), "load"),
        (json!({"keep_alive": 0}), "unload"),
        (json!({"keep_alive": "0s", "messages": [], "prompt": ""}), "unload"),
    ] {
        let mut call = json!({"model": "BitNet-2B"});
        call.as_object_mut().expect("an object").extend(keys.as_object().expect("an object").clone());
        let (kind, body) = body_of(chat_call(call.clone()).expect("an answer"));
        assert_eq!(kind, "application/json");
        let created = "2026-01-01T00:00:00.000000000Z";
        assert_eq!(
            json(&body),
            json!({"model": "BitNet-2B", "created_at": created,
                "message": {"role": "assistant", "content": ""}, "done": true, "done_reason": reason})
        );
        let (_, body) = body_of(generate_call(call).expect("an answer"));
        assert_eq!(
            json(&body),
            json!({"model": "BitNet-2B", "created_at": created, "response": "", "done": true, "done_reason": reason})
        );
    }
}

#[test]
fn refusals_name_the_callers_own_keys() {
    for (keys, place) in [
        (json!({"options": {"num_predict": 5_000_000_000_u64}}), "options.num_predict: "),
        (json!({"options": {"temperature": "hot"}}), "options.temperature: "),
        (json!({"options": {"temperature": -1}}), "options.temperature: "),
        (json!({"options": {"repeat_penalty": 99}}), "options.repeat_penalty: "),
        (json!({"options": {"stop": [""]}}), "options.stop: "),
        (json!({"options": {"stop": [1]}}), "options.stop[0]: "),
        (json!({"options": {"mirostat": 1}}), "options.mirostat: "),
        (json!({"options": []}), "options: no object"),
        (json!({"format": "xml"}), "format: \"xml\" is neither"),
        (json!({"format": true}), "format: true is neither"),
        (json!({"think": true}), "\"bitnet-2b\" does not support thinking"),
        (json!({"think": "high"}), "\"bitnet-2b\" does not support thinking"),
        (json!({"think": 1}), "think: "),
        (json!({"keep_alive": "soon"}), "keep_alive: "),
        (json!({"stream": "yes"}), "stream: "),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs: 21 is outside 0 to 20"),
        (json!({"messages": "hi"}), "messages: no list"),
        (json!({"messages": [7]}), "messages[0]: not an object"),
        (json!({"messages": [{"role": "function", "content": ""}]}), "messages[0]: role: "),
        (json!({"messages": [{"role": "user", "content": 7}]}), "messages[0]: content: "),
        (
            json!({"messages": [{"role": "user", "content": "a", "images": ["aGk="]}]}),
            "messages[0].images: the model cannot read images",
        ),
        (
            json!({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 1}}]}]}),
            "messages[0]: tool_calls[0].function.arguments: ",
        ),
        (json!({"tools": [{"type": "function", "function": {"name": "a b"}}]}), "tools[0].function.name: "),
        (json!({"tools": [1]}), "tools[0]."),
    ] {
        let refused = chat_call(with(keys.clone())).expect_err(place);
        assert_eq!(refused.status, 400, "{keys}");
        assert!(message_of(&refused).starts_with(place), "{keys}: {}", message_of(&refused));
    }
    for (keys, place) in [
        (json!({"raw": true}), "raw: "),
        (json!({"suffix": "x"}), "suffix: "),
        (json!({"template": "{{ .Prompt }}"}), "template: "),
        (json!({"context": [1, 2]}), "context: "),
        (json!({"images": ["aGk="]}), "images: "),
        (json!({"prompt": 7}), "prompt: no string"),
        (json!({"prompt": "  "}), "prompt: empty"),
    ] {
        let mut call = json!({"model": "bitnet-2b", "prompt": "hello"});
        call.as_object_mut().expect("an object").extend(keys.as_object().expect("an object").clone());
        let message = message_of(&generate_call(call).expect_err(place));
        assert!(message.starts_with(place), "{message}");
    }
}

#[test]
fn bodies_that_are_no_calls_are_refused() {
    for (body, status) in [
        (b"".as_slice(), 400),
        (b"[]", 400),
        (b"{", 400),
        (br#"{"model":"bitnet-2b","model":"x"}"#, 400),
        (br#"{"messages":[]}"#, 400),
        (br#"{"model":7}"#, 400),
        (br#"{"model":"llama3.2"}"#, 404),
    ] {
        for refused in [chat(body, &context()), generate(body, &context())] {
            let refused = refused.expect_err("no call");
            assert_eq!(refused.status, status);
            assert!(!message_of(&refused).is_empty());
        }
    }
    let long = vec![b' '; api::MAX_BODY + 1];
    assert_eq!(chat(&long, &context()).expect_err("too long").status, 413);
}

#[test]
fn refusals_of_the_daemon_have_their_status_and_the_callers_keys() {
    let busy = Refusal { retry_after_ms: Some(1200), ..Refusal::new(Code::QueueFull, "8 wait") };
    let refused = super::refused(&busy);
    assert_eq!((refused.status, refused.retry_after_s), (429, Some(2)));
    assert_eq!(json(&refused.body), json!({"error": "8 wait"}));
    for (ours, theirs) in [
        ("response_format.json_schema.schema: no", "format: no"),
        ("response_format: no", "format: no"),
        ("max_tokens: no", "options.num_predict: no"),
        ("stopped: no", "stopped: no"),
        ("seed of doubt", "seed of doubt"),
    ] {
        assert_eq!(with_caller_keys(ours), theirs);
    }
}

#[test]
fn a_streamed_answer_is_one_object_a_line() {
    let mut encoder = asked(chat_call(with(json!({})))).encoder;
    assert_eq!(encoder.stream_type(), Some("application/x-ndjson"));
    assert!(encoder.begin().is_empty());
    let first = lines(&encoder.event(&token("He")));
    let created = "2026-01-01T00:00:00.000000000Z";
    let piece = |text: &str| {
        json!({"model": "bitnet-2b", "created_at": created, "message": {"role": "assistant", "content": text},
            "done": false})
    };
    assert_eq!(first, [piece("He")]);
    assert_eq!(lines(&encoder.event(&token("llo"))), [piece("llo")]);
    let last = lines(&encoder.event(&Event::Done(Box::new(done("Hello")))));
    assert_eq!(last.len(), 1);
    let expected = json!({"model": "bitnet-2b", "created_at": "2026-01-01T00:00:00.062000000Z",
        "message": {"role": "assistant", "content": ""}, "done": true, "done_reason": "stop",
        "total_duration": 62_000_000, "load_duration": 1_500_000, "prompt_eval_count": 11,
        "prompt_eval_duration": 20_250_000, "eval_count": 4, "eval_duration": 40_250_000,
        "bitnetd": {"finish_reason": "stop", "cached": false,
            "energy": {"joules": 0.5, "joules_above_idle": null, "joules_per_token": null, "method": "estimated"},
            "timings": {"queue_ms": 1.5, "prompt_ms": 20.25, "ttft_ms": 22.0, "total_ms": 62.0,
                "tokens_per_second": 75.0}}});
    assert_eq!(last[0], expected);
}

#[test]
fn a_stream_ends_with_what_was_not_streamed() {
    let mut encoder = asked(generate_call(json!({"model": "bitnet-2b", "prompt": "hello"}))).encoder;
    encoder.event(&token("Hé"));
    let rest = lines(&encoder.event(&Event::Done(Box::new(done("Héllo")))));
    let texts: Vec<_> = rest.iter().map(|line| (&line["response"], &line["done"])).collect();
    assert_eq!(texts, [(&json!("llo"), &json!(false)), (&json!(""), &json!(true))]);
}

#[test]
fn calls_of_functions_come_before_the_last_object() {
    let mut answer = done("");
    answer.details.tool_calls = vec![tool_call()];
    let call = json!([{"id": "call-1-0", "function": {"index": 0, "name": "HassTurnOn",
        "arguments": {"name": "Kitchen", "area": "kitchen"}}}]);
    let mut encoder = asked(chat_call(with(json!({})))).encoder;
    let streamed = lines(&encoder.event(&Event::Done(Box::new(answer.clone()))));
    assert_eq!(streamed.len(), 2);
    assert_eq!((&streamed[0]["message"]["tool_calls"], &streamed[0]["done"]), (&call, &json!(false)));
    assert_eq!((&streamed[1]["message"]["tool_calls"], &streamed[1]["done"]), (&Value::Null, &json!(true)));

    let mut encoder = asked(chat_call(with(json!({"stream": false})))).encoder;
    assert_eq!(encoder.stream_type(), None);
    let whole = json(&encoder.whole(&answer));
    assert_eq!((&whole["message"]["tool_calls"], &whole["done_reason"]), (&call, &json!("stop")));
}

#[test]
fn a_whole_answer_has_text_and_log_probabilities() {
    let likely = |token: &str, logprob: f32| LikelyToken {
        token: token.into(),
        logprob,
        bytes: token.as_bytes().to_vec(),
    };
    let logprob = TokenLogprob { token: likely("Hi", -0.5), top_logprobs: vec![likely("Hi", -0.5)] };
    let mut answer = done("Hi");
    answer.finish_reason = FinishReason::Timeout;
    answer.details.logprobs = Some(vec![logprob.clone()]);
    let expected = json!([{"token": "Hi", "logprob": -0.5, "bytes": [72, 105],
        "top_logprobs": [{"token": "Hi", "logprob": -0.5, "bytes": [72, 105]}]}]);
    let call = json!({"model": "bitnet-2b", "prompt": "hello", "stream": false, "logprobs": true});
    let whole = json(&asked(generate_call(call.clone())).encoder.whole(&answer));
    assert_eq!((&whole["response"], &whole["logprobs"]), (&json!("Hi"), &expected));
    assert_eq!(
        (&whole["done_reason"], &whole["bitnetd"]["finish_reason"]),
        (&json!("length"), &json!("timeout"))
    );

    let event = Event::Token {
        id: "1".into(),
        text: "Hi".into(),
        index: None,
        logprobs: vec![logprob],
        metadata: None,
    };
    let mut encoder = asked(generate_call(call)).encoder;
    assert_eq!(lines(&encoder.event(&event))[0]["logprobs"], expected);
    let last = lines(&encoder.event(&Event::Done(Box::new(answer))));
    assert_eq!((last.len(), &last[0]["logprobs"]), (1, &Value::Null));
}

#[test]
fn an_error_in_a_stream_is_a_line() {
    let mut encoder = asked(chat_call(with(json!({})))).encoder;
    let refusal = Refusal::new(Code::Internal, "max_tokens: a fault");
    let error = lines(&encoder.event(&Event::error(None, refusal)));
    assert_eq!(error, [json!({"error": "options.num_predict: a fault"})]);
    let generate = asked(generate_call(json!({"model": "bitnet-2b", "prompt": "a"}))).encoder;
    for ours in ["prompt: no tokens", "messages: no tokens"] {
        let refusal = || Refusal::new(Code::InvalidRequest, ours);
        assert_eq!(encoder.in_callers_words(refusal()).message, "messages: no tokens");
        assert_eq!(generate.in_callers_words(refusal()).message, "prompt: no tokens");
    }
}

#[test]
fn the_version_is_one_that_clients_can_compare() {
    let version = json(&version());
    let numbers: Vec<_> =
        version["version"].as_str().expect("text").split('.').map(str::parse::<u32>).collect();
    assert_eq!(numbers.len(), 3);
    assert!(numbers.iter().all(Result::is_ok), "{version}");
    assert_eq!(version["bitnetd"], env!("CARGO_PKG_VERSION"));
}
