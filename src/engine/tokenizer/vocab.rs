//! The vocabulary of a file: the bytes of its tokens, and their types.

use crate::engine::error::{LoadError, escaped};
use crate::engine::gguf::{Gguf, MetadataValue};
use std::cmp::Ordering;
use std::collections::HashMap;

/// GGUF's token types; all others are ordinary text.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const BYTE: i64 = 6;

/// The key of the tokens, which every error about them names.
pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// Ordinary text, produced by merging.
    Normal,
    /// A control token that no text becomes, such as the beginning of a text or the end of a turn.
    Control,
    /// User-defined text that is one token wherever it occurs.
    UserDefined,
    /// A byte of a character that has no token.
    Byte,
}

/// The bytes of every token, in one allocation.
#[derive(Debug, Default)]
pub(super) struct Vocab {
    bytes: Vec<u8>,
    ends: Vec<u32>, // end of each token in `bytes`
}

impl Vocab {
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn get(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let start = if id == 0 { 0 } else { self.ends[id - 1] as usize };
        &self.bytes[start..self.ends[id] as usize]
    }

    /// A token's name in a message.
    pub fn name(&self, id: u32) -> String {
        escaped(&String::from_utf8_lossy(self.get(id)))
    }

    fn push(&mut self, token: &[u8]) {
        self.bytes.extend_from_slice(token);
        self.ends.push(self.bytes.len() as u32);
    }
}

/// Ordinary tokens sorted by their bytes; the first of equal ones.
#[derive(Debug)]
pub(super) struct SortedTokens(Vec<u32>);

impl SortedTokens {
    pub fn new(vocab: &Vocab, kinds: &[TokenKind]) -> Self {
        let plain = |id: &u32| kinds[*id as usize] == TokenKind::Normal;
        let mut ids: Vec<u32> = (0..vocab.len() as u32).filter(plain).collect();
        ids.sort_unstable_by_key(|id| (vocab.get(*id), *id));
        ids.dedup_by_key(|id| vocab.get(*id));
        SortedTokens(ids)
    }

    /// All of them.
    pub fn ids(&self) -> &[u32] {
        &self.0
    }

    /// The token of `left` and `right` together.
    pub fn find(&self, vocab: &Vocab, left: &[u8], right: &[u8]) -> Option<u32> {
        let at = self.0.binary_search_by(|id| compare(vocab.get(*id), left, right));
        at.ok().map(|at| self.0[at])
    }
}

/// Compares `token` with `left` followed by `right`, without joining these.
fn compare(token: &[u8], left: &[u8], right: &[u8]) -> Ordering {
    let (head, tail) = token.split_at(token.len().min(left.len()));
    head.cmp(left).then_with(|| tail.cmp(right))
}

/// The tokens and their types, as the file has them.
#[derive(Debug)]
pub(super) struct TokenTable {
    pub vocab: Vocab,
    /// One a token.
    pub kinds: Vec<TokenKind>,
    /// Whether the file has token types.
    pub has_types: bool,
}

impl TokenTable {
    /// Reads the table. `plain_bytes` returns the bytes that the text of an ordinary or a byte token stands for;
    /// its error says what is wrong with the text.
    pub fn read(
        file: &Gguf,
        plain_bytes: impl Fn(TokenKind, &[u8]) -> Result<Vec<u8>, String>,
    ) -> Result<Self, LoadError> {
        let tokens = file.strings(TOKENS)?;
        // Ids and offsets into the vocabulary are 32 bits.
        if tokens.byte_len() > u32::MAX as usize {
            return Err(LoadError::key(
                TOKENS,
                format!("{} bytes of tokens are too many", tokens.byte_len()),
            ));
        }
        let kinds = file.integers(TYPES)?;
        if let Some(kinds) = kinds.as_ref().filter(|kinds| kinds.len() != tokens.len()) {
            let message = format!("{} types for {} tokens", kinds.len(), tokens.len());
            return Err(LoadError::key(TYPES, message));
        }
        let typed = kinds.is_some();
        let mut kinds = kinds.into_iter().flatten();
        let mut entries =
            TokenTable { vocab: Vocab::default(), kinds: Vec::with_capacity(tokens.len()), has_types: typed };
        for (id, token) in tokens.enumerate() {
            let kind = kind_of(kinds.next(), token);
            let bytes = match kind {
                TokenKind::Control | TokenKind::UserDefined => token.to_vec(),
                TokenKind::Normal | TokenKind::Byte => plain_bytes(kind, token)
                    .map_err(|message| LoadError::key(TOKENS, format!("token {id} {message}")))?,
            };
            entries.vocab.push(&bytes);
            entries.kinds.push(kind);
        }
        Ok(entries)
    }

