//! Requests over the socket, and their events.

use crate::daemon::{Client, Daemon, is_emulated};
use crate::{Folder, PATIENCE, cases, endless};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// The keys of an object, in their order.
fn keys(object: &Value) -> Vec<&str> {
    object.as_object().unwrap_or_else(|| panic!("an object: {object}")).keys().map(String::as_str).collect()
}

fn sorted_keys(object: &Value) -> Vec<&str> {
    let mut keys = keys(object);
    keys.sort_unstable();
    keys
}

/// Everything that is documented of a `done`, whatever was asked.
fn assert_whole(done: &Value) {
    let found = sorted_keys(done);
    let expected = ["cached", "energy", "event", "finish_reason", "id", "model", "text", "timings", "usage"];
    assert_eq!(found, expected, "{done}");
    assert_eq!(done["event"], "done", "{done}");
    assert!(done["cached"].is_boolean() && done["id"].is_string(), "{done}");
    for count in ["prompt_tokens", "completion_tokens"] {
        assert!(done["usage"][count].as_u64().is_some_and(|count| count > 0), "{done}");
    }
    assert_sensible_times(done);
    let energy = &done["energy"];
    let methods = ["measured", "derived", "estimated"];
    let sound = |method: &Value| method.as_str().is_some_and(|method| methods.contains(&method));
    let known = energy["joules"].as_f64().is_some_and(|joules| joules >= 0.0) && sound(&energy["method"]);
    assert!(energy.is_null() || known, "{done}");
}

fn assert_sensible_times(done: &Value) {
    let time = |key: &str| done["timings"][key].as_f64().unwrap_or_else(|| panic!("{key}: {done}"));
    let [queue, prompt, ttft, total] = ["queue_ms", "prompt_ms", "ttft_ms", "total_ms"].map(time);
    assert!(queue >= 0.0 && prompt >= 0.0 && queue + prompt <= ttft + 1.0 && ttft <= total, "{done}");
    assert!(time("tokens_per_second") >= 0.0, "{done}");
}

#[tokio::test]
async fn answers_are_the_reference_answers() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let mut client = daemon.client().await;
    for case in cases().iter().step_by(if is_emulated() { 40 } else { 10 }) {
        let done = client.ask(json!({"prompt": case.prompt})).await;
        assert_whole(&done);
        assert_eq!(
            (&done["text"], &done["finish_reason"]),
            (&json!(case.answer), &json!(case.finish_reason))
        );
        assert_eq!(done["usage"]["prompt_tokens"], case.prompt_tokens, "{done}");
        assert_eq!(done["cached"], false);
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_conversation_is_answered_like_its_only_turn() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let case = &cases()[0];
    let turns = json!([{"role": "user", "content": case.prompt}]);
    let done = daemon.client().await.ask(json!({"messages": turns})).await;
    assert_eq!(done["text"], case.answer);
}

#[tokio::test]
async fn the_tokens_are_the_text_and_one_done_ends_each_request() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let mut client = daemon.client().await;
    let cases: Vec<_> = cases().into_iter().take(5).collect();
    let ask = |case: &crate::Case| json!({"id": case.prompt, "prompt": case.prompt, "stream": true, "cache": false});
    client.request(&cases.iter().map(ask).collect::<Vec<_>>()).await;
    for case in &cases {
        let mut streamed = String::new();
        let done = loop {
            let event = client.event().await;
            // One worker: what was asked first is answered to its end first.
            assert_eq!(event["id"], case.prompt, "{event}");
            match event["event"].as_str() {
                Some("token") => streamed.push_str(event["text"].as_str().expect("text")),
                _ => break event,
            }
        };
        assert_whole(&done);
        assert_eq!((streamed.as_str(), &done["text"]), (case.answer.as_str(), &json!(case.answer)));
    }
    // The next event is that of the next request, so that nothing followed the last `done`.
    let done = client.ask(json!({"id": "next", "prompt": "go"})).await;
    assert_eq!((&done["event"], &done["id"]), (&json!("done"), &json!("next")));
}

#[tokio::test]
async fn without_stream_there_are_no_tokens() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let mut client = daemon.client().await;
    client.request(&[json!({"prompt": "turn on the light"})]).await;
    assert_whole(&client.event().await);
}

