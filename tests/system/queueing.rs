//! The queue of a busy worker: which requests wait, in which order they are answered, and which are refused.

use crate::daemon::{Client, Daemon};
use crate::listener::Listener;
use crate::support::broker::Mosquitto;
use crate::{Folder, endless, linked};
use serde_json::{Value, json};

/// The last events of the next requests, by id.
async fn ends(client: &mut Client, count: usize) -> Vec<Value> {
    let mut ends = Vec::new();
    while ends.len() < count {
        ends.push(client.end().await);
    }
    ends.sort_by_key(|end| end["id"].as_str().map(str::to_owned));
    ends
}

#[tokio::test]
async fn a_full_queue_refuses_with_a_time_to_retry() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, &format!("{}[queue]\ndepth = 1\n", endless())).await;
    let mut client = daemon.client().await;
    client.keep_busy().await;
    client.request(&[json!({"id": "waits", "prompt": "a"}), json!({"id": "late", "prompt": "b"})]).await;
    let refused = client.end().await;
    assert_eq!((&refused["id"], &refused["code"]), (&json!("late"), &json!("queue_full")));
    assert!(refused["retry_after_ms"].as_u64().is_some_and(|ms| ms > 0), "{refused}");
    assert!(refused["message"].as_str().is_some_and(|said| said.contains('1')), "{refused}");
}

#[tokio::test]
async fn a_report_says_at_once_that_a_request_runs_which_another_client_sent() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, &endless()).await;
    let (mut client, mut other) = (daemon.client().await, daemon.client().await);
    for _ in 0..5 {
        client.keep_busy().await;
        let report = other.ask(json!({"telemetry": true})).await;
        assert_eq!(report["requests"]["running"], 1, "{report}");
        client.cancel_busy().await;
        assert_eq!(client.end().await["finish_reason"], "cancelled");
    }
}

#[tokio::test]
async fn what_is_cancelled_ends_with_what_it_has() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, &endless()).await;
    let mut client = daemon.client().await;
    client.keep_busy().await;
    client.request(&[json!({"id": "waits", "prompt": "a"})]).await;
    client.send("{\"cancel\":\"waits\"}\n{\"cancel\":\"busy\"}\n").await;
    let ends = ends(&mut client, 2).await;
    let busy = &ends[0];
    assert_eq!((&busy["event"], &busy["finish_reason"]), (&json!("done"), &json!("cancelled")));
    assert!(busy["usage"]["completion_tokens"].as_u64().is_some_and(|tokens| tokens > 0), "{busy}");
    assert_eq!((&ends[1]["id"], &ends[1]["code"]), (&json!("waits"), &json!("cancelled")));
}

#[tokio::test]
async fn a_request_out_of_time_ends_whether_it_runs_or_waits() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, &endless()).await;
    let mut client = daemon.client().await;
    // Long enough to be begun, and never long enough to end.
    let ran = client.ask(json!({"prompt": "go", "timeout_ms": 4000})).await;
    assert_eq!((&ran["event"], &ran["finish_reason"]), (&json!("done"), &json!("timeout")));
    assert!(ran["timings"]["total_ms"].as_f64().is_some_and(|ms| ms >= 4000.0), "{ran}");
    client.keep_busy().await;
    client.request(&[json!({"id": "waits", "prompt": "go", "timeout_ms": 50})]).await;
    let waited = client.end().await;
    assert_eq!((&waited["id"], &waited["code"]), (&json!("waits"), &json!("timeout")));
}

#[tokio::test]
async fn the_configured_timeout_applies_to_requests_that_name_none() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, &format!("{}[queue]\ntimeout_ms = 3000\n", endless())).await;
    let ran = daemon.client().await.ask(json!({"prompt": "go"})).await;
    assert_eq!(ran["finish_reason"], "timeout", "{ran}");
}

#[tokio::test]
async fn higher_priority_goes_first() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, &endless()).await;
    let mut client = daemon.client().await;
    client.keep_busy().await;
    let ask = |id: &str| json!({"id": id, "prompt": "go", "max_tokens": 1, "priority": id});
    client.request(&[ask("low"), ask("normal"), ask("high")]).await;
    client.cancel_busy().await;
    for id in ["busy", "high", "normal", "low"] {
        let done = client.end().await;
        assert_eq!((&done["event"], &done["id"]), (&json!("done"), &json!(id)));
    }
}

#[tokio::test]
async fn a_client_that_is_gone_cancels_what_it_asked() {
    let (folder, broker) = (Folder::new(), Mosquitto::start().await);
    let daemon = Daemon::start(&folder, &format!("{}{}", endless(), linked(broker.port))).await;
    let mut reports = Listener::on(&broker, "bitnetd/cellar/telemetry").await;
    let mut client = daemon.client().await;
    client.keep_busy().await;
    client.request(&[json!({"prompt": "waits"})]).await;
    let queued = |report: &Value| report["requests"]["queued"] == 1;
    // The daemon must have read the line before the client closes.
    reports.wait(|report| queued(&report.json())).await;
    drop(client);
    let count = |report: &Value, key: &str| report["requests"][key].as_u64().expect("a number");
    let report = reports.wait(|report| count(&report.json(), "cancelled") == 2).await.json();
    assert_eq!(count(&report, "received"), 2, "{report}");
    let idle = |report: &Value| count(report, "running") + count(report, "queued") == 0;
    reports.wait(|report| idle(&report.json())).await;
    let done = daemon.client().await.ask(json!({"prompt": "go", "max_tokens": 1})).await;
    assert_eq!(done["finish_reason"], "length", "{done}");
}
