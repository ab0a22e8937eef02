//! Text to token ids and back: byte-level BPE from a model file's own vocabulary.
//!
//! Deliberately knows no model and no conversation; `template` builds prompts out of the pieces.

mod bpe;
mod decode;
mod template;

pub use decode::{Pushed, TextStream};
pub use template::{Role, Turn};

use crate::engine::error::{LoadError, shown};
use crate::engine::gguf::Gguf;
use bpe::Merges;
use regex::Regex;
use std::collections::HashMap;
use std::sync::LazyLock;

/// How the Llama 3 tokenizer, and with it every BitNet-b1.58, cuts text into words, without its
/// lookahead; [`Tokenizer::words`] does that part.
/// Source: `tokenizer.json` of Meta-Llama-3-8B.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";

/// The same compiled; one for all vocabularies, since it takes longer than reading a small one.
static WORDS: LazyLock<Regex> = LazyLock::new(|| Regex::new(LLAMA3).expect("a pattern of ours"));

/// GGUF's token types that mark special tokens.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// Texts of tokens that end a turn; with the ids a file names, they all end an answer.
const END_TEXTS: &[&str] = &["<|eot_id|>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>", "</s>"];

/// A vocabulary with its rules.
#[derive(Debug)]
pub struct Tokenizer {
    vocab: Vocab,
    merges: Merges,
    /// All but the control tokens, sorted by their bytes.
    by_bytes: Vec<u32>,
    /// Special tokens, the longest text first.
    specials: Vec<u32>,
    bos: Option<u32>,
    ends: Vec<u32>,
    chat: template::Family,
}

/// The bytes of every token, in one block.
#[derive(Debug, Default)]
struct Vocab {
    bytes: Vec<u8>,
    ends: Vec<u32>, // end of each token in `bytes`
}

impl Vocab {
    fn len(&self) -> usize {
        self.ends.len()
    }

    fn push(&mut self, token: &[u8]) {
        self.bytes.extend_from_slice(token);
        self.ends.push(self.bytes.len() as u32);
    }

    /// Ids but for those in `without`, which is in order, sorted by their bytes; of equal ones the first.
    fn by_bytes(&self, without: &[u32]) -> Vec<u32> {
        let mut ids: Vec<u32> = (0..self.len() as u32).collect();
        ids.retain(|id| without.binary_search(id).is_err());
        ids.sort_unstable_by_key(|id| (self.get(*id), *id));
        ids.dedup_by_key(|id| self.get(*id));
        ids
    }

    fn get(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let start = if id == 0 { 0 } else { self.ends[id - 1] as usize };
        &self.bytes[start..self.ends[id] as usize]
    }
}

impl Tokenizer {
    /// Reads the tokenizer of a model file.
    pub fn read(file: &Gguf) -> Result<Self, LoadError> {
        check_kind(file)?;
        let key = "tokenizer.ggml.tokens";
        let tokens = file.strings(key)?;
        // Ids and offsets into the vocabulary are 32 bits.
        if tokens.byte_len() > u32::MAX as usize {
            return Err(LoadError::key(key, format!("{} bytes of tokens are too many", tokens.byte_len())));
        }
        let special = ids_of_kinds(file, tokens.len(), &[CONTROL, USER_DEFINED])?;
        let control = ids_of_kinds(file, tokens.len(), &[CONTROL])?;
        let bytes_of = bpe::byte_of_char();
        let mut vocab = Vocab::default();
        for (id, token) in tokens.enumerate() {
            let special = special.binary_search(&(id as u32)).is_ok();
            vocab.push(&if special { token.to_vec() } else { bpe::unmap(token, &bytes_of) });
        }
        let ids: HashMap<&[u8], u32> = (0..vocab.len() as u32).rev().map(|id| (vocab.get(id), id)).collect();
        let merges = Merges::read(file, &ids, &control)?;
        let chat = template::Family::detect(file, &ids)?;
        let bos = token_id(file, "tokenizer.ggml.bos_token_id", vocab.len())?;
        let ends = end_ids(file, &ids, vocab.len())?;
        drop(ids);
        let mut specials = special;
        specials.sort_by_key(|id| std::cmp::Reverse(vocab.get(*id).len()));
        specials.retain(|id| !vocab.get(*id).is_empty());
        Ok(Tokenizer { by_bytes: vocab.by_bytes(&control), merges, specials, bos, ends, chat, vocab })
    }

