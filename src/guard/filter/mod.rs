//! The filter: patterns that neither a prompt nor an answer may have.
//!
//! A whole text is searched by the lazy DFA of `regex-automata`, in linear time. An answer that is still being generated is
//! searched by `stream`, which says of each piece how much of it can no longer be part of a match; both run the same Thompson
//! automaton. The other engines of that library are not used: where its DFA gives up, they take memory in proportion to the
//! automaton times the patterns, gigabytes for a thousand words. Deliberately knows no request and no client.

mod file;
mod start;
mod stream;
#[cfg(test)]
mod tests;

pub use file::{FilterError, load};
pub use stream::FilterStream;

use crate::external_text::JsonValue;
use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::nfa::thompson::{self, NFA, WhichCaptures};
use regex_automata::util::syntax;
use regex_automata::{Input, MatchError, PatternID};
use start::{StartTable, can_match, matches_empty_text};
use std::sync::{Arc, Mutex, PoisonError};

/// Patterns in a file.
const MAX_PATTERNS: usize = 4096;
/// Bytes of the automaton of one pattern: ten times that of a long one without large repetitions.
const MAX_PATTERN_BYTES: usize = 1 << 20;
/// Bytes of the automaton of all patterns: thousands of words.
const MAX_TOTAL_BYTES: usize = 4 << 20;
/// Bytes of the states that the search of whole texts keeps, as long as they are enough for the automaton.
const SEARCH_CACHE_BYTES: usize = 512 << 10;
/// The DFA gives up where it was short of memory so often, and then read fewer bytes than this for each of its states: the
/// stream is faster then, since it begins with the table of beginnings.
const MOST_CLEARED: usize = 3;
const LEAST_BYTES_FOR_A_STATE: usize = 10;
/// Bytes of the DFA's memory for each state of the automaton, each pattern and on the whole that it cannot do without.
const DFA_STATE_BYTES: usize = 27;
const DFA_PATTERN_BYTES: usize = 12;
const DFA_BYTES: usize = 64 << 10;
/// Bytes of a stream for each state of the automaton: a mark, and a thread in a list that may have doubled.
const STREAM_STATE_BYTES: usize = 36;
/// How deep groups may be nested.
const MAX_NESTING: u32 = 64;

/// A compiled filter.
#[derive(Debug)]
pub struct Filter {
    /// The line of each pattern in the file, from 1.
    lines: Vec<usize>,
    /// Searches whole texts.
    dfa: DFA,
    /// The states that it keeps; used by one search at a time.
    cache: Mutex<Cache>,
    cache_bytes: usize,
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
        let least = DFA_STATE_BYTES * nfa.states().len() + DFA_PATTERN_BYTES * lines.len() + DFA_BYTES;
        let cache_bytes = least.max(SEARCH_CACHE_BYTES);
        let config = DFA::config()
            .cache_capacity(cache_bytes)
            .minimum_cache_clear_count(Some(MOST_CLEARED))
            .minimum_bytes_per_state(Some(LEAST_BYTES_FOR_A_STATE))
            .unicode_word_boundary(true);
        let dfa = DFA::builder().configure(config).build_from_nfa(nfa.clone()).map_err(|_| too_many())?;
        let cache = Mutex::new(dfa.create_cache());
        let can_match = can_match(&nfa);
        let start = StartTable::of(&nfa, &can_match).ok_or_else(too_many)?;
        Ok(Filter { lines, dfa, cache, cache_bytes, nfa, start, can_match })
    }

    /// The most bytes that it takes, with as many streams at the same time.
    pub fn bytes(&self, streams: usize) -> usize {
        let states = self.nfa.states().len();
        let streams = streams * states * STREAM_STATE_BYTES;
        let lists = states + self.lines.len() * size_of::<usize>();
        self.nfa.memory_usage() + self.start.bytes() + lists + self.cache_bytes + DFA_BYTES + streams
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
        match self.search(text) {
            Ok(found) => found.map(|pattern| self.match_of(pattern)),
            // It gave up, or there is a character that is not ASCII beside a condition on words, which no DFA can decide.
            Err(_) => {
                let mut stream = FilterStream::new(Arc::clone(self));
                stream.push(text).and_then(|_| stream.finish()).err()
            }
        }
    }

    fn search(&self, text: &str) -> Result<Option<PatternID>, MatchError> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let found = self.dfa.try_search_fwd(&mut cache, &Input::new(text).earliest(true))?;
        Ok(found.map(|found| found.pattern()))
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
