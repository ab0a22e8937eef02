//! Checks of text from outside before it is parsed: one leading byte-order mark is removed, a second is an error, and
//! duplicate keys in JSON are found. JSON that a model reads keeps the order of its keys.
//!
//! Deliberately knows no file, no request and no limit: every module that reads such text uses it.

mod json_value;

pub use json_value::JsonValue;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;

/// U+FEFF in UTF-8, which Windows editors and PowerShell write at the beginning of a text.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The error for a text with more than one leading byte-order mark: programs that each put one before it wrote it, and
/// whatever reads it would take the second for a character of the text.
const SECOND_MARK: &str = "begins with a second byte-order mark (U+FEFF); remove it";

/// The bytes of a text without a leading byte-order mark.
pub fn without_bom(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes)
}

/// What is wrong with the beginning of a text, if anything is.
pub fn wrong_head(bytes: &[u8]) -> Option<&'static str> {
    without_bom(bytes).starts_with(BYTE_ORDER_MARK).then_some(SECOND_MARK)
}

/// A UTF-8 text without a leading byte-order mark; the error is a short description of what it is instead.
pub fn utf8(bytes: &[u8]) -> Result<&str, String> {
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err("UTF-16, not UTF-8; save it as UTF-8".into());
    }
    if let Some(wrong) = wrong_head(bytes) {
        return Err(wrong.into());
    }
    let text = without_bom(bytes);
    let skipped = bytes.len() - text.len();
    std::str::from_utf8(text)
        .map_err(|error| format!("byte {} is not UTF-8; give plain text", skipped + error.valid_up_to()))
}

/// The path of the first key that an object has twice, as `messages[0].content`; `None` where there is none, and
/// where the bytes are no JSON, which the parser reports itself.
pub fn duplicate_key(bytes: &[u8]) -> Option<String> {
    let found = RefCell::new(None);
    let place = RefCell::new(String::new());
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    // An error is either the duplicate, which is in `found`, or one of the JSON itself.
    let _ = Walk { place: &place, found: &found }.deserialize(&mut reader);
    found.into_inner()
}

/// Visits a JSON value without building it.
struct Walk<'a> {
    /// The path to the current value.
    place: &'a RefCell<String>,
    found: &'a RefCell<Option<String>>,
}

impl Walk<'_> {
    /// Runs `read` with `part` at the end of the path.
    fn at<T>(&self, part: fmt::Arguments<'_>, read: impl FnOnce(Self) -> T) -> T {
        let length = self.place.borrow().len();
        fmt::Write::write_fmt(&mut *self.place.borrow_mut(), part).expect("a string takes any text");
        let result = read(Walk { place: self.place, found: self.found });
        self.place.borrow_mut().truncate(length);
        result
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut keys = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            let separator = if self.place.borrow().is_empty() { "" } else { "." };
            let part = format_args!("{separator}{key}");
            if keys.contains(&key) {
                *self.found.borrow_mut() = Some(format!("{}{part}", self.place.borrow()));
                return Err(A::Error::custom("a key that is given twice"));
            }
            self.at(part, |walk| map.next_value_seed(walk))?;
            keys.insert(key);
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        for index in 0.. {
            if self.at(format_args!("[{index}]"), |walk| list.next_element_seed(walk))?.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_order_mark_at_the_head_is_no_part_of_a_text() {
        assert_eq!(utf8(b"\xef\xbb\xbfa"), Ok("a"));
        assert_eq!(utf8(b"\xef\xbb\xbf\xef\xbb\xbfa"), Err(SECOND_MARK.into()));
        assert_eq!(wrong_head(b"\xef\xbb\xbf\xef\xbb\xbf{}"), Some(SECOND_MARK));
        assert_eq!(wrong_head(b"\xef\xbb\xbf{}\xef\xbb\xbf"), None);
        assert_eq!(utf8(b"a\xef\xbb\xbf"), Ok("a\u{feff}"));
        assert_eq!(utf8(b"\xef\xbb"), Err("byte 0 is not UTF-8; give plain text".into()));
        assert_eq!(utf8(b"\xef\xbb\xbfa\xff"), Err("byte 4 is not UTF-8; give plain text".into()));
        assert!(utf8(b"\xff\xfea\0").is_err_and(|message| message.contains("UTF-16")));
    }

    #[test]
    fn a_key_given_twice_is_found_at_every_level() {
        for (text, place) in [
            (r#"{"a":1,"a":1}"#, "a"),
            (r#"{"a":1,"\u0061":2}"#, "a"),
            (r#"{"m":[{"b":1},{"c":{"d":null,"d":[]}}]}"#, "m[1].c.d"),
            (r#"[[{"":1,"":2}]]"#, "[0][0]."),
        ] {
            assert_eq!(duplicate_key(text.as_bytes()).as_deref(), Some(place), "{text}");
        }
        for sound in
            [r#"{"a":{"a":1},"b":[{"a":1},{"a":2.5}],"c":"a","d":-1}"#, "7", "", "{", r#"{"a":1"#, "[[["]
        {
            assert_eq!(duplicate_key(sound.as_bytes()), None, "{sound}");
        }
        assert_eq!(duplicate_key("[".repeat(100_000).as_bytes()), None, "no deep stack");
    }
}
