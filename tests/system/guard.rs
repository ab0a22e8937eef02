//! The guard: what clients may ask, and how often, over each interface.

use crate::daemon::{Client, Daemon};
use crate::listener::Listener;
use crate::support::broker::{Mosquitto, free_port};
use crate::{Folder, PATIENCE, linked};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// A prompt that is answered at once.
fn quick() -> Value {
    json!({"prompt": "go", "max_tokens": 1})
}

async fn report(client: &mut Client) -> Value {
    client.ask(json!({"telemetry": true})).await
}

/// The status and the body of a call over TCP.
async fn call(port: u16, token: &str, body: &str) -> (u16, String) {
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let answered = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
        stream.write_all(format!("{head}{body}").as_bytes()).await.expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("text");
        answer
    };
    let answer = timeout(PATIENCE, answered).await.expect("an answer in time");
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status.unwrap_or_else(|| panic!("{answer}")), body.to_owned())
}

/// A port with two tokens: `a`, whose holder has the name `kitchen`, and `b`, which has none.
fn http_settings(folder: &Folder, port: u16) -> String {
    let tokens = folder.write("tokens", "kitchen a\nb\n");
    std::fs::set_permissions(&tokens, std::fs::Permissions::from_mode(0o600)).expect("our own");
    format!("[http]\nlisten = \"127.0.0.1:{port}\"\ntoken_file = \"{}\"\n", tokens.display())
}

#[tokio::test]
async fn who_waits_as_long_as_it_was_told_is_admitted_again() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "[guard]\nrequests_per_minute = 2\n").await;
    // Two processes of one user are one client.
    let mut client = daemon.client().await;
    let mut other = daemon.client().await;
    assert_eq!(client.ask(quick()).await["event"], "done");
    assert_eq!(other.ask(quick()).await["event"], "done");
    let refused = client.ask(quick()).await;
    assert_eq!(refused["code"], "rate_limited", "{refused}");
    let ms = refused["retry_after_ms"].as_u64().expect("a time");
    assert!(ms <= 60_000, "{refused}");
    let refused = report(&mut client).await["security"].clone();
    assert_eq!(
        (&refused["refused"]["rate_limited"], &refused["clients"][0]["refused"]["rate_limited"]),
        (&json!(1), &json!(1)),
        "{refused}"
    );
    sleep(Duration::from_millis(ms)).await;
    assert_eq!(client.ask(quick()).await["event"], "done");
}

#[tokio::test]
async fn a_flood_of_the_broker_s_clients_and_of_holders_of_tokens_stops_at_the_limit_of_each() {
    let (folder, broker, port) = (Folder::new(), Mosquitto::start().await, free_port());
    let guard = "[guard]\nrequests_per_minute = 3\n";
    let settings = format!("{}{}{guard}", linked(broker.port), http_settings(&folder, port));
    let daemon = Daemon::start(&folder, &settings).await;
    let mut replies = Listener::on(&broker, "bitnetd/cellar/reply/#").await;
    let mut outcomes = std::collections::HashMap::<(String, String), usize>::new();
    for number in 0..6 {
        for client in ["hall", "attic"] {
            let request = json!({"id": format!("{client}-{number}"), "prompt": "go", "max_tokens": 1});
            let topic = format!("bitnetd/cellar/prompt/{client}");
            broker.publish(&["-q", "1", "-t", &topic, "-m", &request.to_string()]).await;
        }
    }
    for _ in 0..12 {
        let end = replies.next().await.json();
        let client = end["id"].as_str().and_then(|id| id.split('-').next()).expect("an id").to_owned();
        let outcome = end["code"].as_str().or(end["event"].as_str()).expect("an end").to_owned();
        *outcomes.entry((client, outcome)).or_default() += 1;
    }
    for client in ["hall", "attic"] {
        let count = |outcome: &str| outcomes.get(&(client.to_owned(), outcome.to_owned())).copied();
        assert_eq!((count("done"), count("rate_limited")), (Some(3), Some(3)), "{outcomes:?}");
    }
    let body = r#"{"model":"any","messages":[{"role":"user","content":"go"}],"max_tokens":1}"#;
    for token in ["a", "b"] {
        for _ in 0..3 {
            assert_eq!(call(port, token, body).await.0, 200, "{}", daemon.log());
        }
        let (status, text) = call(port, token, body).await;
        assert!(status == 429 && text.contains("rate_limit"), "{status} {text}");
    }
    // A reload lifts the limit.
    folder.config(&settings.replace(guard, ""));
    daemon.process.signal(Signal::HUP);
    daemon.says("changed: guard.requests_per_minute").await;
    assert_eq!(call(port, "a", body).await.0, 200);
}

