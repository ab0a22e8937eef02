//! The security record: a line for each refusal, command, failed token and reload, without any text of a prompt.

use crate::daemon::{Client, Daemon};
use crate::guard::{call, http_settings};
use crate::listener::Listener;
use crate::support::broker::{Mosquitto, free_port};
use crate::surroundings::with_journal;
use crate::{Folder, linked, until};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// The lines of the record on standard error.
fn record(daemon: &Daemon) -> Vec<Value> {
    lines_of(&daemon.log())
}

fn lines_of(log: &str) -> Vec<Value> {
    let lines = log.lines().filter_map(|line| line.strip_prefix("bitnetd-security: "));
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

/// Waits for a line of this event and this reason.
async fn recorded(daemon: &Daemon, event: &str, reason: &str) -> Value {
    until(&format!("{event} {reason}"), || {
        record(daemon).into_iter().find(|line| line["event"] == event && line["reason"] == reason)
    })
    .await
}

async fn counts(client: &mut Client) -> Value {
    client.ask(json!({"telemetry": true})).await["security"].clone()
}

fn is_hash(client: &Value) -> bool {
    let digits = client.as_str().unwrap_or_default();
    digits.len() == 8 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
}

#[tokio::test]
async fn refusals_commands_failed_tokens_and_reloads_are_recorded_and_counted() {
    let (folder, broker, port) = (Folder::new(), Mosquitto::start().await, free_port());
    let guard = "[guard]\nmax_prompt_bytes = 20\n";
    let settings = format!("{}{}{guard}", linked(broker.port), http_settings(&folder, port));
    let daemon = Daemon::start(&folder, &settings).await;
    Listener::hears_online(&broker).await;
    let mut client = daemon.client().await;
    let long = "a secret that nobody may read in a log";
    assert_eq!(client.ask(json!({"id": "long", "prompt": long})).await["code"], "too_large");
    let refused = recorded(&daemon, "refused", "prompt_bytes").await;
    assert_eq!(
        (&refused["request_id"], &refused["interface"]),
        (&"long".into(), &"unix".into()),
        "{refused}"
    );
    assert!(is_hash(&refused["client"]) && refused["address"].is_null(), "{refused}");
    let body = r#"{"model":"any","messages":[{"role":"user","content":"go"}],"max_tokens":1}"#;
    assert_eq!(call(port, "wrong", body).await.0, 401);
    let failed = recorded(&daemon, "failed_token", "wrong").await;
    assert_eq!((&failed["address"], &failed["interface"]), (&"127.0.0.1".into(), &"http".into()), "{failed}");
    assert!(is_hash(&failed["client"]), "{failed}");
    broker.publish(&["-q", "1", "-t", "bitnetd/cellar/threads/set", "-m", "1"]).await;
    assert_eq!(recorded(&daemon, "command", "thread_limit").await["threads"], 1);
    broker.publish(&["-q", "1", "-t", "bitnetd/cellar/cancel", "-m", r#"{"id":"theirs"}"#]).await;
    let cancelled = recorded(&daemon, "command", "cancel").await;
    assert_eq!(
        (&cancelled["request_id"], &cancelled["requests"]),
        (&"theirs".into(), &0.into()),
        "{cancelled}"
    );
    broker.publish(&["-q", "1", "-t", "bitnetd/cellar/cancel", "-m", r#"{"running":true}"#]).await;
    recorded(&daemon, "command", "cancel_running").await;
    folder.config(&format!("{settings}nonsense = 1\n"));
    daemon.process.signal(Signal::HUP);
    recorded(&daemon, "reload", "refused").await;
    // The record does not depend on the level of the log.
    folder.config(&format!("{settings}[log]\nlevel = \"error\"\n"));
    daemon.process.signal(Signal::HUP);
    recorded(&daemon, "reload", "applied").await;
    assert_eq!(call(port, "wrong", body).await.0, 401);
    until("the second wrong token", || {
        let lines = record(&daemon);
        (lines.iter().filter(|line| line["event"] == "failed_token").count() == 2).then_some(())
    })
    .await;
    let counts = counts(&mut client).await;
    assert_eq!(counts["refused"]["prompt_bytes"], 1, "{counts}");
    for (key, count) in [("failed_tokens", 2), ("commands", 3), ("reloads", 2), ("reloads_refused", 1)] {
        assert_eq!(counts[key], count, "{key}: {counts}");
    }
    assert!(!daemon.log().contains("secret"), "{}", daemon.log());
}

#[tokio::test]
async fn a_flood_has_five_lines_and_one_at_the_end_that_says_how_many_were_left_out() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "[guard]\nmax_prompt_bytes = 4\nclear_ids = true\n").await;
    let mut client = daemon.client().await;
    let began = Instant::now();
    for _ in 0..40 {
        assert_eq!(client.ask(json!({"prompt": "too long"})).await["code"], "too_large");
    }
    assert_eq!(counts(&mut client).await["refused"]["prompt_bytes"], 40);
    let is_within_a_minute = began.elapsed() < Duration::from_secs(60);
    daemon.stop().await;
    let lines = lines_of(&std::fs::read_to_string(folder.path("log")).expect("its log"));
    let left_out: u64 = lines.iter().filter_map(|line| line["left_out"].as_u64()).sum();
    let alone = lines.iter().filter(|line| line.get("left_out").is_none()).count() as u64;
    assert_eq!(alone + left_out, 40, "{lines:?}");
    assert!(alone == 5 || !is_within_a_minute, "{lines:?}");
    let is_clear = |line: &Value| line["client"].as_str().is_some_and(|name| name.starts_with("unix:uid="));
    assert!(lines.iter().all(is_clear), "{lines:?}");
}

#[tokio::test]
async fn in_the_journal_the_record_has_an_identifier_of_its_own() {
    let folder = Folder::new();
    let Some((journal, mut command)) = with_journal(&folder, "[guard]\nmax_prompt_bytes = 4\n") else {
        return;
    };
    journal.set_nonblocking(true).expect("our own");
    let mut daemon = Daemon::spawn(&mut command, &folder);
    until("it listens", || UnixStream::connect(&daemon.socket).ok()).await;
    let refused = daemon.client().await.ask(json!({"id": "x", "prompt": "too long"})).await;
    assert_eq!(refused["code"], "too_large", "{refused}");
    let mut buffer = [0; 16 << 10];
    let entry = until("an entry of the record", || {
        let length = journal.recv(&mut buffer).ok()?;
        let entry = String::from_utf8_lossy(&buffer[..length]).into_owned();
        entry.contains("\nSYSLOG_IDENTIFIER=bitnetd-security\n").then_some(entry)
    })
    .await;
    let message = entry.lines().find_map(|line| line.strip_prefix("MESSAGE=")).expect("a message");
    let line: Value = serde_json::from_str(message).expect("JSON");
    assert_eq!((&line["reason"], &line["request_id"]), (&"prompt_bytes".into(), &"x".into()), "{line}");
    daemon.process.terminate();
    daemon.ends_well().await;
}

#[tokio::test]
async fn requests_that_a_transport_refuses_are_lines_of_the_log_without_any_text_of_theirs() {
    let (folder, broker) = (Folder::new(), Mosquitto::start().await);
    let daemon = Daemon::start(&folder, &linked(broker.port)).await;
    Listener::hears_online(&broker).await;
    let mut client = daemon.client().await;
    for number in 0..9 {
        let refused = client.ask(json!({"messages": format!("marker {number}")})).await;
        assert!(refused["message"].as_str().is_some_and(|text| text.contains("marker")), "{refused}");
    }
    let body = r#"{"messages":"marker"}"#;
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let mut stream = tokio::net::UnixStream::connect(&daemon.socket).await.expect("somebody listens");
    tokio::io::AsyncWriteExt::write_all(&mut stream, format!("{head}{body}").as_bytes())
        .await
        .expect("it reads");
    let mut answer = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer).await.expect("UTF-8");
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("marker"), "{answer}");
    broker.publish(&["-q", "1", "-t", "bitnetd/cellar/prompt/hall", "-m", body]).await;
    daemon.says("refused: invalid_request; further ones of this client are not logged for a minute").await;
    let lines = || -> Vec<String> {
        let log = daemon.log();
        log.lines().filter(|line| line.contains("refused: ")).map(str::to_owned).collect()
    };
    // Four and the last of the client of the socket; over HTTP on the socket it is the same client, which has no more; one over MQTT.
    let written =
        until("a line of the prompt over MQTT", || Some(lines()).filter(|lines| lines.len() == 6)).await;
    for line in &written {
        assert!(line.starts_with("INFO") && !line.contains("uid=") && !line.contains("hall"), "{line}");
        let (_, client) = line.split_once(" CLIENT=").expect("a client");
        assert_eq!(client.split_whitespace().next().map(str::len), Some(8), "{line}");
    }
    assert!(!daemon.log().contains("marker"), "{}", daemon.log());
    daemon.stop().await;
}
