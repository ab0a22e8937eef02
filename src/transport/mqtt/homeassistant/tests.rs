use super::*;
use crate::protocol::MqttLink;
use crate::telemetry::Telemetry;
use crate::transport::Heartbeat;
use crate::transport::mqtt::PublishedModel;
use serde_json::Value;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

const TOPIC: &str = "homeassistant/device/bitnetd_cellar/config";

fn with(change: impl FnOnce(&mut MqttContext)) -> HomeAssistant {
    let mut context = MqttContext {
        config: crate::config::Mqtt::new("b", 1883),
        device: "cellar".into(),
        state_dir: None,
        model: watch::channel(PublishedModel { name: "m".into(), info: vec![] }).1,
        max_active: 4,
        parallel: 1,
        inbox_bytes: 0,
        requests: mpsc::channel(1).0,
        commands: mpsc::channel(1).0,
        has_homeassistant: true,
        home: None,
        threads: 4,
        reports: watch::channel(None).1,
        answering: watch::channel(false).1,
        alerts: mpsc::channel(1).1,
        report_interval: watch::channel(Duration::from_secs(30)).1,
        status: watch::channel(MqttLink::default()).0,
        local_telemetry: Arc::new(Telemetry::new(0)),
        draining: CancellationToken::new(),
        close: CancellationToken::new(),
        flush_timeout: Duration::ZERO,
        heartbeat: Heartbeat::default(),
        max_idle: Duration::ZERO,
    };
    change(&mut context);
    let topics = Topics::new(&context.config.prefix, &context.device);
    HomeAssistant::new(&context, &topics, false)
}

fn discovery() -> HomeAssistant {
    with(|_| {})
}

fn packet(task: Option<Task>) -> OutgoingMessage {
    match task {
        Some(Task::Publish(packet)) => packet,
        other => panic!("nothing to publish, but {other:?}"),
    }
}

fn json(packet: &OutgoingMessage) -> Value {
    serde_json::from_slice(&packet.payload).expect("JSON")
}

fn at(start: Instant, seconds: u64) -> Instant {
    start + Duration::from_secs(seconds)
}

/// Connected, described, and the broker has it.
fn settled(now: Instant) -> HomeAssistant {
    let mut homeassistant = discovery();
    homeassistant.connected(now);
    packet(homeassistant.next_task(now));
    homeassistant.mark_queued(7);
    homeassistant.mark_sent(7, now);
    assert_eq!(homeassistant.acknowledged(7, &Ok(()), now), Some(DescriptionResult::Taken));
    assert_eq!(homeassistant.next_task(at(now, 2)), Some(Task::Report));
    assert_eq!((homeassistant.next_task(at(now, 99)), homeassistant.due()), (None, None));
    homeassistant
}

#[test]
fn a_connection_begins_with_the_description_and_a_report_follows() {
    let now = Instant::now();
    let mut homeassistant = discovery();
    assert_eq!(homeassistant.next_task(now), None, "nobody to tell");
    homeassistant.connected(now);
    let text = packet(homeassistant.next_task(now));
    assert_eq!((text.topic.as_str(), text.retain, text.json), (TOPIC, true, true));
    assert_eq!(json(&text)["device"]["identifiers"], serde_json::json!(["bitnetd_cellar"]));
    assert_eq!(homeassistant.next_task(at(now, 1)), None);
    assert_eq!(homeassistant.due(), Some(at(now, 2)));
    assert_eq!(homeassistant.next_task(at(now, 2)), Some(Task::Report));
    settled(now);
}

#[test]
fn a_birth_is_answered_after_a_moment_that_differs_between_devices() {
    let now = Instant::now();
    for (random, due) in [(0.0, now), (0.5, at(now, 1)), (1.0, at(now, 2)), (9.0, at(now, 2))] {
        let mut homeassistant = settled(now);
        homeassistant.on_birth_message(b"online", now, random);
        assert_eq!(homeassistant.due(), Some(due));
        homeassistant.on_birth_message(b"online", at(now, 1), 1.0);
        assert_eq!(homeassistant.due(), Some(due), "one answer to births in a row");
        packet(homeassistant.next_task(due));
    }
    let mut homeassistant = settled(now);
    for word in [&b"offline"[..], b"", b"ONLINE", b"online "] {
        homeassistant.on_birth_message(word, now, 0.0);
        assert_eq!(homeassistant.due(), None);
    }
}

#[test]
fn a_device_that_the_owner_deleted_is_not_announced_again() {
    let now = Instant::now();
    let mut homeassistant = settled(now);
    assert!(!homeassistant.on_own_message(b"{}"), "the description itself");
    assert!(homeassistant.on_own_message(b""));
    assert!(!homeassistant.on_own_message(b""), "once for each entity");
    homeassistant.on_birth_message(b"online", now, 0.0);
    homeassistant.update_sensors(SensorPresence::default(), Duration::from_secs(7), now);
    assert_eq!((homeassistant.due(), homeassistant.next_task(at(now, 99))), (None, None));
    homeassistant.disconnected(true, now);
    homeassistant.connected(now);
    assert_eq!((homeassistant.due(), homeassistant.next_task(at(now, 99))), (None, None));
    assert_eq!(homeassistant.filters(), Ok(vec![]));
    assert_eq!(homeassistant.unwanted().count(), 2);
}

