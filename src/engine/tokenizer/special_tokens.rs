//! Special tokens: those that are found in a text as they stand, before anything is split or merged.

use super::vocab::{TOKENS, TokenKind, Vocab};
use crate::engine::error::LoadError;
use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

/// Bytes of all such tokens together. The most in use are some 60 KB; the automaton takes a multiple of that.
const MAX_TOTAL_BYTES: usize = 256 << 10;

/// Bytes of one such token; real ones have less than a hundred. A search may look this far past what it finds and
/// then restarts behind that, so that every byte of a text is examined this often at worst.
const MAX_TOKEN_BYTES: usize = 256;

/// The texts of a set of tokens, all searched for at once.
#[derive(Debug)]
pub(super) struct SpecialTokens {
    texts: AhoCorasick,
    ids: Vec<u32>,
}

/// A part of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextPart<'t> {
    /// Text that is none of the tokens.
    Text(&'t str),
    /// One of the tokens.
    Token(u32),
}

impl SpecialTokens {
    /// The tokens `ids` with their texts in `vocab`; those that are not valid UTF-8 are never found.
    pub fn new(vocab: &Vocab, mut ids: Vec<u32>, kind: TokenKind) -> Result<Self, LoadError> {
        ids.retain(|id| std::str::from_utf8(vocab.get(*id)).is_ok());
        let fail = |message: String| LoadError::key(TOKENS, message);
        let what = if kind == TokenKind::Control { "control" } else { "user-defined" };
        if let Some(id) = ids.iter().find(|id| vocab.get(**id).len() > MAX_TOKEN_BYTES) {
            let bytes = vocab.get(*id).len();
            let message = format!("{what} token {id} has {bytes} bytes, where {MAX_TOKEN_BYTES} are allowed");
            return Err(fail(message));
        }
        let bytes: usize = ids.iter().map(|id| vocab.get(*id).len()).sum();
        if bytes > MAX_TOTAL_BYTES {
            return Err(fail(format!("{bytes} bytes of {what} tokens, where {MAX_TOTAL_BYTES} are allowed")));
        }
        let texts = AhoCorasick::builder()
            // Of two that begin at the same place the longer is meant, as in Hugging Face's tokenizers.
            .match_kind(MatchKind::LeftmostLongest)
            // A quarter of the memory of the fastest kind.
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .build(ids.iter().map(|id| vocab.get(*id)))
            .map_err(|error| fail(format!("its special tokens cannot be searched for: {error}")))?;
        Ok(SpecialTokens { texts, ids })
    }

    /// Calls `part` with the parts of a text, in order; none of them is empty.
    pub fn split<'t>(&self, text: &'t str, mut part: impl FnMut(TextPart<'t>)) {
        let mut at = 0;
        if !self.ids.is_empty() {
            for found in self.texts.find_iter(text) {
                if at < found.start() {
                    part(TextPart::Text(&text[at..found.start()]));
                }
                part(TextPart::Token(self.ids[found.pattern().as_usize()]));
                at = found.end();
            }
        }
        if at < text.len() {
            part(TextPart::Text(&text[at..]));
        }
    }
}
