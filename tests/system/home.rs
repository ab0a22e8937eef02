//! Home Assistant and Prometheus with the real daemon: what it publishes about itself, and the commands that it
//! accepts.

use crate::daemon::Daemon;
use crate::listener::{Listener, Message};
use crate::support::broker::Mosquitto;
use crate::{Folder, endless, linked, until};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const TOPIC: &str = "homeassistant/device/bitnetd_cellar/config";
const STATUS: &str = "homeassistant/status";
const TELEMETRY: &str = "bitnetd/cellar/telemetry";

/// Settings for a broker link, with something more in its section.
fn with_link(port: u16, keys: &str) -> String {
    linked(port).replace("[mqtt]\n", &format!("[mqtt]\n{keys}"))
}

#[tokio::test]
async fn home_assistant_finds_the_device_again_when_it_starts_and_loses_it_on_request() {
    let (folder, broker) = (Folder::new(), Mosquitto::start().await);
    let daemon = Daemon::start(&folder, &with_link(broker.port, "")).await;
    Listener::hears_online(&broker).await;
    let mut told = Listener::on(&broker, TOPIC).await;
    let first = told.next().await.json();
    assert_eq!(first["device"]["model"], "home-intents", "{first}");
    broker.publish(&["-t", STATUS, "-m", "online"]).await;
    // Retained messages are marked as such, and arrive only at the subscription.
    told.wait(|message| !message.retained && message.json()["components"]["queue"].is_object()).await;
    daemon.stop().await;
    let settings = with_link(broker.port, "discovery = false\n");
    let daemon = Daemon::start(&folder, &settings).await;
    told.wait(|message| message.payload.is_empty()).await;
    daemon.says(&format!("taken back what was on {TOPIC}")).await;
    let late = broker.subscribe(&["-t", TOPIC, "-W", "1"]).await;
    assert_eq!(late.output().await, "");
    daemon.stop().await;
}

#[tokio::test]
async fn its_button_ends_the_running_request_and_no_other() {
    let (folder, broker) = (Folder::new(), Mosquitto::start().await);
    let daemon = Daemon::start(&folder, &format!("{}{}", endless(), with_link(broker.port, ""))).await;
    Listener::hears_online(&broker).await;
    let cancel = &Listener::on(&broker, TOPIC).await.next().await.json()["components"]["cancel"];
    let text = |key: &str| cancel[key].as_str().expect("text").to_owned();
    let (topic, press) = (text("command_topic"), text("payload_press"));
    let mut client = daemon.client().await;
    client.keep_busy().await;
    client.request(&[json!({"id": "next", "prompt": "go", "max_tokens": 1})]).await;
    broker.publish(&["-t", &topic, "-m", &press]).await;
    let ended = client.end().await;
    assert_eq!((&ended["id"], &ended["finish_reason"]), (&json!("busy"), &json!("cancelled")), "{ended}");
    assert_eq!(client.end().await["finish_reason"], "length");
    // With nothing to end it does nothing, and ends nothing later.
    broker.publish(&["-t", &topic, "-m", &press]).await;
    let mut replies = Listener::on(&broker, "bitnetd/cellar/reply/+").await;
    broker
        .publish(&[
            "-q",
            "1",
            "-t",
            "bitnetd/cellar/prompt",
            "-m",
            r#"{"id":"a","prompt":"b","max_tokens":3}"#,
        ])
        .await;
    assert_eq!(replies.end().await["finish_reason"], "length");
    daemon.stop().await;
}

#[tokio::test]
async fn a_prompt_over_mqtt_that_the_button_ends_is_answered_once_as_cancelled() {
    let (folder, broker) = (Folder::new(), Mosquitto::start().await);
    let daemon = Daemon::start(&folder, &format!("{}{}", endless(), with_link(broker.port, ""))).await;
    Listener::hears_online(&broker).await;
    let mut replies = Listener::on(&broker, "bitnetd/cellar/reply/a").await;
    let request = r#"{"id":"a","prompt":"go","stream":true}"#;
    broker.publish(&["-q", "1", "-t", "bitnetd/cellar/prompt", "-m", request]).await;
    replies.next().await;
    broker.publish(&["-t", "bitnetd/cellar/cancel", "-m", "{\"running\":true}"]).await;
    let ended = replies.end().await;
    assert_eq!((&ended["event"], &ended["finish_reason"]), (&json!("done"), &json!("cancelled")), "{ended}");
    daemon.stop().await;
}

