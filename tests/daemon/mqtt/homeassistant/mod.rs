//! The transport as Home Assistant sees it: the description, when it is published, and the commands. Home
//! Assistant's own rules are in `schema_rules`; deliberately no Home Assistant runs here.

mod replay;
mod schema_rules;

use super::harness::{Client, Harness, QUIET_PERIOD, config};
use super::none;
use crate::support::broker::Mosquitto;
use bitnetd::config::{Mqtt, MqttVersion};
use bitnetd::protocol::{Cpu, Flag, Memory, Method, Reading, Thermal, Throttled, Throttling};
use bitnetd::telemetry::Telemetry;
use bitnetd::telemetry::sensors::Snapshot;
use bitnetd::transport::Command;
use bitnetd::transport::mqtt::{MqttContext, PublishedModel};
use serde_json::Value;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::time::{sleep, timeout};

const TOPIC: &str = "homeassistant/device/bitnetd_cellar/config";
const STATUS: &str = "homeassistant/status";

/// A transport that describes itself to Home Assistant, with these sensor readings.
fn harness_with_sensors(config: Mqtt, counters: Arc<Telemetry>) -> Harness {
    Harness::with(config, |context: &mut MqttContext| {
        context.has_homeassistant = true;
        context.local_telemetry = counters;
    })
}

async fn open(broker: &Mosquitto, counters: Arc<Telemetry>) -> Harness {
    let mut harness = harness_with_sensors(config(broker.port), counters);
    harness.until(|state| state.subscribed && state.outbox == 0).await;
    harness
}

fn reading(value: f64, unit: &'static str) -> Option<Reading> {
    let (source, scope) = ("/sys/x".to_owned(), "board".to_owned());
    Some(Reading { value, unit, method: Method::Measured, source, scope })
}

/// A host of which everything is known.
fn host() -> Snapshot {
    let (source, scope) = ("/dev/vcio".to_owned(), "board".to_owned());
    let now = Throttled { frequency_capped: true, ..Throttled::default() };
    Snapshot {
        is_on_battery: false,
        power: reading(4.5, "W"),
        thermal: Thermal {
            cpu: reading(56.25, "°C"),
            throttling: Some(Throttling {
                now,
                since_boot: now,
                method: Method::Measured,
                source: source.clone(),
                scope: scope.clone(),
            }),
            under_voltage: Some(Flag { value: true, method: Method::Measured, source, scope }),
            fan: reading(3000.0, "1/min"),
        },
        cpu: Cpu::default(),
        memory: Memory { process_bytes: Some(10 << 20), ..Memory::default() },
    }
}

/// A device with every sensor that ran for ten seconds.
fn equipped() -> Arc<Telemetry> {
    let (telemetry, now) = (Telemetry::new(64 << 20), Instant::now());
    telemetry.set_thread_limit(3);
    telemetry.observe(now, host());
    telemetry.observe(now + Duration::from_secs(10), host());
    Arc::new(telemetry)
}

fn bare() -> Arc<Telemetry> {
    Arc::new(Telemetry::new(64 << 20))
}

fn report(telemetry: &Telemetry) -> Value {
    serde_json::to_value(telemetry.report(SystemTime::now())).expect("plain data")
}

/// The description that the broker retains for Home Assistant, as a new subscriber receives it.
async fn kept(broker: &Mosquitto) -> Value {
    let mut client = Client::listening(broker, "homeassistant/device/+/config").await;
    let message = client.next().await;
    assert!(message.retain, "kept by the broker");
    let topic = String::from_utf8_lossy(&message.topic).into_owned();
    schema_rules::check_topic("homeassistant", &topic);
    assert_eq!(topic, TOPIC);
    serde_json::from_slice(&message.payload).expect("JSON")
}

fn value(json: &Value) -> minijinja::Value {
    match json {
        Value::Null => ().into(),
        Value::Bool(flag) => (*flag).into(),
        Value::Number(number) if number.is_i64() => number.as_i64().into(),
        Value::Number(number) => number.as_f64().into(),
        Value::String(text) => text.as_str().into(),
        Value::Array(list) => list.iter().map(value).collect(),
        Value::Object(map) => {
            minijinja::Value::from_pairs(map.iter().map(|(key, of)| (key.as_str(), value(of))))
        }
    }
}