#[tokio::test]
async fn the_same_request_is_answered_from_the_cache_unless_it_opts_out() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let mut client = daemon.client().await;
    let question = json!({"prompt": "turn on the kitchen lights"});
    let first = client.ask(question.clone()).await;
    let again = client.ask(question).await;
    let anew = client.ask(json!({"prompt": "turn on the kitchen lights", "cache": false})).await;
    for (done, cached) in [(&first, false), (&again, true), (&anew, false)] {
        assert_whole(done);
        assert_eq!(done["cached"], cached, "{done}");
        for key in ["text", "finish_reason"] {
            assert_eq!(done[key], first[key]);
        }
        for key in ["prompt_tokens", "completion_tokens"] {
            assert_eq!(done["usage"][key], first["usage"][key]);
        }
        // Of a stored answer no token was computed.
        let computed_before = if cached { &done["usage"]["prompt_tokens"] } else { &json!(0) };
        assert_eq!(&done["usage"]["cached_tokens"], computed_before, "{done}");
    }
    let warm = json!({"prompt": "turn on the kitchen lights", "temperature": 0.1});
    for _ in 0..2 {
        assert_eq!(client.ask(warm.clone()).await["cached"], false, "drawn at random");
    }
}

#[tokio::test]
async fn a_request_with_a_seed_is_answered_from_the_cache_where_all_its_settings_are_the_same() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let mut client = daemon.client().await;
    let hot = |seed: u64, top_p: f64| json!({"prompt": "go", "temperature": 10, "top_p": top_p, "seed": seed, "max_tokens": 20});
    let first = client.ask(hot(1, 0.9)).await;
    let again = client.ask(hot(1, 0.9)).await;
    assert_eq!((&first["cached"], &again["cached"]), (&json!(false), &json!(true)));
    assert_eq!((&first["text"], &first["finish_reason"]), (&again["text"], &again["finish_reason"]));
    for other in [hot(2, 0.9), hot(1, 0.8)] {
        assert_eq!(client.ask(other).await["cached"], false);
    }
}

#[tokio::test]
async fn the_cache_of_answers_shrinks_and_is_switched_off_by_a_reload() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let mut client = daemon.client().await;
    let ask = |number: u64| json!({"prompt": format!("turn on light {number}"), "max_tokens": 1});
    for number in 0..40 {
        assert_eq!(client.ask(ask(number)).await["cached"], false);
    }
    assert_eq!(client.ask(ask(0)).await["cached"], true);
    let cache = telemetry(&mut client).await["cache"].clone();
    let bytes = cache["bytes"].as_u64().expect("a number");
    assert_eq!((&cache["entries"], &cache["hits"], &cache["misses"]), (&json!(40), &json!(1), &json!(40)));
    assert!((1..=256 << 10).contains(&bytes), "{cache}");
    // The 40 answers take more than this, and each takes less than an eighth of it.
    assert!(bytes > 16 << 10 && bytes / 40 < (16 << 10) / 8, "{cache}");
    folder.config("[cache]\nanswers_kb = 16\n");
    daemon.process.signal(Signal::HUP);
    let cache = cache_within(&mut client, 16 << 10).await;
    assert_ne!(cache["entries"], 0, "{cache}");
    assert_eq!(client.ask(ask(0)).await["cached"], true, "the last one used");
    folder.config("[cache]\nanswers_kb = 0\n");
    daemon.process.signal(Signal::HUP);
    let before = cache_within(&mut client, 0).await;
    assert_eq!(before["entries"], 0, "{before}");
    for _ in 0..2 {
        assert_eq!(client.ask(ask(0)).await["cached"], false);
    }
    assert_eq!(telemetry(&mut client).await["cache"], before, "nothing is looked up");
    daemon.stop().await;
}

