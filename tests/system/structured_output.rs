//! Answers under a `response_format`, over the socket and over MQTT.

use crate::daemon::Daemon;
use crate::listener::Listener;
use crate::support::broker::Mosquitto;
use crate::{Folder, cases, linked};
use serde_json::{Value, json};

/// The form of an intent, as `docs/structured-output.md` shows it.
fn intent() -> Value {
    json!({"type": "json_schema", "json_schema": {"name": "intent", "strict": true, "schema": {
        "type": "object", "additionalProperties": false, "required": ["intent", "slots"],
        "properties": {
            "intent": {"enum": ["HassTurnOn", "HassTurnOff"]},
            "slots": {"type": "object", "additionalProperties": false, "required": ["area"], "properties": {
                "area": {"enum": ["garage", "cellar"]}
            }}
        }
    }}})
}

fn assert_intent(text: &Value) {
    let answer: Value = serde_json::from_str(text.as_str().expect("a text")).expect("JSON");
    assert!(["HassTurnOn", "HassTurnOff"].contains(&answer["intent"].as_str().expect("a name")), "{answer}");
    assert!(["garage", "cellar"].contains(&answer["slots"]["area"].as_str().expect("a name")), "{answer}");
    assert_eq!(answer.as_object().map(|keys| keys.len()), Some(2), "{answer}");
}

#[tokio::test]
async fn answers_fit_their_format_and_are_counted() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let mut client = daemon.client().await;
    for seed in 0..5 {
        let request = json!({"prompt": "hello", "temperature": 5, "seed": seed, "response_format": intent()});
        let done = client.ask(request).await;
        assert_eq!(done["finish_reason"], "stop", "{done}");
        assert_intent(&done["text"]);
    }
    let case = &cases()[0];
    let free = client.ask(json!({"prompt": case.prompt, "response_format": {"type": "json_object"}})).await;
    assert_eq!(free["text"], case.answer, "it is a JSON object anyhow");
    let regex = json!({"type": "regex", "regex": "(yes|no), [a-z]{3}!"});
    let done = client.ask(json!({"prompt": "hello", "response_format": regex})).await;
    assert_eq!(done["text"].as_str().map(|text| text.ends_with('!')), Some(true), "{done}");
    let grammar = json!({"type": "grammar", "grammar": "start: \"It is \" STATE\nSTATE: \"on\" | \"off\""});
    let request = json!({"prompt": "hello", "response_format": grammar.clone()});
    let first = client.ask(request.clone()).await;
    assert!(["It is on", "It is off"].contains(&first["text"].as_str().expect("a text")), "{first}");
    let again = client.ask(request).await;
    assert_eq!((&again["text"], &again["cached"]), (&first["text"], &json!(true)));
    let other = client.ask(json!({"prompt": "hello"})).await;
    assert_eq!(other["cached"], false, "the format is part of the question: {other}");
    let cut = client.ask(json!({"prompt": "hello", "max_tokens": 2, "response_format": grammar})).await;
    assert_eq!(cut["finish_reason"], "length", "{cut}");
    let report = client.ask(json!({"telemetry": true})).await;
    let counts = &report["structured_output"];
    assert_eq!((&counts["requests"], &counts["refused"]), (&json!(9), &json!(0)), "{counts}");
    assert!(counts["forced_tokens"].as_u64().is_some_and(|tokens| tokens > 20), "{counts}");
    daemon.stop().await;
}

#[tokio::test]
async fn what_cannot_be_enforced_is_refused_with_its_place() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let mut client = daemon.client().await;
    let schema = |schema: Value| json!({"type": "json_schema", "json_schema": {"schema": schema}});
    for (format, message) in [
        (
            schema(json!({"properties": {"a": {"not": {}}}})),
            "response_format.json_schema.schema: #/properties/a/not: this keyword is not supported; leave it out",
        ),
        (schema(json!({"$ref": "#"})), "response_format.json_schema.schema: #/$ref: leads back to itself"),
        (json!({"type": "regex", "regex": "(a"}), "response_format.regex: no regular expression: "),
        (json!({"type": "regex", "regex": "((a{1,99}){1,99}){1,99}b{9999}"}), "response_format"),
        (json!({"type": "grammar", "grammar": "a: \"b\""}), "response_format.grammar: "),
        (
            json!({"type": "grammar", "grammar": "start: <|eot_id|>"}),
            "response_format.grammar: line 1, column 8: ",
        ),
    ] {
        let refused = client.ask(json!({"prompt": "hello", "response_format": format})).await;
        assert_eq!(
            (&refused["event"], &refused["code"]),
            (&json!("error"), &json!("invalid_request")),
            "{refused}"
        );
        assert!(refused["message"].as_str().is_some_and(|text| text.starts_with(message)), "{refused}");
    }
    assert_eq!(client.ask(json!({"prompt": "hello"})).await["event"], "done");
    let report = client.ask(json!({"telemetry": true})).await;
    assert!(report["structured_output"]["refused"].as_u64().is_some_and(|refused| refused >= 5), "{report}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_format_that_the_memory_plan_has_no_place_for_is_refused_with_the_numbers() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "[budget]\nmemory_mb = 40\n").await;
    let mut client = daemon.client().await;
    let done = client.ask(json!({"prompt": "hello", "response_format": {"type": "json_object"}})).await;
    match done["event"].as_str() {
        Some("done") => {}
        _ => {
            assert_eq!(done["code"], "budget_exceeded", "{done}");
            let message = done["message"].as_str().expect("a text");
            assert!(
                message.contains("structured output takes") && message.contains("of 40.0 MiB"),
                "{message}"
            );
        }
    }
    assert_eq!(client.ask(json!({"prompt": "hello"})).await["event"], "done");
    daemon.stop().await;
}

#[tokio::test]
async fn prompts_over_mqtt_have_formats_too() {
    let (folder, broker) = (Folder::new(), Mosquitto::start().await);
    let daemon = Daemon::start(&folder, &linked(broker.port)).await;
    let mut all = Listener::on(&broker, "bitnetd/cellar/#").await;
    all.wait(|message| message.payload == "online").await;
    let request = json!({"id": "a", "prompt": "hello", "response_format": intent()}).to_string();
    broker.publish(&["-q", "1", "-t", "bitnetd/cellar/prompt", "-m", &request]).await;
    let reply = all.wait(|message| message.topic.ends_with("/reply/a")).await;
    let done: Value = serde_json::from_str(&reply.payload).expect("an event");
    assert_eq!(done["event"], "done", "{done}");
    assert_intent(&done["text"]);
    daemon.stop().await;
}