/// What Home Assistant makes of a component's template and a report. Its `None` is our renderer's `none`.
fn rendered(component: &Value, report: &Value) -> String {
    rendered_of(component, "value_template", report)
}

fn rendered_of(component: &Value, key: &str, report: &Value) -> String {
    let template = component[key].as_str().expect("a template");
    let mut environment = minijinja::Environment::new();
    // Of a key that is not there it writes a warning to its log.
    environment.set_undefined_behavior(minijinja::UndefinedBehavior::Strict);
    let value_json = value(report);
    let text = environment.render_str(template, minijinja::context! { value_json });
    text.unwrap_or_else(|error| panic!("{template}: {error}"))
}

#[tokio::test]
async fn home_assistant_s_own_rules_hold_for_every_description() {
    for (counters, expected) in [(equipped(), 19), (bare(), 11)] {
        let broker = Mosquitto::start().await;
        let _bench = open(&broker, counters).await;
        let description = kept(&broker).await;
        schema_rules::check(&description);
        let components = description["components"].as_object().expect("a map");
        assert_eq!(components.len(), expected, "{:?}", components.keys());
        assert_eq!(description["availability_topic"], "bitnetd/cellar/availability");
        assert_eq!(description["state_topic"], "bitnetd/cellar/telemetry");
        // AWS IoT takes no more than 128 KiB; smaller brokers on a microcontroller some tens of them.
        assert!(description.to_string().len() < 16 << 10, "{}", description.to_string().len());
    }
}

#[tokio::test]
async fn every_value_is_found_in_a_report() {
    let broker = Mosquitto::start().await;
    let telemetry = equipped();
    let _bench = open(&broker, telemetry.clone()).await;
    let (components, report) = (kept(&broker).await["components"].clone(), report(&telemetry));
    for (key, value) in [
        ("power", "4.5"),
        ("energy", "0.0125"),
        ("temperature", "56.25"),
        ("fan", "3000.0"),
        ("memory", "10.0"),
        ("queue", "0"),
        ("tokens", "0"),
        ("throttled", "ON"),
        ("under_voltage", "ON"),
        ("problem", "OFF"),
        ("threads", "3"),
    ] {
        assert_eq!(rendered(&components[key], &report), value, "{key}");
    }
    let mut alerted = report;
    alerted["alerts"] = serde_json::json!(["temperature"]);
    alerted["latency"]["ttft_ms"]["last_hour"]["p95"] = 12.5.into();
    alerted["thermal"]["under_voltage"] = Value::Null;
    (alerted["decoding"]["steps"], alerted["decoding"]["step_requests"]) = (4.into(), 10.into());
    alerted["decoding"]["prefix_tokens"] = 30.into();
    (alerted["decoding"]["proposed_tokens"], alerted["decoding"]["accepted_tokens"]) = (16.into(), 12.into());
    alerted["throughput"]["prompt_tokens"] = 120.into();
    for (key, value) in [
        ("problem", "ON"),
        ("ttft_p95", "12.5"),
        ("under_voltage", "OFF"),
        ("requests_per_step", "2.5"),
        ("prompt_tokens_found", "25.0"),
        ("looked_up_tokens_accepted", "75.0"),
    ] {
        assert_eq!(rendered(&components[key], &alerted), value, "{key}");
    }
}

#[tokio::test]
async fn the_clients_whose_requests_wait_are_an_attribute_of_their_number() {
    let broker = Mosquitto::start().await;
    let telemetry = bare();
    let _bench = open(&broker, telemetry.clone()).await;
    let queue = &kept(&broker).await["components"]["queue"];
    let attributes = |telemetry: &Telemetry| -> Value {
        let text = rendered_of(queue, "json_attributes_template", &report(telemetry));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    };
    assert_eq!(queue["json_attributes_topic"], "bitnetd/cellar/telemetry");
    telemetry.waiting.begun("mqtt:idle", Duration::from_secs(1));
    assert_eq!(attributes(&telemetry), serde_json::json!({"clients": []}));
    ["mqtt:\"a\"", "mqtt:b", "mqtt:b"].into_iter().for_each(|client| telemetry.waiting.joined(client));
    let waits = |client: &str, waiting: u64| serde_json::json!({"client": client, "begun": 0, "waited_ms": 0, "waiting": waiting});
    let expected = serde_json::json!({"clients": [waits("mqtt:b", 2), waits("mqtt:\"a\"", 1)]});
    assert_eq!(attributes(&telemetry), expected);
    assert_eq!(rendered(queue, &report(&telemetry)), "3");
}

