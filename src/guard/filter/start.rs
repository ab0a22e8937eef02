//! Where a match may begin: for each byte, the states of the automaton that accept it first. So that a text which begins no
//! pattern costs next to nothing, however many patterns there are.

use regex_automata::nfa::thompson::{NFA, State};
use regex_automata::util::look::LookSet;
use regex_automata::util::primitives::StateID;
use std::collections::HashSet;

/// Entries of a table: more than the patterns of a sound file have.
const MAX_ENTRIES: usize = 1 << 18;

/// A beginning: from the start, with these conditions on the place, a byte leads to this state.
#[derive(Debug, Clone, Copy)]
pub(super) struct StartEntry {
    /// Conditions such as a word boundary, all of which must hold at the place.
    pub looks: LookSet,
    /// The state after the byte.
    pub next: StateID,
}

/// The beginnings of all matches, by their first byte.
#[derive(Debug)]
pub(super) struct StartTable(Box<[Vec<StartEntry>]>);

impl StartTable {
    /// The table of an automaton; `None` where it would be too large.
    pub fn of(nfa: &NFA, can_match: &[bool]) -> Option<Self> {
        let mut by_byte = vec![Vec::new(); 256];
        let (mut seen, mut stack) = (HashSet::new(), vec![(nfa.start_anchored(), LookSet::empty())]);
        let mut entries = 0;
        while let Some((state, looks)) = stack.pop() {
            if !can_match[state.as_usize()] || !seen.insert((state, looks.bits)) {
                continue;
            }
            if seen.len() > MAX_ENTRIES || entries > MAX_ENTRIES {
                return None;
            }
            match nfa.state(state) {
                State::Look { look, next } => stack.push((*next, looks.insert(*look))),
                other => for_each_epsilon(other, |next| stack.push((next, looks))),
            }
            for byte in 0..=255 {
                if let Some(next) =
                    after_byte(nfa.state(state), byte).filter(|next| can_match[next.as_usize()])
                {
                    by_byte[usize::from(byte)].push(StartEntry { looks, next });
                    entries += 1;
                }
            }
        }
        Some(StartTable(by_byte.into_boxed_slice()))
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        let entries: usize = self.0.iter().map(Vec::capacity).sum();
        entries * size_of::<StartEntry>() + self.0.len() * size_of::<Vec<StartEntry>>()
    }

    /// The beginnings with this byte.
    pub fn entries(&self, byte: u8) -> &[StartEntry] {
        &self.0[usize::from(byte)]
    }
}

/// The state that a byte leads to.
pub(super) fn after_byte(state: &State, byte: u8) -> Option<StateID> {
    match state {
        State::ByteRange { trans } => trans.matches_byte(byte).then_some(trans.next),
        State::Sparse(sparse) => sparse.matches_byte(byte),
        State::Dense(dense) => dense.matches_byte(byte),
        _ => None,
    }
}

/// The states that are reached without a byte and without a condition.
pub(super) fn for_each_epsilon(state: &State, mut visit: impl FnMut(StateID)) {
    match state {
        State::Union { alternates } => alternates.iter().copied().for_each(visit),
        State::BinaryUnion { alt1, alt2 } => {
            visit(*alt1);
            visit(*alt2);
        }
        State::Capture { next, .. } => visit(*next),
        _ => {}
    }
}

/// Of each state, whether a match can be reached from it: text that leads elsewhere is not held back.
pub(super) fn can_match(nfa: &NFA) -> Vec<bool> {
    let states = nfa.states();
    let mut before: Vec<Vec<u32>> = vec![Vec::new(); states.len()];
    let mut matching = Vec::new();
    for (at, state) in states.iter().enumerate() {
        let mut edge = |next: StateID| before[next.as_usize()].push(at as u32);
        match state {
            State::Match { .. } => matching.push(at as u32),
            State::Look { next, .. } => edge(*next),
            State::ByteRange { trans } => edge(trans.next),
            State::Sparse(sparse) => sparse.transitions.iter().for_each(|trans| edge(trans.next)),
            State::Dense(_) => (0..=255).filter_map(|byte| after_byte(state, byte)).for_each(edge),
            other => for_each_epsilon(other, edge),
        }
    }
    let mut can_match = vec![false; states.len()];
    while let Some(at) = matching.pop() {
        if !std::mem::replace(&mut can_match[at as usize], true) {
            matching.append(&mut before[at as usize]);
        }
    }
    can_match
}

/// Whether a match takes no byte, on some condition.
pub(super) fn matches_empty_text(nfa: &NFA) -> bool {
    let (mut seen, mut stack) = (HashSet::new(), vec![nfa.start_anchored()]);
    while let Some(state) = stack.pop() {
        match nfa.state(state) {
            _ if !seen.insert(state) => {}
            State::Match { .. } => return true,
            State::Look { next, .. } => stack.push(*next),
            other => for_each_epsilon(other, |next| stack.push(next)),
        }
    }
    false
}
