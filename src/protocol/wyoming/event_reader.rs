//! Bytes to events: a line of JSON, then as many bytes of data and of payload as the line announces.
//!
//! Deliberately knows no event: data are any JSON object, and payloads, which hold audio, are skipped.

use crate::external_text::JsonValue;
use crate::protocol::json::MAX_REQUEST;
use crate::protocol::{Code, Refusal};
use serde::Deserialize;

/// Maximum length of a header in bytes. It may hold the data, as older clients send them.
pub const MAX_HEADER: usize = 16 << 10;
/// Maximum length of the data in bytes: the longest text, should every byte of it be escaped.
pub const MAX_DATA: usize = 2 * MAX_REQUEST;
/// Maximum length of a payload in bytes: a piece of audio, and more than any client sends at once.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// Capacity that an empty buffer retains.
const RETAINED_CAPACITY: usize = 4 << 10;

/// An event of a client.
#[derive(Debug, Clone, PartialEq)]
pub struct WyomingEvent {
    /// Its type, such as `transcript`.
    pub kind: String,
    /// Its data: those of the header, then those that followed it, which count where both have a key.
    pub data: Vec<(String, JsonValue)>,
}

impl WyomingEvent {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&JsonValue> {
        self.data.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value)
    }
}

#[derive(Deserialize)]
struct Header {
    #[serde(rename = "type")]
    kind: String,
    data: Option<JsonValue>,
    data_length: Option<i64>,
    payload_length: Option<i64>,
}

/// What of an event is read next.
#[derive(Debug)]
enum Stage {
    Header,
    /// `length` bytes of data, then `payload` bytes.
    Data {
        event: WyomingEvent,
        length: usize,
        payload: usize,
    },
    /// Bytes that are skipped.
    Payload {
        event: WyomingEvent,
        left: usize,
    },
}

/// Splits the bytes of a connection into events. It buffers at most [`MAX_DATA`] bytes, and what was pushed last.
#[derive(Debug)]
pub struct EventReader {
    buffer: Vec<u8>,
    stage: Stage,
}

impl Default for EventReader {
    fn default() -> Self {
        EventReader { buffer: Vec::new(), stage: Stage::Header }
    }
}

impl EventReader {
    /// Adds the bytes that were received next.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether the beginning of an event was received, and not yet its end.
    pub fn is_inside_event(&self) -> bool {
        !self.buffer.is_empty() || !matches!(self.stage, Stage::Header)
    }

    /// Whether more bytes may be pushed before the next event is taken.
    pub fn has_space(&self) -> bool {
        self.buffer.len() < MAX_DATA
    }

    /// The next event, if all of it was received.
    ///
    /// # Errors
    /// What follows cannot be split into events any more; the connection has to end.
    pub fn next_event(&mut self) -> Result<Option<WyomingEvent>, Refusal> {
        loop {
            match std::mem::replace(&mut self.stage, Stage::Header) {
                Stage::Header => match self.header()? {
                    Some(stage) => self.stage = stage,
                    None => return Ok(None),
                },
                Stage::Data { event, length, payload } if self.buffer.len() < length => {
                    self.stage = Stage::Data { event, length, payload };
                    return Ok(None);
                }
                Stage::Data { mut event, length, payload } => {
                    let data = object(serde_json::from_slice(&self.buffer[..length]).ok(), "the data")?;
                    event.data.extend(data);
                    self.discard(length);
                    self.stage = Stage::Payload { event, left: payload };
                }
                Stage::Payload { event, left } => {
                    let skipped = left.min(self.buffer.len());
                    self.discard(skipped);
                    if skipped == left {
                        return Ok(Some(event));
                    }
                    self.stage = Stage::Payload { event, left: left - skipped };
                    return Ok(None);
                }
            }
        }
    }

    /// Reads a header; `None` where its end was not received yet.
    fn header(&mut self) -> Result<Option<Stage>, Refusal> {
        let end = self.buffer.iter().position(|byte| *byte == b'\n');
        if end.unwrap_or(self.buffer.len()) > MAX_HEADER {
            return Err(too_large("the header", MAX_HEADER));
        }
        let Some(end) = end else { return Ok(None) };
        let header: Header = serde_json::from_slice(&self.buffer[..end]).map_err(|error| {
            invalid(format!("the header is no JSON object with a type ({error}); send a Wyoming event"))
        })?;
        self.discard(end + 1);
        let length = limited(header.data_length, MAX_DATA, "data_length")?;
        let payload = limited(header.payload_length, MAX_PAYLOAD, "payload_length")?;
        let data = match header.data {
            None | Some(JsonValue::Null) => Vec::new(),
            data => object(data, "data")?,
        };
        let event = WyomingEvent { kind: header.kind, data };
        Ok(Some(match length {
            0 => Stage::Payload { event, left: payload },
            _ => Stage::Data { event, length, payload },
        }))
    }

    fn discard(&mut self, length: usize) {
        self.buffer.drain(..length);
        if self.buffer.len() <= RETAINED_CAPACITY {
            self.buffer.shrink_to(RETAINED_CAPACITY);
        }
    }
}

/// A length as the header gives it. The reference implementation reads nothing where it is missing, null or negative.
fn limited(length: Option<i64>, limit: usize, key: &str) -> Result<usize, Refusal> {
    let length = usize::try_from(length.unwrap_or(0)).unwrap_or(0);
    if length > limit { Err(too_large(key, limit)) } else { Ok(length) }
}

