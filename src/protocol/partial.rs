//! Finds the id in the beginning of a JSON object whose end is missing, such as a request that was cut off because
//! it is too long.
//!
//! Deliberately no parser: it finds one value of the outermost object, and checks no more than it needs for that.

use super::RequestId;

/// Maximum nesting that is skipped: as deep as whole requests may be.
const DEEPEST: u32 = 128;

/// Finds the value of the key `id` of the outermost object in `bytes`, the beginning of a request. An `id` inside a
/// text or an inner object is none. `None` where it is not there in full, or no id that a request may have.
pub fn id_of_truncated(bytes: &[u8]) -> Option<RequestId> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut scanner = Scanner { rest: bytes };
    scanner.expect(b'{')?;
    loop {
        let key = scanner.text()?;
        scanner.expect(b':')?;
        if key == "id" {
            let id = scanner.id()?;
            return super::json::check_id(Some(&id)).is_ok().then_some(id);
        }
        scanner.skip_value()?;
        scanner.expect(b',')?;
    }
}

/// The bytes not read yet. Every method is `None` where they end too early or are no JSON.
struct Scanner<'a> {
    rest: &'a [u8],
}

impl<'a> Scanner<'a> {
    /// The next byte that is no white space, left in place.
    fn peek(&mut self) -> Option<u8> {
        let is_space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        let start = self.rest.iter().position(|byte| !is_space(byte))?;
        self.rest = &self.rest[start..];
        self.rest.first().copied()
    }

    fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        taken
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| {
            self.take(1);
        })
    }

    /// A whole string, its quotation marks included.
    fn quoted(&mut self) -> Option<&'a [u8]> {
        if self.peek()? != b'"' {
            return None;
        }
        let mut at = 1;
        loop {
            match self.rest.get(at)? {
                b'"' => return Some(self.take(at + 1)),
                // An escaped character does not end the string; neither do the digits of a `\u`.
                b'\\' => at += 2,
                _ => at += 1,
            }
        }
    }

    fn text(&mut self) -> Option<String> {
        serde_json::from_slice(self.quoted()?).ok()
    }

    /// A string or a number.
    fn id(&mut self) -> Option<RequestId> {
        if self.peek()? == b'"' {
            return self.text().map(RequestId::from);
        }
        RequestId::from_json(std::str::from_utf8(self.word()?).ok()?)
    }

    /// A number or a word, which ends only before what cannot be a part of it.
    fn word(&mut self) -> Option<&'a [u8]> {
        self.peek()?;
        let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
        let end = self.rest.iter().position(|byte| !is_part(byte))?;
        (end > 0).then(|| self.take(end))
    }

    fn skip_value(&mut self) -> Option<()> {
        // One bit for each open bracket, the innermost lowest: 1 is an object.
        let (mut open, mut depth) = (0_u128, 0_u32);
        loop {
            match self.peek()? {
                b'"' => {
                    self.quoted()?;
                }
                bracket @ (b'{' | b'[') if depth < DEEPEST => {
                    self.take(1);
                    (open, depth) = (open << 1 | u128::from(bracket == b'{'), depth + 1);
                    continue;
                }
                bracket @ (b'}' | b']') if depth > 0 && (open & 1 == 1) == (bracket == b'}') => {
                    self.take(1);
                    (open, depth) = (open >> 1, depth - 1);
                }
                b',' | b':' if depth > 0 => {
                    self.take(1);
                    continue;
                }
                _ => {
                    self.word()?;
                }
            }
            if depth == 0 {
                return Some(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> Option<String> {
        id_of_truncated(text.as_bytes()).map(|id| serde_json::to_string(&id).expect("an id"))
    }

    #[test]
    fn an_id_is_found_before_and_behind_whole_values() {
        for text in [
            r#"{"id":"a","prompt":"xx"#,
            r#" { "id" : "a" "#,
            "\u{feff}{\"id\":\"a\"",
            r#"{"prompt":"a \"quoted\" text\\","id":"a","x"#,
            r#"{"max_tokens":5,"stream":true,"seed":null,"temperature":-1.5e-3,"id":"a","#,
            r#"{"messages":[{"role":"user","content":"}]"},[],{}],"id":"a","#,
            r#"{"\u0069d":"a"}"#,
        ] {
            assert_eq!(id(text).as_deref(), Some("\"a\""), "{text}");
        }
    }

    #[test]
    fn a_number_is_found_once_its_end_is_there() {
        for number in ["5", "-1.5e3", "1732.0", "12345678901234567890123"] {
            assert_eq!(id(&format!("{{\"id\":{number},\"prompt\":\"x")).as_deref(), Some(number));
            assert_eq!(id(&format!("{{\"prompt\":\"x\",\"id\": {number} }}")).as_deref(), Some(number));
            assert_eq!(id(&format!("{{\"id\":{number}")), None, "more digits may follow");
        }
        for wrong in ["05", "1x", "+1", "true", "-"] {
            assert_eq!(id(&format!("{{\"id\":{wrong},")), None);
        }
    }

    #[test]
    fn an_id_inside_a_text_or_an_inner_value_is_none() {
        for text in [
            r#"{"prompt":"\"id\":\"b\",","x":1"#,
            r#"{"prompt":"x\\\",\"id\":\"b\""#,
            r#"{"messages":[{"id":"b","role":"user"#,
            r#"{"response_format":{"id":"b"},"prompt":"#,
            r#"{"messages":["id","b"],"#,
            r#"["id","b"]"#,
            r#""id":"b""#,
            r#"{"key":"id","value":"b""#,
        ] {
            assert_eq!(id(text), None, "{text}");
        }
    }

    #[test]
    fn an_id_that_is_cut_off_or_not_allowed_is_none() {
        for text in [
            "",
            "{",
            r#"{"id"#,
            r#"{"id":"#,
            r#"{"id":"ab"#,
            r#"{"id":"a\"#,
            r#"{"id":""#,
            r#"{"id":"","prompt"#,
            r#"{"id":"\ud800","prompt"#,
            r#"{"id":["a"],"prompt"#,
            r#"{"id":null,"prompt"#,
            r#"{"x":[},"id":"a"}"#,
            r#"{"x":{],"id":"a"}"#,
            r#"{"x":],"id":"a"}"#,
            r#"{"x" "id":"a"}"#,
        ] {
            assert_eq!(id(text), None, "{text}");
        }
        let long = format!(r#"{{"id":"{}","#, "a".repeat(crate::protocol::json::MAX_ID + 1));
        assert_eq!(id(&long), None);
        assert_eq!(id_of_truncated(b"{\"id\":\"\xff\","), None);
    }

    #[test]
    fn nesting_is_passed_over_as_deep_as_a_request_may_be_and_no_deeper() {
        let nested = |depth| format!(r#"{{"x":{}{},"id":"a""#, "[".repeat(depth), "]".repeat(depth));
        assert_eq!(id(&nested(128)).as_deref(), Some("\"a\""));
        assert_eq!(id(&nested(129)), None);
        assert_eq!(id(&format!("{{\"x\":{}", "[".repeat(65_536))), None);
    }

    #[test]
    fn a_sound_request_cut_off_anywhere_gives_its_own_id_or_none() {
        let text = br#"{"prompt":"a \u00e9 \"id\":\"b\"","messages":[{"id":"c"}],"id":"own","stop":["id"]}"#;
        for end in 0..=text.len() {
            let found = id_of_truncated(&text[..end]);
            assert!(
                found.is_none() || found.as_ref().is_some_and(|id| *id == "own"),
                "cut at {end}: {found:?}"
            );
        }
        assert_eq!(id_of_truncated(text), Some("own".into()));
    }
}
