use super::*;
use crate::protocol::{ClientInterface, GuardReason};
use serde_json::{Value, json};

fn line(event: &SecurityEvent<'_>) -> Value {
    serde_json::to_value(event.line("2026-01-01T00:00:00.000Z".into())).expect("plain data")
}

#[test]
fn a_refusal_has_its_reason_its_client_and_its_request() {
    let event = SecurityEvent {
        kind: SecurityEventKind::Refused { reason: GuardReason::ContentFiltered, filter_line: Some(3) },
        client: Some("0167b960"),
        request_id: Some("a"),
        interface: Some(ClientInterface::Mqtt),
        address: None,
    };
    let expected = json!({
        "time": "2026-01-01T00:00:00.000Z", "event": "refused", "reason": "content_filtered", "client": "0167b960",
        "request_id": "a", "interface": "mqtt", "address": null, "filter_line": 3
    });
    assert_eq!(line(&event), expected);
}

#[test]
fn commands_tokens_and_reloads_have_the_same_keys_and_their_own() {
    let token = SecurityEvent {
        kind: SecurityEventKind::FailedToken(TokenFailure::Wrong),
        client: None,
        request_id: Some("h1-1"),
        interface: Some(ClientInterface::Http),
        address: Some([192, 168, 1, 9].into()),
    };
    let lines = [
        line(&SecurityEvent::command(RemoteCommand::Cancel(1))),
        line(&SecurityEvent::command(RemoteCommand::CancelRunning(2))),
        line(&SecurityEvent::command(RemoteCommand::ThreadLimit(3))),
        line(&token),
        line(&SecurityEvent::reload(ReloadOutcome::Applied)),
        line(&SecurityEvent::reload(ReloadOutcome::FilterKept)),
        line(&SecurityEvent::reload(ReloadOutcome::Refused)),
    ];
    for line in &lines {
        for key in ["time", "event", "reason", "client", "request_id", "interface", "address"] {
            assert!(line.get(key).is_some(), "{key}: {line}");
        }
    }
    let named = lines.each_ref().map(|line| format!("{} {}", line["event"], line["reason"]).replace('"', ""));
    let expected = [
        "command cancel",
        "command cancel_running",
        "command thread_limit",
        "failed_token wrong",
        "reload applied",
        "reload filter_kept",
        "reload refused",
    ];
    assert_eq!(named, expected);
    assert_eq!(
        (&lines[0]["requests"], &lines[1]["requests"], &lines[2]["threads"]),
        (&1.into(), &2.into(), &3.into())
    );
    assert_eq!((&lines[3]["address"], &lines[4]["interface"]), (&"192.168.1.9".into(), &Value::Null));
}

#[test]
fn a_name_of_any_length_is_cut_and_the_line_stays_json() {
    let name = format!("mqtt:{}", "\u{202e}\"\u{7f}x".repeat(1000));
    let event = SecurityEvent { client: Some(&name), ..SecurityEvent::reload(ReloadOutcome::Applied) };
    let json = serde_json::to_string(&event.line(String::new())).expect("plain data");
    let written = escaped_json(&json);
    assert!(written.len() < 4096 && written.chars().all(|c| !c.is_control() && c != '\u{202e}'), "{written}");
    let read: Value = serde_json::from_str(&written).expect("it is JSON");
    assert!(
        read["client"].as_str().is_some_and(|client| name.starts_with(client.trim_end_matches('…'))),
        "{read}"
    );
}

#[test]
fn events_are_counted_also_where_they_have_no_line_and_clients_have_the_names_of_the_guard() {
    let record = SecurityRecord::default();
    assert_eq!(record.client_name("http:1.2.3.4"), None);
    record.name_clients(|client| format!("<{client}>"));
    let client = record.client_name("http:1.2.3.4");
    assert_eq!(client.as_deref(), Some("<http:1.2.3.4>"));
    for _ in 0..100 {
        record.record(&SecurityEvent {
            kind: SecurityEventKind::FailedToken(TokenFailure::Missing),
            client: client.as_deref(),
            ..SecurityEvent::reload(ReloadOutcome::Applied)
        });
    }
    record.record(&SecurityEvent::command(RemoteCommand::CancelRunning(0)));
    record.record(&SecurityEvent::reload(ReloadOutcome::Applied));
    record.record(&SecurityEvent::reload(ReloadOutcome::FilterKept));
    let counts = record.counts();
    assert_eq!((counts.failed_tokens, counts.commands), (100, 1));
    assert_eq!((counts.reloads, counts.reloads_refused), (2, 1));
    assert_eq!(counts.refused.sum(), 0);
}
