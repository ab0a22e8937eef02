//! Whatever bytes come as a request: no panic, sound values, and refusals that fit on one line.

#![no_main]

use bitnetd::protocol::json::{self, Cancelled, Incoming};
use bitnetd::protocol::partial::id_of_truncated;
use bitnetd::protocol::{Event, Refusal, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for read in [json::request(bytes), json::request_or_text(bytes)] {
        read.map_or_else(|refusal| check_refusal(bytes, refusal), |request| check(bytes, &request));
    }
    match json::incoming(bytes) {
        Ok(Incoming::Request(request)) => assert_eq!(json::request(bytes), Ok(*request)),
        Ok(Incoming::Cancel(id)) => check_token(&id),
        Ok(
            Incoming::Telemetry(_)
            | Incoming::Metrics(_)
            | Incoming::Health(_)
            | Incoming::Alerts(_)
            | Incoming::Reload(_),
        ) => {}
        Err(refusal) => check_refusal(bytes, refusal),
    }
    if let Ok(Cancelled::Id(id)) = json::cancel_topic(bytes) {
        check_token(&id);
    }
    if let Ok(threads) = json::thread_limit(bytes) {
        assert!(threads < 1_000_000);
    }
    if let (Some(found), Some(id)) = (id_of_truncated(bytes), json::id_of(bytes)) {
        assert_eq!(found, id);
    }
});

fn check(bytes: &[u8], request: &Request) {
    assert!(bytes.len() <= json::MAX_REQUEST);
    assert_ne!(request.max_tokens, Some(0));
    assert!(request.sampling.temperature.is_none_or(f32::is_finite));
    assert!(request.stop.iter().all(|text| !text.is_empty()));
    if let Some(id) = &request.id {
        assert!(!id.is_empty() && id.len() <= json::MAX_ID);
        assert_eq!(json::id_of(bytes).as_ref(), Some(id));
    }
    for end in 0..bytes.len() {
        let found = id_of_truncated(&bytes[..end]);
        assert!(found.is_none() || found == request.id, "cut off at {end}");
    }
}

fn check_refusal(bytes: &[u8], refusal: Refusal) {
    assert!(refusal.message.len() < 2 * bytes.len() + 1000, "longer than what it is about");
    check_event(&Event::error(json::id_of(bytes), refusal));
}

fn check_token(text: &str) {
    let (id, text) = (text.into(), text.into());
    check_event(&Event::Token { id, text, index: None, logprobs: Vec::new(), metadata: None });
}

/// An event is one line, and another reader finds the same in it.
fn check_event(event: &Event) {
    let line = json::event(event);
    assert!(!line.contains(&b'\n'));
    let read: serde_json::Value = serde_json::from_slice(&line).expect("JSON");
    match event {
        Event::Token { text, .. } => assert_eq!(read["text"], text.as_str()),
        Event::Error { refusal, .. } => assert_eq!(read["message"], refusal.message.as_str()),
        Event::Done(_) => {}
    }
}
