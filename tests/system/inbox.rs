//! Prompts that wait: none is lost, none is answered twice, none is refused because the queue is full, and what
//! was acknowledged survives a restart of the daemon.

use crate::daemon::{Client, Daemon, is_emulated};
use crate::endure::Line;
use crate::listener::Listener;
use crate::support::broker::Mosquitto;
use crate::{Folder, endless, linked, until};
use rumqttc::v5::mqttbytes::v5::PubAckReason;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// More than the broker delivers at a time, and more than the queue holds.
const MANY: usize = 60;

/// Publishes prompts with the ids 0 to `count`.
async fn publish(line: &mut Line, topic: &str, count: usize) {
    for number in 0..count {
        let prompt =
            json!({"id": number.to_string(), "prompt": format!("turn on light {number}"), "max_tokens": 8});
        let reason = line.deliver(topic, &prompt.to_string()).await.expect("the broker takes it");
        assert_eq!(reason, PubAckReason::Success, "the daemon is subscribed");
    }
}

/// How often each prompt got a last event, and of what kind.
async fn ends(replies: &mut Listener, count: usize) -> BTreeMap<String, Vec<String>> {
    let mut ends: BTreeMap<String, Vec<String>> = BTreeMap::new();
    while ends.len() < count {
        note(&mut ends, &replies.end().await);
    }
    ends
}

fn note(ends: &mut BTreeMap<String, Vec<String>>, end: &Value) {
    let id = end["id"].as_str().expect("an id").to_owned();
    let kind = if end["event"] == "done" { &end["event"] } else { &end["code"] };
    ends.entry(id).or_default().push(kind.as_str().expect("a text").to_owned());
}

/// Each of the prompts was answered, and once; `behind` is asked last, so that a second answer would come before its own.
async fn answered_once(mut replies: Listener, line: &mut Line, topic: &str) {
    let mut ends = ends(&mut replies, MANY).await;
    let last = json!({"id": "last", "prompt": "hello", "max_tokens": 1}).to_string();
    line.deliver(topic, &last).await.expect("the broker takes it");
    while !ends.contains_key("last") {
        note(&mut ends, &replies.end().await);
    }
    assert_eq!(ends.len(), MANY + 1);
    assert!(ends.values().all(|kinds| kinds == &["done"]), "{ends:?}");
}

/// The records of this kind in the state folder.
fn records(folder: &Folder, kind: &str) -> usize {
    let files = std::fs::read_dir(folder.path("state")).into_iter().flatten().flatten();
    let logs =
        files.map(|file| file.path()).filter(|path| path.extension().is_some_and(|it| it == "answers"));
    let texts = logs.map(|path| std::fs::read_to_string(path).unwrap_or_default());
    texts.map(|text| text.lines().filter(|line| line.contains(&format!(" {{\"{kind}\":"))).count()).sum()
}

#[tokio::test]
async fn no_prompt_is_refused_beside_clients_of_the_socket() {
    let broker = Mosquitto::start().await;
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, &format!("{}[queue]\ndepth = 4\n", linked(broker.port))).await;
    Listener::hears_online(&broker).await;
    let replies = Listener::on(&broker, "bitnetd/cellar/reply/#").await;
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let mut client = daemon.client().await;
        clients.spawn(async move {
            loop {
                let end = client.ask(json!({"prompt": "go", "max_tokens": 16, "cache": false})).await;
                assert_eq!(end["event"], "done", "{end}");
            }
        });
    }
    let topic = "bitnetd/cellar/prompt/flood";
    let mut line = Line::new(broker.port, "flood");
    publish(&mut line, topic, MANY).await;
    answered_once(replies, &mut line, topic).await;
    assert!(clients.try_join_next().is_none(), "the clients of the socket were answered as well");
}

#[tokio::test]
async fn a_backlog_from_before_the_start_gets_one_answer_each() {
    let broker = Mosquitto::start().await;
    let folder = Folder::new();
    let settings = linked(broker.port);
    let daemon = Daemon::start(&folder, &settings).await;
    Listener::hears_online(&broker).await;
    daemon.stop().await;
    let replies = Listener::on(&broker, "bitnetd/cellar/reply/#").await;
    let mut line = Line::new(broker.port, "backlog");
    publish(&mut line, "bitnetd/cellar/prompt", MANY).await;
    let _daemon = Daemon::start(&folder, &settings).await;
    answered_once(replies, &mut line, "bitnetd/cellar/prompt").await;
}

#[tokio::test]
async fn prompts_that_were_acknowledged_outlive_a_kill() {
    let broker = Mosquitto::start().await;
    let folder = Folder::new();
    let settings = linked(broker.port);
    let mut daemon = Daemon::start(&folder, &format!("{}{settings}", endless())).await;
    Listener::hears_online(&broker).await;
    let mut busy = daemon.client().await;
    busy.keep_busy().await;
    let mut line = Line::new(broker.port, "backlog");
    publish(&mut line, "bitnetd/cellar/prompt", MANY).await;
    // Eight may wait without being written, and what the broker has not handed over yet.
    until("the prompts are in the inbox", || (records(&folder, "Prompt") >= MANY - 8).then_some(())).await;
    daemon.process.kill();
    let replies = Listener::on(&broker, "bitnetd/cellar/reply/#").await;
    let daemon = Daemon::start(&folder, &settings).await;
    daemon.says("prompts to be answered").await;
    answered_once(replies, &mut line, "bitnetd/cellar/prompt").await;
}

