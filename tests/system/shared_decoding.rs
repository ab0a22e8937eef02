//! Requests that a daemon answers together, and prompts that begin alike.

use crate::daemon::{Client, Daemon, is_emulated};
use crate::intent_calls::post;
use crate::listener::Listener;
use crate::support::broker::Mosquitto;
use crate::{Folder, cases, endless, linked};
use serde_json::{Value, json};

const SHARED: &str = "[budget]\nthreads = 1\nparallel = 4\n";

/// The `done` events of so many requests, by their ids.
async fn ends(client: &mut Client, count: usize) -> Vec<Value> {
    let mut ends = Vec::new();
    while ends.len() < count {
        ends.push(client.end().await);
    }
    ends
}

#[tokio::test]
async fn answers_at_the_same_time_are_the_reference_answers() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, SHARED).await;
    let mut client = daemon.client().await;
    let cases: Vec<_> = cases().into_iter().step_by(if is_emulated() { 20 } else { 5 }).collect();
    let requests: Vec<Value> = (0..)
        .zip(&cases)
        .map(|(id, case)| json!({"id": id, "prompt": case.prompt, "stream": id % 2 == 0}))
        .collect();
    // As many at a time as the queue takes of one client.
    for (requests, cases) in requests.chunks(8).zip(cases.chunks(8)) {
        client.request(requests).await;
        for done in ends(&mut client, requests.len()).await {
            let at = requests.iter().position(|request| request["id"] == done["id"]).expect("our id");
            assert_eq!(
                (&done["text"], &done["finish_reason"]),
                (&json!(cases[at].answer), &json!(cases[at].finish_reason)),
                "{done}"
            );
        }
    }
    let report = client.ask(json!({"telemetry": true})).await;
    let count = |key: &str| report["decoding"][key].as_u64().expect("a count");
    assert!(count("step_requests") > count("steps"), "none were answered together: {report}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_short_request_does_not_wait_for_long_ones_while_a_slot_is_free() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, &format!("{}{SHARED}", endless())).await;
    let mut busy = daemon.client().await;
    let endless: Vec<Value> = (0..3).map(|id| json!({"id": id, "prompt": "a", "stream": false})).collect();
    busy.request(&endless).await;
    let mut other = daemon.client().await;
    let done = other.ask(json!({"prompt": "b", "max_tokens": 3})).await;
    assert_eq!(done["finish_reason"], "length", "{done}");
    // The others run on, and each is cancelled by its own id.
    for id in 0..3 {
        busy.send(&format!("{{\"cancel\":{id}}}\n")).await;
        let done = busy.end().await;
        assert_eq!((&done["id"], &done["finish_reason"]), (&json!(id), &json!("cancelled")), "{done}");
    }
    daemon.stop().await;
}

/// The counts of tokens of a request: those of the prompt, those of it that were found, and those of the answer.
fn tokens(usage: &Value, keys: [&str; 3]) -> [u64; 3] {
    keys.map(|key| usage.pointer(key).and_then(Value::as_u64).unwrap_or_else(|| panic!("{key}: {usage}")))
}

#[tokio::test]
async fn a_conversation_that_is_sent_as_a_whole_again_is_read_from_where_it_is_new() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, SHARED).await;
    let mut client = daemon.client().await;
    let system =
        "You look after the lights, the blinds and the heating of a house with nine places. ".repeat(3);
    for is_openai in [false, true] {
        // What the other round asked is not found.
        let mut messages = vec![json!({"role": "system", "content": format!("{is_openai}: {system}")})];
        let mut before = 0;
        for (turn, case) in cases().iter().take(4).enumerate() {
            messages.push(json!({"role": "user", "content": case.prompt}));
            let (text, [prompt, found, answer]) = if is_openai {
                let body = json!({"model": "any", "messages": messages});
                let reply = post(&daemon, "/v1/chat/completions", &body).await;
                let reply: Value = serde_json::from_str(&reply).expect("JSON");
                let keys = ["/prompt_tokens", "/prompt_tokens_details/cached_tokens", "/completion_tokens"];
                (reply["choices"][0]["message"]["content"].clone(), tokens(&reply["usage"], keys))
            } else {
                let done = client.ask(json!({"messages": messages})).await;
                let keys = ["/prompt_tokens", "/cached_tokens", "/completion_tokens"];
                (done["text"].clone(), tokens(&done["usage"], keys))
            };
            let (read, new) = (prompt - found, prompt - before);
            assert!(
                read <= new + 64,
                "OpenAI {is_openai}, turn {turn}: {read} of {prompt} read, {new} are new"
            );
            assert_eq!(found > 0, turn > 0, "OpenAI {is_openai}, turn {turn}");
            before = prompt + answer;
            messages.push(json!({"role": "assistant", "content": text}));
        }
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_beginning_is_found_by_its_own_client_and_by_others_only_where_the_owner_shares() {
    for (scope, by_others) in [("client", false), ("all", true)] {
        let (folder, broker) = (Folder::new(), Mosquitto::start().await);
        let settings = format!("{}{SHARED}[cache]\nscope = \"{scope}\"\n", linked(broker.port));
        let daemon = Daemon::start(&folder, &settings).await;
        let mut replies = Listener::on(&broker, "bitnetd/cellar/reply/#").await;
        Listener::hears_online(&broker).await;
        let text = "the lights of the kitchen and of the hall ".repeat(30);
        let ask =
            |question: &str| json!({"prompt": format!("{text}{question}"), "max_tokens": 2, "cache": false});
        let mut client = daemon.client().await;
        let first = client.ask(ask("on")).await;
        assert_eq!(first["usage"]["cached_tokens"], 0, "{first}");
        let second = client.ask(ask("off")).await;
        let (all, found) = (&second["usage"]["prompt_tokens"], &second["usage"]["cached_tokens"]);
        let read = all.as_u64().zip(found.as_u64()).map(|(all, found)| all - found).expect("counts");
        // Its own tokens, and what is less than a block of what they share.
        assert!(read <= 64 + 32, "{second}");
        let over_mqtt = ask("dark").to_string();
        broker.publish(&["-q", "1", "-t", "bitnetd/cellar/prompt/kitchen", "-m", &over_mqtt]).await;
        let other = replies.wait(|reply| reply.json()["event"] == "done").await.json();
        let cached = other["usage"]["cached_tokens"].as_u64().expect("a count");
        assert_eq!(cached > 0, by_others, "{scope}: {other}");
        daemon.stop().await;
    }
}