#[test]
fn birth_messages_are_received_under_the_configured_prefix_and_the_default_one() {
    let topics = |homeassistant: &mut HomeAssistant| -> Vec<String> {
        let filters = homeassistant.filters().expect("nothing to say");
        assert!(filters.iter().all(|filter| !filter.is_qos_1));
        filters.into_iter().map(|filter| filter.topic).collect()
    };
    assert_eq!(topics(&mut discovery()), ["homeassistant/status", TOPIC]);
    let mut other = with(|context| context.config.discovery_prefix = "ha".into());
    let own = "ha/device/bitnetd_cellar/config";
    assert_eq!(topics(&mut other), ["ha/status", "homeassistant/status", own]);
    assert_eq!(other.topic(), "ha/device/bitnetd_cellar/config");
    assert!(other.is_birth_topic(b"ha/status") && other.is_birth_topic(b"homeassistant/status"));
    assert!(!other.is_birth_topic(b"ha/device/bitnetd_cellar/config"));
}

#[test]
fn a_sensor_that_appears_later_is_added_and_one_that_disappears_stays() {
    let now = Instant::now();
    let mut homeassistant = settled(now);
    let (none, power) = (
        SensorPresence::default(),
        SensorPresence::detected(&crate::telemetry::sensors::Snapshot {
            power: Some(crate::protocol::Reading {
                value: 4.0,
                unit: "W",
                method: crate::protocol::Method::Measured,
                source: "/sys".into(),
                scope: "board".into(),
            }),
            ..Default::default()
        }),
    );
    let interval = Duration::from_secs(30);
    homeassistant.update_sensors(none, interval, now);
    assert_eq!(homeassistant.due(), None);
    homeassistant.update_sensors(power, interval, now);
    let components = json(&packet(homeassistant.next_task(now)))["components"].clone();
    assert!(components["power"].is_object() && components["energy"].is_object(), "{components}");
    assert_eq!(homeassistant.next_task(at(now, 2)), Some(Task::Report));
    homeassistant.update_sensors(none, interval, now);
    assert_eq!(homeassistant.due(), None);
    homeassistant.connected(now);
    assert!(json(&packet(homeassistant.next_task(now)))["components"]["power"].is_object());
}

#[test]
fn another_interval_makes_values_last_another_time() {
    let now = Instant::now();
    let mut homeassistant = settled(now);
    homeassistant.update_sensors(SensorPresence::default(), Duration::from_secs(5), now);
    let text = json(&packet(homeassistant.next_task(now)));
    assert_eq!(text["components"]["queue"]["expire_after"], 25);
}

#[test]
fn switched_off_it_removes_the_description_once_and_unsubscribes() {
    let now = Instant::now();
    let mut homeassistant = with(|context| context.config.discovery = false);
    assert_eq!(homeassistant.filters(), Ok(vec![]));
    assert_eq!(homeassistant.unwanted().collect::<Vec<_>>(), ["homeassistant/status", TOPIC]);
    // The first time the connection is gone before the broker has it.
    for entry in [1, 2] {
        homeassistant.connected(now);
        let text = packet(homeassistant.next_task(now));
        assert_eq!((text.topic.as_str(), text.payload.len(), text.retain), (TOPIC, 0, true));
        homeassistant.mark_queued(entry);
        if entry == 1 {
            assert_eq!(homeassistant.disconnected(false, now), None);
        }
    }
    assert_eq!(homeassistant.acknowledged(2, &Ok(()), now), Some(DescriptionResult::Taken));
    homeassistant.connected(now);
    homeassistant.on_birth_message(b"online", now, 0.0);
    homeassistant.update_sensors(SensorPresence::default(), Duration::from_secs(1), now);
    assert_eq!((homeassistant.next_task(now), homeassistant.due()), (None, None));
}

/// The problem that is reported when the broker refuses it.
fn refused(homeassistant: &mut HomeAssistant, now: Instant) -> Option<String> {
    packet(homeassistant.next_task(now));
    homeassistant.mark_queued(7);
    homeassistant.mark_sent(7, now);
    assert_eq!(homeassistant.acknowledged(8, &Ok(()), now), None, "another's");
    match homeassistant.acknowledged(7, &Err("NotAuthorized".into()), now) {
        Some(DescriptionResult::Refused(text)) => text,
        other => panic!("not refused, but {other:?}"),
    }
}

