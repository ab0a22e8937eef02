//! `tokenizer.model`: a SentencePiece vocabulary, which is a protocol buffer.
//!
//! Only the pieces and a few settings of the message are read. Source: `sentencepiece_model.proto`.

use super::{NORMAL, TOKENIZER_JSON, USER_DEFINED, Vocabulary, token_list};
use crate::engine::convert::checkpoint_files::CheckpointFolder;
use crate::engine::error::LoadError;
use std::collections::BTreeMap;

const FILE: &str = "tokenizer.model";
/// Tokens that were added later, by id.
pub(super) const ADDED: &str = "added_tokens.json";

/// The vocabulary of a folder that has no `tokenizer.json`, in a model of `rows` tokens.
pub(super) fn read(folder: &CheckpointFolder, rows: usize) -> Result<Vocabulary, LoadError> {
    let bytes = folder.read(FILE)?.ok_or_else(|| {
        LoadError::new(TOKENIZER_JSON, format!("missing, and no {FILE}; give a folder with its vocabulary"))
    })?;
    let SentencePieceModel { pieces, adds_space } = SentencePieceModel::read(&bytes)?;
    let added: BTreeMap<String, u32> = folder.json(ADDED)?.unwrap_or_default();
    let own = (0..).zip(&pieces).map(|(id, piece)| (id, &piece.text, piece.kind));
    let added = added.iter().map(|(text, id)| (*id, text, USER_DEFINED));
    // A token in both keeps its type: the list of added ones often has all special tokens.
    let added = added.filter(|(id, ..)| *id as usize >= pieces.len());
    let (tokens, kinds) = token_list(FILE, rows, own.chain(added))?;
    // Tokens that nothing merges into have scores far below all others.
    let mut scores: Vec<f32> = pieces.iter().map(|piece| piece.score).collect();
    scores.resize(rows, -1e9);
    Ok(Vocabulary {
        model: "llama",
        pre: "default",
        tokens,
        kinds,
        scores: Some(scores),
        adds_space,
        ignores_whole_words: false,
        merges: Vec::new(),
        begins_with: None,
    })
}

/// A vocabulary of pieces, by id.
#[derive(Debug, Default)]
struct SentencePieceModel {
    pieces: Vec<Piece>,
    /// Whether a space is put before a text.
    adds_space: bool,
}

/// A piece.
#[derive(Debug, Default)]
struct Piece {
    text: String,
    score: f32,
    /// The same numbers as GGUF's token types.
    kind: i32,
}

impl SentencePieceModel {
    /// Reads a file. Every length is checked against what is left of it.
    fn read(bytes: &[u8]) -> Result<Self, LoadError> {
        let mut fields = MessageFields { rest: bytes, len: bytes.len() };
        // The defaults of missing settings.
        let mut read = SentencePieceModel { pieces: Vec::new(), adds_space: true };
        let (mut is_pairs, mut is_any) = (false, false);
        while let Some((field, value)) = fields.next()? {
            match (field, value) {
                (1, WireValue::Bytes(message)) => read.pieces.push(piece(fields.inner(message))?),
                (2, WireValue::Bytes(message)) => {
                    (is_any, is_pairs) = (true, number(fields.inner(message), 3)? == Some(2));
                }
                (3, WireValue::Bytes(message)) => {
                    read.adds_space = number(fields.inner(message), 3)? != Some(0);
                    check_normalizer(&fields, message)?;
                }
                _ => {}
            }
        }
        match (read.pieces.is_empty(), is_any && !is_pairs) {
            (true, _) => Err(LoadError::new(FILE, "holds no pieces; the file is damaged or another kind")),
            (_, true) => {
                Err(LoadError::new(FILE, "is no pair encoding (BPE); use a model with such a vocabulary"))
            }
            _ => Ok(read),
        }
    }
}

/// Refuses normalizers: what a file may want done to text has no GGUF key.
fn check_normalizer(fields: &MessageFields<'_>, message: &[u8]) -> Result<(), LoadError> {
    let refuse = |what: &str| {
        Err(LoadError::new(
            FILE,
            format!("{what} before it is cut, which is not supported; use another model"),
        ))
    };
    let mut settings = fields.inner(message);
    while let Some((field, value)) = settings.next()? {
        if matches!((field, value), (2, WireValue::Bytes(map)) if !map.is_empty()) {
            return refuse("text is rewritten");
        }
    }
    // Missing means on.
    match number(fields.inner(message), 4)? {
        Some(0) => Ok(()),
        _ => refuse("white space is removed from text"),
    }
}

fn piece(mut fields: MessageFields<'_>) -> Result<Piece, LoadError> {
    // A piece without a type is a normal one.
    let mut piece = Piece { kind: NORMAL, ..Piece::default() };
    while let Some((field, value)) = fields.next()? {
        match (field, value) {
            (1, WireValue::Bytes(text)) => {
                let text =
                    std::str::from_utf8(text).map_err(|_| fields.damaged("a piece that is not UTF-8"))?;
                piece.text = text.to_owned();
            }
            (2, WireValue::Four(bytes)) => piece.score = f32::from_le_bytes(bytes),
            (3, WireValue::Number(kind @ 1..=6)) => piece.kind = kind as i32,
            (3, _) => return Err(fields.damaged("a piece of an unknown kind")),
            _ => {}
        }
    }
    match piece.score.is_finite() {
        true => Ok(piece),
        false => Err(fields.damaged("a score that is not a number")),
    }
}

/// The number in a field of a message, if it is there.
fn number(mut fields: MessageFields<'_>, number: u64) -> Result<Option<u64>, LoadError> {
    let mut result = None;
    while let Some((field, value)) = fields.next()? {
        if let (true, WireValue::Number(value)) = (field == number, value) {
            result = Some(value);
        }
    }
    Ok(result)
}

/// A value as a message holds it.
enum WireValue<'a> {
    Number(u64),
    Four([u8; 4]),
    Bytes(&'a [u8]),
    /// Eight bytes, which are not read here.
    Eight,
}

/// The fields of a message.
struct MessageFields<'a> {
    rest: &'a [u8],
    /// Bytes of the whole file, for errors.
    len: usize,
}

impl<'a> MessageFields<'a> {
    fn inner(&self, message: &'a [u8]) -> MessageFields<'a> {
        MessageFields { rest: message, len: self.len }
    }

    fn damaged(&self, what: &str) -> LoadError {
        LoadError::new(FILE, format!("{what} in its {} bytes; the file is truncated or damaged", self.len))
    }

    fn next(&mut self) -> Result<Option<(u64, WireValue<'a>)>, LoadError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let value = match key & 7 {
            0 => WireValue::Number(self.varint()?),
            1 => self.take(8).map(|_| WireValue::Eight)?,
            2 => {
                let len = self.varint()?;
                WireValue::Bytes(self.take(len)?)
            }
            5 => WireValue::Four(self.take(4)?.try_into().expect("four were taken")),
            other => return Err(self.damaged(&format!("a value of the unknown kind {other}"))),
        };
        Ok(Some((key >> 3, value)))
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], LoadError> {
        let taken = usize::try_from(len).ok().and_then(|len| self.rest.split_at_checked(len));
        let (taken, rest) =
            taken.ok_or_else(|| self.damaged(&format!("{len} bytes wanted that are not there")))?;
        self.rest = rest;
        Ok(taken)
    }

    /// Seven bits a byte, the lowest first; the last byte has no eighth bit.
    fn varint(&mut self) -> Result<u64, LoadError> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(self.damaged("a number of more than 64 bits"))
    }
}
