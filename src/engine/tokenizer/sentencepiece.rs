//! SentencePiece's byte-pair encoding: the neighbours whose token has the best score are merged first, over the
//! whole text, including spaces.
//!
//! The first 256 tokens after the special ones stand for bytes; a character without a token becomes these. Source:
//! sentencepiece's `bpe_model.cc`, which the models' own tokenizers run.

use super::merge::{MergeRules, Merged, merge};
use super::vocab::{SortedTokens, TOKENS, TokenKind, TokenTable, Vocab, token_id};
use crate::engine::error::{LoadError, escaped};
use crate::engine::gguf::Gguf;

const SCORES: &str = "tokenizer.ggml.scores";
const UNKNOWN: &str = "tokenizer.ggml.unknown_token_id";

/// The character that SentencePiece writes for a space.
const SPACE: char = '\u{2581}';

/// The rules of a SentencePiece vocabulary.
#[derive(Debug)]
pub(super) struct SentencePiece {
    by_bytes: SortedTokens,
    /// For each token, how early it is merged: the best score has rank 0, equal scores have equal ranks.
    ranks: Vec<u32>,
    /// The token of each byte, where there is one.
    bytes: Box<[Option<u32>; 256]>,
    unknown: Option<u32>,
    /// Whether a space is put before a text.
    adds_space: bool,
}

impl SentencePiece {
    /// Reads the tokens of a file with the rules over them.
    pub fn read(file: &Gguf) -> Result<(TokenTable, Self), LoadError> {
        let entries = TokenTable::read(file, plain_bytes)?;
        if !entries.has_types {
            let message = "missing; without it byte tokens cannot be distinguished from texts";
            return Err(LoadError::key("tokenizer.ggml.token_type", message));
        }
        let unknown = token_id(file, UNKNOWN, entries.vocab.len())?;
        let pieces = SentencePiece {
            by_bytes: SortedTokens::new(&entries.vocab, &entries.kinds),
            ranks: ranks(file, entries.vocab.len())?,
            bytes: byte_tokens(&entries)?,
            unknown: unknown.or_else(|| entries.by_text().get(b"<unk>".as_slice()).copied()),
            adds_space: file.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true),
        };
        if pieces.missing_bytes() > 0 && pieces.unknown.is_none() {
            let missing = pieces.missing_bytes();
            let message = format!("{missing} bytes have no token, and there is none for the unknown");
            return Err(LoadError::key(TOKENS, message));
        }
        Ok((entries, pieces))
    }

    /// How many bytes have no token: characters with such a byte can become the unknown token.
    pub fn missing_bytes(&self) -> usize {
        self.bytes.iter().filter(|id| id.is_none()).count()
    }

    /// Appends the ids of `text`.
    pub fn encode(&self, vocab: &Vocab, text: &str, ids: &mut Vec<u32>) {
        let space = (self.adds_space && !text.is_empty()).then_some(' ');
        self.encode_chars(vocab, space.into_iter().chain(text.chars()), ids);
    }

    /// Appends the ids of `text` behind another text: no space is put before it.
    pub fn encode_continuation(&self, vocab: &Vocab, text: &str, ids: &mut Vec<u32>) {
        self.encode_chars(vocab, text.chars(), ids);
    }

    fn encode_chars(&self, vocab: &Vocab, chars: impl Iterator<Item = char>, ids: &mut Vec<u32>) {
        let joins = ScoreRules { tokenizer: self, vocab };
        let mut run = Vec::new(); // tokens of consecutive characters
        for c in chars {
            let c = if c == SPACE { ' ' } else { c };
            match self.by_bytes.find(vocab, c.encode_utf8(&mut [0; 4]).as_bytes(), &[]) {
                Some(id) => run.push(id),
                None => {
                    merge(&joins, run.drain(..), ids);
                    self.push_bytes(c, ids);
                }
            }
        }
        merge(&joins, run.into_iter(), ids);
    }

    /// Encodes a character without a token: as its bytes, or as the unknown token, one for all such characters in a
    /// row.
    fn push_bytes(&self, c: char, ids: &mut Vec<u32>) {
        let mut buffer = [0; 4];
        let bytes = c.encode_utf8(&mut buffer).bytes();
        let tokens: Option<Vec<u32>> = bytes.map(|byte| self.bytes[usize::from(byte)]).collect();
        match tokens {
            Some(tokens) => ids.extend(tokens),
            None if ids.last().copied() == self.unknown => {}
            None => ids.extend(self.unknown),
        }
    }
}

struct ScoreRules<'p> {
    tokenizer: &'p SentencePiece,
    vocab: &'p Vocab,
}

impl MergeRules for ScoreRules<'_> {
    fn find(&self, left: u32, right: u32) -> Option<Merged> {
        let (left, right) = (self.vocab.get(left), self.vocab.get(right));
        let id = self.tokenizer.by_bytes.find(self.vocab, left, right)?;
        Some(Merged { rank: self.tokenizer.ranks[id as usize], id })
    }
}

fn plain_bytes(kind: TokenKind, token: &[u8]) -> Result<Vec<u8>, String> {
    let text = String::from_utf8_lossy(token);
    if kind == TokenKind::Byte {
        let hex = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
        let byte = hex.filter(|hex| hex.len() == 2 && !hex.starts_with('+'));
        return byte
            .and_then(|hex| u8::from_str_radix(hex, 16).ok())
            .map(|byte| vec![byte])
            .ok_or_else(|| format!("is \"{}\", not a byte like \"<0x41>\"", escaped(&text)));
    }
    match std::str::from_utf8(token) {
        Ok(text) => Ok(text.replace(SPACE, " ").into_bytes()),
        Err(_) => Ok(token.to_vec()),
    }
}

fn byte_tokens(entries: &TokenTable) -> Result<Box<[Option<u32>; 256]>, LoadError> {
    let mut bytes = Box::new([None; 256]);
    for id in entries.ids_of_kind(TokenKind::Byte) {
        let byte = entries.vocab.get(id)[0];
        if let Some(first) = bytes[usize::from(byte)].replace(id) {
            let message = format!("tokens {first} and {id} are both the byte {byte:#04x}");
            return Err(LoadError::key(TOKENS, message));
        }
    }
    Ok(bytes)
}

fn ranks(file: &Gguf, tokens: usize) -> Result<Vec<u32>, LoadError> {
    let scores = file.floats(SCORES)?;
    if scores.len() != tokens {
        let message = format!("{} scores for {tokens} tokens", scores.len());
        return Err(LoadError::key(SCORES, message));
    }
    let mut order: Vec<(f32, u32)> = scores.zip(0..).collect();
    if let Some((score, id)) = order.iter().find(|(score, _)| score.is_nan()) {
        return Err(LoadError::key(SCORES, format!("that of token {id} is {score}, no number")));
    }
    order.sort_unstable_by(|(left, _), (right, _)| right.total_cmp(left));
    let mut ranks = vec![0; tokens];
    let mut rank = 0;
    for at in 0..order.len() {
        // 0 and -0 are the same score.
        rank += u32::from(at > 0 && order[at].0 != order[at - 1].0);
        ranks[order[at].1 as usize] = rank;
    }
    Ok(ranks)
}