#[tokio::test]
async fn its_number_limits_the_threads_that_compute_until_the_next_start() {
    let (folder, broker) = (Folder::new(), Mosquitto::start().await);
    let budget = "[budget]\nthreads = 2\n";
    let daemon =
        Daemon::start(&folder, &format!("{}{budget}{}", endless(), with_link(broker.port, ""))).await;
    Listener::hears_online(&broker).await;
    let threads = &Listener::on(&broker, TOPIC).await.next().await.json()["components"]["threads"];
    assert_eq!((&threads["min"], &threads["max"]), (&json!(1), &json!(2)), "{threads}");
    let topic = threads["command_topic"].as_str().expect("a topic").to_owned();
    let mut reports = Listener::on(&broker, TELEMETRY).await;
    let limit = |report: &Value| report["cpu"]["thread_limit"].as_u64();
    assert_eq!(limit(&reports.next().await.json()), Some(2));
    let ask = json!({"prompt": "go", "max_tokens": 40, "cache": false});
    let mut client = daemon.client().await;
    let want = client.ask(ask.clone()).await["text"].clone();
    for number in [1, 2] {
        broker.publish(&["-t", &topic, "-m", "9"]).await;
        broker.publish(&["-t", &topic, "-m", &number.to_string()]).await;
        reports.wait(|message| limit(&message.json()) == Some(number)).await;
        assert_eq!(client.ask(ask.clone()).await["text"], want, "with {number}");
    }
    daemon.says("9 is outside 1 to 2").await;
    broker.publish(&["-t", &topic, "-m", "1"]).await;
    reports.wait(|message| limit(&message.json()) == Some(1)).await;
    daemon.stop().await;
    let daemon =
        Daemon::start(&folder, &format!("{}{budget}{}", endless(), with_link(broker.port, ""))).await;
    reports.wait(|message| limit(&message.json()) == Some(2)).await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_limit_and_an_alert_are_reported_at_once_however_long_the_interval() {
    let (folder, broker) = (Folder::new(), Mosquitto::start().await);
    let link = with_link(broker.port, "").replace("interval_s = 1\n", "interval_s = 86400\n");
    let settings = |ms: &str| format!("[budget]\nthreads = 2\n{link}[alerts]\nhold_s = 0\nttft_ms = {ms}\n");
    let daemon = Daemon::start(&folder, &settings("0")).await;
    daemon.client().await.ask(json!({"prompt": "turn on the light"})).await;
    Listener::hears_online(&broker).await;
    let mut reports = Listener::on(&broker, TELEMETRY).await;
    // One of them may be in the report that follows the description.
    for number in [1, 2, 1] {
        broker.publish(&["-t", "bitnetd/cellar/threads/set", "-m", &number.to_string()]).await;
        reports.wait(|message| message.json()["cpu"]["thread_limit"] == json!(number)).await;
    }
    // The board may have alerts of its own.
    for (ms, is_raised) in [("0.001", true), ("0", false)] {
        folder.config(&settings(ms));
        daemon.process.signal(Signal::HUP);
        let names = |message: &Message| message.json()["alerts"].as_array().cloned().unwrap_or_default();
        reports.wait(|message| names(message).contains(&json!("latency")) == is_raised).await;
    }
    daemon.stop().await;
}

#[tokio::test]
async fn what_prometheus_reads_over_the_socket_counts_what_was_answered() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let mut client = daemon.client().await;
    client.ask(json!({"prompt": "turn on the light"})).await;
    let event = client.ask(json!({"metrics": true})).await;
    let text = event["text"].as_str().expect("a text");
    for line in [
        "bitnetd_requests_completed_total 1",
        "bitnetd_thread_limit 1",
        "# TYPE gen_ai_server_time_to_first_token_seconds histogram",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in {text}");
    }
    let model = "model=\"home-intents\"";
    assert!(
        text.lines().any(|line| line.starts_with("bitnetd_build_info{") && line.contains(model)),
        "{text}"
    );
    let mut stream = UnixStream::connect(&daemon.socket).await.expect("somebody listens");
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").await.expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("to its end");
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("\nbitnetd_requests_completed_total 1\n"));
    daemon.stop().await;
}

#[tokio::test]
async fn the_text_file_is_there_while_the_daemon_is_and_moves_with_a_reload() {
    let folder = Folder::new();
    let file = |name: &str| folder.path(name);
    let settings =
        |path: &str| format!("[telemetry]\ninterval_s = 1\ntextfile = \"{}\"\n", folder.path(path).display());
    let daemon = Daemon::start(&folder, &settings("a.prom")).await;
    let read = |name: &str| std::fs::read_to_string(file(name)).ok();
    let uptime = |name: &str| {
        read(name)?.lines().find(|line| line.starts_with("bitnetd_uptime_seconds ")).map(str::to_owned)
    };
    let first = until("a file", || uptime("a.prom")).await;
    until("another one", || uptime("a.prom").filter(|later| *later != first)).await;
    let mode = std::fs::metadata(file("a.prom")).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o644);
    folder.config(&settings("missing/b.prom"));
    daemon.process.signal(Signal::HUP);
    daemon.says("changed: telemetry.textfile").await;
    daemon.says("missing/b.prom: ").await;
    assert_eq!(read("a.prom"), None, "what nobody writes any more is gone");
    std::fs::create_dir(file("missing")).expect("ours");
    until("the new file", || uptime("missing/b.prom")).await;
    daemon.says("is written again").await;
    assert_eq!(daemon.log().matches("telemetry.textfile: ").count(), 2, "{}", daemon.log());
    daemon.stop().await;
    assert_eq!(read("missing/b.prom"), None, "nor after a stop");
}
