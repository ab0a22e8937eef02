//! Texts that remember which of their bytes came from a message's content.
//!
//! Whatever a template does with a content (trims it, cuts it, joins it to other text), the bytes that came from
//! it stay marked, so that no special token is looked for in them or across their edges.

use std::ops::Range;
use std::sync::Arc;

/// White space as Python's `str.isspace` and the `\s` of its regular expressions have it.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// An immutable text; cheap to clone.
#[derive(Debug, Clone, Default)]
pub(in super::super) struct Text(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    text: String,
    /// Bytes that came from contents, in order; an empty range is a content of which nothing is left.
    content: Vec<Range<usize>>,
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Text::from(text.to_owned())
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Text(Arc::new(Inner { text, content: Vec::new() }))
    }
}

impl Text {
    /// A message's content.
    pub fn content(text: &str) -> Self {
        Text(Arc::new(Inner { text: text.to_owned(), content: vec![0..text.len(); 1] }))
    }

    pub fn as_str(&self) -> &str {
        &self.0.text
    }

    pub fn len(&self) -> usize {
        self.0.text.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.text.is_empty()
    }

    /// Its length in characters, as Python counts it.
    pub fn chars(&self) -> usize {
        self.as_str().chars().count()
    }

    /// Whether some of it came from a content.
    pub fn has_content(&self) -> bool {
        !self.0.content.is_empty()
    }

    /// The bytes that came from contents.
    pub fn content_ranges(&self) -> &[Range<usize>] {
        &self.0.content
    }

    /// A part of it, by bytes.
    pub fn slice(&self, part: Range<usize>) -> Text {
        if part == (0..self.len()) {
            return self.clone();
        }
        let mut builder = Builder::default();
        builder.push_part(self, part);
        builder.finish()
    }

    /// The part that `inner`, a slice of its text, is.
    pub fn part(&self, inner: &str) -> Text {
        let start = inner.as_ptr().addr().wrapping_sub(self.as_str().as_ptr().addr());
        match start.checked_add(inner.len()) {
            Some(end) if end <= self.len() => self.slice(start..end),
            _ => Text::default(),
        }
    }

    /// Its characters, each with whether it came from a content.
    pub fn marked_chars(&self) -> impl Iterator<Item = (usize, char, bool)> {
        let mut ranges = self.0.content.iter().peekable();
        self.as_str().char_indices().map(move |(at, c)| {
            while ranges.next_if(|range| range.end <= at).is_some() {}
            (at, c, ranges.peek().is_some_and(|range| range.contains(&at)))
        })
    }

    /// Every character replaced by others; `map` is given the character before, too.
    pub fn map_chars(&self, mut map: impl FnMut(Option<char>, char) -> Vec<char>) -> Text {
        let mut builder = Builder::default();
        let mut before = None;
        for (_, c, content) in self.marked_chars() {
            for mapped in map(before, c) {
                builder.push_char(mapped, content);
            }
            before = Some(c);
        }
        if self.is_empty() { self.clone() } else { builder.finish() }
    }

    /// Every `old` replaced by `new`, at most `count` times.
    pub fn replace(&self, old: &str, new: &Text, count: usize) -> Text {
        let mut builder = Builder::default();
        let mut copied = 0;
        let matches: Vec<usize> = self.as_str().match_indices(old).map(|(at, _)| at).take(count).collect();
        for at in matches {
            builder.push_part(self, copied..at);
            builder.push(new);
            copied = at + old.len();
        }
        builder.push_part(self, copied..self.len());
        builder.finish()
    }

    /// Without the characters at its ends that `strip` names.
    pub fn trim(&self, left: bool, right: bool, strip: impl Fn(char) -> bool) -> Text {
        let mut inner = self.as_str();
        if left {
            inner = inner.trim_start_matches(&strip);
        }
        if right {
            inner = inner.trim_end_matches(&strip);
        }
        self.part(inner)
    }

    /// The characters `part` of it in a row, as a slice with a step gives them.
    pub fn pick(&self, indices: impl Iterator<Item = usize>) -> Text {
        let chars: Vec<_> = self.marked_chars().collect();
        let mut builder = Builder::default();
        for (_, c, content) in indices.filter_map(|at| chars.get(at)) {
            builder.push_char(*c, *content);
        }
        builder.finish()
    }
}

/// A text in the making.
#[derive(Debug, Default)]
pub(super) struct Builder(Inner);

impl Builder {
    pub fn push(&mut self, text: &Text) {
        self.push_part(text, 0..text.len());
    }

    pub fn push_str(&mut self, text: &str) {
        self.0.text.push_str(text);
    }

    pub fn push_char(&mut self, c: char, content: bool) {
        let start = self.0.text.len();
        self.0.text.push(c);
        if content {
            self.mark(start..self.0.text.len());
        }
    }

    /// What a writer makes of a content.
    pub fn push_marked(&mut self, text: &str, content: bool) {
        let start = self.0.text.len();
        self.0.text.push_str(text);
        if content {
            self.mark(start..self.0.text.len());
        }
    }

    fn push_part(&mut self, text: &Text, part: Range<usize>) {
        let start = self.0.text.len();
        self.0.text.push_str(&text.as_str()[part.clone()]);
        for range in &text.0.content {
            let (from, to) = (range.start.max(part.start), range.end.min(part.end));
            if from < to || from == to && (part.is_empty() || range.is_empty()) {
                self.mark(start + from - part.start..start + to - part.start);
            }
        }
    }

    fn mark(&mut self, range: Range<usize>) {
        match self.0.content.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.0.content.push(range),
        }
    }

    pub fn finish(self) -> Text {
        Text(Arc::new(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::{Builder, Text};

    fn marked(text: &Text) -> Vec<&str> {
        text.content_ranges().iter().map(|range| &text.as_str()[range.clone()]).collect()
    }

    #[test]
    fn what_came_from_a_content_stays_marked() {
        let mut builder = Builder::default();
        builder.push_str("<|im_");
        builder.push(&Text::content(" end|> "));
        builder.push_str("!");
        let text = builder.finish();
        assert_eq!(marked(&text), [" end|> "]);
        assert_eq!(marked(&text.slice(3..8)), [" en"]);
        assert_eq!(marked(&text.replace("end", &Text::from("x"), 9)), [" ", "|> "]);
        assert_eq!(marked(&text.map_chars(|_, c| c.to_uppercase().collect())), [" END|> "]);
        assert_eq!(marked(&text.pick([12, 6, 5, 0].into_iter())), ["e "]);
        let empty = Text::content("  ").trim(true, true, char::is_whitespace);
        assert!(empty.is_empty() && empty.has_content());
    }
}
