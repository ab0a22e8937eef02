//! Answers of `/v1/chat/completions`, whole and in chunks.

use super::*;
use crate::protocol::{Code, PredictionUsage};

fn chat(keys: Value) -> TranslatedRequest {
    ask(chat_completions, &with(json!({ "messages": [{ "role": "user", "content": "hi" }] }), keys))
}

/// A chunk with one choice.
fn chunk(index: u32, delta: Value, finish_reason: Value) -> Value {
    json!({
        "id": "chatcmpl-7", "object": "chat.completion.chunk", "created": 1_800_000_000, "model": "home/intents",
        "system_fingerprint": format!("bitnetd-{}-0123456789ab", env!("CARGO_PKG_VERSION")),
        "choices": [{ "index": index, "delta": delta, "logprobs": null, "finish_reason": finish_reason }],
    })
}

fn first(index: u32) -> Value {
    chunk(index, json!({ "role": "assistant", "content": "", "refusal": null }), Value::Null)
}

fn extras() -> Value {
    let timings = json!({ "queue_ms": 0.0, "prompt_ms": 0.0, "ttft_ms": 0.0, "total_ms": 2000.0, "tokens_per_second": 0.0 });
    json!({ "finish_reason": "stop", "energy": null, "timings": timings, "cached": false })
}

fn usage() -> Value {
    json!({
        "prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14,
        "prompt_tokens_details": { "cached_tokens": 0, "audio_tokens": 0 },
        "completion_tokens_details": {
            "reasoning_tokens": 0, "audio_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
        },
    })
}

#[test]
fn a_whole_answer_has_openais_keys() {
    let answer = whole(&mut chat(json!({})), &done("yes", FinishReason::Stop));
    let expected = json!({
        "id": "chatcmpl-7", "object": "chat.completion", "created": 1_800_000_000, "model": "home/intents",
        "system_fingerprint": format!("bitnetd-{}-0123456789ab", env!("CARGO_PKG_VERSION")),
        "choices": [{
            "index": 0, "message": { "role": "assistant", "content": "yes", "refusal": null }, "logprobs": null,
            "finish_reason": "stop",
        }],
        "usage": usage(), "bitnetd": extras(),
    });
    assert_eq!(answer, expected);
}

#[test]
fn verified_tokens_of_a_predicted_answer_are_counted() {
    let mut done = done("yes", FinishReason::Stop);
    done.details.prediction = Some(PredictionUsage { accepted_tokens: 2, rejected_tokens: 5 });
    let details = whole(&mut chat(json!({})), &done)["usage"]["completion_tokens_details"].clone();
    let counts =
        ["accepted_prediction_tokens", "rejected_prediction_tokens"].map(|key| details[key].as_u64());
    assert_eq!(counts, [Some(2), Some(5)]);
}

#[test]
fn an_answer_that_was_cut_off_ends_by_length() {
    for (reason, exact) in [
        (FinishReason::Length, "length"),
        (FinishReason::Timeout, "timeout"),
        (FinishReason::Cancelled, "cancelled"),
    ] {
        let answer = whole(
            &mut chat(json!({ "response_format": { "type": "json_object" } })),
            &done("{\"a\":", reason),
        );
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
        assert_eq!(answer["bitnetd"]["finish_reason"], exact);
    }
}

#[test]
fn a_cached_answer_says_that_no_token_of_the_prompt_was_read() {
    let cached = Done { cached: true, ..done("yes", FinishReason::Stop) };
    let answer = whole(&mut chat(json!({})), &cached);
    assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 11);
    assert_eq!(answer["bitnetd"]["cached"], true);
}

#[test]
fn calls_have_their_arguments_as_text_and_no_content() {
    let answer = whole(&mut chat(json!({})), &with_calls(2));
    let message = &answer["choices"][0]["message"];
    assert_eq!(
        (&message["content"], &answer["choices"][0]["finish_reason"]),
        (&Value::Null, &json!("tool_calls"))
    );
    let call = json!({ "id": "call_7_0_1", "type": "function", "function": { "name": "set_light", "arguments": "{\"z\":1,\"a\":[true]}" } });
    assert_eq!(message["tool_calls"][1], call);
    // The grammar allows one call, so that there is nothing to drop here.
    for (keys, expected) in [
        (json!({}), true),
        (json!({ "parallel_tool_calls": true }), true),
        (json!({ "parallel_tool_calls": false }), false),
    ] {
        assert_eq!(chat(keys).request.parallel_tool_calls, expected);
    }
}

#[test]
fn a_stream_is_a_role_pieces_of_text_a_reason_and_the_end() {
    let events = [token("ye"), token("s"), Event::Done(Box::new(done("yes", FinishReason::Stop)))];
    let found = chunks(&mut chat(json!({ "stream": true })), &events);
    let mut last = chunk(0, json!({}), json!("stop"));
    last["bitnetd"] = extras();
    let text = |text: &str| chunk(0, json!({ "content": text }), Value::Null);
    assert_eq!(found, [first(0), text("ye"), text("s"), last]);
}

