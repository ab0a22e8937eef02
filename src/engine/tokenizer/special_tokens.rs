//! Tokens that are found in a text as they stand, before anything is cut or merged.

use super::vocab::{Kind, TOKENS, Vocab};
use crate::engine::error::LoadError;
use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

/// Bytes of all such tokens together. The most in use are some 60 KB; the automaton takes a multiple.
const MOST_BYTES: usize = 256 << 10;

/// Bytes of one such token; real ones have less than a hundred. A search may look this far past what it
/// finds and then begins anew behind that, so every byte of a text is looked at this often at worst.
const MOST_OF_ONE: usize = 256;

/// The texts of some tokens, all looked for at once.
#[derive(Debug)]
pub(super) struct Marks {
    texts: AhoCorasick,
    ids: Vec<u32>,
}

/// A part of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part<'t> {
    /// None of the tokens looked for.
    Text(&'t str),
    /// One of them.
    Token(u32),
}

impl Marks {
    /// `ids` with their texts in `vocab`; those that are no whole characters are never found.
    pub fn new(vocab: &Vocab, mut ids: Vec<u32>, kind: Kind) -> Result<Self, LoadError> {
        ids.retain(|id| std::str::from_utf8(vocab.get(*id)).is_ok());
        let fail = |said: String| LoadError::key(TOKENS, said);
        let what = if kind == Kind::Mark { "control" } else { "user-defined" };
        if let Some(id) = ids.iter().find(|id| vocab.get(**id).len() > MOST_OF_ONE) {
            let bytes = vocab.get(*id).len();
            let said = format!("{what} token {id} has {bytes} bytes, where {MOST_OF_ONE} are allowed");
            return Err(fail(said));
        }
        let bytes: usize = ids.iter().map(|id| vocab.get(*id).len()).sum();
        if bytes > MOST_BYTES {
            return Err(fail(format!("{bytes} bytes of {what} tokens, where {MOST_BYTES} are allowed")));
        }
        let texts = AhoCorasick::builder()
            // Of two that begin together the longer is meant, as Hugging Face has it.
            .match_kind(MatchKind::LeftmostLongest)
            // A quarter of the memory of the fastest kind.
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .build(ids.iter().map(|id| vocab.get(*id)))
            .map_err(|error| fail(format!("its special tokens cannot be searched for: {error}")))?;
        Ok(Marks { texts, ids })
    }

    /// The parts of a text, in order and none of them empty.
    pub fn each<'t>(&self, text: &'t str, mut part: impl FnMut(Part<'t>)) {
        let mut at = 0;
        if !self.ids.is_empty() {
            for found in self.texts.find_iter(text) {
                if at < found.start() {
                    part(Part::Text(&text[at..found.start()]));
                }
                part(Part::Token(self.ids[found.pattern().as_usize()]));
                at = found.end();
            }
        }
        if at < text.len() {
            part(Part::Text(&text[at..]));
        }
    }
}
