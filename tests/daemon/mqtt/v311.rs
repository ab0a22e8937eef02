//! The MQTT transport in version 3.1.1, against a real mosquitto.

use super::harness::{Client, Harness, answer, config, prompt};
use super::{PROMPT, none};
use crate::support::broker::Mosquitto;
use bitnetd::config::{Mqtt, MqttVersion};
use bitnetd::protocol::json::MAX_REQUEST;
use bitnetd::transport::mqtt::probe;
use rumqttc::v5::mqttbytes::v5::PublishProperties;
use std::time::Duration;
use tokio::time::sleep;

fn link(port: u16) -> Mqtt {
    Mqtt { version: MqttVersion::V311, ..config(port) }
}

async fn open(broker: &Mosquitto) -> Harness {
    let mut harness = Harness::with(link(broker.port), |_| {});
    harness.until(|state| state.subscribed).await;
    harness
}

#[tokio::test]
async fn a_prompt_is_answered_on_the_topic_of_its_id_whatever_it_asks_for() {
    let broker = Mosquitto::start().await;
    let mut harness = open(&broker).await;
    assert!(broker.log().contains("as bitnetd-cellar (p2, c0,"), "version 3.1.1, a session that is kept");
    let mut client = Client::listening(&broker, "bitnetd/cellar/reply/+").await;
    // The broker cannot pass a Response Topic on.
    let asked = PublishProperties { response_topic: Some("elsewhere".into()), ..none() };
    client.publish(PROMPT, br#"{"id":"a","prompt":"hi","stream":true}"#, asked).await;
    let inbound = harness.request().await;
    inbound.reply.token("he".into()).expect("room");
    answer(inbound, "hello");
    assert_eq!(client.text().await, r#"{"event":"token","id":"a","text":"he"}"#);
    let last = client.next().await;
    assert_eq!(&last.topic[..], b"bitnetd/cellar/reply/a");
    assert!(String::from_utf8_lossy(&last.payload).contains(r#""text":"hello""#));
}

#[tokio::test]
async fn plain_text_is_answered_under_an_id_of_ours() {
    let broker = Mosquitto::start().await;
    let mut harness = open(&broker).await;
    let mut client = Client::listening(&broker, "bitnetd/cellar/reply/hall/+").await;
    client.publish("bitnetd/cellar/prompt/hall", b"hi", none()).await;
    let inbound = harness.request().await;
    assert_eq!((inbound.client.as_str(), prompt(&inbound).as_str()), ("mqtt:hall", "hi"));
    let id = inbound.id.clone();
    answer(inbound, "x");
    assert_eq!(client.next().await.topic, format!("bitnetd/cellar/reply/hall/{id}").into_bytes());
}

#[tokio::test]
async fn a_cancellation_reaches_the_running_prompt() {
    let broker = Mosquitto::start().await;
    let mut harness = open(&broker).await;
    broker.publish(&["-q", "1", "-t", PROMPT, "-m", r#"{"id":"a","prompt":"hi"}"#]).await;
    let inbound = harness.request().await;
    broker.publish(&["-t", "bitnetd/cellar/cancel", "-m", r#"{"id":"a"}"#]).await;
    while !inbound.cancel.is_raised() {
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_prompt_that_the_broker_keeps_is_refused_at_the_next_start() {
    let broker = Mosquitto::start().await;
    let mut client = Client::listening(&broker, "bitnetd/cellar/reply/a").await;
    broker.publish(&["-q", "1", "-r", "-t", PROMPT, "-m", r#"{"id":"a","prompt":"hi"}"#]).await;
    let mut harness = open(&broker).await;
    let text = client.text().await;
    assert!(text.contains("invalid_request") && text.contains("retain"), "{text}");
    harness.is_quiet().await;
}

#[tokio::test]
async fn availability_is_retained_and_the_will_is_published_for_a_daemon_that_dies() {
    let broker = Mosquitto::start().await;
    let mut client = Client::listening(&broker, "bitnetd/cellar/availability").await;
    let harness = open(&broker).await;
    assert_eq!(client.text().await, "online");
    harness.close().await;
    assert_eq!(client.text().await, "offline");
    let harness = open(&broker).await;
    assert_eq!(client.text().await, "online");
    harness.kill().await;
    assert_eq!(client.text().await, "offline");
    let saved = Client::listening(&broker, "bitnetd/+/availability").await.next().await;
    assert!(saved.retain && &saved.payload[..] == b"offline");
}

#[tokio::test]
async fn a_prompt_not_yet_answered_survives_the_daemon() {
    let broker = Mosquitto::start().await;
    let mut harness = open(&broker).await;
    let mut client = Client::listening(&broker, "bitnetd/cellar/reply/+").await;
    client.publish(PROMPT, br#"{"id":"a","prompt":"hi"}"#, none()).await;
    drop(harness.request().await);
    harness.kill().await;
    client.publish(PROMPT, br#"{"id":"b","prompt":"ho"}"#, none()).await;
    let mut harness = open(&broker).await;
    assert_eq!([harness.echo().await, harness.echo().await], ["hi", "ho"]);
    for id in ["a", "b"] {
        assert_eq!(client.next().await.topic, format!("bitnetd/cellar/reply/{id}").into_bytes());
    }
    // Both are acknowledged: the DISCONNECT follows the acknowledgements.
    harness.close().await;
    let mut harness = open(&broker).await;
    harness.is_quiet().await;
}

#[tokio::test]
async fn an_answer_made_while_the_broker_is_away_is_delivered_once() {
    let mut broker = Mosquitto::persistent().await;
    let mut harness = open(&broker).await;
    broker.publish(&["-q", "1", "-t", PROMPT, "-m", r#"{"id":"a","prompt":"hi"}"#]).await;
    let inbound = harness.request().await;
    broker.kill();
    harness.until(|state| !state.connected).await;
    answer(inbound, "hello");
    harness.until(|state| state.outbox == 1).await;
    broker.restart().await;
    // The daemon waits a second at least.
    let mut client = Client::listening(&broker, "bitnetd/cellar/reply/+").await;
    assert!(client.text().await.contains("hello"));
    harness.until(|state| state.connected && state.outbox == 0).await;
    client.is_quiet().await;
    harness.is_quiet().await;
    assert_eq!(harness.state.borrow().connects, 2);
}

#[tokio::test]
async fn a_prompt_that_is_too_long_is_answered_and_ends_no_connection() {
    let broker = Mosquitto::start().await;
    let mut harness = open(&broker).await;
    let mut client = Client::listening(&broker, "bitnetd/cellar/reply/+").await;
    client.publish(PROMPT, &vec![b'x'; MAX_REQUEST + 1], none()).await;
    assert!(client.text().await.contains("too_large"));
    client.publish(PROMPT, b"hi", none()).await;
    assert_eq!(harness.echo().await, "hi");
    assert_eq!(broker.connects("bitnetd-cellar"), 1);
}

#[tokio::test]
async fn a_wrong_password_names_the_keys_to_check() {
    let broker = Mosquitto::with_user("bitnetd", "right").await;
    let text = probe(&link(broker.port), "cellar", Duration::from_secs(20)).await.expect_err("no user");
    assert!(text.contains("NotAuthorized") && text.contains("mqtt.password_file"), "{text}");
}

/// What waits in the session behind messages that are too large is answered, and so are they, by an error. More of them
/// come than the unreadable packets after which a session is begun anew.
#[tokio::test]
async fn messages_that_are_too_large_are_refused_and_no_other_prompt_is_lost() {
    let broker = Mosquitto::start().await;
    let mut harness = open(&broker).await;
    let mut client = Client::listening(&broker, "bitnetd/cellar/reply/+").await;
    let text = "x".repeat(1_200_000);
    for round in 0..4 {
        let ids = ["large", "larger", "small"].map(|id| format!("{id}{round}"));
        for id in &ids {
            let prompt = if id.starts_with("large") { text.as_str() } else { "hi" };
            let request = serde_json::json!({"id": id, "prompt": prompt}).to_string();
            client.publish(PROMPT, request.as_bytes(), none()).await;
        }
        answer(harness.request().await, "hello");
        let mut events = std::collections::BTreeMap::new();
        for _ in &ids {
            let event: serde_json::Value = serde_json::from_str(&client.text().await).expect("an event");
            events.insert(event["id"].as_str().expect("an id").to_owned(), event);
        }
        for id in &ids[..2] {
            assert_eq!(events[id]["code"], "too_large", "{events:?}");
            assert!(
                events[id]["message"].as_str().is_some_and(|text| text.starts_with("12000")),
                "{events:?}"
            );
        }
        assert_eq!(events[&ids[2]]["event"], "done", "{events:?}");
        harness.until(|state| state.connected && state.outbox == 0 && state.sessions_lost == 0).await;
    }
}
