//! How the daemon stops.

use crate::daemon::Daemon;
use crate::{Folder, endless};
use serde_json::json;

#[tokio::test]
async fn requests_at_hand_are_answered_before_it_stops() {
    let folder = Folder::new();
    let mut daemon = Daemon::start(&folder, &format!("{}[queue]\ndrain_ms = 600000\n", endless())).await;
    let mut client = daemon.client().await;
    let long = json!({"prompt": "go", "stream": true, "max_tokens": 500});
    client.request(&[long, json!({"id": "waits", "prompt": "go", "max_tokens": 1})]).await;
    assert_eq!(client.event().await["event"], "token");
    daemon.process.terminate();
    assert_eq!(client.end().await["finish_reason"], "length");
    let waited = client.end().await;
    assert_eq!((&waited["id"], &waited["finish_reason"]), (&json!("waits"), &json!("length")));
    daemon.ends_well().await;
}

#[tokio::test]
async fn what_is_not_answered_in_time_is_cut_off_with_an_event() {
    let folder = Folder::new();
    let mut daemon = Daemon::start(&folder, &format!("{}[queue]\ndrain_ms = 200\n", endless())).await;
    let mut client = daemon.client().await;
    client.keep_busy().await;
    client.request(&[json!({"id": "waits", "prompt": "a"})]).await;
    daemon.process.terminate();
    let mut ends = [client.end().await, client.end().await];
    ends.sort_by_key(|end| end["id"].as_str().map(str::to_owned));
    let [busy, waits] = &ends;
    assert_eq!((&busy["id"], &busy["finish_reason"]), (&json!("busy"), &json!("cancelled")));
    assert_eq!((&waits["id"], &waits["code"]), (&json!("waits"), &json!("shutting_down")));
    daemon.ends_well().await;
}

#[tokio::test]
async fn a_second_signal_hurries_and_new_requests_are_refused_meanwhile() {
    let folder = Folder::new();
    let mut daemon = Daemon::start(&folder, &format!("{}[queue]\ndrain_ms = 600000\n", endless())).await;
    let mut client = daemon.client().await;
    client.keep_busy().await;
    daemon.process.terminate();
    daemon.says("stopping on SIGTERM").await;
    client.request(&[json!({"id": "late", "prompt": "a"})]).await;
    let refused = client.end().await;
    assert_eq!((&refused["id"], &refused["code"]), (&json!("late"), &json!("shutting_down")));
    daemon.process.terminate();
    assert_eq!(client.end().await["finish_reason"], "cancelled");
    daemon.ends_well().await;
}

#[tokio::test]
async fn a_hangup_does_not_end_it() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    daemon.process.signal(rustix::process::Signal::HUP);
    daemon.says("configuration read again; nothing has changed").await;
    let done = daemon.client().await.ask(json!({"prompt": "go"})).await;
    assert_eq!(done["event"], "done");
    daemon.stop().await;
}

#[tokio::test]
async fn an_idle_daemon_stops_and_leaves_nothing_of_its_socket() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    daemon.stop().await;
    let mut left: Vec<_> = std::fs::read_dir(folder.path(""))
        .expect("a temporary folder")
        .map(|entry| entry.expect("its entries too").file_name())
        .collect();
    left.sort();
    // The state folder has the history.
    assert_eq!(left, ["bitnetd.toml", "log", "state"]);
}
