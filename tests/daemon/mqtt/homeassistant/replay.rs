//! Replays what a real Home Assistant published (`tests/data/home-assistant`), where none can run.

use super::{STATUS, TOPIC};
use crate::mqtt::harness::{Client, Harness, answer, config, prompt};
use crate::support::broker::Mosquitto;
use bitnetd::config::Mqtt;
use bitnetd::transport::Command;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::path::Path;

#[derive(Deserialize)]
struct Recorded {
    topic: String,
    qos: u8,
    retain: bool,
    payload: String,
}

#[derive(Deserialize)]
struct Prompt {
    id: Box<RawValue>,
    prompt: String,
}

fn recorded(name: &str) -> Vec<Recorded> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/home-assistant").join(name);
    let text = std::fs::read_to_string(path).expect("recorded");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// A device as the recorded one was, and a client that sees what it publishes on these topics.
async fn device(broker: &Mosquitto, filter: &str) -> (Harness, Client) {
    let mut harness = Harness::with(Mqtt { keep_last: true, ..config(broker.port) }, |context| {
        context.has_homeassistant = true;
        context.threads = 2;
    });
    harness.until(|state| state.subscribed && state.outbox == 0).await;
    let client = Client::listening(broker, filter).await;
    (harness, client)
}

async fn publish(broker: &Mosquitto, message: &Recorded) {
    let qos = message.qos.to_string();
    let mut arguments = vec!["-q", &qos, "-t", &message.topic];
    if message.retain {
        arguments.push("-r");
    }
    match message.payload.as_str() {
        "" => arguments.push("-n"),
        payload => arguments.extend(["-m", payload]),
    }
    broker.publish(&arguments).await;
}

#[tokio::test]
async fn its_controls_its_births_and_its_deletion_are_understood() {
    let broker = Mosquitto::start().await;
    let (mut harness, mut descriptions) = device(&broker, TOPIC).await;
    assert!(!descriptions.text().await.is_empty(), "the retained description");
    let (mut commands, mut births, mut is_deleted) = (0, 0, false);
    for message in recorded("mqtt.jsonl") {
        publish(&broker, &message).await;
        match message.topic.as_str() {
            "bitnetd/cellar/threads/set" => {
                let threads = message.payload.parse().expect("a number");
                assert_eq!(super::next(&mut harness).await, Command::Threads(threads));
                commands += 1;
            }
            "bitnetd/cellar/cancel" => {
                assert_eq!(super::next(&mut harness).await, Command::CancelRunning);
                commands += 1;
            }
            TOPIC => {
                assert_eq!(descriptions.text().await, "");
                is_deleted = true;
            }
            STATUS if message.payload == "online" && !is_deleted => {
                assert!(descriptions.text().await.starts_with('{'), "described again");
                births += 1;
            }
            STATUS => {}
            _ => {
                harness.echo().await;
            }
        }
    }
    assert!(commands >= 3 && births >= 1 && is_deleted, "{commands} {births} {is_deleted}");
    descriptions.is_quiet().await;
}

#[tokio::test]
async fn the_prompts_of_its_automations_are_answered_where_they_wait() {
    let broker = Mosquitto::start().await;
    let (mut harness, mut answers) = device(&broker, "bitnetd/cellar/last/+").await;
    let mut count = 0;
    for message in recorded("automations.jsonl").iter().filter(|message| message.topic.contains("/prompt/")) {
        publish(&broker, message).await;
        let wanted: Prompt = serde_json::from_str(&message.payload).expect("a prompt with an id");
        let inbound = harness.request().await;
        assert_eq!(prompt(&inbound), wanted.prompt);
        answer(inbound, "x");
        let text = answers.text().await;
        assert!(text.starts_with(&format!(r#"{{"event":"done","id":{},"#, wanted.id)), "{text}");
        count += 1;
    }
    assert!(count >= 10, "{count}");
}