#[tokio::test]
async fn what_is_not_known_is_unknown_there_and_no_number() {
    let broker = Mosquitto::start().await;
    let _bench = open(&broker, equipped()).await;
    let (components, report) = (kept(&broker).await["components"].clone(), report(&bare()));
    for key in [
        "power",
        "energy",
        "energy_per_token",
        "temperature",
        "fan",
        "memory",
        "tokens_per_second",
        "ttft_p95",
        "throttled",
        "under_voltage",
        "threads",
        "requests_per_step",
        "prompt_tokens_found",
        "looked_up_tokens_accepted",
    ] {
        assert_eq!(rendered(&components[key], &report).to_lowercase(), "none", "{key}");
    }
}

#[tokio::test]
async fn the_energy_is_one_that_the_energy_dashboard_takes() {
    let broker = Mosquitto::start().await;
    let _bench = open(&broker, equipped()).await;
    let energy = &kept(&broker).await["components"]["energy"];
    // `components/energy/validate.py`, and `sensor/recorder.py` for long-term statistics.
    let wanted =
        [("device_class", "energy"), ("state_class", "total_increasing"), ("unit_of_measurement", "Wh")];
    wanted.iter().for_each(|(key, value)| assert_eq!(energy[key], *value, "{energy}"));
}

#[tokio::test]
async fn a_birth_brings_the_description_again_and_a_report_with_it() {
    let broker = Mosquitto::start().await;
    let _bench = open(&broker, bare()).await;
    let mut descriptions = Client::listening(&broker, "homeassistant/device/+/config").await;
    // What the broker retains; only a birth brings it once more.
    descriptions.next().await;
    let mut reports = Client::listening(&broker, "bitnetd/cellar/telemetry").await;
    broker.publish(&["-t", STATUS, "-m", "offline"]).await;
    descriptions.is_quiet().await;
    broker.publish(&["-t", STATUS, "-m", "online"]).await;
    let description: Value = serde_json::from_str(&descriptions.text().await).expect("JSON");
    schema_rules::check(&description);
    assert!(reports.text().await.contains("\"uptime_s\""));
}

