//! The names of the home over a real broker: they come, change and go with what it retains, beside prompts.

use super::PROMPT;
use super::harness::{Harness, answer, config};
use crate::support::broker::Mosquitto;
use bitnetd::home::{NameList, NameTopics, SharedHome};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::sleep;

fn home() -> Arc<SharedHome> {
    Arc::new(SharedHome::new(NameList::default(), NameTopics { discovery_prefix: "homeassistant".into() }))
}

/// Waits until the home has these devices.
async fn devices(home: &SharedHome, expected: &[&str]) {
    let begin = Instant::now();
    loop {
        let current = home.current();
        let mut names: Vec<&str> =
            current.names().devices.iter().map(|device| device.name.as_str()).collect();
        names.sort_unstable();
        if names == expected {
            return;
        }
        assert!(begin.elapsed() < Duration::from_secs(120), "{names:?} are not {expected:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

const LAMP: &str = "homeassistant/light/lamp/config";
const PLUG: &str = "homeassistant/switch/node/plug/config";
const LIST: &str =
    r#"[{"ieee_address":"0x2","friendly_name":"hall","definition":{"exposes":[{"type":"light"}]}}]"#;

#[tokio::test]
async fn retained_descriptions_are_read_and_prompts_are_answered_beside_them() {
    let broker = Mosquitto::start().await;
    broker.publish(&["-r", "-t", LAMP, "-m", r#"{"name":"Wall lamp","uniq_id":"a"}"#]).await;
    broker.publish(&["-r", "-t", "zigbee2mqtt/bridge/devices", "-m", LIST]).await;
    let names = home();
    let mut harness = Harness::with(config(broker.port), |context| context.home = Some(Arc::clone(&names)));
    devices(&names, &["Wall lamp", "hall"]).await;
    // Later ones too, and what is removed is gone.
    broker.publish(&["-r", "-t", PLUG, "-m", r#"{"name":"Plug","uniq_id":"b"}"#]).await;
    broker.publish(&["-r", "-n", "-t", LAMP]).await;
    devices(&names, &["Plug", "hall"]).await;
    // A faulty one harms nothing but itself.
    broker.publish(&["-r", "-t", "zigbee2mqtt/bridge/devices", "-m", "rubbish"]).await;
    devices(&names, &["Plug"]).await;
    let reply = broker.subscribe(&["-t", "bitnetd/cellar/reply/a", "-C", "1", "-W", "20"]).await;
    broker.publish(&["-q", "1", "-t", PROMPT, "-m", r#"{"id":"a","prompt":"hi"}"#]).await;
    answer(harness.request().await, "hello");
    assert!(reply.output().await.contains(r#""text":"hello""#));
}

#[tokio::test]
async fn thousands_of_descriptions_do_not_keep_a_prompt_waiting() {
    let broker = Mosquitto::start().await;
    let names = home();
    let mut harness = Harness::with(config(broker.port), |context| context.home = Some(Arc::clone(&names)));
    broker.publish(&["-r", "-t", LAMP, "-m", r#"{"name":"Wall lamp","uniq_id":"a"}"#]).await;
    devices(&names, &["Wall lamp"]).await;
    let list: Vec<String> = (0..2000)
        .map(|n| {
            format!(
                r#"{{"ieee_address":"0x{n:x}","friendly_name":"lamp {n}","definition":{{"exposes":[{{"type":"light"}}]}}}}"#
            )
        })
        .collect();
    let folder = std::env::temp_dir().join(format!("bitnetd-home-{}", std::process::id()));
    std::fs::write(&folder, format!("[{}]", list.join(","))).expect("space on the disk");
    broker.publish(&["-r", "-t", "zigbee2mqtt/bridge/devices", "-f", &folder.display().to_string()]).await;
    broker.publish(&["-q", "1", "-t", PROMPT, "-m", r#"{"id":"a","prompt":"hi"}"#]).await;
    answer(harness.request().await, "hello");
    let begin = Instant::now();
    while names.current().names().devices.len() != 2001 {
        assert!(begin.elapsed() < Duration::from_secs(120));
        sleep(Duration::from_millis(50)).await;
    }
    std::fs::remove_file(folder).expect("it was written");
}
