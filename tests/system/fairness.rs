//! A client that asks more than all others together: how much of it comes before what another one asks. Answers are counted,
//! and no time is measured.

use crate::daemon::{Client, Daemon, is_emulated, run};
use crate::endure::Line;
use crate::listener::Listener;
use crate::support::broker::Mosquitto;
use crate::{Folder, PATIENCE, endless, linked, text};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Requests that are answered at the same time.
const SLOTS: usize = 4;

/// Settings for requests that never end by themselves, and reports that name the clients.
fn settings() -> String {
    let budget = format!("[budget]\nthreads = 1\nmemory_mb = 512\nparallel = {SLOTS}\n");
    format!("{}{budget}[queue]\ndepth = 1000\ntimeout_ms = 3600000\n[guard]\nclear_ids = true\n", endless())
}

/// Waits until the report of the daemon is as wanted.
async fn reported(client: &mut Client, what: &str, wanted: impl Fn(&Value) -> bool) {
    let is_reported = async {
        while !wanted(&client.ask(json!({"telemetry": true})).await) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, is_reported).await.unwrap_or_else(|_| panic!("in time: {what}"));
}

#[tokio::test]
async fn a_client_that_fills_all_places_over_mqtt_delays_another_by_one_answer() {
    const FLOOD: usize = 40;
    let (folder, broker) = (Folder::new(), Mosquitto::start().await);
    let daemon = Daemon::start(&folder, &format!("{}{}", settings(), linked(broker.port))).await;
    let mut reports = daemon.client().await;
    Listener::hears_online(&broker).await;
    let mut replies = Listener::on(&broker, "bitnetd/cellar/reply/#").await;
    let [mut flood, mut other] = ["flood", "other"].map(|name| Line::new(broker.port, name));
    for number in 0..FLOOD {
        let mut prompt = json!({"id": format!("f{number}"), "prompt": format!("turn on light {number}")});
        // The first ones hold their places until they are cancelled.
        if number >= SLOTS {
            prompt["max_tokens"] = json!(8);
        }
        flood.deliver("bitnetd/cellar/prompt/flood", &prompt.to_string()).await.expect("accepted");
    }
    reported(&mut reports, "all places are taken", |report| report["requests"]["running"] == SLOTS).await;
    let prompt = r#"{"id":"other","prompt":"turn on the lamp","max_tokens":3}"#;
    other.deliver("bitnetd/cellar/prompt/other", prompt).await.expect("accepted");
    let waits = |client: &Value| client["client"] == "mqtt:other" && client["waiting"] == 1;
    let other_waits =
        |report: &Value| report["waiting"].as_array().is_some_and(|clients| clients.iter().any(waits));
    reported(&mut reports, "the other one waits", other_waits).await;

    let cancel = |number: usize| json!({"id": format!("f{number}")}).to_string();
    other.deliver("bitnetd/cellar/cancel", &cancel(0)).await.expect("accepted");
    let (mut ends, mut before) = (BTreeMap::new(), 0);
    while ends.len() < FLOOD + 1 {
        let end = replies.end().await;
        let id = end["id"].as_str().expect("an id").to_owned();
        if id == "other" {
            before = ends.len();
        }
        let reason = end["finish_reason"].as_str().unwrap_or_else(|| panic!("no answer: {end}")).to_owned();
        assert_eq!(ends.insert(id, reason), None, "a second end: {end}");
        // All that comes to an end by itself has had its turn in the one place.
        if ends.len() == FLOOD + 1 - (SLOTS - 1) {
            for number in 1..SLOTS {
                other.deliver("bitnetd/cellar/cancel", &cancel(number)).await.expect("accepted");
            }
        }
    }
    assert!((1..=2).contains(&before), "{before} answers came before");
    assert_eq!(ends["other"], "length");
    for number in 0..FLOOD {
        let reason = if number < SLOTS { "cancelled" } else { "length" };
        assert_eq!(ends[&format!("f{number}")], reason, "f{number}");
    }
    // A second answer to one of them would come before this one.
    let last = r#"{"id":"last","prompt":"turn on the lamp","max_tokens":1}"#;
    other.deliver("bitnetd/cellar/prompt/other", last).await.expect("accepted");
    assert_eq!(replies.end().await["id"], "last");
    daemon.stop().await;
}

#[tokio::test]
async fn a_thousand_requests_of_one_client_of_the_socket_let_another_have_the_next_place() {
    let (connections, each) = if is_emulated() { (4, 25) } else { (20, 50) };
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, &settings()).await;
    let (mut reports, mut flood) = (daemon.client().await, Vec::new());
    for connection in 0..connections {
        let mut client = daemon.client().await;
        let requests: Vec<Value> = (0..each).map(|id| json!({"id": id, "prompt": "go"})).collect();
        client.request(&requests).await;
        flood.push(client);
        if connection == 0 {
            // Those that run are of the first connection.
            reported(&mut reports, "all places are taken", |report| report["requests"]["running"] == SLOTS)
                .await;
        }
    }
    let waiting = connections * each - SLOTS;
    reported(&mut reports, "the flood waits", |report| report["requests"]["queued"] == waiting).await;
    // Another process is another client. It is answered although none of the others ever ends.
    let args = ["ask", "--socket", text(&daemon.socket), "--json", "--max-tokens", "2", "lamp"];
    let free_a_place = async {
        reported(&mut reports, "it waits too", |report| report["requests"]["queued"] == waiting + 1).await;
        flood[0].send("{\"cancel\":0}\n").await;
    };
    let (asked, ()) = tokio::join!(run(&args), free_a_place);
    assert!(asked.code == Some(0) && asked.out.contains(r#""finish_reason":"length""#), "{asked:?}");
    let queued = |report: &Value| report["requests"]["queued"] == waiting - 1;
    reported(&mut reports, "the flood goes on", queued).await;
    drop(flood);
    daemon.stop().await;
}