/// Publishes prompts while the daemon is busy, until most of them are in the inbox. It is busy as long as the client of the
/// socket is there.
async fn fill_inbox(folder: &Folder, daemon: &Daemon, broker: &Mosquitto) -> (Line, Client) {
    Listener::hears_online(broker).await;
    let mut busy = daemon.client().await;
    busy.keep_busy().await;
    let mut line = Line::new(broker.port, "backlog");
    publish(&mut line, "bitnetd/cellar/prompt", MANY).await;
    until("the prompts are in the inbox", || (records(folder, "Prompt") >= MANY - 8).then_some(())).await;
    (line, busy)
}

#[tokio::test]
async fn prompts_that_were_acknowledged_outlive_a_state_folder_that_is_removed_before_a_stop() {
    let broker = Mosquitto::start().await;
    let folder = Folder::new();
    let settings = linked(broker.port);
    // Long enough for the disk, too short for all answers: what it does not have again when the drain ends gets an error.
    let drain_ms = if is_emulated() { 10_000 } else { 3_000 };
    let drain = format!("[queue]\ndrain_ms = {drain_ms}\n");
    let daemon = Daemon::start(&folder, &format!("{}{settings}{drain}", endless())).await;
    // One or two may be answered within the drain.
    let replies = Listener::on(&broker, "bitnetd/cellar/reply/#").await;
    let (mut line, busy) = fill_inbox(&folder, &daemon, &broker).await;
    std::fs::remove_dir_all(folder.path("state")).expect("ours");
    drop(busy);
    daemon.stop().await;
    let _daemon = Daemon::start(&folder, &settings).await;
    answered_once(replies, &mut line, "bitnetd/cellar/prompt").await;
}

#[tokio::test]
async fn prompts_that_the_disk_lost_for_good_get_an_event_at_the_stop_and_the_log_counts_them() {
    let broker = Mosquitto::start().await;
    let folder = Folder::new();
    let drain = "[queue]\ndrain_ms = 100\n";
    let settings = format!("{}{}{drain}", endless(), linked(broker.port));
    let mut daemon = Daemon::start(&folder, &settings).await;
    let mut replies = Listener::on(&broker, "bitnetd/cellar/reply/#").await;
    let _busy = fill_inbox(&folder, &daemon, &broker).await;
    // The daemon creates a folder that is gone again.
    crate::until("a file is where the folder was", || {
        std::fs::remove_dir_all(folder.path("state")).ok();
        std::fs::write(folder.path("state"), "a file where the folder was").ok()
    })
    .await;
    daemon.process.terminate();
    daemon.ends_well().await;
    let log = daemon.log();
    let lost = log.lines().find(|line| line.contains("acknowledged prompts were not answered"));
    let lost = lost.unwrap_or_else(|| panic!("{log}"));
    let words = lost.split_whitespace();
    let count = words.filter_map(|word| word.parse::<usize>().ok()).next_back().expect("a number");
    assert!((1..=MANY).contains(&count), "{lost}");
    // Some are answered within the drain, one or two of them after the line, and those that were not acknowledged wait
    // at the broker.
    let mut ends = BTreeMap::new();
    while ends.values().filter(|kinds: &&Vec<String>| kinds.as_slice() == ["shutting_down"]).count() + 2
        < count
    {
        note(&mut ends, &replies.end().await);
    }
    assert!(ends.values().all(|kinds| kinds.len() == 1), "{ends:?}");
}

#[tokio::test]
async fn the_few_prompts_of_quiet_use_are_not_written() {
    let broker = Mosquitto::start().await;
    let folder = Folder::new();
    let _daemon = Daemon::start(&folder, &linked(broker.port)).await;
    Listener::hears_online(&broker).await;
    let mut replies = Listener::on(&broker, "bitnetd/cellar/reply/#").await;
    let mut line = Line::new(broker.port, "quiet");
    publish(&mut line, "bitnetd/cellar/prompt", 8).await;
    ends(&mut replies, 8).await;
    assert_eq!(records(&folder, "Prompt"), 0);
    assert!(records(&folder, "Answer") > 0, "answers are");
}

#[tokio::test]
async fn subscriptions_that_another_client_of_our_id_gave_up_are_made_again() {
    let broker = Mosquitto::start().await;
    let folder = Folder::new();
    let _daemon = Daemon::start(&folder, &linked(broker.port)).await;
    Listener::hears_online(&broker).await;
    let mut replies = Listener::on(&broker, "bitnetd/cellar/reply/#").await;
    Line::takes_over(broker.port, "bitnetd-cellar", "bitnetd/cellar/prompt").await;
    let mut online = Listener::on(&broker, "bitnetd/cellar/availability").await;
    online.wait(|message| message.payload == "online" && !message.retained).await;
    let mut line = Line::new(broker.port, "asker");
    publish(&mut line, "bitnetd/cellar/prompt", 1).await;
    assert_eq!(replies.end().await["event"], "done");
}
