//! `/v1/responses`.

use super::*;
use crate::protocol::{Code, Input, Message, ResponseFormat, Role, ToolChoice};

fn respond(keys: Value) -> TranslatedRequest {
    ask(responses, &with(json!({ "model": "any", "input": "hi" }), keys))
}

fn messages(keys: Value) -> (Vec<Message>, u32) {
    let ask = respond(keys);
    match ask.request.input {
        Input::Messages(messages) => (messages, ask.ignored_keys),
        Input::Prompt(_) => panic!("no messages"),
    }
}

fn tool() -> Value {
    json!({ "type": "function", "name": "set_light", "parameters": { "type": "object", "properties": {} }, "strict": null })
}

#[test]
fn a_text_is_a_turn_of_the_user_behind_the_instructions() {
    let (read, _) = messages(json!({ "instructions": "be short" }));
    let read: Vec<_> = read.iter().map(|message| (message.role, message.content.as_str())).collect();
    assert_eq!(read, [(Role::System, "be short"), (Role::User, "hi")]);
}

#[test]
fn items_are_messages_and_calls_join_the_text_before_them() {
    let (read, ignored) = messages(json!({ "input": [
        { "role": "developer", "content": [{ "type": "input_text", "text": "s" }] },
        { "type": "message", "role": "user", "content": "u" },
        { "type": "reasoning", "id": "rs_1", "summary": [] },
        { "type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "phase": null,
          "content": [{ "type": "output_text", "text": "a", "annotations": [], "logprobs": [] }] },
        { "type": "function_call", "id": "fc_1", "call_id": "1", "name": "f", "arguments": "{\"z\":1}", "status": "completed" },
        { "type": "function_call", "call_id": "2", "name": "g", "arguments": "" },
        { "type": "function_call_output", "call_id": "1", "output": "one" },
        { "type": "function_call_output", "call_id": "2", "output": [{ "type": "input_text", "text": "two" }] },
        { "type": "function_call", "call_id": "3", "name": "h", "arguments": "{}" },
    ] }));
    let roles: Vec<_> = read
        .iter()
        .map(|message| (message.role, message.content.as_str(), message.tool_calls.len()))
        .collect();
    let expected = [
        (Role::System, "s", 0),
        (Role::User, "u", 0),
        (Role::Assistant, "a", 2),
        (Role::Tool, "one", 0),
        (Role::Tool, "two", 0),
        (Role::Assistant, "", 1),
    ];
    assert_eq!(roles, expected);
    assert_eq!((read[2].tool_calls[1].id.as_str(), read[4].tool_call_id.as_deref()), ("2", Some("2")));
    assert_eq!(ignored, 3, "the reasoning, and two keys of a part");
}

