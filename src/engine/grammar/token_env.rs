//! The vocabulary as the library wants it: a trie of the tokens that are text, and a function from bytes to the ids
//! that the model's own tokenizer gives them.

use crate::engine::tokenizer::Tokenizer;
use llguidance::toktrie::{INVALID_TOKEN, SimpleVob, TokRxInfo, TokTrie, TokenId, TokenizerEnv};
use std::sync::Arc;

/// Sets of tokens whose mask is computed once, each with a trie of its own. None is kept: inside a JSON string of a large
/// vocabulary they would save a millisecond or two a token, and take as much memory again.
pub(super) const SLICES: &[String] = &[];

/// The memory of the trie and its two copies, in bytes, while they are made. Less is kept: of 128,256 tokens 21 of 30 MB.
pub(super) fn planned_bytes(tokens: usize, text_bytes: usize) -> usize {
    // A token has a text of its own for a moment, an offset and a place in an order, three times. A node of the trie takes 8
    // bytes three times, and there are at most as many as bytes of text.
    tokens * 64 + text_bytes * 24
}

/// A tokenizer with the trie of its vocabulary.
pub(super) struct TrieTokenizer {
    tokenizer: Arc<Tokenizer>,
    trie: TokTrie,
}

impl TrieTokenizer {
    pub fn new(tokenizer: &Arc<Tokenizer>) -> Self {
        let vocab = tokenizer.vocab_size() as u32;
        let text_of =
            |id: u32| if is_text(tokenizer, id) { tokenizer.bytes(id).to_vec() } else { Vec::new() };
        let words: Vec<Vec<u8>> = (0..vocab).map(text_of).collect();
        let ends = tokenizer.end_tokens();
        let info = TokRxInfo::new(vocab, ends.first().copied().unwrap_or(INVALID_TOKEN));
        let trie = TokTrie::from(&info, &words);
        let trie = if ends.len() > 1 { trie.with_eos_tokens(ends) } else { trie };
        TrieTokenizer { tokenizer: Arc::clone(tokenizer), trie }
    }

    /// The tokens that may be produced: text, and the end tokens.
    pub fn producible(&self) -> SimpleVob {
        let mut set = self.trie.alloc_token_set();
        let vocab = self.tokenizer.vocab_size() as u32;
        (0..vocab)
            .filter(|id| is_text(&self.tokenizer, *id) || self.tokenizer.is_end(*id))
            .for_each(|id| set.allow_token(id));
        set
    }

    /// Whether tokens stand for exactly these bytes.
    fn is_exact(&self, ids: &[u32], bytes: &[u8]) -> bool {
        let mut rest = bytes;
        ids.iter().all(|id| match rest.strip_prefix(self.tokenizer.bytes(*id)) {
            Some(after) => {
                rest = after;
                true
            }
            None => false,
        }) && rest.is_empty()
    }
}

/// Whether a token is text: no control token, and not empty. The longest tokens that the trie can hold have 1,023 bytes.
fn is_text(tokenizer: &Tokenizer, id: u32) -> bool {
    const MAX_BYTES: usize = 1000;
    !tokenizer.is_control(id) && (1..=MAX_BYTES).contains(&tokenizer.bytes(id).len())
}

impl TokenizerEnv for TrieTokenizer {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        // A character may be cut at the end: its first bytes are tokens of their own.
        let whole = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default(),
        };
        let mut ids = self.tokenizer.encode_continuation(whole);
        // A text can have no exact tokens: where a byte has none, or where the vocabulary normalises.
        if !self.is_exact(&ids, whole.as_bytes()) {
            return self.trie.greedy_tokenize(bytes);
        }
        if whole.len() < bytes.len() {
            ids.extend(self.trie.greedy_tokenize(&bytes[whole.len()..]));
        }
        ids
    }
}