    pub fn kind(&self, id: u32) -> TokenKind {
        self.kinds[id as usize]
    }

    /// Turns those of `ids` that are user-defined into control tokens, because the file gives them a meaning.
    pub fn make_control(&mut self, ids: &[u32]) {
        for id in ids {
            let kind = &mut self.kinds[*id as usize];
            if *kind == TokenKind::UserDefined {
                *kind = TokenKind::Control;
            }
        }
    }

    /// The ids of one kind with a text, in order.
    pub fn ids_of_kind(&self, kind: TokenKind) -> Vec<u32> {
        let ids = 0..self.vocab.len() as u32;
        ids.filter(|id| self.kind(*id) == kind && !self.vocab.get(*id).is_empty()).collect()
    }

    /// The ids by their bytes; the first of equal ones.
    pub fn by_text(&self) -> HashMap<&[u8], u32> {
        (0..self.vocab.len() as u32).rev().map(|id| (self.vocab.get(id), id)).collect()
    }
}

fn kind_of(declared: Option<i64>, token: &[u8]) -> TokenKind {
    match declared {
        Some(UNKNOWN | CONTROL) => TokenKind::Control,
        Some(USER_DEFINED) if looks_like_control(token) => TokenKind::Control,
        Some(USER_DEFINED) => TokenKind::UserDefined,
        Some(BYTE) => TokenKind::Byte,
        // A file without types: control tokens are recognised by their form.
        None if token.len() > 4 && token.starts_with(b"<|") && token.ends_with(b"|>") => TokenKind::Control,
        _ => TokenKind::Normal,
    }
}

/// Some converters write control tokens as "user defined", which any text may become: nobody must be able to end a
/// turn by writing its control token.
fn looks_like_control(token: &[u8]) -> bool {
    let between = |open: &str, close: &str| {
        token.len() > open.len() + close.len()
            && token.starts_with(open.as_bytes())
            && token.ends_with(close.as_bytes())
    };
    [("<|", "|>"), ("<\u{ff5c}", "\u{ff5c}>"), ("<unused", ">"), (">>", "<<")]
        .iter()
        .any(|(open, close)| between(open, close))
        || [b"<s>".as_slice(), b"</s>", b"<unk>", b"<pad>", b"[INST]", b"[/INST]"].contains(&token)
}

/// The id that `key` names, if any; the first of several.
pub(super) fn token_id(file: &Gguf, key: &str, vocab: usize) -> Result<Option<u32>, LoadError> {
    Ok(token_ids(file, key, vocab)?.first().copied())
}

/// The ids that `key` names, one or a list. As in llama.cpp, -1 in 32 bits, signed or unsigned, means none.
pub(super) fn token_ids(file: &Gguf, key: &str, vocab: usize) -> Result<Vec<u32>, LoadError> {
    const NONE: i64 = u32::MAX as i64;
    let ids: Vec<i64> = match file.value(key) {
        Some(MetadataValue::Signed(-1)) => Vec::new(),
        Some(MetadataValue::Array(_)) => file.integers(key)?.into_iter().flatten().collect(),
        _ => file.number_or_none(key)?.into_iter().map(|id| id as i64).collect(),
    };
    let named = ids.into_iter().filter(|id| ![-1, NONE].contains(id));
    let inside = |id: i64| match usize::try_from(id) {
        Ok(at) if at < vocab => Ok(at as u32),
        _ => Err(LoadError::key(key, format!("{id} is outside the vocabulary of {vocab}"))),
    };
    named.map(inside).collect()
}
