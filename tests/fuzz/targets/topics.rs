//! Whatever a client chooses as an id, a Response Topic or its own name: an answer never becomes a
//! prompt, and every topic the daemon publishes on is one that brokers accept.

#![no_main]

use bitnetd::protocol::json;
use bitnetd::transport::mqtt::{PromptClient, TopicKind, Topics};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let topics = Topics::shared("bitnetd", "cellar", Some("kitchens"));
    if let Some(TopicKind::Prompt(client)) = topics.parse(bytes) {
        let label = topics.client_label(&client);
        assert!(
            !label.is_empty() && label.len() <= 64 + 1 + 64 && !label.contains(char::is_control),
            "{label:?}"
        );
        assert_eq!(PromptClient::from_cache_key(&client.cache_key()), client);
    }
    let prefixed = [b"bitnetd/cellar/", bytes].concat();
    let _ = topics.parse(&prefixed);
    let left = topics.stale_filters(bytes);
    assert!(left.iter().all(|filter| !filter.starts_with("bitnetd/cellar/")), "{left:?}");
    if let Ok(request) = json::request_or_text(bytes)
        && let Some(id) = request.id
    {
        check_reply(&topics, &id);
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    check_reply(&topics, text);
    check_reply_of_client(&topics, text);
    if topics.check_response(text, b"bitnetd/cellar/prompt/hall").is_ok() {
        let client = text.strip_prefix("bitnetd/cellar/reply/").and_then(|rest| rest.split_once('/'));
        assert!(client.is_none_or(|(client, _)| client == "hall"), "another client's: {text:?}");
        let is_below_reply = text.starts_with("bitnetd/cellar/reply/") || text.starts_with("bitnetd/kitchens/reply/");
        assert!(!text.starts_with('$'), "{text:?}");
        assert!(is_below_reply || !text.ends_with("/set") && !text.starts_with("homeassistant/"), "{text:?}");
        assert!(!text.is_empty() && text.len() <= 512 && !text.contains(['+', '#', '\0']), "{text:?}");
        // Of an earlier prefix or group it may be: then the first such answer ends the subscription.
        assert!(topics.parse(bytes).is_none() || !left.is_empty(), "an answer would be a prompt for ever");
    }
});

/// A client's level comes from the broker, so it holds no wildcard; it stays one level of the reply topic.
fn check_reply_of_client(topics: &Topics, client: &str) {
    if client.is_empty() || client.contains(['/', '+', '#', '\0']) {
        return;
    }
    let topic = topics.reply(format!("bitnetd/cellar/prompt/{client}").as_bytes(), "a");
    let levels: Vec<_> = topic.split('/').collect();
    let expected = if client.len() <= 512 { 5 } else { 4 };
    assert_eq!((levels.len(), *levels.last().expect("one at least")), (expected, "a"), "{topic:?}");
    assert!(!topic.contains(char::is_control), "{topic:?}");
    assert_eq!(topics.parse(topic.as_bytes()), None, "{topic}");
}

fn check_reply(topics: &Topics, id: &str) {
    for base in ["bitnetd/cellar", "bitnetd/kitchens"] {
        let topic = topics.reply(format!("{base}/prompt").as_bytes(), id);
        let level =
            topic.strip_prefix(base).and_then(|rest| rest.strip_prefix("/reply/")).expect("below reply");
        assert!(!level.contains(['/', '+', '#']) && !level.contains(char::is_control), "{level:?}");
        assert_eq!(topics.parse(topic.as_bytes()), None, "{topic}");
    }
}
