//! Makes text from outside safe for a log line, a terminal or a command's JSON: on one line, without characters that a
//! terminal interprets, and of limited length.
//!
//! Deliberately knows nothing of where the text came from or goes to.

use serde::Serialize;
use std::borrow::Cow;
use std::fmt;

/// Maximum number of characters of a name or a value from outside, and of a word in a line.
pub const MAX_VALUE: usize = 200;
/// Maximum number of characters of a line.
pub const MAX_LINE: usize = 1_000;

/// A name or a value from outside, as it is shown: escaped, and cut to [`MAX_VALUE`] characters.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a>(pub &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&cut(self.0, MAX_VALUE, usize::MAX))
    }
}

/// A message for a log or an error: one line, however it was put together. Whatever in it is longer than
/// [`MAX_VALUE`] characters without a space is cut, and the whole at [`MAX_LINE`].
pub fn one_line(text: &str) -> String {
    cut(text, MAX_LINE, MAX_VALUE)
}

/// Text of several lines for a terminal: line ends and tabs stay, whatever else a terminal obeys is escaped.
pub fn for_terminal(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '\n' | '\t') { shown.push(c) } else { push(&mut shown, c) }
    }
    shown
}

/// Data as one line of JSON for standard output. What a terminal obeys is escaped, as `\u202e`: to whoever parses it,
/// that is the same text.
pub fn json_line(data: &impl Serialize) -> String {
    let json = serde_json::to_string(data).expect("what commands print is plain data");
    format!("{}\n", escaped_json(&json))
}

/// JSON in which whatever a terminal obeys is escaped. Outside strings JSON has only spaces, tabs and line ends.
pub fn escaped_json(json: &str) -> Cow<'_, str> {
    let is_kept = |c: char| matches!(c, '\n' | '\t') || !is_unsafe(c);
    if json.chars().all(is_kept) {
        return Cow::Borrowed(json);
    }
    let mut escaped = String::with_capacity(json.len() + 64);
    for c in json.chars() {
        match c {
            c if is_kept(c) => escaped.push(c),
            // Inside a string it would be no JSON.
            '\r' => escaped.push(' '),
            c => {
                let mut units = [0; 2];
                c.encode_utf16(&mut units)
                    .iter()
                    .for_each(|unit| escaped.push_str(&format!("\\u{unit:04x}")));
            }
        }
    }
    Cow::Owned(escaped)
}

/// A name or a value from outside for data that is escaped later: cut to [`MAX_VALUE`] characters.
pub fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_VALUE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Whether a terminal, or the reader of a line, takes the character for something else than itself: control characters,
/// line and paragraph separators, and format characters (Unicode's category Cf), among them what turns the direction
/// of text.
pub fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}' | '\u{8e2}'
            | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0001}' | '\u{e0020}'..='\u{e007f}'
        )
}

fn push(to: &mut String, c: char) {
    if is_unsafe(c) { to.extend(c.escape_default()) } else { to.push(c) }
}

fn cut(text: &str, whole: usize, word: usize) -> String {
    let mut shown = String::with_capacity(text.len().min(whole));
    let (mut run, mut written) = (0, 0);
    for c in text.chars() {
        run = if c == ' ' { 0 } else { run + 1 };
        if run > word.saturating_add(1) {
            continue;
        }
        if written == whole {
            shown.push('…');
            break;
        }
        written += 1;
        if run > word { shown.push('…') } else { push(&mut shown, c) }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVIL: &str = "\u{1b}]0;title\u{7}\u{1b}[31mX\nERROR no line\r\u{9b}2J\u{202e}\u{2028}";

    #[test]
    fn nothing_that_a_terminal_obeys_is_left() {
        for shown in [Shown(EVIL).to_string(), one_line(EVIL), for_terminal(EVIL).replace('\n', "")] {
            assert!(!shown.contains(is_unsafe), "{shown:?}");
            assert!(shown.contains("ERROR no line"), "{shown}");
        }
        assert_eq!(for_terminal("a\n\tb é 厨"), "a\n\tb é 厨");
    }

    #[test]
    fn values_and_words_are_cut_and_so_is_the_line() {
        let long = "é".repeat(60_000);
        assert_eq!(Shown(&long).to_string().chars().count(), MAX_VALUE + 1);
        let line = one_line(&format!("topic: {long} is refused; allow it"));
        assert!(line.ends_with("… is refused; allow it"), "{line}");
        assert_eq!(line.chars().count(), "topic:  is refused; allow it".chars().count() + MAX_VALUE + 1);
        assert_eq!(one_line(&"a ".repeat(9_000)).chars().count(), MAX_LINE + 1);
    }

    #[test]
    fn json_holds_the_same_text_without_anything_that_a_terminal_obeys() {
        let evil = format!("{EVIL}\u{e0041}\u{ad}\u{feff}\u{7f}ü😀");
        let line = json_line(&serde_json::json!({ &evil: evil }));
        assert!(!line.trim_end().contains(is_unsafe), "{line}");
        assert!(
            line.contains("\\u202e") && line.contains("\\u009b") && line.contains("\\udb40\\udc41"),
            "{line}"
        );
        let read: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(read[&evil], evil.as_str());
        assert_eq!(escaped_json("{\r\"a\":\t1}\r\n"), "{ \"a\":\t1} \n");
        assert!(matches!(escaped_json("{\"a\":\"ü😀\"}\n"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_shortened_text_shows_that_it_is() {
        assert_eq!(shortened(&"é".repeat(MAX_VALUE)), "é".repeat(MAX_VALUE));
        assert_eq!(shortened(&"é".repeat(9_000)), format!("{}…", "é".repeat(MAX_VALUE)));
    }

    #[test]
    fn what_is_plain_stays_as_it_is() {
        let plain = "küche/licht \"an\" 40 °C — 厨房 \\";
        assert_eq!((Shown(plain).to_string(), one_line(plain)), (plain.into(), plain.into()));
    }
}
