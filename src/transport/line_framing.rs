//! Splits a byte stream into lines with a maximum length, however the bytes were fragmented in transit.
//!
//! Deliberately does no I/O and knows nothing of what a line means.

/// Capacity in bytes that an emptied buffer retains. The memory of a longer line is released at once, since
/// otherwise each of a few hundred connections would keep the longest line it ever received.
const RETAINED_CAPACITY: usize = 8 * 1024;

/// Collects bytes and returns the lines in them.
///
/// Holds at most one line of maximum length and one pushed piece, provided that the lines are taken after each
/// push.
#[derive(Debug)]
pub struct LineSplitter {
    /// Maximum length of a line in bytes, its ending not counted.
    cap: usize,
    bytes: Vec<u8>,
    /// Offset in `bytes` of the next line.
    start: usize,
    /// There is no line end between `start` and this offset, so that a line received byte by byte is searched once.
    searched: usize,
    /// The rest of a line that was already reported as too long is being skipped.
    skipping: bool,
}

/// What lies between two line ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line<'a> {
    /// The line without its `\n` or `\r\n`; never empty.
    Whole(&'a [u8]),
    /// A line beyond the maximum length: its beginning, cut at that length. The rest is skipped.
    TooLong(&'a [u8]),
}

impl LineSplitter {
    /// An empty splitter whose lines have at most `cap` bytes.
    pub fn new(cap: usize) -> Self {
        LineSplitter { cap, bytes: Vec::new(), start: 0, searched: 0, skipping: false }
    }

    /// Appends the next piece of the stream. Take all lines before the next push.
    pub fn push(&mut self, piece: &[u8]) {
        self.discard_taken();
        self.bytes.extend_from_slice(piece);
    }

    /// The next line that has ended, or has grown too long. Empty lines are skipped.
    pub fn next_line(&mut self) -> Option<Line<'_>> {
        loop {
            let Some(end) = self.line_end() else { return self.take_too_long() };
            let line = self.start..end;
            self.start = end + 1;
            self.searched = self.start;
            if std::mem::take(&mut self.skipping) {
                continue;
            }
            let length = strip_carriage_return(&self.bytes[line.clone()]).len();
            if length > self.cap {
                return Some(Line::TooLong(&self.bytes[line.start..line.start + self.cap]));
            }
            if length > 0 {
                return Some(Line::Whole(&self.bytes[line.start..line.start + length]));
            }
        }
    }

    /// The bytes after the last line end, once the stream has ended: its last line.
    pub fn finish(&mut self) -> Option<Line<'_>> {
        let skipped = std::mem::take(&mut self.skipping);
        let rest = self.start..self.bytes.len();
        (self.start, self.searched) = (rest.end, rest.end);
        let line = strip_carriage_return(&self.bytes[rest]);
        (!skipped && !line.is_empty()).then_some(Line::Whole(line))
    }

    fn line_end(&mut self) -> Option<usize> {
        let found = self.bytes[self.searched..].iter().position(|byte| *byte == b'\n');
        let end = found.map(|offset| self.searched + offset);
        self.searched = end.unwrap_or(self.bytes.len());
        end
    }

    /// Discards an unfinished line that has outgrown the maximum length, and reports it once.
    fn take_too_long(&mut self) -> Option<Line<'_>> {
        let start = self.start;
        let too_long = strip_carriage_return(&self.bytes[start..]).len() > self.cap;
        let text = self.skipping;
        self.skipping |= too_long;
        if self.skipping {
            self.start = self.bytes.len();
        }
        (too_long && !text).then(|| Line::TooLong(&self.bytes[start..start + self.cap]))
    }

    fn discard_taken(&mut self) {
        self.bytes.drain(..self.start);
        (self.start, self.searched) = (0, self.searched - self.start);
        if self.bytes.is_empty() {
            self.bytes.shrink_to(RETAINED_CAPACITY);
        }
    }
}

/// Some clients end lines with `\r
/// `.
fn strip_carriage_return(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAP: usize = 8;

    /// The lines of `pieces`, `None` for one that is too long.
    fn lines<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Option<Vec<u8>>> {
        let mut lines = LineSplitter::new(CAP);
        let mut result = Vec::new();
        for piece in pieces {
            lines.push(piece);
            while let Some(line) = lines.next_line() {
                result.push(owned(line));
            }
            assert!(lines.bytes.len() - lines.start <= CAP + 1);
        }
        result.extend(lines.finish().map(owned));
        result
    }

    fn owned(line: Line<'_>) -> Option<Vec<u8>> {
        match line {
            Line::Whole(bytes) => Some(bytes.to_vec()),
            Line::TooLong(beginning) => {
                assert_eq!(beginning.len(), CAP);
                None
            }
        }
    }

    fn whole(text: &str) -> Option<Vec<u8>> {
        Some(text.as_bytes().to_vec())
    }

    #[test]
    fn lines_end_in_newline_or_return_and_newline_or_with_the_stream() {
        let read = lines([&b"one\ntwo\r\nthree"[..]]);
        assert_eq!(read, [whole("one"), whole("two"), whole("three")]);
    }

    #[test]
    fn empty_lines_are_passed_over() {
        assert_eq!(lines([&b"\n\r\n\n\none\n\n\r"[..]]), [whole("one")]);
        assert_eq!(lines([]), []);
    }

    #[test]
    fn a_return_inside_a_line_stays() {
        assert_eq!(lines([&b"a\rb\r\r\n"[..]]), [whole("a\rb\r")]);
    }

    #[test]
    fn a_line_of_just_the_cap_is_whole_and_one_byte_more_is_too_long() {
        assert_eq!(lines([&b"12345678\n12345678\r\n"[..]]), [whole("12345678"), whole("12345678")]);
        assert_eq!(lines([&b"123456789\nafter\n"[..]]), [None, whole("after")]);
        assert_eq!(lines([&b"12345678\r\r\nafter"[..]]), [None, whole("after")]);
    }

    #[test]
    fn a_line_that_is_too_long_is_reported_once_and_skipped_to_its_end() {
        let long = [b'x'; 1000];
        let read = lines(long.chunks(3).chain([&b"x\nafter\n"[..]]));
        assert_eq!(read, [None, whole("after")]);
        assert_eq!(lines([&long[..]]), [None]);
    }

    #[test]
    fn every_split_gives_the_same_lines() {
        let text = b"a\n\r\n12345678\r\n123456789\n\nbc\r\n12345678\r9\nlast\r";
        let expected = lines([&text[..]]);
        for first in 0..=text.len() {
            for second in first..=text.len() {
                let read = lines([&text[..first], &text[first..second], &text[second..]]);
                assert_eq!(read, expected, "split at {first} and {second}");
            }
        }
        assert_eq!(lines(text.chunks(1)), expected);
    }

    #[test]
    fn the_memory_of_a_long_line_is_released() {
        let mut lines = LineSplitter::new(1 << 20);
        lines.push(&[b'x'; 1 << 20]);
        lines.push(b"\n");
        assert!(matches!(lines.next_line(), Some(Line::Whole(_))));
        lines.push(b"short");
        assert!(lines.bytes.capacity() <= RETAINED_CAPACITY);
    }
}
