//! Special tokens: the one that begins texts, and every token that ends an answer, from each file that names one.

use super::{CONFIG, CONTROL, ChatTemplates, NORMAL, UNUSED, USER_DEFINED, Vocabulary};
use crate::engine::convert::checkpoint_files::CheckpointFolder;
use crate::engine::convert::hf_config::{HfConfig, TokenIds};
use crate::engine::error::{LoadError, escaped};
use crate::engine::gguf::{GgufDraft, NewValue};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

const GENERATION: &str = "generation_config.json";
const MAP: &str = "special_tokens_map.json";

/// The keys of `tokenizer_config.json` that are read.
#[derive(Deserialize, Default)]
pub(super) struct TokenizerConfig {
    bos_token: Option<TokenRef>,
    eos_token: Option<TokenRef>,
    unk_token: Option<TokenRef>,
    pad_token: Option<TokenRef>,
    add_bos_token: Option<bool>,
    add_prefix_space: Option<bool>,
    legacy: Option<bool>,
    #[serde(default)]
    added_tokens_decoder: BTreeMap<String, DecoderToken>,
    additional_special_tokens: Option<Value>,
    extra_special_tokens: Option<Value>,
    pub chat_template: Option<ChatTemplates>,
}

/// A token by its text, or by an object with its text.
#[derive(Deserialize)]
#[serde(untagged)]
enum TokenRef {
    Text(String),
    Token { content: String },
}

impl TokenRef {
    fn text(&self) -> &str {
        match self {
            TokenRef::Text(content) | TokenRef::Token { content } => content,
        }
    }
}

/// A token that was added later.
#[derive(Deserialize)]
struct DecoderToken {
    content: String,
    #[serde(default)]
    special: bool,
}

/// The keys of `generation_config.json` that are read.
#[derive(Deserialize, Default)]
struct GenerationConfig {
    eos_token_id: Option<TokenIds>,
}

/// The keys of `special_tokens_map.json` that are read.
#[derive(Deserialize, Default)]
struct SpecialTokensMap {
    eos_token: Option<TokenRef>,
}

fn place(what: &str, message: impl Into<String>) -> LoadError {
    LoadError::new(format!("{CONFIG}: {what}"), message)
}

impl TokenizerConfig {
    /// Adds the tokens that only this file has to a vocabulary, and checks that the two agree.
    pub fn apply(&self, vocabulary: &mut Vocabulary, has_json: bool) -> Result<(), LoadError> {
        for (id, added) in &self.added_tokens_decoder {
            self.apply_added(id, added, vocabulary, has_json)?;
        }
        let is_pieces = vocabulary.scores.is_some();
        if let Some(adds) = self.add_prefix_space.filter(|adds| *adds != (is_pieces && vocabulary.adds_space))
        {
            let message = format!("is {adds}, and the vocabulary says otherwise; remove the wrong one");
            return Err(place("add_prefix_space", message));
        }
        // Where there is a `tokenizer.json`, that file decides.
        if self.legacy == Some(false) && vocabulary.adds_space && !has_json {
            let message =
                "is false: no space is put before a text behind a special token, which is not supported";
            return Err(place("legacy", format!("{message}; use another model")));
        }
        let lists = [
            ("additional_special_tokens", &self.additional_special_tokens),
            ("extra_special_tokens", &self.extra_special_tokens),
        ];
        for (key, list) in lists {
            for text in list.iter().flat_map(texts) {
                if vocabulary.id(text).is_none() {
                    return Err(place(key, format!("\"{}\" is no token of the vocabulary", escaped(text))));
                }
            }
        }
        Ok(())
    }

    fn apply_added(
        &self,
        id: &str,
        added: &DecoderToken,
        vocabulary: &mut Vocabulary,
        has_json: bool,
    ) -> Result<(), LoadError> {
        let fail = |message: String| Err(place(&format!("added_tokens_decoder.{}", escaped(id)), message));
        let text = &added.content;
        let at = id.parse::<usize>().ok().filter(|at| *at < vocabulary.tokens.len());
        let Some(at) = at else {
            return fail(format!(
                "\"{}\" is outside the vocabulary of {}",
                escaped(text),
                vocabulary.tokens.len()
            ));
        };
        match vocabulary.kinds[at] {
            UNUSED if !has_json => {
                vocabulary.tokens[at].clone_from(text);
                vocabulary.kinds[at] = if added.special { CONTROL } else { USER_DEFINED };
            }
            _ if vocabulary.tokens[at] != *text => {
                let there = escaped(&vocabulary.tokens[at]);
                return fail(format!("\"{}\", where the vocabulary has \"{there}\"", escaped(text)));
            }
            NORMAL | USER_DEFINED if added.special => vocabulary.kinds[at] = CONTROL,
            _ => {}
        }
        Ok(())
    }
}

