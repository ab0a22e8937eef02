//! The search in a text that comes in pieces. What can still become part of a match is held back, and nothing else.
//!
//! It is Thompson's simulation of the automaton with the place where each thread began. A thread is a match that has begun
//! and may still be completed, so the text before the place of the oldest one is safe. A state that is reached twice keeps
//! the older place, as everything that the younger thread could complete the older one could too. So each byte takes time
//! in proportion to the automaton, whatever the text.

use super::start::{after_byte, for_each_epsilon};
use super::{Filter, FilterMatch};
use regex_automata::nfa::thompson::State;
use regex_automata::util::look::LookSet;
use regex_automata::util::primitives::StateID;
use std::sync::Arc;

/// A match that has begun.
#[derive(Debug, Clone, Copy)]
struct Thread {
    state: StateID,
    /// The place of its first byte in the text.
    start: usize,
}

/// What is done with a condition on a place, such as a word boundary.
#[derive(Clone, Copy)]
enum Conditions {
    /// It is decided: these hold, and no others.
    Decided(LookSet),
    /// The next character decides it.
    Open,
}

/// The search in one text.
#[derive(Debug)]
pub struct FilterStream {
    filter: Arc<Filter>,
    /// Those that were begun, the oldest first, in states that accept a byte or wait for the next character.
    threads: Vec<Thread>,
    /// The text from the place of the oldest thread on.
    held: String,
    /// The length of the text so far.
    length: usize,
    previous: Option<char>,
    found: Option<FilterMatch>,
    visited: Visited,
}

impl FilterStream {
    /// A search that begins with an empty text.
    pub fn new(filter: Arc<Filter>) -> Self {
        let visited = Visited { marks: vec![0; filter.nfa.states().len()], mark: 0 };
        FilterStream {
            filter,
            threads: Vec::new(),
            held: String::new(),
            length: 0,
            previous: None,
            found: None,
            visited,
        }
    }

    /// Adds a piece of the text, and returns what can no longer be part of a match. After a match, nothing is ever
    /// returned again.
    pub fn push(&mut self, piece: &str) -> Result<String, FilterMatch> {
        for c in piece.chars() {
            self.push_char(c);
            if let Some(found) = self.found {
                return Err(found);
            }
        }
        self.held.push_str(piece);
        let held_from = self.threads.first().map_or(self.length, |oldest| oldest.start);
        let first_held = self.length - self.held.len();
        let rest = self.held.split_off(held_from - first_held);
        Ok(std::mem::replace(&mut self.held, rest))
    }

    /// The text is over: returns what was held back, unless its end completes a match.
    pub fn finish(&mut self) -> Result<String, FilterMatch> {
        if self.found.is_none() && !self.threads.is_empty() {
            let looks = self.conditions_before(None);
            self.follow(Conditions::Decided(looks));
            self.threads.clear();
        }
        match self.found {
            Some(found) => Err(found),
            None => Ok(std::mem::take(&mut self.held)),
        }
    }

    /// Whether text is held back.
    pub fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    fn push_char(&mut self, c: char) {
        let looks = self.conditions_before(Some(c));
        let mut bytes = [0; 4];
        let bytes = c.encode_utf8(&mut bytes).as_bytes();
        self.follow(Conditions::Decided(looks));
        for (at, byte) in bytes.iter().enumerate() {
            let FilterStream { filter, threads, length, .. } = self;
            threads.retain_mut(|thread| match after_byte(filter.nfa.state(thread.state), *byte) {
                Some(next) => {
                    thread.state = next;
                    true
                }
                None => false,
            });
            if at == 0 {
                let begun = filter
                    .start
                    .entries(*byte)
                    .iter()
                    .filter(|entry| looks.intersect(entry.looks) == entry.looks);
                threads.extend(begun.map(|entry| Thread { state: entry.next, start: *length }));
            }
            // Within a character no condition holds.
            let is_whole = at + 1 == bytes.len();
            self.follow(if is_whole { Conditions::Open } else { Conditions::Decided(LookSet::empty()) });
        }
        self.length += bytes.len();
        self.previous = Some(c);
    }

    /// Follows the threads to the states that accept a byte, and to open conditions; notes a match.
    fn follow(&mut self, conditions: Conditions) {
        self.visited.begin();
        let mut stack = Vec::new();
        for thread in std::mem::take(&mut self.threads) {
            stack.push(thread.state);
            while let Some(state) = stack.pop() {
                if !self.filter.can_match[state.as_usize()] || !self.visited.visit(state) {
                    continue;
                }
                let here = Thread { state, start: thread.start };
                match self.filter.nfa.state(state) {
                    State::Match { pattern_id } => {
                        self.found.get_or_insert(self.filter.match_of(*pattern_id));
                    }
                    State::Look { look, next } => match conditions {
                        Conditions::Open => self.threads.push(here),
                        Conditions::Decided(looks) if looks.contains(*look) => stack.push(*next),
                        Conditions::Decided(_) => {}
                    },
                    State::ByteRange { .. } | State::Sparse(_) | State::Dense(_) => self.threads.push(here),
                    other => for_each_epsilon(other, |next| stack.push(next)),
                }
            }
        }
    }

    /// The conditions that hold between the last character and this one; `None` is the end of the text. They depend on
    /// nothing but these two.
    fn conditions_before(&self, next: Option<char>) -> LookSet {
        let nfa = &self.filter.nfa;
        let all = nfa.look_set_any();
        if all.is_empty() {
            return all;
        }
        let around: String = self.previous.into_iter().chain(next).collect();
        let at = self.previous.map_or(0, char::len_utf8);
        let holds = all.iter().filter(|look| nfa.look_matcher().matches(*look, around.as_bytes(), at));
        holds.fold(LookSet::empty(), LookSet::insert)
    }
}

/// The states that were visited in one pass.
#[derive(Debug)]
struct Visited {
    /// Of each state, the last pass that visited it.
    marks: Vec<u32>,
    mark: u32,
}

impl Visited {
    fn begin(&mut self) {
        self.mark = self.mark.wrapping_add(1);
        if self.mark == 0 {
            self.marks.fill(0);
            self.mark = 1;
        }
    }

    /// Whether it is the first visit.
    fn visit(&mut self, state: StateID) -> bool {
        std::mem::replace(&mut self.marks[state.as_usize()], self.mark) != self.mark
    }
}
