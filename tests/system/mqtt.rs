//! Requests over a real broker, and the messages that the daemon retains there.

use crate::daemon::{Daemon, bitnetd, run};
use crate::listener::{Listener, Message};
use crate::support::broker::Mosquitto;
use crate::support::certificates::{Authority, keep_private};
use crate::{Folder, cases, endless, linked, text};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;

/// A broker, and a daemon that reads its prompts.
struct Home {
    daemon: Daemon,
    broker: Mosquitto,
    folder: Folder,
}

impl Home {
    async fn new() -> Self {
        Self::with("").await
    }

    async fn with(settings: &str) -> Self {
        Self::at(Mosquitto::start().await, settings).await
    }

    async fn at(broker: Mosquitto, settings: &str) -> Self {
        let folder = Folder::new();
        let daemon = Daemon::start(&folder, &format!("{}{settings}", linked(broker.port))).await;
        let home = Home { daemon, broker, folder };
        home.is("online").await;
        home
    }

    async fn listen(&self, topic: &str) -> Listener {
        Listener::on(&self.broker, topic).await
    }

    /// Waits until the broker says this of the daemon.
    async fn is(&self, availability: &str) {
        let mut said = self.listen("bitnetd/cellar/availability").await;
        said.wait(|message| message.payload == availability).await;
    }

    async fn publish(&self, topic: &str, payload: &str) {
        self.broker.publish(&["-q", "1", "-t", topic, "-m", payload]).await;
    }
}

#[tokio::test]
async fn the_answer_over_mqtt_is_the_answer_over_the_socket() {
    let home = Home::new().await;
    let mut replies = home.listen("bitnetd/cellar/reply/+").await;
    let mut client = home.daemon.client().await;
    for (number, case) in cases().iter().take(6).enumerate() {
        let id = format!("n{number}");
        let request = json!({"id": id, "prompt": case.prompt, "cache": false});
        home.publish("bitnetd/cellar/prompt", &request.to_string()).await;
        let message = replies.next().await;
        assert_eq!(message.topic, format!("bitnetd/cellar/reply/{id}"));
        let (here, there) = (client.ask(request).await, message.json());
        for key in ["event", "id", "text", "finish_reason", "usage", "cached"] {
            assert_eq!(here[key], there[key], "{key}");
        }
        assert_eq!(there["text"], case.answer);
    }
}

