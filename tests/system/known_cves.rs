//! Known vulnerability classes of servers for language models, one test each, against the real daemon. Those of
//! model files are in `tests/engine/damaged/past.rs`.

use crate::Folder;
use crate::daemon::{Daemon, is_emulated};
use serde_json::json;

/// CVE-2026-21869: a negative number in a request became an offset.
#[tokio::test]
async fn numbers_of_a_request_that_are_negative_huge_or_none() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let mut client = daemon.client().await;
    let whole = ["max_tokens", "top_k", "timeout_ms"];
    let wrong = whole.iter().flat_map(|key| {
        [json!(-1), json!(i64::MIN), json!(1e300), json!("8"), json!([8])].map(|value| (*key, value))
    });
    let hot = [json!(-0.1), json!(1e39), json!("hot")].map(|value| ("temperature", value));
    for (key, value) in wrong.chain(hot) {
        let said = client.ask(json!({"id": "a", "prompt": "go", key: value})).await;
        assert_eq!(said["code"], "invalid_request", "{key}: {value}: {said}");
        assert!(said["message"].as_str().is_some_and(|text| text.contains(key)), "{said}");
    }
    // The largest number asks for as many tokens as the context has.
    let most = json!({"id": "b", "prompt": "turn on the light", "max_tokens": u32::MAX});
    assert_eq!(client.ask(most).await["event"], "done");
}

/// llama.cpp issue 22234 and similar ones: deeply nested schemas that exhaust a recursive parser.
#[tokio::test]
async fn schemas_of_any_depth() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let mut client = daemon.client().await;
    for (depth, expected) in [(10, "done"), (100, "error"), (5000, "error")] {
        let schema = format!("{}{}{}", "{\"items\":".repeat(depth), "{}", "}".repeat(depth));
        let format = format!(r#"{{"type":"json_schema","json_schema":{{"schema":{schema}}}}}"#);
        client.send(&format!("{{\"id\":\"a\",\"prompt\":\"go\",\"response_format\":{format}}}\n")).await;
        let said = client.end().await;
        assert_eq!(said["event"], expected, "depth {depth}: {said}");
        assert!(expected == "done" || said["code"] == "invalid_request", "depth {depth}: {said}");
    }
    assert_eq!(client.ask(json!({"id": "b", "prompt": "turn on the light"})).await["event"], "done");
}

/// CVE-2024-28224, CVE-2026-7482: services that listen on the network without protection. The daemon does not
/// listen on it.
#[tokio::test]
async fn no_port_of_the_network_is_open() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    // The descriptors of an emulator are in the same table.
    if is_emulated() {
        return;
    }
    let ours: Vec<String> = std::fs::read_dir(format!("/proc/{}/fd", daemon.process.pid()))
        .expect("it runs")
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    assert!(!ours.is_empty(), "its own socket at least");
    for table in ["tcp", "tcp6", "udp", "udp6", "raw", "raw6"] {
        let Ok(text) = std::fs::read_to_string(format!("/proc/net/{table}")) else { continue };
        for line in text.lines().skip(1) {
            let inode = line.split_whitespace().nth(9).expect("a column of the table");
            assert!(!ours.iter().any(|own| own == inode), "{table}: {line}");
        }
    }
}
