//! Sentences over the Wyoming protocol, as Home Assistant sends them, to the real daemon with its built-in model.

use crate::daemon::{Daemon, bitnetd, is_emulated};
use crate::systemd::activated_by_name;
use crate::{Folder, PATIENCE, data, endless, text, until};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A client of the Wyoming protocol.
struct Client(BufReader<TcpStream>);

impl Client {
    async fn connect(address: SocketAddr) -> Self {
        Client(BufReader::new(TcpStream::connect(address).await.expect("somebody listens")))
    }

    async fn send(&mut self, bytes: &[u8]) {
        let sent = timeout(PATIENCE, self.0.write_all(bytes)).await;
        sent.expect("the daemon reads").expect("the connection is open");
    }

    /// Sends an event as the reference client does: its data follow the header.
    async fn event(&mut self, kind: &str, data: &Value) {
        let data = data.to_string();
        let header = json!({"type": kind, "version": "1.7.2", "data_length": data.len()});
        self.send(format!("{header}\n{data}").as_bytes()).await;
    }

    /// The type and the data of the next event; `None` at the end of the connection.
    async fn next(&mut self) -> Option<(String, Value)> {
        timeout(PATIENCE, self.read()).await.expect("an event in time")
    }

    async fn read(&mut self) -> Option<(String, Value)> {
        let mut line = String::new();
        if self.0.read_line(&mut line).await.unwrap_or(0) == 0 {
            return None;
        }
        let header: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let mut data = vec![0; header["data_length"].as_u64().unwrap_or(0) as usize];
        self.0.read_exact(&mut data).await.expect("as many bytes as the header says");
        let data = if data.is_empty() { json!({}) } else { serde_json::from_slice(&data).expect("JSON") };
        Some((header["type"].as_str().expect("a type").to_owned(), data))
    }

    /// Says a sentence, and waits for the answer.
    async fn say(&mut self, sentence: &str) -> (String, Value) {
        self.event("transcript", &json!({"text": sentence, "context": {"conversation_id": "c1"}})).await;
        self.next().await.expect("an answer")
    }

    /// The error that ends the connection.
    async fn error(&mut self) -> Value {
        let (kind, error) = self.next().await.expect("an error");
        assert_eq!(kind, "error", "{error}");
        let (kind, again) = self.next().await.expect("the same for older clients");
        assert_eq!((kind.as_str(), &again["text"]), ("not-handled", &error["text"]));
        assert_eq!(self.next().await, None, "the connection ends");
        error
    }
}

/// A daemon that listens on a free port.
struct WyomingDaemon {
    daemon: Daemon,
    address: SocketAddr,
    /// Keeps the port.
    _listener: TcpListener,
}

impl WyomingDaemon {
    /// As systemd starts it. Not yet ready.
    fn spawn(folder: &Folder, settings: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let config = folder.config(settings);
        let arguments = ["serve", "--config", text(&config)];
        let daemon = activated_by_name(&listener, "wyoming", folder, &arguments);
        WyomingDaemon { daemon, address, _listener: listener }
    }

    async fn start(folder: &Folder, settings: &str) -> Self {
        let mut started = Self::spawn(folder, settings);
        started.daemon.ready().await;
        started
    }

    async fn client(&self) -> Client {
        Client::connect(self.address).await
    }

