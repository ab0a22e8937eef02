//! Whatever text comes from outside: what is shown of it is short, on one line, and obeyed by no terminal.

#![no_main]

use bitnetd::protocol::text::{MAX_LINE, MAX_VALUE, Shown, for_terminal, is_unsafe, one_line};
use libfuzzer_sys::fuzz_target;

/// Most characters that one character is escaped to: `\u{10ffff}`.
const ESCAPED: usize = 10;

fuzz_target!(|text: &str| {
    let value = Shown(text).to_string();
    let line = one_line(text);
    let page = for_terminal(text);
    assert!(value.chars().count() <= MAX_VALUE * ESCAPED + 1);
    assert!(line.chars().count() <= MAX_LINE * ESCAPED + 1);
    for shown in [value, line.clone(), page.replace(['\n', '\t'], "")] {
        assert!(!shown.contains(is_unsafe), "{shown:?}");
    }
    let words = line.split(' ').map(|word| word.chars().count());
    assert!(words.max().is_none_or(|longest| longest <= MAX_VALUE * ESCAPED + 1));
    let is_plain = !text.contains(is_unsafe) && text.chars().count() <= MAX_VALUE;
    if is_plain {
        assert_eq!((one_line(text).as_str(), Shown(text).to_string().as_str()), (text, text));
    }
});