/// The texts of a list or an object of tokens, each a text or an object with one.
fn texts(tokens: &Value) -> Vec<&str> {
    fn text(token: &Value) -> Option<&str> {
        token.as_str().or_else(|| token["content"].as_str())
    }
    match tokens {
        Value::Array(all) => all.iter().filter_map(text).collect(),
        Value::Object(all) => all.values().filter_map(text).collect(),
        _ => Vec::new(),
    }
}

/// Adds the ids of special tokens to a draft.
pub(super) fn add(
    folder: &CheckpointFolder,
    config: &HfConfig,
    vocabulary: &Vocabulary,
    companion: &TokenizerConfig,
    draft: &mut GgufDraft,
) -> Result<(), LoadError> {
    let id = |text: &str| vocabulary.id(text);
    let named = |token: &Option<TokenRef>| token.as_ref().and_then(|token| id(token.text()));
    let bos = match &companion.bos_token {
        Some(token) => Some(required_id(vocabulary, CONFIG, "bos_token", token)?),
        None => config.bos,
    };
    let ends = end_ids(folder, config, vocabulary, companion)?;
    let eos = ends.first().copied();
    // The end of a turn besides the end of a text.
    let eot = id("<|eot_id|>").or_else(|| id("<|im_end|>")).or_else(|| ends.get(1).copied());
    let ids = [
        ("bos", bos),
        ("eos", eos),
        ("eot", eot),
        ("unknown", named(&companion.unk_token)),
        ("padding", named(&companion.pad_token)),
    ];
    let inside = |name: &str, id: u32| match (id as usize) < config.vocab {
        true => Ok(id),
        false => {
            let message = format!("{name} token {id} is outside the vocabulary of {}", config.vocab);
            Err(LoadError::new("special tokens", message))
        }
    };
    for (name, id) in ids {
        let Some(id) = id else { continue };
        draft.set(&format!("tokenizer.ggml.{name}_token_id"), NewValue::U32(inside(name, id)?));
    }
    // GGUF has a key for each of these two; the list has all of them.
    if ends.iter().any(|end| ![eos, eot].contains(&Some(*end))) {
        let all = ends.iter().map(|end| inside("eos", *end).map(u32::cast_signed));
        draft.set("tokenizer.ggml.eos_token_ids", NewValue::Integers(all.collect::<Result<_, _>>()?));
    }
    add_beginning(vocabulary, companion, bos, draft)
}

/// Sets whether texts begin with the beginning-of-text token.
fn add_beginning(
    vocabulary: &Vocabulary,
    companion: &TokenizerConfig,
    bos: Option<u32>,
    draft: &mut GgufDraft,
) -> Result<(), LoadError> {
    let begins = match (companion.add_bos_token, vocabulary.begins_with.as_deref()) {
        (Some(begins), _) => begins,
        (None, Some([])) => false,
        (None, Some([only])) if bos.map(u64::from) == Some(*only) => true,
        (None, Some(ids)) => {
            let message = format!(
                "puts the tokens {ids:?} before a text, where bos_token is {bos:?}; use another model"
            );
            return Err(LoadError::new("tokenizer.json: post_processor.single", message));
        }
        // Files of Llama 3 may have no post-processor, and still every text begins with the token.
        (None, None) => bos.is_some(),
    };
    draft.set("tokenizer.ggml.add_bos_token", NewValue::Bool(begins));
    Ok(())
}

/// All tokens that end an answer: the tokenizer's own first, then those of the other files, each once.
fn end_ids(
    folder: &CheckpointFolder,
    config: &HfConfig,
    vocabulary: &Vocabulary,
    companion: &TokenizerConfig,
) -> Result<Vec<u32>, LoadError> {
    let generation: GenerationConfig = folder.json(GENERATION)?.unwrap_or_default();
    let map: SpecialTokensMap = folder.json(MAP)?.unwrap_or_default();
    let mut all = Vec::new();
    for (file, token) in [(CONFIG, &companion.eos_token), (MAP, &map.eos_token)] {
        if let Some(token) = token {
            all.push(required_id(vocabulary, file, "eos_token", token)?);
        }
    }
    all.extend(&config.eos);
    all.extend(generation.eos_token_id.iter().flat_map(TokenIds::all));
    let mut ends = Vec::new();
    for id in all {
        if !ends.contains(&id) {
            ends.push(id);
        }
    }
    Ok(ends)
}

/// The id of a token that a file names.
fn required_id(vocabulary: &Vocabulary, file: &str, key: &str, token: &TokenRef) -> Result<u32, LoadError> {
    vocabulary.id(token.text()).ok_or_else(|| {
        let message = format!("\"{}\" is no token of the vocabulary", escaped(token.text()));
        LoadError::new(format!("{file}: {key}"), message)
    })
}