#[tokio::test]
async fn another_model_is_published_at_once_as_information_and_as_that_of_the_device() {
    let broker = Mosquitto::start().await;
    let harness = open(&broker, bare()).await;
    let mut descriptions = Client::listening(&broker, "homeassistant/device/+/config").await;
    let mut info = Client::listening(&broker, "bitnetd/cellar/info").await;
    let model = async |client: &mut Client| -> Value {
        let description: Value = serde_json::from_slice(&client.next().await.payload).expect("JSON");
        description["device"]["model"].clone()
    };
    assert_eq!(model(&mut descriptions).await, "home-intents");
    assert_eq!(&info.next().await.payload[..], br#"{"version":"test"}"#);
    harness.model.send_replace(PublishedModel { name: "words".into(), info: b"{}".to_vec() });
    assert_eq!(&info.next().await.payload[..], b"{}");
    assert_eq!(model(&mut descriptions).await, "words");
}

/// What the next process finds is what a file in its state folder says.
#[tokio::test]
async fn a_device_that_the_owner_deleted_stays_deleted_until_discovery_is_switched_off_and_on() {
    for version in [MqttVersion::V5, MqttVersion::V311] {
        let (broker, folder) =
            (Mosquitto::start().await, tempfile::TempDir::with_prefix("bitnetd-").expect("a folder"));
        let start = |discovery| {
            Harness::with(Mqtt { discovery, version, ..config(broker.port) }, |context| {
                context.has_homeassistant = true;
                context.state_dir = Some(folder.path().to_owned());
            })
        };
        let mut harness = start(true);
        harness.until(|state| state.subscribed && state.outbox == 0).await;
        let mut descriptions = Client::listening(&broker, "homeassistant/device/+/config").await;
        descriptions.next().await;
        // As Home Assistant does, once for each entity.
        for _ in 0..3 {
            broker.publish(&["-r", "-t", TOPIC, "-n"]).await;
            assert_eq!(descriptions.text().await, "");
        }
        broker.publish(&["-t", STATUS, "-m", "online"]).await;
        sleep(Duration::from_secs(2)).await;
        harness.close().await;
        harness = start(true);
        harness.until(|state| state.subscribed && state.outbox == 0).await;
        broker.publish(&["-t", STATUS, "-m", "online"]).await;
        sleep(Duration::from_secs(2)).await;
        descriptions.is_quiet().await;
        harness.close().await;
        harness = start(false);
        harness.until(|state| state.subscribed && state.outbox == 0).await;
        assert_eq!(descriptions.text().await, "", "switched off, it is removed as always");
        harness.close().await;
        harness = start(true);
        harness.until(|state| state.subscribed && state.outbox == 0).await;
        schema_rules::check(&serde_json::from_str(&descriptions.text().await).expect("JSON"));
        harness.close().await;
    }
}

#[tokio::test]
async fn answering_changes_at_once_and_twice_a_second_at_most() {
    let broker = Mosquitto::start().await;
    let harness = open(&broker, bare()).await;
    assert_eq!(kept(&broker).await["components"]["running"]["state_topic"], "bitnetd/cellar/answering");
    let mut states = Client::listening(&broker, "bitnetd/cellar/answering").await;
    assert_eq!(states.text().await, "OFF", "the broker retains it");
    let began = Instant::now();
    harness.answering.send_replace(true);
    assert_eq!(states.text().await, "ON");
    for round in 0..100 {
        harness.answering.send_replace(round % 2 == 0);
        sleep(Duration::from_millis(10)).await;
    }
    harness.answering.send_replace(false);
    let mut last = "ON".to_owned();
    let mut count = 0;
    while let Ok(state) = timeout(Duration::from_millis(1_500), states.next()).await {
        last = String::from_utf8_lossy(&state.payload).into_owned();
        count += 1;
    }
    assert_eq!(last, "OFF");
    assert!(count <= 2 * began.elapsed().as_secs() + 1, "{count} messages in {:?}", began.elapsed());
}

#[tokio::test]
async fn a_sensor_that_answers_later_is_added() {
    let broker = Mosquitto::start().await;
    let telemetry = bare();
    let harness = open(&broker, telemetry.clone()).await;
    assert!(kept(&broker).await["components"]["power"].is_null());
    telemetry.observe(Instant::now(), host());
    harness.telemetry.send_replace(Some(Arc::new(b"{}".to_vec())));
    let mut client = Client::listening(&broker, TOPIC).await;
    loop {
        let text: Value = serde_json::from_str(&client.text().await).expect("JSON");
        if text["components"]["power"].is_object() {
            return;
        }
    }
}

#[tokio::test]
async fn switched_off_the_description_is_removed_once() {
    let broker = Mosquitto::start().await;
    open(&broker, bare()).await.close().await;
    kept(&broker).await;
    let mut client = Client::listening(&broker, TOPIC).await;
    client.next().await;
    let off = || Mqtt { discovery: false, ..config(broker.port) };
    let mut harness = harness_with_sensors(off(), bare());
    harness.until(|state| state.subscribed && state.outbox == 0).await;
    assert_eq!(client.text().await, "");
    broker.publish(&["-t", STATUS, "-m", "online"]).await;
    client.is_quiet().await;
    let late = broker.subscribe(&["-t", TOPIC, "-W", "1"]).await;
    assert_eq!(late.output().await, "", "the broker keeps nothing");
}

#[tokio::test]
async fn over_mqtt_3_1_1_it_is_the_same() {
    let broker = Mosquitto::start().await;
    let older = Mqtt { version: MqttVersion::V311, ..config(broker.port) };
    let mut harness = harness_with_sensors(older, bare());
    harness.until(|state| state.subscribed && state.outbox == 0).await;
    schema_rules::check(&kept(&broker).await);
    let mut client = Client::listening(&broker, TOPIC).await;
    client.next().await;
    broker.publish(&["-t", STATUS, "-m", "online"]).await;
    schema_rules::check(&serde_json::from_str(&client.text().await).expect("JSON"));
    broker.publish(&["-t", "bitnetd/cellar/threads/set", "-m", "2"]).await;
    assert_eq!(next(&mut harness).await, Command::Threads(2));
}

#[tokio::test]
async fn the_button_and_the_number_reach_the_daemon() {
    let broker = Mosquitto::start().await;
    let mut harness = open(&broker, bare()).await;
    let components = kept(&broker).await["components"].clone();
    let text = |key: &str, of: &str| components[key][of].as_str().expect("text").to_owned();
    let press = text("cancel", "payload_press");
    broker.publish(&["-t", &text("cancel", "command_topic"), "-m", &press]).await;
    assert_eq!(next(&mut harness).await, Command::CancelRunning);
    broker.publish(&["-t", &text("threads", "command_topic"), "-m", "2"]).await;
    assert_eq!(next(&mut harness).await, Command::Threads(2));
    assert_eq!((&components["threads"]["min"], &components["threads"]["max"]), (&1.into(), &4.into()));
}

async fn next(harness: &mut Harness) -> Command {
    let control = timeout(Duration::from_secs(30), harness.controls.recv()).await.expect("in time");
    control.expect("a running transport")
}

#[tokio::test]
async fn an_invalid_command_is_ignored() {
    let broker = Mosquitto::start().await;
    let mut harness = open(&broker, bare()).await;
    let client = Client::listening(&broker, "nothing").await;
    for payload in ["0", "5", "-1", "two", "", "1e9", "{\"threads\":2}"] {
        client.publish("bitnetd/cellar/threads/set", payload.as_bytes(), none()).await;
    }
    client.publish("bitnetd/cellar/threads/set", &[0xff; 100_000], none()).await;
    for payload in ["{\"running\":false}", "{\"running\":1}", "{}", "running"] {
        client.publish("bitnetd/cellar/cancel", payload.as_bytes(), none()).await;
    }
    // Of another day, and live: it is marked as retained either way.
    broker.publish(&["-r", "-t", "bitnetd/cellar/threads/set", "-m", "1"]).await;
    broker.publish(&["-r", "-t", "bitnetd/cellar/cancel", "-m", "{\"running\":true}"]).await;
    sleep(QUIET_PERIOD).await;
    client.publish("bitnetd/cellar/threads/set", b"3", none()).await;
    assert_eq!(next(&mut harness).await, Command::Threads(3), "and none before it");
}

#[tokio::test]
async fn a_retained_cancellation_stops_no_prompt() {
    let broker = Mosquitto::start().await;
    let mut harness = open(&broker, bare()).await;
    broker.publish(&["-q", "1", "-t", super::PROMPT, "-m", r#"{"id":"a","prompt":"hi"}"#]).await;
    let inbound = harness.request().await;
    let cancel = ["-t", "bitnetd/cellar/cancel", "-m", r#"{"id":"a"}"#];
    broker.publish(&[&["-r"], &cancel[..]].concat()).await;
    sleep(QUIET_PERIOD).await;
    assert!(!inbound.cancel.is_raised());
    broker.publish(&cancel).await;
    while !inbound.cancel.is_raised() {
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_description_larger_than_the_broker_takes_is_logged_and_the_rest_works() {
    let broker = Mosquitto::with("max_packet_size 2000\n").await;
    let mut harness = open(&broker, bare()).await;
    sleep(QUIET_PERIOD).await;
    assert_eq!((harness.state.borrow().connects, harness.state.borrow().dropped), (1, 0));
    broker.publish(&["-q", "1", "-t", super::PROMPT, "-m", "hi"]).await;
    assert_eq!(harness.echo().await, "hi");
}
