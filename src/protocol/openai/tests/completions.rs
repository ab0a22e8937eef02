//! `/v1/completions`.

use super::*;
use crate::protocol::Code;
use crate::protocol::Input;

fn complete(keys: Value) -> TranslatedRequest {
    ask(completions, &with(json!({ "model": "any", "prompt": "hi" }), keys))
}

#[test]
fn a_prompt_is_a_text_or_a_list_of_one() {
    for prompt in [json!("hi"), json!(["hi"])] {
        assert_eq!(ask(completions, &json!({ "prompt": prompt })).request.input, Input::Prompt("hi".into()));
    }
}

#[test]
fn keys_are_translated_and_what_changes_nothing_is_ignored() {
    let keys = json!({
        "max_tokens": 5.0, "logprobs": 2, "n": 2, "best_of": 2, "echo": false, "suffix": "", "user": "u", "top_k": 3,
        "response_format": { "type": "json_object" },
    });
    let ask = complete(keys);
    let request = &ask.request;
    assert_eq!((request.max_tokens, request.logprobs, request.choices), (Some(5), Some(2), 2));
    assert_eq!(ask.ignored_keys, 4, "best_of, echo, suffix, user");
    assert_eq!(complete(json!({ "logprobs": 0 })).request.logprobs, Some(0));
    assert_eq!(complete(json!({ "logprobs": false })).request.logprobs, None);
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    for (keys, message) in [
        (json!({ "prompt": null }), "prompt: missing"),
        (json!({ "prompt": 5 }), "prompt: "),
        (json!({ "prompt": "" }), "prompt: empty"),
        (json!({ "prompt": [1, 2] }), "prompt: token ids are not read"),
        (json!({ "prompt": [[1, 2]] }), "prompt: token ids are not read"),
        (json!({ "prompt": ["a", "b"] }), "prompt: 2 texts; give one"),
        (json!({ "prompt": [] }), "prompt: 0 texts"),
        (json!({ "echo": true }), "echo: not supported"),
        (json!({ "suffix": "x" }), "suffix: not supported"),
        (json!({ "tools": [{}] }), "tools: not supported"),
        (json!({ "best_of": 3 }), "best_of: not supported"),
        (json!({ "logprobs": 21 }), "logprobs: 21 is outside 0 to 20"),
        (json!({ "logprobs": "x" }), "logprobs: "),
    ] {
        let body = with(json!({ "prompt": "hi" }), keys);
        let found = refusal(completions, &body);
        assert!(found.starts_with(message), "{body}: {found}");
    }
}

#[test]
fn log_probabilities_are_lists() {
    let mut done = done("aé", FinishReason::Length);
    let token = |text: &str, logprob| TokenLogprob {
        token: likely(text, logprob),
        top_logprobs: vec![likely("x", -0.5)],
    };
    done.details.logprobs = Some(vec![token("a", -0.25), token("é", -1.0)]);
    let answer = whole(&mut complete(json!({ "logprobs": 1 })), &done);
    let logprobs = json!({
        "tokens": ["a", "é"], "token_logprobs": [-0.25, -1.0], "text_offset": [0, 1],
        "top_logprobs": [{ "x": -0.5, "a": -0.25 }, { "x": -0.5, "é": -1.0 }],
    });
    let choice = json!({ "text": "aé", "index": 0, "logprobs": logprobs, "finish_reason": "length" });
    assert_eq!(
        (&answer["id"], &answer["object"], &answer["choices"][0]),
        (&json!("cmpl-7"), &json!("text_completion"), &choice)
    );
    assert_eq!(answer["usage"]["total_tokens"], 14);

    let events = [
        token_with_logprob("aé", -0.25),
        token_with_logprob("b", -0.5),
        Event::Done(Box::new(super::done("aéb", FinishReason::Stop))),
    ];
    let found = chunks(&mut complete(json!({ "logprobs": 1, "stream": true })), &events);
    assert_eq!(found[1]["choices"][0]["logprobs"]["text_offset"], json!([2]));
    assert_eq!(
        found[2]["choices"][0],
        json!({ "text": "", "index": 0, "logprobs": null, "finish_reason": "stop" })
    );
    assert_eq!(found[2]["bitnetd"]["cached"], false);
}

#[test]
fn a_stream_ends_with_the_token_counts_where_they_are_asked_for() {
    let keys = json!({ "stream": true, "stream_options": { "include_usage": true } });
    let found = chunks(&mut complete(keys), &[Event::Done(Box::new(done("yes", FinishReason::Stop)))]);
    assert_eq!((found[0]["choices"][0]["text"].as_str(), &found[0]["usage"]), (Some("yes"), &Value::Null));
    assert_eq!((&found[2]["choices"], &found[2]["usage"]["prompt_tokens"]), (&json!([]), &json!(11)));
}

#[test]
fn refusals_of_the_daemon_name_the_callers_keys() {
    let ask = complete(json!({ "logprobs": 2 }));
    for (ours, theirs) in [
        ("messages: the template says no", "prompt: the template says no"),
        ("prompt: no tokens", "prompt: no tokens"),
        ("top_logprobs: no", "logprobs: no"),
    ] {
        let refusal = ask.encoder.in_callers_words(Refusal::new(Code::InvalidRequest, ours));
        assert_eq!(refusal.message, theirs);
    }
}
