//! Calls of `/v1/chat/completions`.

use super::*;
use crate::protocol::{Input, Message, Priority, ResponseFormat, Role, ToolChoice};

const TOOL: &str = r#"{"type":"function","function":{"name":"set_light","description":"d","parameters":{"type":"object","properties":{"z":{"type":"string"},"a":{"type":"integer"}}},"strict":true}}"#;

fn tool() -> Value {
    serde_json::from_str(TOOL).expect("JSON")
}

fn call(keys: Value) -> Value {
    with(json!({ "model": "any", "messages": [{ "role": "user", "content": "hi" }] }), keys)
}

fn messages(messages: Value) -> (Vec<Message>, u32) {
    let ask = ask(chat_completions, &json!({ "messages": messages }));
    match ask.request.input {
        Input::Messages(messages) => (messages, ask.ignored_keys),
        Input::Prompt(_) => panic!("no messages"),
    }
}

#[test]
fn every_known_key_is_translated() {
    let ask = ask(
        chat_completions,
        &call(json!({
            "max_completion_tokens": 1000.0, "temperature": 1, "top_p": 0.5, "n": 2.0, "seed": -1, "stop": "end",
            "presence_penalty": 1.5, "frequency_penalty": -2, "logit_bias": { "5": -100 }, "logprobs": true,
            "top_logprobs": 2, "stream": true, "top_k": 40.0, "min_p": 0.1, "repetition_penalty": 1.1,
            "timeout_ms": 1000, "priority": "high", "cache": false, "speculate": true, "tools": [tool()], "tool_choice": "required",
            "max_tokens": null, "response_format": null,
        })),
    );
    assert_eq!(ask.ignored_keys, 0);
    let request = ask.request;
    assert_eq!((request.id.as_deref(), request.max_tokens, request.choices), (Some("7"), Some(1000), 2));
    assert_eq!(request.sampling.seed, Some(u64::MAX));
    assert_eq!((request.sampling.temperature, request.sampling.top_k), (Some(1.0), Some(40)));
    assert_eq!(request.sampling.logit_bias, [(5, -100.0)]);
    assert_eq!((request.logprobs, request.stop, request.stream), (Some(2), vec!["end".into()], true));
    assert_eq!((request.priority, request.cache, request.speculate), (Priority::High, false, Some(true)));
    assert_eq!(
        (request.tools[0].definition.to_string(), request.tool_choice),
        (TOOL.into(), ToolChoice::Required)
    );
}

#[test]
fn the_limit_has_two_names() {
    for keys in [
        json!({ "max_tokens": 5 }),
        json!({ "max_completion_tokens": 5.0 }),
        json!({ "max_tokens": 5, "max_completion_tokens": 5 }),
    ] {
        assert_eq!(ask(chat_completions, &call(keys)).request.max_tokens, Some(5));
    }
    let both = call(json!({ "max_tokens": 5, "max_completion_tokens": 6 }));
    assert!(refusal(chat_completions, &both).starts_with("max_tokens: another number"));
}

#[test]
fn keys_that_change_nothing_are_ignored_and_counted() {
    let ask = ask(
        chat_completions,
        &call(json!({
            "user": "u", "metadata": { "a": "b" }, "store": true, "service_tier": "auto", "reasoning_effort": "low",
            "verbosity": "low", "modalities": ["text"],
            "function_call": "auto", "functions": [], "unheard_of": { "x": 1 },
            "stream_options": { "include_usage": true, "include_obfuscation": false }, "parallel_tool_calls": true,
            "web_search_options": null,
        })),
    );
    // All but stream_options and parallel_tool_calls, and one key in the former.
    assert_eq!(ask.ignored_keys, 11);
}

