//! Where answers go, and where a client cannot have them sent.

use super::harness::{Client, Harness, answer, config};
use super::{PROMPT, answered_to, none};
use crate::support::broker::Mosquitto;
use bitnetd::config::{Mqtt, MqttVersion};
use bitnetd::protocol::json::MAX_REQUEST;
use rumqttc::v5::mqttbytes::v5::PublishProperties;
use std::collections::HashSet;

const ALICE: &str = "bitnetd/cellar/prompt/alice";

fn called(name: &str) -> PublishProperties {
    PublishProperties { user_properties: vec![("client".into(), name.into())], ..none() }
}

#[tokio::test]
async fn two_clients_that_count_from_1_get_their_own_answers() {
    for version in [MqttVersion::V5, MqttVersion::V311] {
        let broker = Mosquitto::start().await;
        let mut harness = Harness::with(Mqtt { version, ..config(broker.port) }, |_| {});
        harness.until(|state| state.subscribed).await;
        let mut alice = Client::listening(&broker, "bitnetd/cellar/reply/alice/+").await;
        let mut bob = Client::listening(&broker, "bitnetd/cellar/reply/bob/+").await;
        for id in ["1", "2"] {
            let ask = |name: &str| format!(r#"{{"id":"{id}","prompt":"for {name}"}}"#).into_bytes();
            alice.publish(ALICE, &ask("alice"), none()).await;
            harness.echo().await;
            bob.publish("bitnetd/cellar/prompt/bob", &ask("bob"), none()).await;
            harness.echo().await;
            for (client, name) in [(&mut alice, "alice"), (&mut bob, "bob")] {
                let message = client.next().await;
                assert_eq!(
                    message.topic,
                    format!("bitnetd/cellar/reply/{name}/{id}").into_bytes(),
                    "{version:?}"
                );
                let text = String::from_utf8_lossy(&message.payload).into_owned();
                assert!(text.contains(&format!("for {name}")), "{text}");
            }
        }
        alice.is_quiet().await;
    }
}

#[tokio::test]
async fn no_client_can_pose_as_another_by_its_name() {
    let broker = Mosquitto::start().await;
    let config = Mqtt { group: Some("kitchens".into()), ..config(broker.port) };
    let mut harness = Harness::with(config, |_| {});
    harness.until(|state| state.subscribed).await;
    let client = Client::listening(&broker, "answers/#").await;
    let long = "x".repeat(70);
    let (plain, shared) = (PROMPT, "bitnetd/kitchens/prompt");
    let below = |topic: &str, name: &str| format!("{topic}/{name}");
    let answered_on = |topic: &str| PublishProperties { response_topic: Some(topic.into()), ..none() };
    let clients = [
        (below(plain, "alice@kitchens"), none()),
        (below(shared, "alice"), none()),
        (below(plain, &format!("{long}a")), none()),
        (below(plain, &format!("{long}b")), none()),
        (plain.to_owned(), called(&format!("{long}a"))),
        (plain.to_owned(), called(&format!("{long}b"))),
        (plain.to_owned(), called("eve@kitchens")),
        (shared.to_owned(), called("eve")),
        (plain.to_owned(), called("eve")),
        (below(plain, "-"), called("eve")),
        (plain.to_owned(), answered_on("answers/1")),
        (plain.to_owned(), answered_on("answers/2")),
    ];
    let (mut stored, mut turns) = (HashSet::new(), HashSet::new());
    let count = clients.len();
    for (topic, properties) in clients {
        client.publish(&topic, b"hi", properties).await;
        let inbound = harness.request().await;
        assert!(inbound.client.len() < 100, "the log shows {}", inbound.client);
        assert!(stored.insert(inbound.cache_key.clone()), "{topic}: shares stored answers");
        turns.insert(inbound.queue_key.clone());
        answer(inbound, "x");
    }
    // Those without a name share their turns: a Response Topic can be made up for every prompt.
    assert_eq!(turns.len(), count - 1);
}

#[tokio::test]
async fn a_user_property_names_the_client_where_the_topic_does_not() {
    let broker = Mosquitto::start().await;
    let mut harness = Harness::open(broker.port).await;
    let mut client = Client::listening(&broker, "bitnetd/cellar/reply/#").await;
    for (topic, name, expected, reply) in [
        (PROMPT, "hall", "mqtt:-/hall", "reply/1"),
        (ALICE, "hall", "mqtt:alice", "reply/alice/2"),
        (PROMPT, "a b/c+#", "mqtt:-/a b/c+#", "reply/3"),
        (PROMPT, "", "mqtt:-", "reply/4"),
    ] {
        let id = reply.rsplit('/').next().expect("an id");
        client.publish(topic, format!(r#"{{"id":"{id}","prompt":"hi"}}"#).as_bytes(), called(name)).await;
        let inbound = harness.request().await;
        assert_eq!(inbound.client, expected);
        answer(inbound, "x");
        assert_eq!(client.next().await.topic, format!("bitnetd/cellar/{reply}").into_bytes());
    }
}

#[tokio::test]
async fn a_client_cannot_command_other_devices_through_the_daemon() {
    let broker = Mosquitto::start().await;
    let mut harness = Harness::open(broker.port).await;
    let mut guest = Client::listening(&broker, "bitnetd/cellar/reply/alice/+").await;
    let reserved = [
        "homeassistant/device/bitnetd_cellar/config",
        "zigbee2mqtt/lock/set",
        "bitnetd/other/prompt",
        "bitnetd/other/prompt/guest",
        "elsewhere/other/cancel",
        "$SYS/broker/x",
        "bitnetd/cellar/availability",
        "bitnetd/cellar/reply/bob/1",
    ];
    let owner = broker
        .subscribe(&[
            "-t",
            "homeassistant/#",
            "-t",
            "zigbee2mqtt/#",
            "-t",
            "bitnetd/other/#",
            "-t",
            "elsewhere/#",
            "-t",
            "bitnetd/cellar/reply/bob/#",
            "-C",
            "1",
            "-W",
            "20",
        ])
        .await;
    for topic in reserved {
        guest.publish(ALICE, br#"{"id":"a","prompt":"hi"}"#, answered_to(topic)).await;
        let text = guest.text().await;
        assert!(text.contains(r#""id":"a","code":"invalid_request""#), "{topic}: {text}");
        assert!(text.contains("mqtt.reply_topics") && text.contains("reply/alice/<id>"), "{topic}: {text}");
    }
    harness.is_quiet().await;
    // What ends the listener is the first message that it gets at all.
    broker.publish(&["-t", "bitnetd/other/end", "-m", "nothing came before"]).await;
    assert_eq!(owner.output().await, "nothing came before\n");
    assert_eq!(broker.connects("bitnetd-cellar"), 1);
}

#[tokio::test]
async fn the_owner_s_list_opens_what_it_names_and_closes_the_rest() {
    let broker = Mosquitto::start().await;
    let list = ["home/+/answer", "homeassistant/answers"].map(str::to_owned).to_vec();
    let mut harness = Harness::with(Mqtt { reply_topics: Some(list), ..config(broker.port) }, |_| {});
    harness.until(|state| state.subscribed).await;
    let mut client = Client::listening(&broker, "#").await;
    for (topic, is_taken) in [
        ("home/hall/answer", true),
        ("homeassistant/answers", true),
        ("homeassistant/device/x/config", false),
        ("elsewhere", false),
    ] {
        client
            .publish(PROMPT, format!(r#"{{"id":"a","prompt":"{topic}"}}"#).as_bytes(), answered_to(topic))
            .await;
        if is_taken {
            harness.echo().await;
        }
        let reply = loop {
            let message = client.next().await;
            if message.payload.starts_with(br#"{"event""#) {
                break message;
            }
        };
        let expected = if is_taken { topic } else { "bitnetd/cellar/reply/a" };
        assert_eq!(reply.topic, expected.as_bytes());
        assert_eq!(!is_taken, String::from_utf8_lossy(&reply.payload).contains("mqtt.reply_topics allows"));
    }
}

#[tokio::test]
async fn a_prompt_that_is_too_long_is_refused_under_its_own_id_to_its_own_client() {
    let broker = Mosquitto::start().await;
    let _bench = Harness::open(broker.port).await;
    let mut client = Client::listening(&broker, "bitnetd/cellar/reply/alice/+").await;
    let long =
        format!(r#"{{"id":"own","metadata":{{"id":"inner"}},"prompt":"{}"}}"#, "x".repeat(MAX_REQUEST));
    let marked = PublishProperties { correlation_data: Some(vec![7, 0, 255].into()), ..none() };
    client.publish(ALICE, long.as_bytes(), marked).await;
    let message = client.next().await;
    assert_eq!(&message.topic[..], b"bitnetd/cellar/reply/alice/own");
    let text = String::from_utf8_lossy(&message.payload).into_owned();
    assert!(text.contains(r#""id":"own","code":"too_large""#), "{text}");
    let properties = message.properties.expect("properties");
    assert_eq!(properties.correlation_data.as_deref(), Some(&[7, 0, 255][..]));
    client.is_quiet().await;
}
