//! However an answer's bytes are cut into tokens: what is shown is the whole text, and never a stop text.
//!
//! Input: stop texts, one a line, up to the first NUL; then tokens, each ended by a byte 1.

#![no_main]

use bitnetd::engine::tokenizer::{StreamStep, TextStream};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (stops, tokens) = bytes.split_at(bytes.iter().position(|byte| *byte == 0).unwrap_or(0));
    let stops = String::from_utf8_lossy(stops);
    let stops: Vec<String> = stops.lines().filter(|stop| !stop.is_empty()).map(str::to_owned).collect();
    let tokens: Vec<&[u8]> = tokens.split(|byte| *byte == 1).collect();
    check(&stops, &tokens);
});

fn check(stops: &[String], tokens: &[&[u8]]) {
    let mut stream = TextStream::new(stops, 16);
    let mut shown = String::new();
    for token in tokens {
        match stream.push(token) {
            StreamStep::More(text) => shown.push_str(text),
            StreamStep::Stop(text) => {
                shown.push_str(text);
                break;
            }
        }
        assert!(!stops.iter().any(|stop| shown.contains(stop)), "{shown:?}");
    }
    shown.push_str(stream.finish());
    assert_eq!(shown, stream.into_text());
    check_by_the_book(&shown, stops, &String::from_utf8_lossy(&tokens.concat()));
}

/// The definition, with all bytes at hand: the text up to a stop text, or all of it where there is none.
fn check_by_the_book(shown: &str, stops: &[String], whole: &str) {
    assert!(!stops.iter().any(|stop| shown.contains(stop)), "{shown:?}");
    let rest = whole.strip_prefix(shown).expect("the beginning of the whole text");
    let stopped = stops.iter().any(|stop| rest.starts_with(stop));
    assert!(rest.is_empty() || stopped, "{rest:?} is left");
}