#[tokio::test]
async fn success_counts_whole_answers_and_failures_of_the_daemon_and_not_what_clients_caused() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, &endless()).await;
    let mut client = daemon.client().await;
    let short = json!({"prompt": "go", "max_tokens": 2});
    for cached in [false, true] {
        let done = client.ask(short.clone()).await;
        assert_eq!((&done["finish_reason"], &done["cached"]), (&json!("length"), &json!(cached)));
    }
    // It has no end of its own.
    let late = client.ask(json!({"prompt": "go on", "timeout_ms": 50})).await;
    assert!(late["finish_reason"] == "timeout" || late["code"] == "timeout", "{late}");
    client.send("no request\n").await;
    assert_eq!(client.event().await["code"], "invalid_request");
    let unbalanced = json!({"prompt": "go", "response_format": {"type": "regex", "regex": "("}});
    assert_eq!(client.ask(unbalanced).await["code"], "invalid_request");
    client.keep_busy().await;
    client.cancel_busy().await;
    assert_eq!(client.end().await["finish_reason"], "cancelled");
    let report = telemetry(&mut client).await;
    for requests in [&report["requests"], &report["requests"]["last_hour"]] {
        assert_eq!((&requests["succeeded"], &requests["failed"]), (&json!(2), &json!(1)), "{requests}");
        assert_eq!(requests["success_ratio"], 0.6667, "{requests}");
        assert!(
            requests["per_minute"].is_null() || requests["per_minute"].as_f64() > Some(0.0),
            "{requests}"
        );
        assert!(requests["mean_s"].as_f64() > Some(0.0), "{requests}");
    }
    let cache = &report["cache"];
    assert_eq!((&cache["hits"], &cache["last_hour"]["hits"]), (&json!(1), &json!(1)), "{cache}");
    let ratio = 1.0 / cache["lookups"].as_f64().expect("a number");
    let shown = cache["last_hour"]["hit_ratio"].as_f64().expect("a number");
    assert!((shown - ratio).abs() < 1e-4, "{cache}");
    daemon.stop().await;
}

async fn telemetry(client: &mut Client) -> Value {
    client.ask(json!({"telemetry": true})).await
}

/// The counts of the cache once it takes no more than so many bytes.
async fn cache_within(client: &mut Client, bytes: u64) -> Value {
    let shrunk = async {
        loop {
            let cache = telemetry(client).await["cache"].clone();
            if cache["bytes"].as_u64().expect("a number") <= bytes {
                return cache;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, shrunk).await.expect("the smaller cache in time")
}

#[tokio::test]
async fn the_same_seed_gives_the_same_answer() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let mut client = daemon.client().await;
    let hot =
        |seed| json!({"prompt": "go", "temperature": 10, "seed": seed, "max_tokens": 20, "cache": false});
    let (one, same, other) = (client.ask(hot(1)).await, client.ask(hot(1)).await, client.ask(hot(2)).await);
    assert_eq!(
        (&one["text"], &one["cached"], &same["cached"]),
        (&same["text"], &json!(false), &json!(false))
    );
    assert_ne!(one["text"], other["text"]);
}

#[tokio::test]
async fn the_context_ends_an_answer_that_does_not_end_itself() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, &endless().replace("65536", "64")).await;
    let done = daemon.client().await.ask(json!({"prompt": "go"})).await;
    assert_eq!(done["finish_reason"], "length", "{done}");
    let tokens = |key: &str| done["usage"][key].as_u64().expect("a number");
    assert_eq!(tokens("prompt_tokens") + tokens("completion_tokens"), 64);
}

#[tokio::test]
async fn max_tokens_ends_the_answer_by_its_length() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let done = daemon.client().await.ask(json!({"prompt": "turn on the light", "max_tokens": 3})).await;
    assert_eq!((&done["finish_reason"], &done["usage"]["completion_tokens"]), (&json!("length"), &json!(3)));
    assert!(done["text"].as_str().is_some_and(|text| text.starts_with("{\"intent")), "{done}");
}

#[tokio::test]
async fn a_stop_text_ends_the_answer_and_is_no_part_of_it() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let mut client = daemon.client().await;
    let stop = json!([",\"slots", "never"]);
    let request = json!({"prompt": "turn on the kitchen lights", "stop": stop, "stream": true});
    client.request(&[request]).await;
    let mut streamed = String::new();
    let done = loop {
        match client.event().await {
            event if event["event"] == "token" => streamed.push_str(event["text"].as_str().expect("text")),
            event => break event,
        }
    };
    assert_eq!(
        (&done["text"], &done["finish_reason"]),
        (&json!(r#"{"intent":"HassTurnOn""#), &json!("stop"))
    );
    assert_eq!(streamed, r#"{"intent":"HassTurnOn""#);
}

#[tokio::test]
async fn a_prompt_longer_than_the_context_is_refused_with_the_numbers() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let error = daemon.client().await.ask(json!({"id": "a", "prompt": "light ".repeat(600)})).await;
    assert_eq!((&error["code"], &error["id"]), (&json!("context_exceeded"), &json!("a")));
    assert!(error["message"].as_str().is_some_and(|said| said.contains("512")), "{error}");
}

#[tokio::test]
async fn what_is_no_sound_request_is_refused_and_the_connection_stays_open() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let mut client = daemon.client().await;
    let unknown = client.ask(json!({"id": "a", "prompt": "go", "temprature": 1})).await;
    assert_eq!((&unknown["id"], &unknown["code"]), (&json!("a"), &json!("invalid_request")));
    assert!(unknown["message"].as_str().is_some_and(|said| said.contains("temprature")), "{unknown}");
    client.send("turn on the light\n").await;
    let no_json = client.event().await;
    assert_eq!((&no_json["id"], &no_json["code"]), (&Value::Null, &json!("invalid_request")));
    assert_whole(&client.ask(json!({"prompt": "go"})).await);
}

