//! A request of high priority takes the slot of one of low priority, which goes on later.

use crate::daemon::Daemon;
use crate::{Folder, endless};
use serde_json::{Value, json};

/// Settings with one slot for requests that never end by themselves.
fn one_slot() -> String {
    format!("{}[budget]\nthreads = 1\nparallel = 1\n", endless())
}

fn low(id: &str, max_tokens: Option<u32>) -> Value {
    // Greedy, so that it never ends by itself.
    let mut request =
        json!({"id": id, "prompt": "a story", "priority": "low", "stream": true, "cache": false});
    if let Some(max_tokens) = max_tokens {
        request["max_tokens"] = json!(max_tokens);
    }
    request
}

fn high(id: &str, max_tokens: u32) -> Value {
    json!({"id": id, "prompt": "lights on", "priority": "high", "stream": true, "cache": false, "max_tokens": max_tokens})
}

async fn suspensions(daemon: &Daemon) -> u64 {
    let report = daemon.client().await.ask(json!({"telemetry": true})).await;
    report["decoding"]["suspensions"].as_u64().expect("a count")
}

#[tokio::test]
async fn a_high_request_is_answered_before_a_low_one_ends_which_then_gives_the_same_text() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, &one_slot()).await;
    let (mut slow, mut quick) = (daemon.client().await, daemon.client().await);
    let undisturbed = slow.ask(low("alone", Some(1500))).await;
    assert_eq!((&undisturbed["finish_reason"], suspensions(&daemon).await), (&json!("length"), 0));
    slow.request(&[low("low", Some(1500))]).await;
    let mut text = slow.event().await["text"].as_str().expect("a token").to_owned();
    // Three times: as often as one request may be suspended.
    for id in ["high 1", "high 2", "high 3"] {
        let done = quick.ask(high(id, 3)).await;
        assert_eq!((&done["id"], &done["finish_reason"]), (&json!(id), &json!("length")), "{done}");
    }
    assert!(suspensions(&daemon).await > 0, "none was suspended");
    let done = loop {
        let event = slow.event().await;
        match event["event"].as_str() {
            Some("token") => text.push_str(event["text"].as_str().expect("a text")),
            _ => break event,
        }
    };
    let same = ["text", "finish_reason"].map(|key| (&done[key], &undisturbed[key]));
    assert!(same.iter().all(|(one, other)| one == other), "{done}\n{undisturbed}");
    assert_eq!(done["usage"]["completion_tokens"], undisturbed["usage"]["completion_tokens"]);
    assert_eq!(done["text"], json!(text), "what was streamed");
    daemon.stop().await;
}

#[tokio::test]
async fn the_first_token_of_a_high_request_comes_while_a_low_one_is_not_done() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, &one_slot()).await;
    let mut client = daemon.client().await;
    // The low one never ends by itself, so that nothing but its suspension frees the slot.
    client.request(&[low("low", None)]).await;
    assert_eq!(client.event().await["id"], "low");
    client.request(&[high("high", 2)]).await;
    let mut events = Vec::new();
    while events.last().is_none_or(|event: &Value| event["id"] != "high" || event["event"] != "done") {
        events.push(client.event().await);
    }
    assert!(events.iter().any(|event| event["id"] == "high" && event["event"] == "token"), "{events:?}");
    assert_eq!(suspensions(&daemon).await, 1);
    // It goes on.
    while client.event().await["id"] != "low" {}
    client.send("{\"cancel\":\"low\"}\n").await;
    assert_eq!(client.end().await["finish_reason"], "cancelled");
    daemon.stop().await;
}

#[tokio::test]
async fn a_suspended_request_that_is_cancelled_or_out_of_time_ends_at_once_with_what_it_has() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, &one_slot()).await;
    let (mut slow, mut quick) = (daemon.client().await, daemon.client().await);
    for (reason, timeout_ms) in [("timeout", 8_000), ("cancelled", 600_000)] {
        let mut request = low("low", None);
        request["timeout_ms"] = json!(timeout_ms);
        slow.request(&[request]).await;
        assert_eq!(slow.event().await["event"], "token");
        // Takes the slot, and never gives it back by itself.
        let mut endless = high("high", 1);
        endless.as_object_mut().expect("an object").remove("max_tokens");
        quick.request(&[endless]).await;
        assert_eq!(quick.event().await["event"], "token");
        if reason == "cancelled" {
            slow.send("{\"cancel\":\"low\"}\n").await;
        }
        let done = slow.end().await;
        assert_eq!((&done["event"], &done["finish_reason"]), (&json!("done"), &json!(reason)), "{done}");
        assert!(done["usage"]["completion_tokens"].as_u64().is_some_and(|tokens| tokens > 0), "{done}");
        assert!(done["text"].as_str().is_some_and(|text| !text.is_empty()), "{done}");
        // The high one still runs.
        quick.send("{\"cancel\":\"high\"}\n").await;
        assert_eq!(quick.end().await["finish_reason"], "cancelled");
    }
    assert_eq!(suspensions(&daemon).await, 2);
    daemon.stop().await;
}

#[tokio::test]
async fn a_flood_of_high_requests_does_not_starve_a_low_one() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, &one_slot()).await;
    let (mut slow, mut flood) = (daemon.client().await, daemon.client().await);
    slow.request(&[low("low", Some(400))]).await;
    assert_eq!(slow.event().await["event"], "token");
    let mut sent = 4;
    flood.request(&(0..sent).map(|id| high(&id.to_string(), 200)).collect::<Vec<_>>()).await;
    // One more for each that ends, until the low one is done.
    let done = loop {
        tokio::select! {
            done = slow.end() => break done,
            end = flood.end() => {
                assert_eq!(end["event"], "done", "{end}");
                flood.request(&[high(&sent.to_string(), 200)]).await;
                sent += 1;
            }
        }
    };
    assert_eq!(done["finish_reason"], "length", "{done}");
    assert!((1..=3).contains(&suspensions(&daemon).await));
    daemon.stop().await;
}

#[tokio::test]
async fn a_stop_ends_a_suspended_request_too() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, &format!("{}[queue]\ndrain_ms = 200\n", one_slot())).await;
    let (mut slow, mut quick) = (daemon.client().await, daemon.client().await);
    slow.request(&[low("low", None)]).await;
    assert_eq!(slow.event().await["event"], "token");
    let mut endless = high("high", 1);
    endless.as_object_mut().expect("an object").remove("max_tokens");
    quick.request(&[endless]).await;
    assert_eq!(quick.event().await["event"], "token");
    let ends = async {
        for client in [&mut slow, &mut quick] {
            let done = client.end().await;
            assert_eq!(
                (&done["event"], &done["finish_reason"]),
                (&json!("done"), &json!("cancelled")),
                "{done}"
            );
        }
    };
    tokio::join!(daemon.stop(), ends);
}