#[test]
fn a_predicted_answer_is_a_text_or_parts_and_anything_else_is_refused() {
    let predicted = |content: Value| {
        ask(chat_completions, &call(json!({ "prediction": { "type": "content", "content": content } })))
    };
    let text = predicted(json!("lights on"));
    assert_eq!((text.request.prediction.as_deref(), text.ignored_keys), (Some("lights on"), 0));
    let parts = predicted(json!([{ "type": "text", "text": "a" }, { "type": "text", "text": "b", "x": 1 }]));
    assert_eq!((parts.request.prediction.as_deref(), parts.ignored_keys), (Some("a\nb"), 1));
    assert_eq!(ask(chat_completions, &call(json!({ "prediction": null }))).request.prediction, None);
    for wrong in [json!("x"), json!({ "type": "content" }), json!({ "type": "other", "content": "x" })] {
        let message = refusal(chat_completions, &call(json!({ "prediction": wrong })));
        assert!(message.starts_with("prediction: give {\"type\":\"content\""), "{message}");
    }
    let parts = call(json!({ "prediction": { "type": "content", "content": [{ "type": "image_url" }] } }));
    assert!(refusal(chat_completions, &parts).starts_with("prediction.content[0]: type image_url"));
}

#[test]
fn content_is_a_text_or_parts_of_type_text() {
    let (read, ignored) = messages(json!([
        { "role": "developer", "content": "s", "name": "n" },
        { "role": "user", "content": [{ "type": "text", "text": "a", "cache_control": {} }, { "type": "input_text", "text": "b" }] },
        { "role": "assistant", "content": null, "refusal": "no", "annotations": [], "audio": null, "function_call": null },
        { "role": "assistant", "content": [{ "type": "refusal", "refusal": "no" }], "tool_calls": [] },
    ]));
    let read: Vec<_> = read.iter().map(|message| (message.role, message.content.as_str())).collect();
    assert_eq!(
        read,
        [(Role::System, "s"), (Role::User, "a\nb"), (Role::Assistant, "no"), (Role::Assistant, "no")]
    );
    assert_eq!(ignored, 3);
}