#[test]
fn keys_are_translated() {
    let ask = respond(json!({
        "max_output_tokens": 9.0, "temperature": 0.5, "stream": true, "seed": 3, "tools": [tool()],
        "tool_choice": { "type": "function", "name": "set_light" }, "top_logprobs": 2, "top_k": 4,
        "text": { "format": { "type": "json_schema", "name": "n", "schema": { "b": null, "a": 1 } }, "verbosity": "low" },
        "store": true, "user": "u", "include": ["reasoning.encrypted_content"], "truncation": "auto", "metadata": { "a": "b" },
        "reasoning": { "effort": "low" }, "parallel_tool_calls": false,
    }));
    let request = &ask.request;
    assert_eq!((request.max_tokens, request.logprobs, request.stream), (Some(9), Some(2), true));
    assert_eq!(request.response_format, ResponseFormat::JsonSchema(r#"{"b":null,"a":1}"#.into()));
    assert_eq!(request.tool_choice, ToolChoice::Named("set_light".into()));
    let definition = r#"{"type":"function","function":{"name":"set_light","parameters":{"type":"object","properties":{}}}}"#;
    assert_eq!(request.tools[0].definition.to_string(), definition);
    assert_eq!(ask.ignored_keys, 7, "store, user, include, truncation, metadata, reasoning, verbosity");
    let include = respond(json!({ "include": ["message.output_text.logprobs"] }));
    assert_eq!(include.request.logprobs, Some(0));
    let object = respond(json!({ "text": { "format": { "type": "json_object" } } }));
    assert_eq!(object.request.response_format, ResponseFormat::JsonObject);
}

#[test]
fn what_is_wrong_or_not_supported_is_refused_by_name() {
    for (keys, message) in [
        (json!({ "input": null }), "input: missing"),
        (json!({ "input": " " }), "input: empty"),
        (json!({ "input": [] }), "input: empty"),
        (json!({ "input": 5 }), "input: neither"),
        (json!({ "input": ["hi"] }), "input[0]: not an object"),
        (
            json!({ "input": [{ "role": "user", "content": [{ "type": "input_image" }] }] }),
            "input[0].content[0]: type input_image",
        ),
        (json!({ "input": [{ "type": "computer_call" }] }), "input[0].type: computer_call is not supported"),
        (json!({ "input": [{ "type": "item_reference", "id": "x" }] }), "input[0]: nothing is stored"),
        (
            json!({ "instructions": "i", "input": [{ "type": "reasoning" }, { "role": "king", "content": "" }] }),
            "input[1]: role: unknown variant `king`",
        ),
        (json!({ "instructions": 5 }), "instructions: not a string"),
        (json!({ "previous_response_id": "resp_1" }), "previous_response_id: not supported"),
        (json!({ "conversation": { "id": "x" } }), "conversation: not supported"),
        (json!({ "background": true }), "background: not supported"),
        (json!({ "prompt": { "id": "x" } }), "prompt: not supported"),
        (json!({ "max_output_tokens": 0 }), "max_output_tokens: 0; at least 1"),
        (json!({ "text": 5 }), "text: not an object"),
        (json!({ "text": { "format": "json" } }), "text.format: not an object"),
        (json!({ "text": { "format": { "type": "yaml" } } }), "text.format.type: \"yaml\""),
        (
            json!({ "text": { "format": { "type": "json_schema", "name": "n" } } }),
            "text.format.schema: missing",
        ),
        (
            json!({ "tools": [tool(), { "type": "web_search" }] }),
            "tools[1].type: web_search is not supported",
        ),
        (json!({ "tools": [{ "type": "function" }] }), "tools[0].name: missing"),
        (json!({ "tools": [tool(), tool()] }), "tools[1].name: set_light is there twice"),
        (
            json!({ "tools": [tool()], "tool_choice": { "type": "function", "name": "x" } }),
            "tool_choice.name: x is none",
        ),
        (
            json!({ "tools": [tool()], "tool_choice": { "type": "allowed_tools" } }),
            "tool_choice: allowed_tools",
        ),
        (json!({ "tool_choice": "any" }), "tool_choice: \"any\""),
        (json!({ "top_logprobs": 21 }), "top_logprobs: 21 is outside"),
    ] {
        let body = with(json!({ "input": "hi" }), keys);
        let found = refusal(responses, &body);
        assert!(found.starts_with(message), "{body}: {found}");
    }
}

fn text_part(text: &str) -> Value {
    json!({ "type": "output_text", "annotations": [], "logprobs": [], "text": text })
}

fn message_item(status: &str, content: Value) -> Value {
    json!({ "id": "msg_7", "type": "message", "status": status, "role": "assistant", "content": content })
}

#[test]
fn a_whole_response_has_openais_keys() {
    let answer = whole(
        &mut respond(json!({ "metadata": { "a": "b" }, "temperature": 0.1, "tools": [tool()] })),
        &done("yes", FinishReason::Stop),
    );
    let mut shown = tool();
    shown["strict"] = json!(true);
    for (key, expected) in [
        ("id", json!("resp_7")),
        ("object", json!("response")),
        ("created_at", json!(1_800_000_000)),
        ("completed_at", json!(1_800_000_002)),
        ("status", json!("completed")),
        ("error", Value::Null),
        ("incomplete_details", Value::Null),
        ("metadata", json!({ "a": "b" })),
        ("temperature", json!(0.1)),
        ("tools", json!([shown])),
        ("output", json!([message_item("completed", json!([text_part("yes")]))])),
        (
            "usage",
            json!({
                "input_tokens": 11, "input_tokens_details": { "cached_tokens": 0, "cache_write_tokens": 0 },
                "output_tokens": 3, "output_tokens_details": { "reasoning_tokens": 0 }, "total_tokens": 14,
            }),
        ),
    ] {
        assert_eq!(answer[key], expected, "{key}");
    }
    assert_eq!(answer["bitnetd"]["finish_reason"], "stop");
}

#[test]
fn an_answer_that_was_cut_off_is_incomplete() {
    for reason in [FinishReason::Length, FinishReason::Timeout, FinishReason::Cancelled] {
        let answer = whole(&mut respond(json!({})), &done("ye", reason));
        assert_eq!(
            (&answer["status"], &answer["output"][0]["status"]),
            (&json!("incomplete"), &json!("incomplete"))
        );
        assert_eq!(answer["incomplete_details"], json!({ "reason": "max_output_tokens" }));
        let end = Event::Done(Box::new(done("ye", reason)));
        let found = streamed(&mut respond(json!({ "stream": true })), &[end]);
        assert_eq!(found.last().and_then(|(name, _)| name.as_deref()), Some("response.incomplete"));
    }
}

#[test]
fn a_stream_builds_the_response_up() {
    let events = [token("ye"), token("s"), Event::Done(Box::new(done("yes", FinishReason::Stop)))];
    let found = streamed(&mut respond(json!({ "stream": true })), &events);
    let names: Vec<_> = found.iter().filter_map(|(name, _)| name.as_deref()).collect();
    let expected = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ];
    assert_eq!(names, expected);
    for (at, (name, data)) in found.iter().enumerate() {
        assert_eq!(
            (data["sequence_number"].as_u64(), data["type"].as_str()),
            (Some(at as u64), name.as_deref())
        );
    }
    let delta = json!({
        "type": "response.output_text.delta", "sequence_number": 5, "item_id": "msg_7", "output_index": 0,
        "content_index": 0, "delta": "s", "logprobs": [],
    });
    assert_eq!(found[5].1, delta);
    assert_eq!((&found[6].1["text"], &found[7].1["part"]), (&json!("yes"), &text_part("yes")));
    assert_eq!(found[8].1["item"], message_item("completed", json!([text_part("yes")])));
    assert_eq!(found[9].1["response"]["output"][0], found[8].1["item"]);
}

#[test]
fn calls_are_items_of_their_own() {
    let found = streamed(&mut respond(json!({ "stream": true })), &[Event::Done(Box::new(with_calls(2)))]);
    let names: Vec<_> = found[2..7].iter().filter_map(|(name, _)| name.as_deref()).collect();
    let expected = [
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.output_item.added",
    ];
    assert_eq!(names, expected);
    assert_eq!(found[4].1["arguments"], "{\"z\":1,\"a\":[true]}");
    assert_eq!(found[6].1["output_index"], 1);
    let item = json!({
        "id": "fc_call_7_0_0", "type": "function_call", "status": "completed",
        "arguments": "{\"z\":1,\"a\":[true]}", "call_id": "call_7_0_0", "name": "set_light",
    });
    assert_eq!(found[5].1["item"], item);
    let output = &found.last().expect("some").1["response"]["output"];
    assert_eq!((output.as_array().map(Vec::len), &output[0]), (Some(2), &item));
    let mut one = respond(json!({ "parallel_tool_calls": false }));
    assert!(!one.request.parallel_tool_calls);
    assert_eq!(whole(&mut one, &with_calls(1))["parallel_tool_calls"], json!(false));
}

#[test]
fn refusals_of_the_daemon_name_the_callers_keys() {
    let ask = respond(json!({
        "instructions": "i", "input": [{ "role": "user", "content": "a" }], "max_output_tokens": 9, "tools": [tool()],
        "text": { "format": { "type": "json_schema", "name": "n", "schema": {} } }, "top_logprobs": 1,
    }));
    for (ours, theirs) in [
        ("prompt: no tokens", "input: no tokens"),
        ("messages: the template says no", "input: the template says no"),
        ("messages[0]: no", "instructions: no"),
        ("messages[1].content: no", "input[0].content: no"),
        ("max_tokens: no", "max_output_tokens: no"),
        ("logprobs: no", "top_logprobs: no"),
        ("response_format: no", "text.format: no"),
        ("response_format.json_schema.schema: #/a: no", "text.format.schema: #/a: no"),
        ("tools[0].function.parameters: no", "tools[0].parameters: no"),
        ("tool_choice.function.name: no", "tool_choice.name: no"),
        ("tool_choice: no", "tool_choice: no"),
    ] {
        let refusal = ask.encoder.in_callers_words(Refusal::new(Code::InvalidRequest, ours));
        assert_eq!(refusal.message, theirs);
        let body: Value = serde_json::from_slice(&refused(&refusal).body).expect("JSON");
        assert_eq!(body["error"]["param"], theirs.split(": ").next().expect("a key"));
    }
}

#[test]
fn a_failure_in_a_stream_is_the_failed_response() {
    for (code, expected) in [
        (Code::Internal, "server_error"),
        (Code::QueueFull, "rate_limit_exceeded"),
        (Code::ContextExceeded, "invalid_prompt"),
    ] {
        let error = Event::error(None, Refusal::new(code, "m"));
        let found = streamed(&mut respond(json!({ "stream": true })), &[error]);
        let (name, data) = found.last().expect("some");
        assert_eq!(
            (name.as_deref(), &data["response"]["status"]),
            (Some("response.failed"), &json!("failed"))
        );
        assert_eq!(data["response"]["error"], json!({ "code": expected, "message": "m" }));
    }
}
