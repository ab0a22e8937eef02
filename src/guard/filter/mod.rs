//! The filter: patterns that neither a prompt nor an answer may have.
//!
//! A whole text is searched by the meta engine of `regex-automata`, in linear time. An answer that is still being generated
//! is searched by `stream`, which says of each piece how much of it can no longer be part of a match; both run the same
//! Thompson automaton. Deliberately knows no request and no client.

mod file;
mod start;
mod stream;
#[cfg(test)]
mod tests;

pub use file::{FilterError, load};
pub use stream::FilterStream;

use crate::external_text::JsonValue;
use regex_automata::nfa::thompson::{self, NFA, WhichCaptures};
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input, PatternID, meta};
use start::{StartTable, can_match, matches_empty_text};
use std::sync::Arc;

/// Patterns in a file.
const MAX_PATTERNS: usize = 4096;
/// Bytes of the automaton of one pattern: ten times that of a long one without large repetitions.
const MAX_PATTERN_BYTES: usize = 1 << 20;
/// Bytes of the automaton of all patterns: thousands of words. It is held twice, and once backwards.
const MAX_TOTAL_BYTES: usize = 4 << 20;
/// Bytes of the states that the search of whole texts keeps for each direction.
const SEARCH_CACHE_BYTES: usize = 512 << 10;
/// How deep groups may be nested.
const MAX_NESTING: u32 = 64;

/// A compiled filter.
#[derive(Debug)]
pub struct Filter {
    /// The line of each pattern in the file, from 1.
    lines: Vec<usize>,
    /// Searches whole texts.
    whole: meta::Regex,
    nfa: NFA,
    start: StartTable,
    /// Of each state of the automaton, whether a match can be reached from it.
    can_match: Vec<bool>,
}

/// A text matches the pattern in this line of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FilterMatch {
    /// From 1.
    pub line: usize,
}

impl Filter {
    /// Compiles the patterns of a file; the error names the line.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        let patterns = file::patterns(text)?;
        let lines: Vec<usize> = patterns.iter().map(|pattern| pattern.line).collect();
        let mut parsed = Vec::with_capacity(patterns.len());
        for pattern in &patterns {
            let config = syntax::Config::new().nest_limit(MAX_NESTING);
            let hir = syntax::parse_with(&pattern.regex, &config)
                .map_err(|error| FilterError::at(pattern.line, file::one_line_error(&error.to_string())))?;
            let automaton = compiler(MAX_PATTERN_BYTES).build_from_hir(&hir);
            let automaton = automaton.map_err(|_| FilterError::at(pattern.line, file::TOO_LARGE))?;
            if matches_empty_text(&automaton) {
                return Err(FilterError::at(pattern.line, file::MATCHES_NOTHING));
            }
            if !can_match(&automaton)[automaton.start_anchored().as_usize()] {
                return Err(FilterError::at(pattern.line, file::NEVER_MATCHES));
            }
            parsed.push(hir);
        }
        let too_many = || FilterError::whole("all patterns together are too large; take some out");
        let nfa = compiler(MAX_TOTAL_BYTES).build_many_from_hir(&parsed).map_err(|_| too_many())?;
        // Without captures at all, this engine says only whether there is a match, and not of which pattern.
        let config = meta::Config::new()
            .which_captures(WhichCaptures::Implicit)
            .nfa_size_limit(Some(MAX_TOTAL_BYTES))
            .hybrid_cache_capacity(SEARCH_CACHE_BYTES)
            .onepass(false)
            .dfa(false);
        let whole = meta::Builder::new().configure(config).build_many_from_hir(&parsed);
        let whole = whole.map_err(|_| too_many())?;
        let can_match = can_match(&nfa);
        let start = StartTable::of(&nfa, &can_match).ok_or_else(too_many)?;
        Ok(Filter { lines, whole, nfa, start, can_match })
    }

    /// How many patterns it has.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether it has no pattern.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Searches a whole text.
    pub fn find(self: &Arc<Self>, text: &str) -> Option<FilterMatch> {
        // For these the engine falls back to a search that looks at all patterns for each character.
        if self.nfa.look_set_any().contains_word_unicode() && !text.is_ascii() {
            let mut stream = FilterStream::new(Arc::clone(self));
            return stream.push(text).and_then(|_| stream.finish()).err();
        }
        let found = self.whole.search_half(&Input::new(text).anchored(Anchored::No).earliest(true))?;
        Some(self.match_of(found.pattern()))
    }

    /// Searches all texts of a JSON value, the keys of its objects included.
    pub fn find_in_json(self: &Arc<Self>, value: &JsonValue) -> Option<FilterMatch> {
        match value {
            JsonValue::Null | JsonValue::Bool(_) | JsonValue::Int(_) | JsonValue::Float(_) => None,
            JsonValue::Text(text) => self.find(text),
            JsonValue::List(items) => items.iter().find_map(|item| self.find_in_json(item)),
            JsonValue::Object(entries) => {
                entries.iter().find_map(|(key, value)| self.find(key).or_else(|| self.find_in_json(value)))
            }
        }
    }

    fn match_of(&self, pattern: PatternID) -> FilterMatch {
        FilterMatch { line: self.lines[pattern.as_usize()] }
    }
}

/// A compiler of automata of at most `limit` bytes.
fn compiler(limit: usize) -> thompson::Compiler {
    let config = thompson::Config::new().which_captures(WhichCaptures::None).nfa_size_limit(Some(limit));
    let mut compiler = NFA::compiler();
    compiler.configure(config);
    compiler
}
