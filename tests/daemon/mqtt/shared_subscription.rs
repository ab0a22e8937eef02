//! Devices that take turns, by the shared subscriptions of a real mosquitto.

use super::harness::{Client, Harness, answer, config, prompt};
use super::none;
use crate::support::broker::Mosquitto;
use bitnetd::config::{Mqtt, MqttVersion};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::sleep;

const PROMPT: &str = "bitnetd/kitchens/prompt";

async fn member(broker: &Mosquitto, device: &str, version: MqttVersion) -> Harness {
    let config = Mqtt { group: Some("kitchens".into()), version, ..config(broker.port) };
    let mut harness = Harness::with(config, |context| context.device = device.into());
    harness.until(|state| state.subscribed).await;
    harness
}

fn request(id: impl std::fmt::Display) -> Vec<u8> {
    format!(r#"{{"id":"{id}","prompt":"{id}"}}"#).into_bytes()
}

/// Whichever is asked next answers with its prompt; the first of the two says so.
async fn echo_either(one: &mut Harness, other: &mut Harness) -> bool {
    let (inbound, first) = tokio::select! {
        inbound = one.request() => (inbound, true),
        inbound = other.request() => (inbound, false),
    };
    let text = prompt(&inbound);
    answer(inbound, &text);
    first
}

async fn share(version: MqttVersion) {
    let broker = Mosquitto::start().await;
    let mut cellar = member(&broker, "cellar", version).await;
    let mut attic = member(&broker, "attic", version).await;
    let mut client = Client::listening(&broker, "bitnetd/kitchens/reply/+").await;
    let mut by_cellar = 0;
    for n in 0..20 {
        client.publish(PROMPT, &request(n), none()).await;
        by_cellar += u32::from(echo_either(&mut cellar, &mut attic).await);
    }
    let mut answered = BTreeSet::new();
    for _ in 0..20 {
        let topic = String::from_utf8(client.next().await.topic.to_vec()).expect("ours");
        assert!(answered.insert(topic.clone()), "{topic} twice");
    }
    assert!((0..20).all(|n| answered.contains(&format!("bitnetd/kitchens/reply/{n}"))), "{answered:?}");
    assert!((1..20).contains(&by_cellar), "both had turns, {by_cellar} of 20 here");
    client.is_quiet().await;
    // Each is still asked by its own name.
    client.publish("bitnetd/attic/prompt", &request("own"), none()).await;
    assert_eq!(attic.echo().await, "own");
}

#[tokio::test]
async fn two_devices_of_a_group_share_its_prompts_and_each_is_answered_once() {
    share(MqttVersion::V5).await;
}

#[tokio::test]
async fn they_do_so_in_version_3_1_1_too() {
    share(MqttVersion::V311).await;
}

#[tokio::test]
async fn a_cancellation_to_the_group_reaches_whoever_has_the_prompt() {
    let broker = Mosquitto::start().await;
    let mut cellar = member(&broker, "cellar", MqttVersion::V5).await;
    let mut attic = member(&broker, "attic", MqttVersion::V5).await;
    let client = Client::listening(&broker, "r").await;
    let mut held = Vec::new();
    for id in ["a", "b"] {
        client.publish(PROMPT, &request(id), none()).await;
        held.push(tokio::select! {
            inbound = cellar.request() => inbound,
            inbound = attic.request() => inbound,
        });
    }
    for inbound in held {
        let cancel = format!(r#"{{"id":"{}"}}"#, inbound.id);
        client.publish("bitnetd/kitchens/cancel", cancel.as_bytes(), none()).await;
        while !inbound.cancel.is_raised() {
            sleep(Duration::from_millis(10)).await;
        }
    }
}

/// The behaviour of mosquitto: a member that is disconnected keeps the messages that it was assigned, and its turn.
#[tokio::test]
async fn what_a_member_left_unanswered_waits_for_its_return() {
    let broker = Mosquitto::start().await;
    let mut cellar = member(&broker, "cellar", MqttVersion::V5).await;
    let client = Client::listening(&broker, "bitnetd/kitchens/reply/+").await;
    client.publish(PROMPT, &request("a"), none()).await;
    drop(cellar.request().await);
    cellar.kill().await;
    let mut attic = member(&broker, "attic", MqttVersion::V5).await;
    attic.is_quiet().await;
    let mut cellar = member(&broker, "cellar", MqttVersion::V5).await;
    assert_eq!(cellar.echo().await, "a");
    attic.is_quiet().await;
}

#[tokio::test]
async fn a_group_that_was_left_is_answered_once_more_and_given_up() {
    let broker = Mosquitto::start().await;
    member(&broker, "cellar", MqttVersion::V5).await.close().await;
    let mut harness = Harness::open(broker.port).await;
    let mut client = Client::listening(&broker, "bitnetd/kitchens/reply/+").await;
    client.publish(PROMPT, &request("a"), none()).await;
    assert_eq!(harness.echo().await, "a");
    assert!(client.text().await.contains("\"done\""));
    while !broker.log().contains("Sending UNSUBACK to bitnetd-cellar") {
        sleep(Duration::from_millis(10)).await;
    }
    client.publish(PROMPT, &request("b"), none()).await;
    harness.is_quiet().await;
}
