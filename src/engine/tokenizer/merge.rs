//! Merges neighbouring tokens, the best pair first, for both kinds of vocabulary.
//!
//! The work grows with n log n, so that a word of a megabyte cannot stop the daemon.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The result of merging two neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Merged {
    /// The lowest rank is merged first; of equal ranks the leftmost.
    pub rank: u32,
    /// The token that they become.
    pub id: u32,
}

/// The rules that say which neighbours are merged.
pub(super) trait MergeRules {
    fn find(&self, left: u32, right: u32) -> Option<Merged>;
}

/// A token of the word in progress; merged tokens leave the linked list.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    id: u32,
    previous: u32,
    next: u32,
}

/// A pair that may be merged, unless one of the two has changed since: rank, position, left, right, and what it
/// becomes.
type MergeCandidate = Reverse<(u32, u32, u32, u32, u32)>;

/// No position.
const NONE: u32 = u32::MAX;

/// Appends to `out` what is left of `word` when no two neighbours can be merged any more.
pub(super) fn merge(pairs: &impl MergeRules, word: impl Iterator<Item = u32>, out: &mut Vec<u32>) {
    let symbols = symbols(word);
    // Building the heap at once is linear, pushing one by one is not.
    let offers: Vec<MergeCandidate> =
        (0..symbols.len()).filter_map(|at| merge_candidate(pairs, &symbols, at as u32)).collect();
    let mut list = SymbolList { symbols, candidates: offers.into() };
    while let Some(Reverse((_, at, left, right, joined))) = list.candidates.pop() {
        list.try_merge(pairs, at, (left, right), joined);
    }
    let mut at = if list.symbols.is_empty() { NONE } else { 0 };
    while at != NONE {
        out.push(list.symbols[at as usize].id);
        at = list.symbols[at as usize].next;
    }
}

fn symbols(word: impl Iterator<Item = u32>) -> Vec<Symbol> {
    let place = |(at, id)| Symbol { id, previous: (at as u32).wrapping_sub(1), next: at as u32 + 1 };
    let mut symbols: Vec<Symbol> = word.enumerate().map(place).collect();
    if let Some(last) = symbols.last_mut() {
        last.next = NONE;
    }
    symbols
}

/// The pair that begins at `at`, if it can be merged.
fn merge_candidate(pairs: &impl MergeRules, symbols: &[Symbol], at: u32) -> Option<MergeCandidate> {
    let left = symbols[at as usize];
    let right = symbols.get(left.next as usize)?.id; // `NONE` is no position
    let joined = pairs.find(left.id, right)?;
    Some(Reverse((joined.rank, at, left.id, right, joined.id)))
}

struct SymbolList {
    symbols: Vec<Symbol>,
    candidates: BinaryHeap<MergeCandidate>,
}

impl SymbolList {
    /// Pushes the pair that begins at `at` on the heap, if it can be merged.
    fn push_candidate(&mut self, pairs: &impl MergeRules, at: u32) {
        self.candidates.extend(merge_candidate(pairs, &self.symbols, at));
    }

    /// Merges the pair at `at` if it is unchanged since it was pushed, and pushes the pairs with its new
    /// neighbours.
    fn try_merge(&mut self, pairs: &impl MergeRules, at: u32, offered: (u32, u32), joined: u32) {
        let symbol = self.symbols[at as usize];
        if symbol.id != offered.0 || symbol.next == NONE || self.symbols[symbol.next as usize].id != offered.1
        {
            return; // one of the two has been merged since
        }
        let gone = symbol.next as usize;
        let next = self.symbols[gone].next;
        self.symbols[gone].id = NONE;
        self.symbols[at as usize] = Symbol { id: joined, next, ..symbol };
        if next != NONE {
            self.symbols[next as usize].previous = at;
        }
        self.push_candidate(pairs, at);
        if symbol.previous != NONE {
            self.push_candidate(pairs, symbol.previous);
        }
    }
}
