//! The retained copy of a client's last answer (`mqtt.keep_last`).

use super::fake_broker::Broker;
use super::harness::{Client, Harness, config};
use super::{PROMPT, answered_to, none};
use crate::support::broker::Mosquitto;
use bitnetd::config::{Mqtt, MqttVersion};

const HALL: &str = "bitnetd/cellar/prompt/hall";
const LAST: &str = "bitnetd/cellar/last/#";

async fn open(broker: &Mosquitto, version: MqttVersion, keep_last: bool) -> Harness {
    let mut harness = Harness::with(Mqtt { version, keep_last, ..config(broker.port) }, |_| {});
    harness.until(|state| state.subscribed).await;
    harness
}

/// Asks, and waits until the answer is with the broker.
async fn ask(client: &mut Client, harness: &mut Harness, topic: &str, id: &str) {
    client.publish(topic, format!(r#"{{"id":{id},"prompt":"for {id}"}}"#).as_bytes(), none()).await;
    harness.echo().await;
    client.next().await;
}

#[tokio::test]
async fn who_listens_after_the_answer_gets_it_all_the_same() {
    for version in [MqttVersion::V5, MqttVersion::V311] {
        let broker = Mosquitto::start().await;
        let mut harness = open(&broker, version, true).await;
        let mut client = Client::listening(&broker, "bitnetd/cellar/reply/#").await;
        ask(&mut client, &mut harness, HALL, "1").await;
        ask(&mut client, &mut harness, HALL, "2").await;
        let mut late = Client::listening(&broker, LAST).await;
        let kept = late.next().await;
        assert_eq!((&kept.topic[..], kept.retain), (&b"bitnetd/cellar/last/hall"[..], true));
        assert!(
            String::from_utf8_lossy(&kept.payload).starts_with(r#"{"event":"done","id":2,"text":"for 2""#)
        );
        let expiry = kept.properties.and_then(|properties| properties.message_expiry_interval);
        match version {
            MqttVersion::V5 => {
                assert!(expiry.is_some_and(|expiry| (50..=60).contains(&expiry)), "{expiry:?}")
            }
            MqttVersion::V311 => assert_eq!(expiry, None),
        }
        late.is_quiet().await;
    }
}

#[tokio::test]
async fn nothing_is_retained_of_clients_without_a_topic_of_their_own_nor_of_other_reply_topics() {
    let broker = Mosquitto::start().await;
    let mut harness = open(&broker, MqttVersion::V5, true).await;
    let mut client = Client::listening(&broker, "bitnetd/cellar/reply/#").await;
    ask(&mut client, &mut harness, PROMPT, "1").await;
    let mut elsewhere = Client::listening(&broker, "home/answers").await;
    elsewhere.publish(HALL, br#"{"id":2,"prompt":"x"}"#, answered_to("home/answers")).await;
    harness.echo().await;
    elsewhere.next().await;
    // Nobody can have an answer published there.
    client.publish(PROMPT, br#"{"id":3,"prompt":"x"}"#, answered_to("bitnetd/cellar/last/hall")).await;
    assert!(client.text().await.contains("invalid_request"));
    Client::listening(&broker, LAST).await.is_quiet().await;
}

#[tokio::test]
async fn nothing_is_retained_unless_it_is_configured() {
    let broker = Mosquitto::start().await;
    let mut harness = open(&broker, MqttVersion::V5, false).await;
    let mut client = Client::listening(&broker, "bitnetd/cellar/reply/#").await;
    ask(&mut client, &mut harness, HALL, "1").await;
    Client::listening(&broker, LAST).await.is_quiet().await;
}

#[tokio::test]
async fn an_error_is_retained_too() {
    let broker = Mosquitto::start().await;
    let harness = open(&broker, MqttVersion::V5, true).await;
    let mut client = Client::listening(&broker, "bitnetd/cellar/reply/#").await;
    client.publish(HALL, br#"{"id":1.0,"promt":"x"}"#, none()).await;
    client.next().await;
    let kept = Client::listening(&broker, LAST).await.text().await;
    assert!(kept.starts_with(r#"{"event":"error","id":1.0,"code":"invalid_request""#), "{kept}");
    harness.close().await;
}

/// The acknowledgement of the prompt waits for the reply alone.
#[tokio::test]
async fn a_broker_that_does_not_acknowledge_the_copy_delays_nothing() {
    let broker = Broker::new().await;
    let mut harness = broker.harness_with(|context| context.config.keep_last = true);
    let mut session = broker.session(false).await;
    session.deliver_on(HALL, 7, false, "hi").await;
    harness.echo().await;
    let copy = session.reply().await;
    assert_eq!((&copy.topic[..8], copy.retain), (&b"bitnetd/"[..], true));
    let reply = session.reply().await;
    assert!(!reply.retain && reply.topic.starts_with(b"bitnetd/cellar/reply/hall/"));
    session.acknowledge(&reply).await;
    session.is_acknowledged(7).await;
}
