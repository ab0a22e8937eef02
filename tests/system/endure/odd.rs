//! Prompts and brokers that are not as they should be. What the link does with each packet is in
//! `tests/daemon/mqtt`; here it is the daemon as a whole.

use super::CLIENT;
use super::load::Line;
use crate::daemon::{Client, Daemon};
use crate::listener::Listener;
use crate::support::broker::Mosquitto;
use crate::{Folder, endless, linked};
use serde_json::{Value, json};

const PROMPT: &str = "bitnetd/cellar/prompt";

/// A broker, a daemon connected to it, and a subscriber to its replies.
struct LinkedDaemon {
    daemon: Daemon,
    replies: Listener,
    broker: Mosquitto,
    folder: Folder,
}

impl LinkedDaemon {
    async fn at(broker: Mosquitto, more: &str) -> Self {
        let folder = Folder::new();
        let replies = Listener::on(&broker, "bitnetd/cellar/reply/+").await;
        let daemon = Daemon::start(&folder, &format!("{}{more}", linked(broker.port))).await;
        let home = LinkedDaemon { daemon, replies, broker, folder };
        let mut said = Listener::on(&home.broker, "bitnetd/cellar/availability").await;
        said.wait(|message| message.payload == "online").await;
        home
    }

    async fn publish(&self, topic: &str, payload: &str, more: &[&str]) {
        self.broker.publish(&[&["-q", "1", "-t", topic, "-m", payload], more].concat()).await;
    }