#[test]
fn calls_and_results_are_read_in_both_forms() {
    let (read, ignored) = messages(json!([
        { "role": "assistant", "content": null, "tool_calls": [
            { "index": 0, "id": "1", "type": "function", "function": { "name": "f", "arguments": "{\"z\":1,\"a\":2}" } },
            { "id": "2", "type": "function", "function": { "name": "g", "arguments": "" } },
        ] },
        { "role": "tool", "tool_call_id": "1", "content": [{ "type": "text", "text": "done" }] },
        { "role": "assistant", "content": null, "function_call": { "name": "h", "arguments": "{}" } },
        { "role": "function", "name": "h", "content": "done" },
    ]));
    let names: Vec<_> =
        read.iter().flat_map(|message| &message.tool_calls).map(|call| call.name.as_str()).collect();
    assert_eq!((names, ignored), (vec!["f", "g", "h"], 2));
    assert_eq!(read[0].tool_calls[0].arguments.to_string(), r#"{"z":1,"a":2}"#);
    assert_eq!(
        (read[1].role, read[1].content.as_str(), read[1].tool_call_id.as_deref()),
        (Role::Tool, "done", Some("1"))
    );
    assert_eq!((read[3].role, read[3].content.as_str()), (Role::Tool, "done"));
}

#[test]
fn formats_of_openai_and_our_own_are_read() {
    let format = |format: Value| {
        ask(chat_completions, &call(json!({ "response_format": format }))).request.response_format
    };
    assert_eq!(format(json!({ "type": "json_object", "json_schema": null })), ResponseFormat::JsonObject);
    // Keys keep their order, and null in a schema is a value.
    let schema = r#"{"properties":{"b":{"const":null},"a":true}}"#;
    let named: Value = serde_json::from_str(&format!(
        r#"{{"type":"json_schema","json_schema":{{"name":"n","strict":null,"schema":{schema}}}}}"#
    ))
    .expect("JSON");
    assert_eq!(format(named), ResponseFormat::JsonSchema(schema.into()));
    assert_eq!(format(json!({ "type": "regex", "regex": "a|b" })), ResponseFormat::Regex("a|b".into()));
    assert_eq!(format(json!({ "type": "home_intent" })), ResponseFormat::HomeIntent);
}

#[test]
fn tools_lose_only_what_the_model_is_not_shown() {
    let mut extended = tool();
    extended["cache_control"] = json!({});
    extended["function"]["examples"] = json!([1]);
    extended["function"]["strict"] = Value::Null;
    let ask = ask(
        chat_completions,
        &call(
            json!({ "tools": [extended], "tool_choice": { "type": "function", "function": { "name": "set_light" } } }),
        ),
    );
    assert_eq!(ask.request.tools[0].definition.to_string(), TOOL.replace(",\"strict\":true", ""));
    assert_eq!((ask.request.tool_choice, ask.ignored_keys), (ToolChoice::Named("set_light".into()), 2));
}

#[test]
fn what_is_wrong_or_not_supported_is_refused_by_name() {
    let user = |content: Value| json!({ "messages": [{ "role": "user", "content": content }] });
    for (body, message) in [
        (json!({}), "messages: missing"),
        (json!({ "messages": [] }), "messages: empty"),
        (json!({ "messages": "hi" }), "messages: "),
        (json!({ "messages": ["hi"] }), "messages[0]: "),
        (
            json!({ "messages": [{ "role": "king", "content": "" }] }),
            "messages[0]: role: unknown variant `king`",
        ),
        (user(json!(5)), "messages[0]: content: not a string"),
        (
            user(json!([{ "type": "image_url", "image_url": {} }])),
            "messages[0].content[0]: type image_url is not supported",
        ),
        (
            user(json!([{ "type": "text", "text": "a" }, { "type": "input_audio" }])),
            "messages[0].content[1]: type input_audio",
        ),
        (user(json!([{ "text": "a" }])), "messages[0].content[0].type: missing"),
        (user(json!([{ "type": "text" }])), "messages[0].content[0].text: missing"),
        (user(json!(["a"])), "messages[0].content[0]: not an object"),
        (
            json!({ "messages": [{ "role": "assistant", "audio": { "id": "1" } }] }),
            "messages[0].audio: not supported",
        ),
        (call(json!({ "model": 5 })), "model: not a string"),
        (call(json!({ "audio": { "voice": "x" } })), "audio: not supported"),
        (call(json!({ "modalities": ["text", "audio"] })), "modalities: "),
        (call(json!({ "web_search_options": {} })), "web_search_options: not supported"),
        (call(json!({ "functions": [{}] })), "functions: not supported"),
        (call(json!({ "function_call": { "name": "f" } })), "function_call: not supported"),
        (call(json!({ "moderation": { "model": "x" } })), "moderation: not supported"),
        (call(json!({ "max_completion_tokens": 0 })), "max_completion_tokens: 0; at least 1"),
        (call(json!({ "max_completion_tokens": 1.5 })), "max_completion_tokens: "),
        (call(json!({ "max_tokens": "5" })), "max_tokens: "),
        (call(json!({ "temperature": -1 })), "temperature: -1 is outside"),
        (call(json!({ "n": 9 })), "n: 9 is outside 1 to 8"),
        (call(json!({ "stop": 5 })), "stop: "),
        (call(json!({ "stream": "yes" })), "stream: "),
        (call(json!({ "stream_options": true })), "stream_options: not an object"),
        (call(json!({ "stream_options": { "include_usage": 1 } })), "stream_options.include_usage: "),
        (call(json!({ "parallel_tool_calls": 1 })), "parallel_tool_calls: "),
        (
            call(json!({ "tools": [{ "type": "custom", "custom": {} }] })),
            "tools[0].type: \"function\" is the only one",
        ),
        (call(json!({ "tools": [5] })), "tools[0].type: "),
        (
            call(json!({ "tools": [tool()], "tool_choice": { "type": "allowed_tools" } })),
            "tool_choice: allowed_tools is not supported",
        ),
        (
            call(json!({ "tools": [tool()], "tool_choice": { "type": "custom" } })),
            "tool_choice: type custom is not supported",
        ),
        (call(json!({ "tool_choice": "required" })), "tool_choice: needs tools"),
        (call(json!({ "response_format": { "type": "yaml" } })), "response_format.type: \"yaml\""),
    ] {
        let found = refusal(chat_completions, &body);
        assert!(found.starts_with(message), "{body}: {found}");
    }
    let twice = chat_completions(br#"{"messages":[],"n":1,"n":2}"#, &context()).expect_err("twice");
    assert!(twice.message.starts_with("n: given twice"));
}