#[test]
fn token_counts_are_in_a_chunk_of_their_own_where_they_are_asked_for() {
    let keys = json!({ "stream": true, "stream_options": { "include_usage": true } });
    let found =
        chunks(&mut chat(keys), &[token("yes"), Event::Done(Box::new(done("yes", FinishReason::Stop)))]);
    let (last, others) = found.split_last().expect("some");
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &usage()));
    assert!(others.iter().all(|chunk| chunk.get("usage") == Some(&Value::Null)));
}

#[test]
fn text_that_was_not_streamed_comes_before_the_end() {
    let events = [token("y"), Event::Done(Box::new(done("yés", FinishReason::Stop)))];
    let found = chunks(&mut chat(json!({ "stream": true })), &events);
    assert_eq!(found[2]["choices"][0]["delta"], json!({ "content": "és" }));
    assert_eq!(found.len(), 4);
}

#[test]
fn calls_are_streamed_whole_with_their_index() {
    let found = chunks(&mut chat(json!({ "stream": true })), &[Event::Done(Box::new(with_calls(2)))]);
    let calls = &found[1]["choices"][0]["delta"]["tool_calls"];
    assert_eq!(
        (&calls[0]["index"], &calls[1]["index"], &calls[1]["id"]),
        (&json!(0), &json!(1), &json!("call_7_0_1"))
    );
    assert_eq!(found[2]["choices"][0]["finish_reason"], "tool_calls");
}

#[test]
fn several_answers_are_told_apart_by_their_index() {
    let mut done = done("a", FinishReason::Stop);
    let choice = |index, text: &str, finish_reason| Choice {
        index,
        text: text.into(),
        finish_reason,
        tool_calls: Vec::new(),
        logprobs: None,
    };
    done.details.choices = vec![choice(0, "a", FinishReason::Stop), choice(1, "b", FinishReason::Length)];
    let answer = whole(&mut chat(json!({ "n": 2 })), &done);
    assert_eq!(answer["choices"][1]["message"]["content"], "b");
    assert_eq!(answer["choices"][1]["finish_reason"], "length");

    let of = |index| Event::Token {
        id: "7".into(),
        text: if index == 0 { "a" } else { "b" }.into(),
        index: Some(index),
        logprobs: Vec::new(),
        metadata: None,
    };
    let found =
        chunks(&mut chat(json!({ "n": 2, "stream": true })), &[of(0), of(1), Event::Done(Box::new(done))]);
    let mut last = chunk(1, json!({}), json!("length"));
    last["bitnetd"] = extras();
    let text = |index, text: &str| chunk(index, json!({ "content": text }), Value::Null);
    assert_eq!(
        found,
        [first(0), first(1), text(0, "a"), text(1, "b"), chunk(0, json!({}), json!("stop")), last]
    );
}

#[test]
fn log_probabilities_come_with_their_text() {
    let events =
        [token_with_logprob("é", f32::NEG_INFINITY), Event::Done(Box::new(done("é", FinishReason::Stop)))];
    let found = chunks(&mut chat(json!({ "stream": true, "logprobs": true, "top_logprobs": 1 })), &events);
    let expected = json!({ "content": [{
        "token": "é", "logprob": -9999.0, "bytes": [195, 169],
        "top_logprobs": [{ "token": "x", "logprob": -0.5, "bytes": [120] }],
    }], "refusal": null });
    assert_eq!(found[1]["choices"][0]["logprobs"], expected);
}

#[test]
fn an_error_in_a_stream_is_an_event_and_the_end() {
    let error = Event::error(Some("7".into()), Refusal::shutting_down());
    let found = chunks(&mut chat(json!({ "stream": true })), &[token("y"), error]);
    assert_eq!(found[2]["error"]["type"], "server_error");
}

#[test]
fn refusals_of_the_daemon_name_the_callers_keys() {
    let format = json!({ "type": "json_schema", "json_schema": { "schema": {} } });
    let ask = chat(json!({ "stream": true, "max_completion_tokens": 9, "response_format": format }));
    for (ours, theirs) in [
        ("prompt: no tokens", "messages: no tokens"),
        ("messages: the template says no", "messages: the template says no"),
        ("max_tokens: no", "max_completion_tokens: no"),
        ("response_format.json_schema.schema: no", "response_format.json_schema.schema: no"),
        ("tools[0].function.parameters: no", "tools[0].function.parameters: no"),
        ("promptly: no", "promptly: no"),
    ] {
        let refusal = ask.encoder.in_callers_words(Refusal::new(Code::InvalidRequest, ours));
        assert_eq!(refusal.message, theirs);
    }
    let refusal = Refusal::new(Code::InvalidRequest, "max_tokens: no");
    let found = chunks(
        &mut chat(json!({ "stream": true, "max_completion_tokens": 9 })),
        &[Event::error(None, refusal)],
    );
    assert_eq!(found.last().expect("one")["error"]["param"], "max_completion_tokens");
}