#[tokio::test]
async fn several_answers_to_a_prompt_are_reproducible_and_end_in_one_done() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let mut client = daemon.client().await;
    let question = |seed: u64, choices: u32| {
        json!({"id": "a", "prompt": "turn on the kitchen lights", "temperature": 3.0, "seed": seed, "n": choices,
            "max_tokens": 12, "stream": true})
    };
    client.request(&[question(7, 3)]).await;
    let mut streamed = vec![String::new(); 3];
    let done = loop {
        let event = client.event().await;
        if event["event"] != "token" {
            break event;
        }
        let index = event["index"].as_u64().expect("which answer") as usize;
        streamed[index].push_str(event["text"].as_str().expect("text"));
    };
    let choices = done["choices"].as_array().expect("all answers");
    assert_eq!(choices.len(), 3, "{done}");
    for (index, (choice, streamed)) in choices.iter().zip(&streamed).enumerate() {
        assert_eq!(sorted_keys(choice), ["finish_reason", "index", "text"]);
        assert_eq!((&choice["index"], &choice["text"]), (&json!(index), &json!(streamed)));
    }
    assert_eq!(done["text"], choices[0]["text"]);
    assert!(streamed[0] != streamed[1] && streamed[1] != streamed[2], "{streamed:?}");
    assert!(done["usage"]["completion_tokens"].as_u64().expect("a count") > 12, "{done}");
    // Each answer has the seed of the one before plus one.
    for (index, text) in streamed.iter().enumerate() {
        let mut alone = question(7 + index as u64, 1);
        alone["stream"] = json!(false);
        let done = client.ask(alone).await;
        assert_whole(&done);
        assert_eq!(&done["text"], text);
    }
    daemon.stop().await;
}

#[tokio::test]
async fn log_probabilities_come_with_the_tokens_and_with_the_answer() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let mut client = daemon.client().await;
    let plain = client.ask(json!({"prompt": "turn on the kitchen lights"})).await;
    let question = json!({"id": "a", "prompt": "turn on the kitchen lights", "logprobs": true, "top_logprobs": 2,
        "stream": true});
    for _ in 0..2 {
        client.request(std::slice::from_ref(&question)).await;
        let mut streamed = Vec::new();
        let done = loop {
            let event = client.event().await;
            match &event["logprobs"] {
                Value::Array(logprobs) if event["event"] == "token" => streamed.extend(logprobs.clone()),
                _ => break event,
            }
        };
        assert_eq!((&done["text"], &done["cached"]), (&plain["text"], &json!(false)));
        let logprobs = done["logprobs"].as_array().expect("asked for");
        assert_eq!(
            (json!(logprobs.len()), &streamed),
            (plain["usage"]["completion_tokens"].clone(), logprobs)
        );
        let texts: String = logprobs.iter().map(|token| token["token"].as_str().expect("text")).collect();
        assert_eq!(done["text"], texts);
        for token in logprobs {
            assert_eq!(sorted_keys(token), ["bytes", "logprob", "token", "top_logprobs"]);
            let top = token["top_logprobs"].as_array().expect("two");
            // The greedy choice is the likeliest token.
            assert_eq!((top.len(), &top[0]["token"]), (2, &token["token"]));
            let logprob = |token: &Value| token["logprob"].as_f64().expect("a number");
            assert!(logprob(&top[1]) <= logprob(token) && logprob(token) <= 0.0, "{token}");
        }
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_bias_changes_the_answer_and_one_of_no_token_is_refused() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let mut client = daemon.client().await;
    let ask =
        |bias: Value| json!({"prompt": "turn on the kitchen lights", "logit_bias": bias, "max_tokens": 20});
    let usual = client.ask(ask(json!({}))).await;
    let again = client.ask(ask(json!({"7": 0.5}))).await;
    assert_eq!(again["cached"], false, "another request");
    let longest = json!({"7": 100.0});
    let repeated = client.ask(ask(longest)).await;
    assert_ne!(repeated["text"], usual["text"]);
    let refused = client.ask(ask(json!({"4000000": 1}))).await;
    assert_eq!(refused["code"], "invalid_request", "{refused}");
    let message = refused["message"].as_str().expect("text");
    assert!(message.starts_with("logit_bias: token 4000000 is outside the vocabulary of "), "{message}");
    daemon.stop().await;
}

