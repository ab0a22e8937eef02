use super::*;
use crate::protocol::{Input, json};
use std::time::Duration;

const KEY: [u8; CLIENT_KEY_BYTES] = [1; CLIENT_KEY_BYTES];

fn request(text: &str) -> Request {
    Request { input: Input::Prompt(text.into()), ..json::request(br#"{"prompt":"go"}"#).expect("sound") }
}

fn limited(requests_per_minute: usize) -> config::Guard {
    config::Guard { requests_per_minute: Some(requests_per_minute), ..config::Guard::default() }
}

fn ask(guard: &mut Guard, now: Instant) -> Result<(), Denied> {
    guard.check("a", &mut request("go"), now)
}

#[test]
fn a_refusal_says_to_the_millisecond_when_the_next_request_is_admitted() {
    let now = Instant::now();
    let mut guard = Guard::new(limited(2), KEY, now);
    let at = |micros: u64| now + Duration::from_micros(micros);
    assert!(ask(&mut guard, at(1)).is_ok() && ask(&mut guard, at(7_000_500)).is_ok());
    let denied = ask(&mut guard, at(20_000_000)).expect_err("the third");
    assert_eq!((denied.reason, denied.refusal.code), (GuardReason::RateLimited, Code::RateLimited));
    let ms = denied.refusal.retry_after_ms.expect("a time");
    assert_eq!(ms, 40_001, "40.000001 s, rounded up");
    assert!(ask(&mut guard, at(20_000_000 + (ms - 1) * 1000)).is_err());
    assert!(ask(&mut guard, at(20_000_000 + ms * 1000)).is_ok());
}

#[test]
fn without_a_limit_everything_is_admitted_and_a_limit_that_comes_by_reload_counts_from_then_on() {
    let now = Instant::now();
    let mut guard = Guard::new(config::Guard::default(), KEY, now);
    assert!((0..1000).all(|_| ask(&mut guard, now).is_ok()));
    guard.adopt(limited(3));
    assert_eq!((0..9).filter(|_| ask(&mut guard, now).is_ok()).count(), 3);
    guard.adopt(limited(5));
    assert_eq!((0..9).filter(|_| ask(&mut guard, now).is_ok()).count(), 2, "three are remembered");
    guard.adopt(limited(1));
    let denied = ask(&mut guard, now + Duration::from_secs(59)).expect_err("five in a minute");
    assert_eq!(denied.refusal.retry_after_ms, Some(1000));
}

#[test]
fn a_prompt_may_be_as_long_as_allowed_in_bytes_and_in_tokens_and_no_longer() {
    let now = Instant::now();
    let settings =
        config::Guard { max_prompt_bytes: Some(4), max_prompt_tokens: Some(7), ..config::Guard::default() };
    let mut guard = Guard::new(settings, KEY, now);
    assert!(guard.check("a", &mut request("éé"), now).is_ok());
    let denied = guard.check("a", &mut request("ééa"), now).expect_err("5 bytes");
    assert_eq!((denied.reason, denied.refusal.code), (GuardReason::PromptBytes, Code::TooLarge));
    let messages = br#"{"messages":[{"role":"system","content":"abc"},{"role":"user","content":"de"}]}"#;
    let mut two = json::request(messages).expect("sound");
    assert!(guard.check("a", &mut two, now).is_err(), "all messages count together");
    assert!(guard.check_tokens(7).is_ok());
    let denied = guard.check_tokens(8).expect_err("8 tokens");
    assert_eq!((denied.reason, denied.refusal.code), (GuardReason::PromptTokens, Code::TooLarge));
}

#[test]
fn who_asks_for_more_tokens_than_allowed_or_for_none_gets_the_limit() {
    let now = Instant::now();
    let settings = config::Guard { max_output_tokens: Some(10), ..config::Guard::default() };
    let mut guard = Guard::new(settings, KEY, now);
    for (wanted, gets) in [(None, 10), (Some(9), 9), (Some(11), 10), (Some(u32::MAX), 10)] {
        let mut request = Request { max_tokens: wanted, ..request("go") };
        guard.check("a", &mut request, now).expect("admitted");
        assert_eq!(request.max_tokens, Some(gets));
    }
}

#[test]
fn control_characters_are_allowed_removed_or_refused() {
    let now = Instant::now();
    let check = |control_characters, text: &str| {
        let mut guard =
            Guard::new(config::Guard { control_characters, ..config::Guard::default() }, KEY, now);
        let mut request = request(text);
        let checked = guard.check("a", &mut request, now);
        checked.map(|()| request.input).map_err(|denied| (denied.reason, denied.refusal.message))
    };
    let prompt = |text: &str| Ok(Input::Prompt(text.into()));
    let text = "a\u{1b}[1m\tb\r\n\u{85}c";
    assert_eq!(check(ControlCharacters::Allow, text), prompt(text));
    assert_eq!(check(ControlCharacters::Remove, text), prompt("a[1m\tb\r\nc"));
    assert_eq!(check(ControlCharacters::Refuse, "a\tb\r\nc"), prompt("a\tb\r\nc"));
    let (reason, message) = check(ControlCharacters::Refuse, text).expect_err("an escape");
    assert_eq!(reason, GuardReason::ControlCharacters);
    assert!(message.contains("U+001B at byte 1"), "{message}");
}

#[test]
fn a_client_appears_as_eight_characters_unless_the_owner_wants_its_name() {
    let now = Instant::now();
    let mut guard = Guard::new(config::Guard::default(), KEY, now);
    let shown = guard.shown_client("unix:uid=1000", "unix:uid=1000".into());
    assert!(shown.len() == 8 && shown.bytes().all(|digit| digit.is_ascii_hexdigit()), "{shown}");
    assert_eq!(guard.shown_client("unix:uid=1000", "other".into()), shown, "its key counts");
    assert_ne!(guard.shown_client("unix:uid=1", "unix:uid=1000".into()), shown);
    guard.set_client_key([2; CLIENT_KEY_BYTES]);
    assert_ne!(guard.shown_client("unix:uid=1000", "unix:uid=1000".into()), shown);
    guard.adopt(config::Guard { clear_ids: true, ..config::Guard::default() });
    assert_eq!(guard.shown_client("mqtt:topic:9:bitnetd/a/hall", "mqtt:hall".into()), "mqtt:hall");
}