    /// Waits until the report counts so many requests.
    async fn counts(&self, key: &str, wanted: u64) {
        let begun = Instant::now();
        loop {
            let report = self.daemon.client().await.ask(json!({"telemetry": true})).await;
            if report["requests"][key] == json!(wanted) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{key} is not {wanted}: {report}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn several_sentences_on_one_connection_become_intents_or_a_sentence() {
    let folder = Folder::new();
    let served = WyomingDaemon::start(&folder, "").await;
    let mut client = served.client().await;
    client.send(b"{\"type\":\"describe\",\"version\":\"1.7.2\"}\n").await;
    let (kind, info) = client.next().await.expect("an answer");
    let program = &info["intent"][0];
    assert_eq!(
        (kind.as_str(), &program["name"], &program["installed"]),
        ("info", &json!("bitnetd"), &json!(true))
    );
    assert_eq!(program["models"][0]["languages"], json!(["en"]), "{info}");

    let (kind, intent) = client.say("turn on the kitchen lights").await;
    assert_eq!(
        (kind.as_str(), &intent["name"], &intent["text"]),
        ("intent", &json!("HassTurnOn"), &json!("Done"))
    );
    let entities = json!([{"name": "domain", "value": "light"}, {"name": "area", "value": "kitchen"}]);
    assert_eq!((&intent["entities"], &intent["context"]), (&entities, &json!({"conversation_id": "c1"})));

    // What Home Assistant would refuse is a sentence.
    for sentence in ["What is the capital of France?", "set a timer for five minutes"] {
        let (kind, answer) = client.say(sentence).await;
        assert_eq!(kind, "not-recognized", "{sentence}: {answer}");
        assert!(answer["text"].as_str().is_some_and(|text| text.ends_with('.')), "{answer}");
    }
    let device =
        json!({"text": "set a timer for five minutes", "context": {"device_id": "d"}, "language": "en"});
    client.event("transcript", &device).await;
    assert_eq!(client.next().await.expect("an answer").0, "intent");

    client.event("ping", &json!({"text": "still there?"})).await;
    assert_eq!(client.next().await, Some(("pong".into(), json!({"text": "still there?"}))));
    // Events that are not known are dropped, with their payload.
    client.send(b"{\"type\":\"audio-chunk\",\"data\":{\"rate\":1},\"payload_length\":4}\n\n\n\n\n").await;
    // Two events at once, the second with its data in the header.
    client.send(b"{\"type\":\"ping\"}\n{\"type\":\"transcript\",\"data\":{\"text\":\"turn off the office lights\"}}\n").await;
    assert_eq!(client.next().await, Some(("pong".into(), json!({}))));
    assert_eq!(client.next().await.expect("an answer").1["name"], "HassTurnOff");
    assert!(served.daemon.log().contains(" REQUEST_ID=w1-"), "{}", served.daemon.log());
    drop(client);
    served.daemon.stop().await;
}

/// What Home Assistant sent, file by file, and what it has to read; see `tests/data/wyoming`.
#[tokio::test]
async fn what_home_assistant_sends_is_answered_as_it_expects() {
    let folder = Folder::new();
    let served = WyomingDaemon::start(&folder, "").await;
    let mut replayed = 0;
    for version in ["home-assistant-2026.2", "home-assistant-2026.6"] {
        for entry in std::fs::read_dir(data("wyoming").join(version)).expect("a folder") {
            let path = entry.expect("readable").path();
            if path.extension().is_none_or(|ending| ending != "request") {
                continue;
            }
            let mut client = served.client().await;
            client.send(&std::fs::read(&path).expect("readable")).await;
            let (kind, answer) = client.next().await.expect("an answer");
            let expected = std::fs::read(path.with_extension("answer")).expect("an answer for each request");
            let expected: Value = serde_json::from_slice(&expected).expect("JSON");
            assert_eq!(expected["type"], kind, "{}: {answer}", path.display());
            for (key, value) in expected["data"].as_object().expect("an object") {
                // A key that is missing is null, too.
                assert_eq!(&answer[key], value, "{}: {key}", path.display());
            }
            replayed += 1;
        }
    }
    assert_eq!(replayed, 12);
    served.daemon.stop().await;
}

#[tokio::test]
async fn names_of_the_home_are_those_that_home_assistant_knows() {
    let folder = Folder::new();
    let file = folder
        .write("home.json", r#"{"devices":[{"domain":"light","name":"Kitchen Light","area":"Kitchen"}]}"#);
    let settings = format!("[home]\nenabled = true\nconstrain = false\nfile = \"{}\"\n", file.display());
    let served = WyomingDaemon::start(&folder, &settings).await;
    let mut client = served.client().await;
    let (kind, intent) = client.say("turn on the kitchen light").await;
    assert_eq!(kind, "intent", "{intent}");
    assert!(intent["entities"].to_string().contains("\"Kitchen Light\""), "{intent}");
    let (kind, answer) = client.say("hello").await;
    assert_eq!(kind, "not-recognized", "{answer}");
    served.daemon.stop().await;
}

#[tokio::test]
async fn a_chat_model_answers_with_text() {
    let folder = Folder::new();
    let settings = endless().replace("context = 65536", "context = 64");
    let served = WyomingDaemon::start(&folder, &settings).await;
    let mut client = served.client().await;
    client.event("describe", &json!({})).await;
    let (_, info) = client.next().await.expect("an answer");
    assert_eq!((&info["intent"], &info["handle"][0]["name"]), (&json!([]), &json!("bitnetd")));
    let (kind, answer) = client.say("hello").await;
    assert_eq!(kind, "handled", "{answer}");
    assert!(answer["text"].is_string() && answer["context"]["conversation_id"] == "c1", "{answer}");
    served.daemon.stop().await;
}

#[tokio::test]
async fn what_is_no_event_is_refused_and_ends_its_connection_alone() {
    let folder = Folder::new();
    let served = WyomingDaemon::start(&folder, "").await;
    let mut sound = served.client().await;
    sound.event("ping", &json!({})).await;
    sound.next().await.expect("an answer");
    let long = format!("{{\"type\":\"transcript\",\"data_length\":{}}}\n", 200_000);
    let text = json!({"text": "x".repeat(65_537)}).to_string();
    let long_text = format!("{{\"type\":\"transcript\",\"data_length\":{}}}\n{text}", text.len());
    for (bytes, code, message) in [
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), "invalid_request", "the header"),
        (format!("{{\"type\":\"{}", "x".repeat(70_000)), "too_large", "the header"),
        (long, "too_large", "data_length"),
        (long_text, "too_large", "text"),
        ("{\"type\":\"transcript\"}\n".to_owned(), "invalid_request", "text"),
        ("{\"type\":\"transcript\",\"data_length\":3}\nabc".to_owned(), "invalid_request", "the data"),
    ] {
        let mut client = served.client().await;
        // The daemon may close before it has read all of it.
        let _ = client.0.write_all(bytes.as_bytes()).await;
        let error = client.error().await;
        assert_eq!(error["code"], code, "{error}");
        assert!(error["text"].as_str().is_some_and(|text| text.starts_with(message)), "{error}");
    }
    assert_eq!(sound.say("turn on the kitchen lights").await.0, "intent");
    served.daemon.stop().await;
}

#[tokio::test]
async fn a_client_that_stops_inside_an_event_is_told_and_one_that_leaves_cancels_its_request() {
    let folder = Folder::new();
    let served = WyomingDaemon::start(&folder, &endless()).await;
    let mut slow = served.client().await;
    slow.send(b"{\"type\":\"trans").await;
    // A request that never ends runs until its client leaves.
    let mut leaving = served.client().await;
    leaving.event("transcript", &json!({"text": "go"})).await;
    served.counts("received", 1).await;
    drop(leaving);
    served.counts("cancelled", 1).await;
    let error = slow.error().await;
    assert_eq!(error["code"], "timeout", "{error}");
    served.daemon.stop().await;
}

#[tokio::test]
async fn a_client_that_floods_before_it_has_its_answer_is_refused_and_its_request_cancelled() {
    let folder = Folder::new();
    let served = WyomingDaemon::start(&folder, &endless()).await;
    let mut flooding = served.client().await;
    flooding.event("transcript", &json!({"text": "go"})).await;
    served.counts("received", 1).await;
    flooding.send(&[b'x'; 256 << 10]).await;
    served.counts("cancelled", 1).await;
    let error = flooding.error().await;
    assert_eq!(error["code"], "too_large", "{error}");
    // Nothing of what a client sends meanwhile hides that it leaves.
    let mut leaving = served.client().await;
    leaving.event("transcript", &json!({"text": "go"})).await;
    served.counts("received", 2).await;
    leaving.send(&[b'\n'; 100 << 10]).await;
    drop(leaving);
    served.counts("cancelled", 2).await;
    served.daemon.stop().await;
}

#[tokio::test]
async fn idle_connections_make_place_for_new_ones() {
    let folder = Folder::new();
    let served = WyomingDaemon::start(&folder, "").await;
    let mut idle = Vec::new();
    for _ in 0..16 {
        let mut client = served.client().await;
        client.event("ping", &json!({})).await;
        client.next().await.expect("an answer");
        idle.push(client);
    }
    tokio::time::sleep(Duration::from_millis(250)).await;
    let mut next = served.client().await;
    assert_eq!(next.say("turn on the kitchen lights").await.0, "intent");
    assert_eq!(idle[0].next().await, None, "the longest idle one was closed");
    assert_eq!(idle[15].say("turn on the kitchen lights").await.0, "intent");
    served.daemon.stop().await;
}

#[tokio::test]
async fn describe_is_answered_while_the_model_loads_and_a_sentence_waits_for_it() {
    let folder = Folder::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    // Both events are there before the daemon is, and the listener is open before the model is loaded.
    let mut client = Client::connect(address).await;
    client.event("describe", &json!({})).await;
    client.event("transcript", &json!({"text": "turn on the kitchen lights"})).await;
    let config = folder.config("");
    let arguments = ["serve", "--config", text(&config)];
    let mut daemon = activated_by_name(&listener, "wyoming", &folder, &arguments);
    assert_eq!(client.next().await.expect("an answer").0, "info");
    if !is_emulated() {
        let log = daemon.log();
        assert!(!log.contains("ready: ") || log.contains("wyoming: listening on"), "{log}");
    }
    assert_eq!(client.next().await.expect("an answer").0, "intent");
    daemon.ready().await;
    let log = daemon.log();
    let place = |text: &str| log.find(text).unwrap_or_else(|| panic!("{text}: {log}"));
    assert!(place("wyoming: listening on") < place("ready: "), "{log}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_sentence_under_way_is_answered_in_the_drain_and_a_new_one_is_refused() {
    let folder = Folder::new();
    let settings = format!("{}[queue]\ndrain_ms = 2000\n", endless());
    let served = WyomingDaemon::start(&folder, &settings).await;
    let (mut asking, mut waiting) = (served.client().await, served.client().await);
    waiting.event("ping", &json!({})).await;
    waiting.next().await.expect("an answer");
    asking.event("transcript", &json!({"text": "go"})).await;
    served.counts("received", 1).await;
    served.daemon.process.signal(Signal::TERM);
    served.daemon.says("stopping on").await;
    waiting.event("transcript", &json!({"text": "go"})).await;
    assert_eq!(waiting.error().await["code"], "shutting_down");
    let error = asking.error().await;
    assert_eq!(error["code"], "cancelled", "{error}");
    let mut served = served;
    served.daemon.ends_well().await;
}

#[tokio::test]
async fn the_configured_address_is_listened_on_and_named_where_it_is_taken() {
    let folder = Folder::new();
    // Free again at once: nobody connected to it.
    let address =
        TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    let settings = format!("[wyoming]\nlisten = \"{address}\"\n");
    let daemon = Daemon::start(&folder, &settings).await;
    let mut client = Client::connect(address).await;
    assert_eq!(client.say("turn on the kitchen lights").await.0, "intent");
    let other = Folder::new();
    let config = other.config(&settings);
    let mut second = Daemon::spawn(bitnetd().arg("serve").arg("--config").arg(config), &other);
    assert_eq!(second.process.ended().await.code(), Some(1), "{}", second.log());
    let message = format!("wyoming.listen: {address} cannot be listened on");
    assert!(second.log().contains(&message), "{}", second.log());
    drop(client);
    daemon.stop().await;
    until("the port is free again", || TcpListener::bind(address).ok()).await;
}