/// Two functions that the built-in model was not trained on.
fn tools() -> Value {
    json!([
        {"type": "function", "function": {"name": "set_light", "description": "Switches a light", "parameters": {
            "type": "object", "properties": {"area": {"enum": ["kitchen", "hall"]}, "on": {"type": "boolean"}},
            "required": ["area", "on"]}}},
        {"type": "function", "function": {"name": "get_time"}},
    ])
}

#[tokio::test]
async fn a_required_call_fits_its_function_and_is_streamed_in_one_piece() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let mut client = daemon.client().await;
    let named = json!({"type": "function", "function": {"name": "set_light"}});
    for choice in [named, json!("required")] {
        let question = json!({"id": "q", "prompt": "turn on the kitchen lights", "tools": tools(), "tool_choice": choice,
            "stream": true, "max_tokens": 120});
        let done = client.ask(question).await;
        assert_eq!((&done["event"], &done["text"]), (&json!("done"), &json!("")), "{done}");
        assert_eq!(done["finish_reason"], "stop", "{done}");
        for call in done["tool_calls"].as_array().expect("calls") {
            assert_eq!(sorted_keys(call), ["function", "id", "type"]);
            assert!(call["id"].as_str().is_some_and(|id| id.starts_with("call_q_")), "{call}");
            let arguments = &call["function"]["arguments"];
            match call["function"]["name"].as_str() {
                Some("set_light") => {
                    assert_eq!(sorted_keys(arguments), ["area", "on"]);
                    assert!(["kitchen", "hall"].iter().any(|area| arguments["area"] == *area), "{call}");
                    assert!(arguments["on"].is_boolean(), "{call}");
                }
                Some("get_time") => assert_eq!(arguments, &json!({})),
                other => panic!("{other:?}"),
            }
        }
    }
    daemon.stop().await;
}

#[tokio::test]
async fn with_tools_on_offer_an_answer_is_a_call_or_a_text() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let mut client = daemon.client().await;
    let ask = |seed: u64| {
        json!({"prompt": "turn on the kitchen lights", "tools": tools(), "stream": true, "max_tokens": 60,
            "temperature": 2.0, "seed": seed})
    };
    for seed in 0..if is_emulated() { 2 } else { 10 } {
        client.request(&[ask(seed)]).await;
        let mut streamed = String::new();
        let done = loop {
            let event = client.event().await;
            match event["text"].as_str() {
                Some(text) if event["event"] == "token" => streamed.push_str(text),
                _ => break event,
            }
        };
        assert_eq!(done["text"], streamed, "{done}");
        assert_ne!(done["tool_calls"].is_array(), !streamed.is_empty(), "{done}");
    }
    // Not offered, they change nothing.
    let plain = client.ask(json!({"prompt": "turn on the kitchen lights"})).await;
    let none = client
        .ask(json!({"prompt": "turn on the kitchen lights", "tools": tools(), "tool_choice": "none"}))
        .await;
    assert_whole(&none);
    assert_eq!(none["text"], plain["text"]);
    daemon.stop().await;
}

#[tokio::test]
async fn calls_and_results_are_part_of_a_conversation_and_a_bad_schema_names_its_function() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let mut client = daemon.client().await;
    let call = json!({"id": "1", "type": "function", "function": {"name": "get_time", "arguments": "{}"}});
    let messages = json!([{"role": "user", "content": "what time is it"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "12:00"}]);
    assert_whole(&client.ask(json!({"messages": messages, "max_tokens": 8})).await);
    let mut wrong = tools();
    wrong[1]["function"]["parameters"] = json!({"type": "object", "not": {}});
    let refused = client.ask(json!({"prompt": "a", "tools": wrong})).await;
    assert_eq!(refused["code"], "invalid_request", "{refused}");
    let message = refused["message"].as_str().expect("text");
    assert!(message.starts_with("tools[1].function.parameters: ") && message.contains("not"), "{message}");
    daemon.stop().await;
}