fn object(value: Option<JsonValue>, what: &str) -> Result<Vec<(String, JsonValue)>, Refusal> {
    match value {
        Some(JsonValue::Object(entries)) => Ok(entries),
        _ => Err(invalid(format!("{what}: no JSON object; send a Wyoming event"))),
    }
}

fn too_large(what: &str, limit: usize) -> Refusal {
    Refusal::new(Code::TooLarge, format!("{what}: more than {limit} bytes; send less"))
}

fn invalid(message: String) -> Refusal {
    Refusal::new(Code::InvalidRequest, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The types of all events in `pieces`, each with its text, and how reading ended.
    fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<(String, Option<String>)>, Option<Code>) {
        let mut reader = EventReader::default();
        let mut events = Vec::new();
        for piece in pieces {
            reader.push(piece);
            loop {
                match reader.next_event() {
                    Ok(Some(event)) => {
                        let text = event.get("text").and_then(JsonValue::as_text).map(str::to_owned);
                        events.push((event.kind, text));
                    }
                    Ok(None) => break,
                    Err(refusal) => return (events, Some(refusal.code)),
                }
            }
        }
        (events, None)
    }

    fn event(kind: &str, text: Option<&str>) -> (String, Option<String>) {
        (kind.to_owned(), text.map(str::to_owned))
    }

    #[test]
    fn an_event_has_its_data_in_the_header_or_behind_it() {
        for bytes in [
            &b"{\"type\":\"ping\",\"data\":{\"text\":\"a\"}}\n"[..],
            b"{\"type\":\"ping\",\"version\":\"1.7.2\",\"data_length\":12}\n{\"text\":\"a\"}",
            b"{\"type\":\"ping\",\"data\":{\"text\":\"b\"},\"data_length\":12,\"payload_length\":3}\n{\"text\":\"a\"}xyz",
            b" {\"type\":\"ping\",\"data\":{\"text\":\"a\"},\"data_length\":null,\"payload_length\":0,\"x\":[]} \r\n",
        ] {
            assert_eq!(read([bytes]), (vec![event("ping", Some("a"))], None));
        }
        assert_eq!(read([&b"{\"type\":\"describe\",\"data\":null,\"data_length\":-1}\n"[..]]).0.len(), 1);
    }

    #[test]
    fn every_split_gives_the_same_events() {
        let bytes = b"{\"type\":\"a\",\"data_length\":12,\"payload_length\":4}\n{\"text\":\"a\"}\n\n{\n{\"type\":\"b\"}\n";
        let expected = (vec![event("a", Some("a")), event("b", None)], None);
        for first in 0..=bytes.len() {
            for second in first..=bytes.len() {
                assert_eq!(read([&bytes[..first], &bytes[first..second], &bytes[second..]]), expected);
            }
        }
    }

    #[test]
    fn what_is_no_event_ends_the_connection() {
        for bytes in [
            "\n",
            "GET / HTTP/1.1\r\n",
            "[]\n",
            "{}\n",
            "{\"type\":1}\n",
            "{\"type\":\"a\",\"data\":[]}\n",
            "{\"type\":\"a\",\"data_length\":1.5}\n",
            "{\"type\":\"a\",\"data_length\":2}\n[]",
            "{\"type\":\"a\",\"data_length\":2}\nxx",
        ] {
            assert_eq!(read([bytes.as_bytes()]), (vec![], Some(Code::InvalidRequest)), "{bytes}");
        }
    }

    #[test]
    fn header_data_and_payload_have_limits() {
        let padded = |length: usize| {
            let begin = "{\"type\":\"a\",\"x\":\"";
            format!("{begin}{}\"}}\n", "x".repeat(length - begin.len() - 2))
        };
        assert_eq!(read([padded(MAX_HEADER).as_bytes()]).0.len(), 1);
        assert_eq!(read([padded(MAX_HEADER + 1).as_bytes()]).1, Some(Code::TooLarge));
        assert_eq!(read(vec![&[b'x'; 1000][..]; 20]).1, Some(Code::TooLarge), "a line without an end");
        for (key, limit) in [("data_length", MAX_DATA), ("payload_length", MAX_PAYLOAD)] {
            let header = |length| format!("{{\"type\":\"a\",\"{key}\":{length}}}\n");
            assert_eq!(read([header(limit).as_bytes()]), (vec![], None));
            assert_eq!(read([header(limit + 1).as_bytes()]).1, Some(Code::TooLarge));
            assert_eq!(read([header(i64::MAX as usize).as_bytes()]).1, Some(Code::TooLarge));
        }
    }

    #[test]
    fn a_payload_is_skipped_without_being_stored() {
        let mut reader = EventReader::default();
        reader.push(format!("{{\"type\":\"a\",\"payload_length\":{MAX_PAYLOAD}}}\n").as_bytes());
        for _ in 0..MAX_PAYLOAD / 1024 {
            assert_eq!(reader.next_event(), Ok(None));
            assert!(reader.is_inside_event());
            reader.push(&[b'\n'; 1024]);
            assert!(reader.buffer.capacity() <= RETAINED_CAPACITY);
        }
        assert!(reader.next_event().is_ok_and(|event| event.is_some()));
        assert!(!reader.is_inside_event());
    }
}
