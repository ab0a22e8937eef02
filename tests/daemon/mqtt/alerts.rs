//! Alerts that are to reach the broker whatever becomes of the link.

use super::harness::{Harness, config};
use crate::support::broker::{Mosquitto, Subscriber};
use bitnetd::telemetry::alerts::{Alert, Kind, Severity, State};
use serde_json::Value;

fn alert(kind: Kind, state: State) -> Alert {
    let (severity, message, time) = (Severity::Warning, "the remedy".into(), "2026-01-02T03:04:05Z".into());
    Alert { kind, severity, message, value: 2.5, threshold: 1.0, state, time }
}

/// A subscriber with a session, for which the broker stores messages while it is disconnected.
async fn owner(broker: &Mosquitto, count: &str) -> Subscriber {
    let session = ["-c", "-i", "owner", "-x", "600", "-q", "1"];
    let wanted = ["-t", "bitnetd/cellar/alert", "-C", count, "-W", "25", "-F", "%q %r %p"];
    broker.subscribe(&[&session[..], &wanted].concat()).await
}

/// The alerts the owner received, each as QoS, RETAIN flag and payload.
async fn received_alerts(owner: Subscriber) -> Vec<(String, Value)> {
    let output = owner.output().await;
    let read = |line: &str| {
        let (flags, payload) = line.split_at(4);
        (flags.trim().to_owned(), serde_json::from_str(payload).expect("JSON"))
    };
    output.lines().map(read).collect()
}

#[tokio::test]
async fn an_alert_goes_to_its_topic_at_qos_1_and_is_not_kept_there() {
    let broker = Mosquitto::start().await;
    let harness = Harness::open(broker.port).await;
    let owner = owner(&broker, "1").await;
    harness.alert.send(alert(Kind::Queue, State::Raised)).await.expect("the transport runs");
    let expected = serde_json::json!({
        "type": "queue", "severity": "warning", "message": "the remedy", "value": 2.5, "threshold": 1.0,
        "state": "raised", "time": "2026-01-02T03:04:05Z",
    });
    assert_eq!(received_alerts(owner).await, [("1 0".to_owned(), expected)]);
}

#[tokio::test]
async fn what_changed_while_the_broker_was_away_reaches_it_later_and_only_the_latest() {
    let mut broker = Mosquitto::persistent().await;
    let owner = owner(&broker, "3").await;
    let mut harness = Harness::open(broker.port).await;
    broker.kill();
    harness.until(|state| !state.connected).await;
    for (kind, state) in
        [(Kind::Queue, State::Raised), (Kind::BrokerLink, State::Raised), (Kind::Queue, State::Cleared)]
    {
        harness.alert.send(alert(kind, state)).await.expect("the transport runs");
    }
    broker.restart().await;
    harness.until(|state| state.connected).await;
    harness.alert.send(alert(Kind::BrokerLink, State::Cleared)).await.expect("the transport runs");
    let heard: Vec<_> = received_alerts(owner).await;
    let reported: Vec<_> =
        heard.iter().map(|(_, alert)| (alert["type"].as_str(), alert["state"].as_str())).collect();
    let expected = [("broker_link", "raised"), ("queue", "cleared"), ("broker_link", "cleared")];
    assert_eq!(reported, expected.map(|(kind, state)| (Some(kind), Some(state))));
}

#[tokio::test]
async fn a_link_that_breaks_again_and_again_loses_no_alert() {
    let mut broker = Mosquitto::persistent().await;
    let owner = owner(&broker, "1").await;
    let mut harness = Harness::with(config(broker.port), |_| {});
    for _ in 0..2 {
        harness.until(|state| state.connected).await;
        broker.kill();
        harness.until(|state| !state.connected).await;
        broker.restart().await;
    }
    broker.kill();
    harness.alert.send(alert(Kind::Memory, State::Raised)).await.expect("the transport runs");
    broker.restart().await;
    assert_eq!(received_alerts(owner).await[0].1["type"], "memory");
}
