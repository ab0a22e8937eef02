//! Mistakes in the configuration, and that the log names their cause.

use super::PROMPT;
use super::harness::{Client, Harness, config};
use crate::support::broker::Mosquitto;
use bitnetd::config::{Mqtt, MqttVersion};

#[tokio::test]
async fn two_devices_with_one_id_log_the_conflict() {
    for version in [MqttVersion::V5, MqttVersion::V311] {
        let broker = Mosquitto::start().await;
        let link = || Mqtt { version, ..config(broker.port) };
        let mut one = Harness::with(link(), |_| {});
        one.until(|state| state.subscribed).await;
        let mut other = Harness::with(link(), |_| {});
        for harness in [&mut one, &mut other] {
            let is_told =
                |text: &String| text.contains("client id, bitnetd-cellar") && text.contains("[device] id");
            harness.until(|state| state.problem.as_ref().is_some_and(is_told)).await;
        }
    }
}

#[tokio::test]
async fn a_broker_that_restarts_is_no_second_device() {
    let mut broker = Mosquitto::persistent().await;
    let mut harness = Harness::open(broker.port).await;
    broker.kill();
    harness.until(|state| !state.connected).await;
    broker.restart().await;
    harness.until(|state| state.connects == 2).await;
    let problem = harness.state.borrow().problem.clone().expect("how the link was lost");
    assert!(!problem.contains("[device] id"), "{problem}");
}

#[tokio::test]
async fn an_empty_payload_takes_a_retained_message_back_and_is_answered_by_nothing() {
    let broker = Mosquitto::start().await;
    let mut harness = Harness::open(broker.port).await;
    let mut client = Client::listening(&broker, "bitnetd/cellar/reply/#").await;
    for topic in [PROMPT, "bitnetd/cellar/prompt/hall", "bitnetd/cellar/cancel", "bitnetd/cellar/threads/set"]
    {
        for retain in [&["-r"][..], &[]] {
            for qos in ["0", "1", "2"] {
                broker.publish(&[&["-q", qos, "-n", "-t", topic], retain].concat()).await;
            }
        }
    }
    client.is_quiet().await;
    // Each of them was acknowledged: a window full of them blocks nothing.
    broker.publish(&["-q", "1", "-t", PROMPT, "-m", "still there"]).await;
    assert_eq!(harness.echo().await, "still there");
    assert!(client.text().await.contains("still there"));
    harness.is_quiet().await;
}
