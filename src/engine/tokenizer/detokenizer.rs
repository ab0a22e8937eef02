//! Detokenizer: turns token bytes into text as they come. It emits whole characters only, and no text that may
//! still turn out to be a stop string.

/// Collects the text of an answer and decides which part of it can be emitted.
#[derive(Debug)]
pub struct TextStream {
    text: String,
    pending: Vec<u8>, // the first bytes of a character, at most 3, and temporarily the bytes of a token
    shown: usize,
    stops: Vec<String>,
}

/// The result of a push.
#[derive(Debug, PartialEq, Eq)]
pub enum StreamStep<'t> {
    /// More text to emit, possibly none.
    More(&'t str),
    /// A stop string was completed; the rest of the text before it.
    Stop(&'t str),
}

impl TextStream {
    /// A stream that ends before any of `stops`; `capacity` bytes are reserved.
    pub fn new(stops: &[String], capacity: usize) -> Self {
        TextStream {
            text: String::with_capacity(capacity),
            // Llama 3's longest token is 128 spaces; a longer one grows the buffer once.
            pending: Vec::with_capacity(3 + 128),
            shown: 0,
            stops: stops.to_vec(),
        }
    }

    /// Adds the bytes of one token.
    pub fn push(&mut self, bytes: &[u8]) -> StreamStep<'_> {
        let before = self.text.len();
        self.pending.extend_from_slice(bytes);
        self.take_characters(false);
        self.emit(before)
    }

    /// Ends the stream and returns what was held back; an unfinished character becomes U+FFFD.
    pub fn finish(&mut self) -> &str {
        let (start, before) = (self.shown, self.text.len());
        self.take_characters(true);
        // The replacement of an unfinished character may complete a stop string.
        self.emit(before);
        self.shown = self.text.len();
        &self.text[start..]
    }

    /// All text so far, emitted or held back.
    pub fn into_text(self) -> String {
        self.text
    }

    /// Moves whole characters from `pending` to `text`; bytes that cannot begin or continue a character become
    /// U+FFFD.
    fn take_characters(&mut self, all: bool) {
        let mut rest = self.pending.as_slice();
        while !rest.is_empty() {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    self.text.push_str(text);
                    rest = &[];
                }
                Err(error) => {
                    let (valid, broken) = rest.split_at(error.valid_up_to());
                    self.text.push_str(&String::from_utf8_lossy(valid));
                    match error.error_len() {
                        None if !all => {
                            rest = broken;
                            break;
                        }
                        len => {
                            self.text.push(char::REPLACEMENT_CHARACTER);
                            rest = &broken[len.unwrap_or(broken.len())..];
                        }
                    }
                }
            }
        }
        let done = self.pending.len() - rest.len();
        self.pending.drain(..done);
    }

    fn emit(&mut self, before: usize) -> StreamStep<'_> {
        let start = self.shown;
        // A stop string may begin in earlier text.
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.text.floor_char_boundary(before.saturating_sub(longest).max(start));
        let found = self.stops.iter().filter_map(|stop| self.text[from..].find(stop)).min();
        if let Some(at) = found {
            self.text.truncate(from + at);
            self.shown = self.text.len();
            self.pending.clear();
            return StreamStep::Stop(&self.text[start..]);
        }
        self.shown = self.text.len() - self.held_back(start);
        StreamStep::More(&self.text[start..self.shown])
    }

    /// Bytes at the end that are the beginning of a stop string.
    fn held_back(&self, start: usize) -> usize {
        let tail = &self.text.as_bytes()[start..];
        let overlap = |stop: &String| {
            let most = tail.len().min(stop.len() - 1);
            (1..=most).rev().find(|len| stop.as_bytes().starts_with(&tail[tail.len() - len..]))
        };
        self.stops.iter().filter_map(overlap).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(stops: &[&str]) -> TextStream {
        TextStream::new(&stops.iter().map(|stop| stop.to_string()).collect::<Vec<_>>(), 64)
    }

    #[test]
    fn an_incomplete_character_is_held_back() {
        let mut stream = stream(&[]);
        let bytes = "a🙂b".as_bytes();
        assert_eq!(stream.push(&bytes[..3]), StreamStep::More("a"));
        assert_eq!(stream.push(&bytes[3..4]), StreamStep::More(""));
        assert_eq!(stream.push(&bytes[4..]), StreamStep::More("🙂b"));
        assert_eq!(stream.into_text(), "a🙂b");
    }

    #[test]
    fn broken_bytes_become_replacement_characters() {
        let mut stream = stream(&[]);
        assert_eq!(stream.push(b"\xffa\xe2\x82"), StreamStep::More("\u{fffd}a"));
        assert_eq!(stream.push(b"b"), StreamStep::More("\u{fffd}b"));
        assert_eq!(stream.push(b"\xf0\x9f"), StreamStep::More(""));
        assert_eq!(stream.finish(), "\u{fffd}");
    }

    #[test]
    fn a_stop_string_is_found_across_tokens_and_never_emitted() {
        let mut stream = stream(&["END", "\n\n"]);
        assert_eq!(stream.push(b"one E"), StreamStep::More("one "));
        assert_eq!(stream.push(b"N"), StreamStep::More(""));
        assert_eq!(stream.push(b"T two\n"), StreamStep::More("ENT two"));
        assert_eq!(stream.push(b"three E"), StreamStep::More("\nthree "));
        assert_eq!(stream.push(b"ND four"), StreamStep::Stop(""));
        assert_eq!(stream.into_text(), "one ENT two\nthree ");
    }

    #[test]
    fn a_stop_string_that_only_the_end_completes_is_not_emitted() {
        let mut stream = stream(&["b\u{fffd}"]);
        assert_eq!(stream.push(b"ab\xe2\x82"), StreamStep::More("a"));
        assert_eq!(stream.finish(), "");
        assert_eq!(stream.into_text(), "a");
    }

    #[test]
    fn a_stop_string_is_found_whatever_the_borders_of_tokens() {
        let (text, stops) = ("fünf 🙂🙃 ünf", ["🙃 ü", "nope"]);
        let bytes = text.as_bytes();
        // Every way to cut the bytes into three tokens, also inside a character.
        for first in 0..=bytes.len() {
            for second in first..=bytes.len() {
                let mut stream = stream(&stops);
                let mut emitted = String::new();
                let mut is_stopped = false;
                for token in [&bytes[..first], &bytes[first..second], &bytes[second..]] {
                    match stream.push(token) {
                        StreamStep::More(text) => emitted.push_str(text),
                        StreamStep::Stop(text) => {
                            emitted.push_str(text);
                            is_stopped = true;
                            break;
                        }
                    }
                }
                assert!(is_stopped, "{first}, {second}");
                assert_eq!((emitted.as_str(), stream.into_text().as_str()), ("fünf 🙂", "fünf 🙂"));
            }
        }
    }

    #[test]
    fn held_back_text_is_emitted_at_the_end() {
        let mut stream = stream(&["END"]);
        assert_eq!(stream.push("ü EN".as_bytes()), StreamStep::More("ü "));
        assert_eq!(stream.finish(), "EN");
    }
}
