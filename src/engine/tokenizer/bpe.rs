//! Byte-level byte-pair encoding (BPE): pairs are merged in the order in which they were learnt.

use super::merge::{MergeRules, Merged, merge};
use super::pre_tokenizer::PreTokenizer;
use super::vocab::{SortedTokens, TOKENS, TokenKind, TokenTable, Vocab};
use crate::engine::error::LoadError;
use crate::engine::gguf::Gguf;
use std::collections::HashMap;

const MERGES: &str = "tokenizer.ggml.merges";

/// The rules of a byte-level vocabulary.
#[derive(Debug)]
pub(super) struct ByteLevelBpe {
    pre_tokenizer: PreTokenizer,
    merges: Merges,
    /// Words that are tokens whether or not merges produce them. Llama 3's vocabulary has 588 tokens that no merges
    /// produce, and it was trained with them: `ignore_merges` in its `tokenizer.json`.
    whole_words: Option<SortedTokens>,
}

/// The learnt pairs, and the token of each single byte.
#[derive(Debug)]
struct Merges {
    pairs: Vec<MergeRule>, // sorted by left and right
    bytes: Box<[u32; 256]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct MergeRule {
    left: u32,
    right: u32,
    rank: u32,
    joined: u32,
}

impl ByteLevelBpe {
    /// Reads the tokens of a file with the rules over them.
    pub fn read(file: &Gguf, pre_tokenizer: PreTokenizer) -> Result<(TokenTable, Self), LoadError> {
        let bytes_of = byte_of_char();
        let entries = TokenTable::read(file, |_, token| Ok(unmap(token, &bytes_of)))?;
        let merges = Merges::read(file, &entries, &bytes_of)?;
        let whole =
            pre_tokenizer.takes_whole_words().then(|| SortedTokens::new(&entries.vocab, &entries.kinds));
        Ok((entries, ByteLevelBpe { pre_tokenizer, merges, whole_words: whole }))
    }

    /// A token that is taken as a whole where it is a word, and that the merges alone do not produce.
    pub fn token_beyond_merges(&self, vocab: &Vocab) -> Option<u32> {
        let mut merged = Vec::new();
        self.whole_words.iter().flat_map(SortedTokens::ids).copied().find(|id| {
            let Ok(text) = std::str::from_utf8(vocab.get(*id)) else { return false };
            let mut words = 0;
            self.pre_tokenizer.words(text, |_| words += 1);
            merged.clear();
            merge(&self.merges, self.merges.of_bytes(text.as_bytes()), &mut merged);
            words == 1 && merged != [*id]
        })
    }

    /// Appends the ids of `text`.
    pub fn encode(&self, vocab: &Vocab, text: &str, ids: &mut Vec<u32>) {
        self.pre_tokenizer.words(text, |word| {
            let word = word.as_bytes();
            match self.whole_words.as_ref().and_then(|whole| whole.find(vocab, word, &[])) {
                Some(id) => ids.push(id),
                None => merge(&self.merges, self.merges.of_bytes(word), ids),
            }
        });
    }
}

impl Merges {
    fn read(file: &Gguf, entries: &TokenTable, bytes_of: &HashMap<char, u8>) -> Result<Self, LoadError> {
        let ids = entries.by_text();
        let merges = file.strings(MERGES)?;
        // Each takes at least the 8 bytes of its length in the file.
        let mut pairs = Vec::with_capacity(merges.len());
        for (rank, merge) in merges.enumerate() {
            let pair = read_pair(rank, merge, &ids, bytes_of).ok_or_else(|| {
                let message = format!("merge {rank} names no two tokens that join to a third");
                LoadError::key(MERGES, message)
            })?;
            if entries.kind(pair.joined) == TokenKind::Control {
                let message = format!("merge {rank} makes the control token {} out of text", pair.joined);
                return Err(LoadError::key(MERGES, message));
            }
            pairs.push(pair);
        }
        pairs.sort_unstable();
        // The first of two equal pairs counts.
        pairs.dedup_by_key(|pair| (pair.left, pair.right));
        let mut bytes = Box::new([0; 256]);
        for (byte, id) in (0..=255u8).zip(bytes.iter_mut()) {
            let found = ids.get([byte].as_slice()).copied();
            *id = found.filter(|id| entries.kind(*id) != TokenKind::Control).ok_or_else(|| {
                LoadError::key(TOKENS, format!("has no plain token for the byte {byte:#04x}"))
            })?;
        }
        Ok(Merges { pairs, bytes })
    }

    fn of_bytes(&self, word: &[u8]) -> impl Iterator<Item = u32> {
        word.iter().map(|byte| self.bytes[usize::from(*byte)])
    }
}

impl MergeRules for Merges {
    fn find(&self, left: u32, right: u32) -> Option<Merged> {
        let at = self.pairs.binary_search_by_key(&(left, right), |pair| (pair.left, pair.right));
        at.ok().map(|at| Merged { rank: self.pairs[at].rank, id: self.pairs[at].joined })
    }
}

fn read_pair(
    rank: usize,
    merge: &[u8],
    ids: &HashMap<&[u8], u32>,
    bytes_of: &HashMap<char, u8>,
) -> Option<MergeRule> {
    let space = merge.iter().position(|byte| *byte == b' ')?;
    let mut joined = unmap(&merge[..space], bytes_of);
    let right = unmap(&merge[space + 1..], bytes_of);
    let left = *ids.get(joined.as_slice())?;
    joined.extend_from_slice(&right);
    let right = *ids.get(right.as_slice())?;
    let joined = *ids.get(joined.as_slice())?;
    Some(MergeRule { left, right, rank: u32::try_from(rank).ok()?, joined })
}

/// The byte behind each character of a byte-level vocabulary: printable Latin-1 stands for itself, the other 68
/// bytes are written as the characters from U+0100 on. Source: `bytes_to_unicode` of GPT-2.
fn byte_of_char() -> HashMap<char, u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let others = (0..=255u8).filter(|byte| !printable(*byte));
    (0..=255u8)
        .filter(|byte| printable(*byte))
        .map(|byte| (char::from(byte), byte))
        .chain(others.zip('\u{100}'..).map(|(byte, c)| (c, byte)))
        .collect()
}

/// The bytes that a token's characters stand for; characters outside the map stand for themselves.
fn unmap(token: &[u8], bytes_of: &HashMap<char, u8>) -> Vec<u8> {
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
