//! Converts a checkpoint's vocabulary to GGUF metadata: from `tokenizer.json`, or `tokenizer.model` where there is
//! none, and the files beside them.
//!
//! Deliberately encodes no text: whether the result can be used is checked by the tokenizer.

mod beginning_of_text;
mod chat_templates;
mod sentencepiece_model;
mod special_tokens;
mod steps;
mod tokenizer_config;
mod tokenizer_json;

use super::ConvertPlan;
use super::checkpoint_files::CheckpointFolder;
use super::hf_config::HfConfig;
use crate::engine::error::{LoadError, escaped};
use crate::engine::gguf::NewValue;
use std::collections::BTreeMap;
use tokenizer_config::TokenizerConfig;

const CONFIG: &str = "tokenizer_config.json";
const TOKENIZER_JSON: &str = "tokenizer.json";

/// GGUF's token types.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// Tokens by id, and how text is split into them.
struct Vocabulary {
    /// GGUF's name of the kind of tokenizer.
    model: &'static str,
    /// GGUF's name of the pre-tokenizer.
    pre: &'static str,
    tokens: Vec<String>,
    kinds: Vec<i32>,
    /// The scores of a SentencePiece vocabulary.
    scores: Option<Vec<f32>>,
    /// Whether a space is put before a text, in a SentencePiece vocabulary.
    adds_space: bool,
    /// Whether a word that is a token becomes that token only where its merges produce it.
    ignores_whole_words: bool,
    merges: Vec<String>,
    /// Ids that are put before a text, where the files say so.
    begins_with: Option<Vec<u64>>,
}

impl Vocabulary {
    /// The id of a text, preferring special tokens.
    fn id(&self, text: &str) -> Option<u32> {
        let with = |kinds: &[i32]| {
            let mut all = self.tokens.iter().zip(&self.kinds);
            all.position(|(token, kind)| token == text && kinds.contains(kind)).map(|id| id as u32)
        };
        with(&[CONTROL, USER_DEFINED]).or_else(|| with(&[NORMAL, UNKNOWN]))
    }
}

/// Tokens and their types in a model of `rows`; ids that no entry names get a placeholder.
fn token_list<'a>(
    file: &str,
    rows: usize,
    entries: impl Iterator<Item = (u32, &'a String, i32)>,
) -> Result<(Vec<String>, Vec<i32>), LoadError> {
    let mut tokens: Vec<Option<(String, i32)>> = vec![None; rows];
    for (id, text, kind) in entries {
        let token = tokens.get_mut(id as usize).ok_or_else(|| {
            let message = format!("\"{}\" has id {id}, and config.json says {rows} tokens", escaped(text));
            LoadError::new(format!("{file}: vocab"), message)
        })?;
        match token {
            Some((other, _)) if other != text => {
                let message = format!("\"{}\" and \"{}\" are both token {id}", escaped(other), escaped(text));
                return Err(LoadError::new(format!("{file}: vocab"), message));
            }
            token => *token = Some((text.clone(), kind)),
        }
    }
    let named = tokens.into_iter().enumerate();
    Ok(named.map(|(id, token)| token.unwrap_or_else(|| (format!("[PAD{id}]"), UNUSED))).unzip())
}

/// An error about a key of `tokenizer_config.json`.
fn key_error(key: &str, message: impl Into<String>) -> LoadError {
    LoadError::new(format!("{CONFIG}: {key}"), message)
}

/// Adds the vocabulary of a folder to a plan.
pub(super) fn add(
    folder: &CheckpointFolder,
    config: &HfConfig,
    plan: &mut ConvertPlan,
) -> Result<(), LoadError> {
    let json = tokenizer_json::read(folder, config.vocab)?;
    let has_json = json.is_some();
    let mut vocabulary = json.map_or_else(|| sentencepiece_model::read(folder, config.vocab), Ok)?;
    let companion: TokenizerConfig = folder.json(CONFIG)?.unwrap_or_default();
    companion.apply(&mut vocabulary, has_json)?;
    check_added(folder, &vocabulary)?;
    let draft = &mut plan.draft;
    draft.set("tokenizer.ggml.model", vocabulary.model);
    draft.set("tokenizer.ggml.pre", vocabulary.pre);
    draft.set("tokenizer.ggml.tokens", NewValue::Texts(vocabulary.tokens.clone()));
    if let Some(scores) = &vocabulary.scores {
        draft.set("tokenizer.ggml.scores", NewValue::Floats(scores.clone()));
        draft.set("tokenizer.ggml.add_space_prefix", NewValue::Bool(vocabulary.adds_space));
    }
    draft.set("tokenizer.ggml.token_type", NewValue::Integers(vocabulary.kinds.clone()));
    if !vocabulary.merges.is_empty() {
        draft.set("tokenizer.ggml.merges", NewValue::Texts(vocabulary.merges.clone()));
    }
    let bos = special_tokens::add(folder, config, &vocabulary, plan)?;
    beginning_of_text::add(config, &vocabulary, &companion, bos, has_json, plan)?;
    if let Some(template) = chat_templates::choose(folder, companion.chat_template, &mut plan.notes)? {
        plan.draft.set("tokenizer.chat_template", template.as_str());
    }
    plan.merges_decide = vocabulary.ignores_whole_words;
    Ok(())
}

/// Checks that the vocabulary has every token of `added_tokens.json` at the id that this file gives it.
fn check_added(folder: &CheckpointFolder, vocabulary: &Vocabulary) -> Result<(), LoadError> {
    let added: BTreeMap<String, u32> = folder.json(sentencepiece_model::ADDED)?.unwrap_or_default();
    for (text, id) in added {
        let key = format!("{}: {}", sentencepiece_model::ADDED, escaped(&text));
        let at = id as usize;
        let message = match vocabulary.tokens.get(at) {
            Some(token) if *token == text && vocabulary.kinds[at] != UNUSED => continue,
            Some(token) => format!("is token {id}, where the vocabulary has \"{}\"", escaped(token)),
            None => format!("is token {id}, outside the vocabulary of {}", vocabulary.tokens.len()),
        };
        return Err(LoadError::new(key, format!("{message}; correct the wrong one")));
    }
    Ok(())
}
