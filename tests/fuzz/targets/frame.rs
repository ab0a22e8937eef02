//! However a stream is split, its lines are the same; the first byte says how.

#![no_main]

use bitnetd::transport::line_framing::{Line, LineSplitter};
use libfuzzer_sys::fuzz_target;

/// Low, so that short inputs reach it.
const CAP: usize = 6;

fuzz_target!(|bytes: &[u8]| {
    let Some((split, stream)) = bytes.split_first() else { return };
    let expected = by_the_book(stream);
    assert_eq!(lines([stream]), expected);
    assert_eq!(lines(stream.chunks(usize::from(*split).max(1))), expected);
    let (first, second) = stream.split_at(usize::from(*split).min(stream.len()));
    assert_eq!(lines([first, second]), expected);
});

/// `None` for a line that is too long.
type Read = Vec<Option<Vec<u8>>>;

fn lines<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Read {
    let (mut lines, mut read) = (LineSplitter::new(CAP), Read::new());
    for piece in pieces {
        lines.push(piece);
        while let Some(line) = lines.next_line() {
            read.push(owned(line));
        }
    }
    read.extend(lines.finish().map(owned));
    read
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

/// The definition, with the whole stream at hand.
fn by_the_book(stream: &[u8]) -> Read {
    let lines = stream.split(|byte| *byte == b'\n');
    let lines = lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let lines = lines.filter(|line| !line.is_empty());
    lines.map(|line| (line.len() <= CAP).then(|| line.to_vec())).collect()
}