#[tokio::test]
async fn streamed_tokens_come_in_order_before_the_one_done() {
    let home = Home::new().await;
    let mut replies = home.listen("bitnetd/cellar/reply/+").await;
    let case = &cases()[0];
    let request = json!({"id": "a", "prompt": case.prompt, "stream": true});
    home.publish("bitnetd/cellar/prompt", &request.to_string()).await;
    let mut streamed = String::new();
    let done = loop {
        match replies.next().await.json() {
            event if event["event"] == "token" => streamed.push_str(event["text"].as_str().expect("text")),
            event => break event,
        }
    };
    assert_eq!((&done["text"], streamed.as_str()), (&json!(case.answer), case.answer.as_str()));
    home.publish("bitnetd/cellar/prompt", r#"{"id":"b","prompt":"go"}"#).await;
    assert_eq!(replies.next().await.json()["id"], "b", "nothing follows the last event");
}

#[tokio::test]
async fn plain_text_goes_to_the_response_topic_with_its_correlation_data() {
    let home = Home::with("[guard]\nclear_ids = true\n").await;
    let mut replies = home.listen("kitchen/answers").await;
    for topic in ["bitnetd/cellar/prompt", "bitnetd/cellar/prompt/kitchen"] {
        let case = &cases()[2];
        let response = ["-D", "publish", "response-topic", "kitchen/answers"];
        let correlation = ["-D", "publish", "correlation-data", topic];
        let plain = ["-q", "1", "-t", topic, "-m", &case.prompt];
        home.broker.publish(&[&plain[..], &response, &correlation].concat()).await;
        let Message { correlation, payload, .. } = replies.next().await;
        let done: Value = serde_json::from_str(&payload).expect("JSON");
        assert_eq!((correlation.as_str(), &done["text"]), (topic, &json!(case.answer)));
    }
    // Who asked is in the log.
    home.daemon.says("mqtt:kitchen").await;
}

#[tokio::test]
async fn a_retained_prompt_is_refused_and_one_from_before_is_not_answered() {
    let broker = Mosquitto::start().await;
    let mut replies = Listener::on(&broker, "bitnetd/cellar/reply/+").await;
    let (old, now) = (r#"{"id":"old","prompt":"go"}"#, r#"{"id":"now","prompt":"go"}"#);
    broker.publish(&["-q", "1", "-r", "-t", "bitnetd/cellar/prompt", "-m", old]).await;
    let home = Home::at(broker, "").await;
    home.broker.publish(&["-q", "1", "-r", "-t", "bitnetd/cellar/prompt", "-m", now]).await;
    let refused = replies.next().await.json();
    assert_eq!((&refused["id"], &refused["code"]), (&json!("now"), &json!("invalid_request")));
    assert!(refused["message"].as_str().is_some_and(|said| said.contains("retain")), "{refused}");
    home.publish("bitnetd/cellar/prompt", r#"{"id":"new","prompt":"go"}"#).await;
    assert_eq!(replies.next().await.json()["id"], "new");
}

#[tokio::test]
async fn info_names_what_runs_and_the_budget() {
    let home = Home::with("[budget]\nmemory_mb = 300\nthreads = 2\n").await;
    let message = home.listen("bitnetd/cellar/info").await.next().await;
    assert!(message.retained, "{message:?}");
    let info = message.json();
    assert_eq!((&info["version"], &info["device"]), (&json!(env!("CARGO_PKG_VERSION")), &json!("cellar")));
    assert_eq!(info["model"], "home-intents", "{info}");
    assert!(info["kernel"].as_str().is_some_and(|kernel| !kernel.is_empty()), "{info}");
    let budget = &info["budget"];
    assert_eq!((&budget["memory_mb"], &budget["threads"]), (&json!(300), &json!(2)), "{info}");
    assert!(budget["planned_mb"].as_u64().is_some_and(|mb| (1..300).contains(&mb)), "{info}");
    assert!(budget["memory_limit_enforced"].is_boolean(), "{info}");
}

#[tokio::test]
async fn the_telemetry_has_every_documented_key() {
    let home = Home::new().await;
    home.daemon.client().await.ask(json!({"prompt": "turn on the light"})).await;
    let mut reports = home.listen("bitnetd/cellar/telemetry").await;
    let report = reports.wait(|report| report.json()["requests"]["completed"] == 1).await.json();
    for key in ["thermal", "cpu", "memory", "latency", "throughput", "requests", "cache"] {
        assert!(report[key].is_object(), "{key}: {report}");
    }
    for key in ["power", "energy"] {
        let reading = report.get(key).unwrap_or_else(|| panic!("{key}: {report}"));
        let named = ["method", "source", "scope"].iter().all(|word| reading[word].is_string());
        assert!(reading.is_null() || named, "{key}: {report}");
    }
    assert!(report["time"].as_str().is_some_and(|time| time.ends_with('Z')), "{report}");
    assert!(report["uptime_s"].is_u64() && report["alerts"].is_array(), "{report}");
    for quantity in ["queue_ms", "ttft_ms", "token_ms", "total_ms"] {
        for percentile in ["p50", "p95", "p99"] {
            assert!(report["latency"][quantity][percentile].is_f64(), "{quantity} {percentile}: {report}");
        }
    }
    assert!(report["memory"]["process_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{report}");
    assert!(report["memory"]["memory_limit_enforced"].is_boolean(), "{report}");
}

#[tokio::test]
async fn two_figures_of_the_owner_s_give_a_power_and_an_energy_that_say_what_they_are() {
    let home = Home::with("idle_watts = 3\nfull_watts = 8\n").await;
    let mut reports = home.listen("bitnetd/cellar/telemetry").await;
    let report = reports.wait(|report| report.json()["energy"].is_object()).await.json();
    let power = &report["power"];
    assert!(power["method"].is_string() && power["method"] == report["energy"]["method"], "{report}");
    // A machine that measures its power is not asked for an estimate.
    if power["method"] == "estimated" {
        assert_eq!((&power["unit"], &power["scope"]), (&json!("W"), &json!("board")), "{report}");
        assert!(power["value"].as_f64().is_some_and(|watts| (3.0..=8.0).contains(&watts)), "{report}");
        assert!(report["cpu"]["host_percent"].is_f64(), "{report}");
    }
}

#[tokio::test]
async fn a_request_is_cancelled_by_its_id() {
    let home = Home::with(&endless()).await;
    let mut replies = home.listen("bitnetd/cellar/reply/+").await;
    let mut reports = home.listen("bitnetd/cellar/telemetry").await;
    home.publish("bitnetd/cellar/prompt", r#"{"id":"a","prompt":"go"}"#).await;
    reports.wait(|report| report.json()["requests"]["running"] == 1).await;
    home.publish("bitnetd/cellar/cancel", r#"{"id":"a"}"#).await;
    let done = replies.end().await;
    assert_eq!((&done["id"], &done["finish_reason"]), (&json!("a"), &json!("cancelled")));
}

#[tokio::test]
async fn a_clean_stop_publishes_offline() {
    let Home { daemon, broker, folder: _folder } = Home::new().await;
    daemon.stop().await;
    let said = broker.subscribe(&["-t", "bitnetd/cellar/availability", "-C", "1", "-W", "20"]).await;
    assert_eq!(said.output().await, "offline\n");
}

#[tokio::test]
async fn what_a_stop_cuts_off_is_left_to_the_broker_and_answered_by_the_next_start() {
    let mut home = Home::with(&format!("{}[queue]\ndrain_ms = 100\n", endless())).await;
    let mut all = home.listen("bitnetd/cellar/#").await;
    for (id, count) in [("runs", 1), ("waits", 2)] {
        let request = json!({"id": id, "prompt": "go"}).to_string();
        home.publish("bitnetd/cellar/prompt", &request).await;
        let at_hand = |report: Value| report["running"].as_u64().zip(report["queued"].as_u64());
        let both = |m: &Message| {
            m.topic.ends_with("/telemetry") && at_hand(m.json()["requests"].clone()) == Some((1, count - 1))
        };
        all.wait(both).await;
    }
    home.daemon.process.terminate();
    all.wait(|message| message.payload == "offline").await;
    home.daemon.ends_well().await;
    // The next one has a model that comes to an end.
    let daemon = Daemon::start(&home.folder, &linked(home.broker.port)).await;
    for id in ["runs", "waits"] {
        let done = all.wait(|message| message.topic.contains("/reply/")).await.json();
        assert_eq!((&done["event"], &done["id"]), (&json!("done"), &json!(id)), "{done}");
        assert_ne!(done["finish_reason"], "cancelled", "{done}");
    }
    drop(daemon);
}

#[tokio::test]
async fn the_will_of_a_killed_daemon_is_offline() {
    let mut home = Home::new().await;
    home.daemon.process.kill();
    home.is("offline").await;
}

#[tokio::test]
async fn a_broker_that_was_gone_is_found_again() {
    let mut home = Home::at(Mosquitto::persistent().await, "").await;
    let client = "bitnetd-cellar";
    let before = home.broker.connects(client);
    assert_eq!(before, 1, "the daemon's client id is {client}");
    home.broker.kill();
    let done = home.daemon.client().await.ask(json!({"prompt": "go"})).await;
    assert_eq!(done["event"], "done", "the socket goes on without a broker");
    home.broker.restart().await;
    crate::until("a new connection", || (home.broker.connects(client) > before).then_some(())).await;
    home.is("online").await;
    let mut replies = home.listen("bitnetd/cellar/reply/+").await;
    home.publish("bitnetd/cellar/prompt", r#"{"id":"a","prompt":"go"}"#).await;
    assert_eq!(replies.end().await["id"], "a");
}

#[tokio::test]
async fn the_password_comes_from_its_file() {
    let broker = Mosquitto::with_user("cellar", "s3cret").await;
    let (folder, port) = (Folder::new(), broker.port);
    let password = folder.write("password", "s3cret\n");
    keep_private(&password);
    let login = format!("username = \"cellar\"\npassword_file = \"{}\"\n", password.display());
    let daemon = Daemon::start(&folder, &format!("{}{login}", link(port))).await;
    crate::until("a login", || (broker.connects("bitnetd-cellar") > 0).then_some(())).await;
    assert!(!daemon.log().contains("s3cret"), "{}", daemon.log());
}

#[tokio::test]
async fn the_password_that_systemd_loads_is_found_by_itself() {
    let broker = Mosquitto::with_user("cellar", "s3cret").await;
    let (folder, port) = (Folder::new(), broker.port);
    let credential = folder.write("mqtt-password", "s3cret\n");
    // As systemd shows what it grants by an access list.
    std::fs::set_permissions(&credential, PermissionsExt::from_mode(0o440)).expect("ours");
    let config = folder.config(&format!("{}username = \"cellar\"\n", link(port)));
    let mut command = bitnetd();
    command.args(["serve", "--config", text(&config)]).env("CREDENTIALS_DIRECTORY", folder.0.path());
    let mut daemon = Daemon::spawn(&mut command, &folder);
    daemon.ready().await;
    crate::until("a login", || (broker.connects("bitnetd-cellar") > 0).then_some(())).await;
}

#[tokio::test]
async fn a_link_over_tls_with_certificates_of_both_sides_comes_from_the_configuration() {
    let (folder, house) = (Folder::new(), Authority::new("House"));
    let ca = house.write(&folder.path("ca.crt"));
    let (theirs, ours) =
        (house.sign("127.0.0.1", &folder.path("broker")), house.sign("cellar", &folder.path("cellar")));
    let lines = format!(
        "allow_anonymous true\ncafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\n",
        text(&ca),
        text(&theirs.cert),
        text(&theirs.key)
    );
    let broker = Mosquitto::made(|_| lines).await;
    let settings = format!(
        "{}tls = true\nca_file = \"{}\"\ncert_file = \"{}\"\nkey_file = \"{}\"\n",
        link(broker.port),
        text(&ca),
        text(&ours.cert),
        text(&ours.key)
    );
    let daemon = Daemon::start(&folder, &settings).await;
    crate::until("a link", || (broker.connects("bitnetd-cellar") > 0).then_some(())).await;
    let ended = run(&["doctor", "--config", text(&folder.config(&settings))]).await;
    assert!(ended.out.contains("ms, encrypted; QoS 2"), "{ended:?}");
    daemon.stop().await;
}

/// Settings that end in those of a broker link.
fn link(port: u16) -> String {
    format!("[device]\nid = \"cellar\"\n[mqtt]\nhost = \"127.0.0.1\"\nport = {port}\n")
}

#[tokio::test]
async fn a_publish_that_the_broker_refuses_is_named_by_its_topic_once() {
    let broker = Mosquitto::made(|folder| {
        let access = folder.join("access");
        std::fs::write(&access, "topic read #\ntopic write bitnetd/cellar/prompt\n")
            .expect("a temporary folder");
        format!("allow_anonymous true\nacl_file {}\n", access.display())
    })
    .await;
    let folder = Folder::new();
    let daemon =
        Daemon::start(&folder, &format!("{}discovery = false\n", linked_mqtt_last(broker.port))).await;
    daemon.says("a publish was refused on bitnetd/cellar/availability (NotAuthorized)").await;
    for _ in 0..3 {
        broker
            .publish(&["-q", "1", "-t", "bitnetd/cellar/prompt", "-m", r#"{"id":"a","prompt":"go"}"#])
            .await;
    }
    daemon.says("a publish was refused on bitnetd/cellar/reply/a (NotAuthorized)").await;
    let lines = daemon.log();
    let named = lines.lines().filter(|line| line.contains("refused on bitnetd/cellar/availability"));
    assert_eq!(named.count(), 1, "{lines}");
}

/// The settings of [`linked`], open for more keys of `[mqtt]`.
fn linked_mqtt_last(port: u16) -> String {
    format!("[device]\nid = \"cellar\"\n[mqtt]\nhost = \"127.0.0.1\"\nport = {port}\n")
}