#[tokio::test]
async fn prompts_and_answers_are_as_long_as_allowed_and_no_longer() {
    let (folder, broker, port) = (Folder::new(), Mosquitto::start().await, free_port());
    let guard = "[guard]\nmax_prompt_bytes = 200\nmax_prompt_tokens = 40\nmax_output_tokens = 2\n";
    let settings = format!("{}{}{guard}", linked(broker.port), http_settings(&folder, port));
    let daemon = Daemon::start(&folder, &settings).await;
    let mut client = daemon.client().await;
    let spoken = |bytes: usize| json!({"prompt": "go ".repeat(bytes / 3), "cache": false});
    let refused = client.ask(spoken(201)).await;
    assert_eq!(refused["code"], "too_large", "{refused}");
    assert!(refused["message"].as_str().is_some_and(|text| text.contains("201 bytes")), "{refused}");
    let refused = client.ask(spoken(198)).await;
    assert_eq!(refused["code"], "too_large", "{refused}");
    assert!(
        refused["message"].as_str().is_some_and(|text| text.contains(" tokens, and a client may send 40")),
        "{refused}"
    );
    for wanted in [json!({}), json!({"max_tokens": 50})] {
        let mut request = json!({"prompt": "turn on the light", "cache": false});
        request.as_object_mut().expect("an object").extend(wanted.as_object().expect("an object").clone());
        let done = client.ask(request).await;
        assert_eq!(
            (&done["finish_reason"], &done["usage"]["completion_tokens"]),
            (&json!("length"), &json!(2)),
            "{done}"
        );
    }
    let mut replies = Listener::on(&broker, "bitnetd/cellar/reply/#").await;
    broker.publish(&["-q", "1", "-t", "bitnetd/cellar/prompt/hall", "-m", &"x".repeat(201)]).await;
    assert_eq!(replies.next().await.json()["code"], "too_large");
    let long = json!({"model": "any", "messages": [{"role": "user", "content": "x".repeat(201)}]});
    let (status, text) = call(port, "a", &long.to_string()).await;
    assert!(status == 413 && text.contains("201 bytes"), "{status} {text}");
    let security = report(&mut client).await["security"]["refused"].clone();
    assert_eq!((&security["prompt_bytes"], &security["prompt_tokens"]), (&json!(3), &json!(1)), "{security}");
}

#[tokio::test]
async fn control_characters_are_removed_or_refused() {
    let folder = Folder::new();
    let settings = |value: &str| format!("[guard]\ncontrol_characters = \"{value}\"\n");
    let daemon = Daemon::start(&folder, &settings("remove")).await;
    let mut client = daemon.client().await;
    let plain = client.ask(json!({"prompt": "turn on\tthe\r\nlight", "cache": false})).await;
    let hidden = client.ask(json!({"prompt": "\u{7}turn \u{1b}on\tthe\r\n\u{0}light", "cache": false})).await;
    assert_eq!((&plain["event"], &plain["text"]), (&json!("done"), &hidden["text"]));
    assert_eq!(plain["usage"], hidden["usage"]);
    folder.config(&settings("refuse"));
    daemon.process.signal(Signal::HUP);
    daemon.says("changed: guard.control_characters").await;
    let refused = client.ask(json!({"prompt": "turn \u{1b}on the light"})).await;
    assert_eq!(refused["code"], "invalid_request", "{refused}");
    assert!(refused["message"].as_str().is_some_and(|text| text.contains("U+001B at byte 5")), "{refused}");
    assert_eq!(client.ask(json!({"prompt": "turn on\tthe\r\nlight"})).await["event"], "done");
}
