//! Converts a checkpoint's vocabulary to GGUF metadata: from `tokenizer.json`, or `tokenizer.model` where there is
//! none, and the files beside them.
//!
//! Deliberately encodes no text: whether the result can be used is checked by the tokenizer.

mod sentencepiece_model;
mod special_tokens;
mod steps;
mod tokenizer_json;

use super::checkpoint_files::CheckpointFolder;
use super::hf_config::HfConfig;
use crate::engine::error::{LoadError, escaped};
use crate::engine::gguf::{GgufDraft, NewValue};
use crate::external_text::utf8;
use serde::Deserialize;
use special_tokens::TokenizerConfig;

const CONFIG: &str = "tokenizer_config.json";
const TEMPLATE: &str = "chat_template.jinja";
const TOKENIZER_JSON: &str = "tokenizer.json";

/// GGUF's token types.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// One template, or several by name.
#[derive(Deserialize)]
#[serde(untagged)]
enum ChatTemplates {
    One(String),
    Many(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

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

/// Adds the vocabulary of a folder to a draft; returns whether a word that is a token becomes that token only where
/// its merges produce it.
pub(super) fn add(
    folder: &CheckpointFolder,
    config: &HfConfig,
    draft: &mut GgufDraft,
) -> Result<bool, LoadError> {
    let json = tokenizer_json::read(folder, config.vocab)?;
    let has_json = json.is_some();
    let mut vocabulary = json.map_or_else(|| sentencepiece_model::read(folder, config.vocab), Ok)?;
    let companion: TokenizerConfig = folder.json(CONFIG)?.unwrap_or_default();
    companion.apply(&mut vocabulary, has_json)?;
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
    special_tokens::add(folder, config, &vocabulary, &companion, draft)?;
    if let Some(template) = template(folder, companion.chat_template)? {
        draft.set("tokenizer.chat_template", template.as_str());
    }
    Ok(vocabulary.ignores_whole_words)
}

/// The chat template: a file of its own, or one of those in `tokenizer_config.json`.
fn template(folder: &CheckpointFolder, given: Option<ChatTemplates>) -> Result<Option<String>, LoadError> {
    let text = match folder.read(TEMPLATE)? {
        Some(bytes) => Some(utf8(&bytes).map_err(|message| LoadError::new(TEMPLATE, message))?.to_owned()),
        None => given.and_then(|given| match given {
            ChatTemplates::One(text) => Some(text),
            ChatTemplates::Many(all) => {
                all.into_iter().find(|one| one.name == "default").map(|one| one.template)
            }
        }),
    };
    // The limit that this engine has when it reads the file.
    const MOST: usize = 1 << 20;
    match text {
        Some(text) if text.len() > MOST => {
            let message = format!("a chat template of {} bytes, where {MOST} are allowed", text.len());
            Err(LoadError::new(TEMPLATE, message))
        }
        text => Ok(text),
    }
}
