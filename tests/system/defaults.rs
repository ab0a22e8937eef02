//! What the configuration says for requests that do not, and what a request has repeated in its events.

use crate::daemon::Daemon;
use crate::listener::Listener;
use crate::support::broker::Mosquitto;
use crate::{Folder, cases, endless, linked};
use rustix::process::Signal;
use serde_json::{Value, json};

fn tokens(done: &Value) -> u64 {
    done["usage"]["completion_tokens"].as_u64().unwrap_or_else(|| panic!("{done}"))
}

#[tokio::test]
async fn requests_that_say_nothing_get_the_defaults_and_a_reload_changes_them() {
    let folder = Folder::new();
    let settings = |keys: &str| format!("{}[defaults]\n{keys}\n", endless());
    let daemon = Daemon::start(&folder, &settings("max_tokens = 3")).await;
    let mut client = daemon.client().await;
    let bare = json!({"prompt": "go", "cache": false});
    let done = client.ask(bare.clone()).await;
    assert_eq!((tokens(&done), &done["finish_reason"]), (3, &json!("length")), "{done}");
    let prompt_tokens = done["usage"]["prompt_tokens"].as_u64().expect("a count");
    assert_eq!(tokens(&client.ask(json!({"prompt": "go", "cache": false, "max_tokens": 5})).await), 5);

    folder.config(&settings("max_tokens = 40\nsystem = \"be brief\"\ntemperature = 5"));
    daemon.process.signal(Signal::HUP);
    daemon.says("changed: defaults.system, defaults.temperature, defaults.max_tokens").await;
    let messages = json!([{"role": "system", "content": "be brief"}, {"role": "user", "content": "go"}]);
    let explicit =
        json!({"messages": messages, "temperature": 5, "max_tokens": 40, "seed": 1, "cache": false});
    let explicit = client.ask(explicit).await;
    let mut seeded = bare;
    seeded["seed"] = json!(1);
    let filled = client.ask(seeded).await;
    assert_eq!((&filled["text"], &filled["usage"]), (&explicit["text"], &explicit["usage"]));
    assert!(filled["usage"]["prompt_tokens"].as_u64() > Some(prompt_tokens), "{filled}");
    daemon.stop().await;
}

#[tokio::test]
async fn commands_get_no_system_text_and_the_owner_s_own_does_not_count_for_the_guard() {
    let folder = Folder::new();
    let system = format!("[defaults]\nsystem = \"{}\"\n", "word ".repeat(60));
    let daemon = Daemon::start(&folder, &system).await;
    let case = &cases()[0];
    let done = daemon.client().await.ask(json!({"prompt": case.prompt})).await;
    assert_eq!(done["text"], case.answer.as_str(), "{done}");
    daemon.stop().await;
    let limited = format!("{}{system}[guard]\nmax_prompt_tokens = 40\n", endless());
    let daemon = Daemon::start(&folder, &limited).await;
    let mut client = daemon.client().await;
    let done = client.ask(json!({"prompt": "go", "max_tokens": 2})).await;
    assert_eq!(done["event"], "done", "{done}");
    assert!(done["usage"]["prompt_tokens"].as_u64() > Some(40), "{done}");
    let long = client.ask(json!({"prompt": "word ".repeat(60), "max_tokens": 2})).await;
    assert_eq!(long["code"], "too_large", "{long}");
    daemon.stop().await;
}

#[tokio::test]
async fn every_event_repeats_the_metadata_of_its_request() {
    let (broker, folder) = (Mosquitto::start().await, Folder::new());
    let daemon = Daemon::start(&folder, &linked(broker.port)).await;
    let mut client = daemon.client().await;
    let metadata = json!({"room": "kitchen", "tries": [1, 2.5, null]});
    client.request(&[json!({"id": 1, "prompt": "lights on", "stream": true, "metadata": metadata})]).await;
    let mut events = vec![client.event().await];
    while events.last().expect("one")["event"] == "token" {
        events.push(client.event().await);
    }
    assert!(events.len() > 2, "{events:?}");
    assert!(events.iter().all(|event| event["metadata"] == metadata), "{events:?}");
    let done = events.last().expect("the last");
    assert_eq!((&done["event"], &done["model"]), (&json!("done"), &json!("home-intents")));
    // One that is refused, by its keys and by the daemon, and one from the cache.
    for request in [
        json!({"id": 2, "prompt": "lights on", "metadata": metadata, "colour": "red"}),
        json!({"id": 3, "prompt": "word ".repeat(9000), "metadata": metadata}),
        json!({"id": 4, "prompt": "lights on", "metadata": metadata}),
    ] {
        let event = client.ask(request).await;
        assert_eq!(event["metadata"], metadata, "{event}");
    }
    let plain = client.ask(json!({"prompt": "lights on"})).await;
    assert!(plain.get("metadata").is_none(), "{plain}");
    let wrong = client.ask(json!({"prompt": "lights on", "metadata": "kitchen"})).await;
    assert!(
        wrong["message"].as_str().is_some_and(|text| text.starts_with("metadata: not an object")),
        "{wrong}"
    );

    let mut replies = Listener::on(&broker, "bitnetd/cellar/reply/+").await;
    Listener::hears_online(&broker).await;
    for (id, more) in [("a", json!(false)), ("b", json!("wrong"))] {
        let request = json!({"id": id, "prompt": "lights on", "metadata": metadata, "stream": more});
        broker.publish(&["-q", "1", "-t", "bitnetd/cellar/prompt", "-m", &request.to_string()]).await;
        let event = replies.next().await.json();
        assert_eq!((&event["id"], &event["metadata"]), (&json!(id), &metadata), "{event}");
    }
    daemon.stop().await;
}
