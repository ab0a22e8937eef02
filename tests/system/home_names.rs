//! The names of the home, from the broker to the answer: with the real daemon, its built-in model and a real broker.

use crate::daemon::{Client, Daemon};
use crate::support::broker::Mosquitto;
use crate::{Folder, PATIENCE, linked};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{sleep, timeout};

const LAMP: &str = "homeassistant/light/reading_lamp/config";

async fn intent(client: &mut Client, prompt: &str) -> Value {
    let done = client.ask(json!({"prompt": prompt, "cache": false})).await;
    let text = done["text"].as_str().unwrap_or_else(|| panic!("{done}"));
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {done}"))
}

/// Asks until the answer has, or no longer has, this name.
async fn until_named(client: &mut Client, prompt: &str, name: &str, is_known: bool) {
    let asked = async {
        while (intent(client, prompt).await["slots"]["name"] == name) != is_known {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("in time: {name:?} is known: {is_known}"));
}

#[tokio::test]
async fn answers_have_the_names_that_the_broker_retains_and_nothing_else() {
    let (folder, broker) = (Folder::new(), Mosquitto::start().await);
    let lamp =
        json!({"name": "Reading Lamp", "unique_id": "lamp-1", "command_topic": "lamp/set"}).to_string();
    broker.publish(&["-r", "-t", LAMP, "-m", &lamp]).await;
    let settings = format!("{}[home]\nenabled = true\n", linked(broker.port));
    let daemon = Daemon::start(&folder, &settings).await;
    let mut client = daemon.client().await;
    until_named(&mut client, "turn on the reading lamp", "Reading Lamp", true).await;
    let nothing_fits = async |client: &mut Client| {
        let report = client.ask(json!({"telemetry": true})).await;
        report["structured_output"]["nothing_fits"].as_u64().expect("a count")
    };
    let before = nothing_fits(&mut client).await;
    for no_command in ["hello", "how are you"] {
        assert_eq!(intent(&mut client, no_command).await, json!({"intent": "HassNevermind"}), "{no_command}");
    }
    let unknown = intent(&mut client, "turn on the packing hall lights").await;
    assert!(!unknown.to_string().contains("packing"), "{unknown}");
    let is_nothing = u64::from(unknown["intent"] == "HassNevermind");
    assert_eq!(nothing_fits(&mut client).await, before + 2 + is_nothing, "{unknown}");
    // Functions that are not offered change nothing.
    let tools = json!([{"type": "function", "function": {"name": "get_time"}}]);
    let done = client.ask(json!({"prompt": "hello", "tools": tools, "tool_choice": "none"})).await;
    assert_eq!(done["text"], r#"{"intent":"HassNevermind"}"#, "{done}");
    // Each of several answers has the home's own spelling.
    let done = client.ask(json!({"prompt": "turn on the READING lamp", "n": 2})).await;
    for choice in done["choices"].as_array().expect("two") {
        assert!(choice["text"].as_str().is_some_and(|text| text.contains("Reading Lamp")), "{done}");
    }
    // A description that is removed is gone.
    broker.publish(&["-r", "-t", LAMP, "-n"]).await;
    until_named(&mut client, "turn on the reading lamp", "Reading Lamp", false).await;
    daemon.stop().await;
}

#[tokio::test]
async fn without_a_home_its_format_is_refused_and_says_how_to_get_one() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let ask = json!({"prompt": "turn on the lamp", "response_format": {"type": "home_intent"}});
    let refused = daemon.client().await.ask(ask).await;
    assert_eq!(refused["code"], "invalid_request", "{refused}");
    let message = refused["message"].as_str().expect("text");
    assert!(message.contains("needs [home] enabled = true"), "{message}");
}