    /// Tokens in the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.vocab.len()
    }

    /// The bytes a token stands for; a special token's are its name.
    ///
    /// # Panics
    /// When `id` is outside the vocabulary.
    pub fn bytes(&self, id: u32) -> &[u8] {
        self.vocab.get(id)
    }

    /// Whether a token ends an answer.
    pub fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }

    /// Ids of a text in which nothing is special. No beginning-of-text is added.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        self.encode_into(text, &mut ids);
        ids
    }

    /// Ids of a text in which the names of special tokens mean those tokens. For text of the
    /// owner's only: a user's text must not be able to end its own turn.
    pub fn encode_with_specials(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        let mut plain = 0;
        let mut at = 0;
        while at < text.len() {
            let rest = &text.as_bytes()[at..];
            match self.specials.iter().find(|id| rest.starts_with(self.vocab.get(**id))) {
                Some(id) => {
                    self.encode_into(&text[plain..at], &mut ids);
                    ids.push(*id);
                    at += self.vocab.get(*id).len();
                    plain = at;
                }
                None => at += text[at..].chars().next().map_or(1, char::len_utf8),
            }
        }
        self.encode_into(&text[plain..], &mut ids);
        ids
    }

    /// The token that begins every text the model was trained on, where it has one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Ids of a conversation in the model's own form, ready for the assistant's next turn.
    pub fn prompt_chat(&self, turns: &[Turn<'_>]) -> Vec<u32> {
        let mut ids: Vec<u32> = self.bos.into_iter().collect();
        self.chat.write(turns, &mut ids, |text, ids| self.encode_into(text, ids));
        ids
    }

    fn encode_into(&self, text: &str, ids: &mut Vec<u32>) {
        for word in self.words(text).map(str::as_bytes) {
            match self.whole(word) {
                Some(id) => ids.push(id),
                None => self.merges.encode(word, ids),
            }
        }
    }

    /// The token that is a whole word. Llama 3's vocabulary has 588 tokens that no merges lead to, and
    /// it was trained with them: `ignore_merges` in its `tokenizer.json`, llama.cpp pull request 7193.
    fn whole(&self, word: &[u8]) -> Option<u32> {
        let at = self.by_bytes.binary_search_by(|id| self.vocab.get(*id).cmp(word));
        at.ok().map(|at| self.by_bytes[at])
    }

    /// The words of a text. The pattern's `\s+(?!\S)`, white space not followed by anything else,
    /// is told here: a run of white space before a word leaves its last character to that word.
    fn words<'t>(&self, text: &'t str) -> impl Iterator<Item = &'t str> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let found = WORDS.find_at(text, at)?;
            // The pattern matches every character, so `found` starts at `at`.
            let (mut end, word) = (found.end(), found.as_str());
            let last = word.chars().next_back()?;
            let only_white = last.is_whitespace() && !matches!(last, '\r' | '\n');
            if only_white && end < text.len() && word.len() > last.len_utf8() {
                end -= last.len_utf8();
            }
            let word = &text[at..end];
            at = end;
            Some(word)
        })
    }
}

fn check_kind(file: &Gguf) -> Result<(), LoadError> {
    let refuse = |key: &str, name: &str, way_out: &str| {
        let said = format!("\"{}\" is not read by this version; {way_out}", shown(name));
        Err(LoadError::key(key, said))
    };
    let key = "tokenizer.ggml.model";
    match file.text(key)? {
        Some("gpt2") => {}
        Some(other) => return refuse(key, other, "use a model with a gpt2 (byte-level BPE) tokenizer"),
        None => return Err(LoadError::key(key, "missing; the file is no complete model")),
    }
    let key = "tokenizer.ggml.pre";
    match file.text(key)? {
        // The official 2B-4T file names none; its tokenizer is Llama 3's.
        None | Some("llama-bpe" | "llama3" | "llama-v3") => Ok(()),
        Some(other) => refuse(key, other, "use a model with the llama-bpe pre-tokenizer"),
    }
}

fn token_id(file: &Gguf, key: &str, vocab: usize) -> Result<Option<u32>, LoadError> {
    match file.number_or_none(key)? {
        Some(id) if id >= vocab => {
            let said = format!("{id} is outside the vocabulary of {vocab}");
            Err(LoadError::key(key, said))
        }
        id => Ok(id.map(|id| id as u32)),
    }
}

/// Ids of the tokens of these types, in order.
fn ids_of_kinds(file: &Gguf, vocab: usize, wanted: &[i64]) -> Result<Vec<u32>, LoadError> {
    let key = "tokenizer.ggml.token_type";
    let Some(kinds) = file.integers(key)? else { return Ok(Vec::new()) };
    if kinds.len() != vocab {
        let said = format!("{} types for {vocab} tokens", kinds.len());
        return Err(LoadError::key(key, said));
    }
    let found = kinds.enumerate().filter(|(_, kind)| wanted.contains(kind));
    Ok(found.map(|(id, _)| id as u32).collect())
}

fn end_ids(file: &Gguf, ids: &HashMap<&[u8], u32>, vocab: usize) -> Result<Vec<u32>, LoadError> {
    let mut ends: Vec<u32> = END_TEXTS.iter().filter_map(|text| ids.get(text.as_bytes())).copied().collect();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"] {
        ends.extend(token_id(file, key, vocab)?);
    }
    ends.sort_unstable();
    ends.dedup();
    Ok(ends)
}