#[test]
fn a_refusal_by_the_broker_is_logged_once_and_retried_after_an_hour() {
    let now = Instant::now();
    let mut homeassistant = discovery();
    homeassistant.connected(now);
    let text = refused(&mut homeassistant, now).expect("the first time");
    let parts = [TOPIC, "NotAuthorized", "mqtt.discovery"];
    assert!(parts.into_iter().all(|part| text.contains(part)), "{text}");
    homeassistant.on_birth_message(b"online", now, 0.0);
    homeassistant.connected(at(now, 9));
    assert_eq!(
        (homeassistant.next_task(at(now, 1)), homeassistant.next_task(at(now, 2))),
        (None, Some(Task::Report))
    );
    assert_eq!((homeassistant.next_task(at(now, 3599)), homeassistant.due()), (None, Some(at(now, 3600))));
    assert_eq!(refused(&mut homeassistant, at(now, 3600)), None, "said before");
    assert_eq!(homeassistant.next_task(at(now, 7199)), Some(Task::Report));
    packet(homeassistant.next_task(at(now, 7200)));
    homeassistant.mark_queued(9);
    assert_eq!(homeassistant.acknowledged(9, &Ok(()), at(now, 7200)), Some(DescriptionResult::Taken));
    homeassistant.connected(at(now, 7201));
    assert!(refused(&mut homeassistant, at(now, 7201)).is_some(), "it was taken in between");
}

#[test]
fn a_description_that_cannot_be_removed_is_logged_once_with_what_to_do() {
    let now = Instant::now();
    let mut homeassistant = with(|context| context.config.discovery = false);
    homeassistant.connected(now);
    let text = refused(&mut homeassistant, now).expect("said");
    assert!(text.contains(&format!("mosquitto_pub -r -n -t {TOPIC}")), "{text}");
    assert!(!text.contains("mqtt.discovery"), "{text}");
    homeassistant.connected(now);
    assert_eq!((homeassistant.next_task(at(now, 9999)), homeassistant.due()), (None, None));
}

/// A connection that ended so many seconds after the description was sent. Returns the problem that is reported.
fn ended(homeassistant: &mut HomeAssistant, now: Instant, by_broker: bool, after: u64) -> Option<String> {
    homeassistant.connected(now);
    packet(homeassistant.next_task(now));
    homeassistant.mark_queued(7);
    homeassistant.mark_sent(7, now);
    homeassistant.disconnected(by_broker, at(now, after))
}

#[test]
fn a_broker_that_ends_the_connection_over_it_is_given_it_again_an_hour_later() {
    let now = Instant::now();
    let mut homeassistant = discovery();
    for number in 1..=GIVE_UP {
        // A connection that ended by itself says nothing.
        assert_eq!(ended(&mut homeassistant, now, false, 0), None);
        assert_eq!(ended(&mut homeassistant, now, true, 0).is_some(), number == GIVE_UP);
    }
    assert_eq!(homeassistant.filters(), Ok(vec![]), "nor is it told when to");
    homeassistant.connected(now);
    assert_eq!((homeassistant.next_task(now), homeassistant.due()), (None, Some(at(now, 3600))));
    assert_eq!(ended(&mut homeassistant, at(now, 3600), true, 1), None, "said before");
    homeassistant.connected(at(now, 3602));
    assert_eq!((homeassistant.next_task(at(now, 7200)), homeassistant.due()), (None, Some(at(now, 7201))));
}

#[test]
fn a_connection_that_ends_before_it_was_handed_over_or_long_after_says_nothing_of_it() {
    let now = Instant::now();
    let mut homeassistant = discovery();
    for _ in 0..2 * GIVE_UP {
        assert_eq!(ended(&mut homeassistant, now, true, 30), None);
        homeassistant.connected(now);
        packet(homeassistant.next_task(now));
        homeassistant.mark_queued(7);
        homeassistant.mark_sent(6, now);
        assert_eq!(homeassistant.disconnected(true, now), None);
    }
}

#[test]
fn a_connection_that_ends_over_the_births_says_nothing_of_the_description() {
    let now = Instant::now();
    let mut homeassistant = discovery();
    for entry in 0..9 {
        let filters = homeassistant.filters();
        assert_eq!(filters.is_ok_and(|filters| !filters.is_empty()), entry < 2);
        homeassistant.connected(now);
        packet(homeassistant.next_task(now));
        homeassistant.mark_queued(entry);
        homeassistant.mark_sent(entry, now);
        if entry >= 2 {
            homeassistant.acknowledged(entry, &Ok(()), now);
        }
        assert_eq!(homeassistant.disconnected(true, now), None);
    }
}

#[test]
fn a_description_that_is_too_large_for_the_broker_is_logged_once() {
    let now = Instant::now();
    let mut homeassistant = discovery();
    homeassistant.connected(now);
    let size = packet(homeassistant.next_task(now)).size();
    let text = homeassistant.too_large(size, 100, now).expect("said");
    assert!(text.contains(&size.to_string()) && text.contains("100"), "{text}");
    homeassistant.connected(now);
    assert_eq!((homeassistant.next_task(at(now, 9)), homeassistant.due()), (None, Some(at(now, 3600))));
}

#[test]
fn a_device_of_any_name_has_a_topic_that_home_assistant_reads_and_of_its_own() {
    assert_eq!(object_id("pi-4_a"), "bitnetd_pi-4_a");
    let others = ["pi.home", "pi home", "küche", "pi_home"].map(object_id);
    for (index, id) in others.iter().enumerate() {
        assert!(id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')), "{id}");
        assert!(others[..index].iter().all(|other| other != id), "{id}");
    }
}