    /// Its one connection still answers.
    async fn answers(&mut self) {
        self.publish(PROMPT, r#"{"id":"still","prompt":"turn on the light","max_tokens":4}"#, &[]).await;
        let done = self.replies.end().await;
        assert_eq!((&done["id"], &done["event"]), (&json!("still"), &json!("done")), "{done}");
        assert_eq!(self.broker.connects(CLIENT), 1, "{}", self.daemon.log());
    }
}

fn code(event: &Value) -> &str {
    event["code"].as_str().unwrap_or_else(|| panic!("no error: {event}"))
}

#[tokio::test]
async fn prompts_of_any_bytes_and_size_get_one_error_each_and_end_no_connection() {
    let mut home = LinkedDaemon::at(Mosquitto::start().await, "").await;
    let deep = r#"{"prompt":"#.repeat(5_000);
    let wrong: [(&[u8], &str); 5] = [
        (b"\xff\xfe not text", "invalid_request"),
        (b"{\"prompt\":\"\xff\"}", "invalid_request"),
        (deep.as_bytes(), "invalid_request"),
        (&[b'x'; 60_000], "context_exceeded"),
        (&[b'x'; 70_000], "too_large"),
    ];
    for (bytes, expected) in wrong {
        let file = home.folder.path("payload");
        std::fs::write(&file, bytes).expect("a temporary folder");
        home.broker.publish(&["-q", "1", "-t", PROMPT, "-f", crate::text(&file)]).await;
        let said = home.replies.end().await;
        assert_eq!(code(&said), expected, "{said}");
    }
    home.answers().await;
}

#[tokio::test]
async fn prompts_larger_than_the_maximum_packet_size_disturb_nothing() {
    let mut home = LinkedDaemon::at(Mosquitto::start().await, "").await;
    let file = home.folder.path("payload");
    std::fs::write(&file, vec![b'x'; 1_100_000]).expect("a temporary folder");
    for _ in 0..3 {
        // The broker accepts it and does not deliver it: the daemon named its Maximum Packet Size at the connect.
        home.broker.publish(&["-q", "1", "-t", PROMPT, "-f", crate::text(&file)]).await;
    }
    home.answers().await;
}

#[tokio::test]
async fn messages_on_other_topics_are_not_answered() {
    let mut home = LinkedDaemon::at(Mosquitto::start().await, "").await;
    let prompt = r#"{"id":"wrong","prompt":"go"}"#;
    for topic in ["prompt/a/b", "prompts", "prompt2", "", "reply/x/y", "info/prompt", "$share/prompt"] {
        home.publish(&format!("bitnetd/cellar/{topic}"), prompt, &[]).await;
    }
    home.publish("bitnetd/attic/prompt", prompt, &[]).await;
    home.answers().await;
}

#[tokio::test]
async fn a_prompt_that_expires_while_it_waits_gets_a_timeout_and_one_that_nobody_read_nothing() {
    let mut home = LinkedDaemon::at(Mosquitto::start().await, &endless()).await;
    let mut client: Client = home.daemon.client().await;
    client.keep_busy().await;
    let expiry = ["-D", "publish", "message-expiry-interval", "1"];
    home.publish(PROMPT, r#"{"id":"late","prompt":"go"}"#, &expiry).await;
    let said = home.replies.end().await;
    assert_eq!((code(&said), &said["id"]), ("timeout", &json!("late")), "{said}");
    // There is no reader while the daemon is down; the broker lets the prompt expire.
    drop(client);
    home.daemon.process.kill();
    home.publish(PROMPT, r#"{"id":"unread","prompt":"go"}"#, &expiry).await;
    tokio::time::sleep(std::time::Duration::from_millis(2100)).await;
    home.publish(PROMPT, r#"{"id":"read","prompt":"go","max_tokens":1}"#, &[]).await;
    let settings = format!("{}{}", linked(home.broker.port), endless());
    home.daemon = Daemon::start(&home.folder, &settings).await;
    let mut said = home.replies.end().await;
    // Killed before its acknowledgement reached the broker, a prompt that was answered comes once more.
    if said["id"] == "late" {
        said = home.replies.end().await;
    }
    assert_eq!(said["id"], "read", "{said}");
}

#[tokio::test]
async fn all_that_the_broker_kept_for_us_is_taken_in_one_piece() {
    let depth = 60;
    let settings = format!("[queue]\ndepth = {depth}\n");
    let mut home = LinkedDaemon::at(Mosquitto::start().await, &settings).await;
    home.daemon.process.kill();
    // A window full: what waits, and one that is answered.
    let mut line = Line::new(home.broker.port, "many");
    for n in 0..=depth {
        let prompt = format!(r#"{{"id":"n{n}","prompt":"go","max_tokens":1}}"#);
        line.deliver(PROMPT, &prompt).await.expect("the broker takes it");
    }
    home.daemon = Daemon::start(&home.folder, &format!("{}{settings}", linked(home.broker.port))).await;
    for _ in 0..=depth {
        let done = home.replies.end().await;
        assert_eq!(done["event"], "done", "{done}");
    }
}

#[tokio::test]
async fn a_broker_that_comes_back_taking_less_gets_an_error_in_place_of_a_long_answer() {
    let mut home = LinkedDaemon::at(Mosquitto::persistent().await, &endless()).await;
    let mut client = home.daemon.client().await;
    client.keep_busy().await;
    let mut reports = Listener::on(&home.broker, "bitnetd/cellar/telemetry").await;
    home.publish(PROMPT, r#"{"id":"long","prompt":"go","max_tokens":300}"#, &[]).await;
    reports.wait(|report| report.json()["requests"]["queued"] == 1).await;
    // The daemon may be back before who listens: the broker keeps the answer for it.
    drop(Listener::kept(&home.broker, "bitnetd/cellar/reply/+").await);
    home.broker.kill();
    client.cancel_busy().await;
    client.end().await;
    home.daemon.says("long").await;
    home.broker.change(&format!("{}max_packet_size 600\n", Mosquitto::PERSISTENT));
    home.broker.restart().await;
    let mut replies = Listener::kept(&home.broker, "bitnetd/cellar/reply/+").await;
    let said = replies.end().await;
    assert_eq!((code(&said), &said["id"]), ("too_large", &json!("long")), "{said}");
    home.publish(PROMPT, r#"{"id":"short","prompt":"go","max_tokens":1}"#, &[]).await;
    assert_eq!(replies.end().await["id"], "short");
    assert_eq!(home.broker.connects(CLIENT), 2, "{}", home.daemon.log());
}
