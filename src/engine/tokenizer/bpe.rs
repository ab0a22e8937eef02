//! Byte-pair encoding of one word: pairs are merged in the order they were learnt in.
//!
//! The work grows with n log n, so that a word of a megabyte is no way to stop the daemon.

use crate::engine::error::LoadError;
use crate::engine::gguf::Gguf;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

/// The learnt pairs, and the token of each single byte.
#[derive(Debug)]
pub(super) struct Merges {
    pairs: Vec<Pair>, // sorted by left and right
    bytes: Box<[u32; 256]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Pair {
    left: u32,
    right: u32,
    rank: u32,
    joined: u32,
}

/// A place in the word under work; merged places leave the list.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    id: u32,
    previous: u32,
    next: u32,
}

/// No place.
const NONE: u32 = u32::MAX;

impl Merges {
    /// Reads the pairs of a file. `control`, in order, are the ids that no text may turn into.
    pub fn read(file: &Gguf, ids: &HashMap<&[u8], u32>, control: &[u32]) -> Result<Self, LoadError> {
        let key = "tokenizer.ggml.merges";
        let bytes_of = byte_of_char();
        let is_control = |id: u32| control.binary_search(&id).is_ok();
        let merges = file.strings(key)?;
        // Each takes at least the 8 bytes of its length in the file.
        let mut pairs = Vec::with_capacity(merges.len());
        for (rank, merge) in merges.enumerate() {
            let pair = read_pair(rank, merge, ids, &bytes_of).ok_or_else(|| {
                let said = format!("merge {rank} names no two tokens that join to a third");
                LoadError::key(key, said)
            })?;
            if is_control(pair.joined) {
                let said = format!("merge {rank} makes the control token {} out of text", pair.joined);
                return Err(LoadError::key(key, said));
            }
            pairs.push(pair);
        }
        pairs.sort_unstable();
        // Of a pair that was learnt twice the first counts.
        pairs.dedup_by_key(|pair| (pair.left, pair.right));
        let mut bytes = Box::new([0; 256]);
        for (byte, id) in (0..=255u8).zip(bytes.iter_mut()) {
            let found = ids.get([byte].as_slice()).copied().filter(|id| !is_control(*id));
            *id = found.ok_or_else(|| {
                let said = format!("has no plain token for the byte {byte:#04x}");
                LoadError::key("tokenizer.ggml.tokens", said)
            })?;
        }
        Ok(Merges { pairs, bytes })
    }

    fn find(&self, left: u32, right: u32) -> Option<&Pair> {
        let at = self.pairs.binary_search_by_key(&(left, right), |pair| (pair.left, pair.right));
        at.ok().map(|at| &self.pairs[at])
    }

    /// Appends the ids of `word`.
    pub fn encode(&self, word: &[u8], ids: &mut Vec<u32>) {
        let last = word.len().saturating_sub(1);
        let mut symbols: Vec<Symbol> = word
            .iter()
            .enumerate()
            .map(|(at, byte)| Symbol {
                id: self.bytes[usize::from(*byte)],
                previous: at.checked_sub(1).map_or(NONE, |at| at as u32),
                next: if at == last { NONE } else { at as u32 + 1 },
            })
            .collect();
        let mut heap = BinaryHeap::new();
        for at in 0..last {
            self.offer(&symbols, at as u32, &mut heap);
        }
        while let Some(Reverse((_, at, left, right))) = heap.pop() {
            self.merge(&mut symbols, at, left, right, &mut heap);
        }
        let mut at = if word.is_empty() { NONE } else { 0 };
        while at != NONE {
            ids.push(symbols[at as usize].id);
            at = symbols[at as usize].next;
        }
    }

    /// Puts the pair that begins at `at` on the heap, if it was learnt.
    fn offer(&self, symbols: &[Symbol], at: u32, heap: &mut BinaryHeap<Reverse<(u32, u32, u32, u32)>>) {
        let symbol = symbols[at as usize];
        if symbol.next == NONE {
            return;
        }
        let right = symbols[symbol.next as usize].id;
        if let Some(pair) = self.find(symbol.id, right) {
            heap.push(Reverse((pair.rank, at, symbol.id, right)));
        }
    }

    /// Joins the pair at `at` if it is still `left` and `right`, and offers its new neighbours.
    fn merge(
        &self,
        symbols: &mut [Symbol],
        at: u32,
        left: u32,
        right: u32,
        heap: &mut BinaryHeap<Reverse<(u32, u32, u32, u32)>>,
    ) {
        let symbol = symbols[at as usize];
        if symbol.id != left || symbol.next == NONE || symbols[symbol.next as usize].id != right {
            return; // one of the two has been merged since
        }
        let Some(pair) = self.find(left, right) else { return };
        let gone = symbol.next as usize;
        let next = symbols[gone].next;
        symbols[gone].id = NONE;
        symbols[at as usize] = Symbol { id: pair.joined, next, ..symbol };
        if next != NONE {
            symbols[next as usize].previous = at;
        }
        self.offer(symbols, at, heap);
        if symbol.previous != NONE {
            self.offer(symbols, symbol.previous, heap);
        }
    }
}

fn read_pair(
    rank: usize,
    merge: &[u8],
    ids: &HashMap<&[u8], u32>,
    bytes_of: &HashMap<char, u8>,
) -> Option<Pair> {
    let space = merge.iter().position(|byte| *byte == b' ')?;
    let mut joined = unmap(&merge[..space], bytes_of);
    let right = unmap(&merge[space + 1..], bytes_of);
    let left = *ids.get(joined.as_slice())?;
    joined.extend_from_slice(&right);
    let right = *ids.get(right.as_slice())?;
    let joined = *ids.get(joined.as_slice())?;
    Some(Pair { left, right, rank: u32::try_from(rank).ok()?, joined })
}

/// The byte behind each character of a byte-level vocabulary: printable Latin-1 stands for itself,
/// the other 68 bytes for the characters from U+0100 on. Source: `bytes_to_unicode` of GPT-2.
pub(super) fn byte_of_char() -> HashMap<char, u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let others = (0..=255u8).filter(|byte| !printable(*byte));
    (0..=255u8)
        .filter(|byte| printable(*byte))
        .map(|byte| (char::from(byte), byte))
        .chain(others.zip('\u{100}'..).map(|(byte, c)| (c, byte)))
        .collect()
}

/// The bytes that a token's characters stand for; characters outside the map stand for themselves.
pub(super) fn unmap(token: &[u8], bytes_of: &HashMap<char, u8>) -> Vec<u8> {
    let Ok(text) = std::str::from_utf8(token) else { return token.to_vec() };
    let mut bytes = Vec::with_capacity(token.len());
    for c in text.chars() {
        match bytes_of.get(&c) {
            Some(byte) => bytes.push(*byte),
            None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}
