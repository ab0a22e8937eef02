//! Special tokens: the one that begins texts, and every token that ends an answer, from each file that names one.

use super::{CONFIG, Vocabulary};
use crate::engine::convert::ConvertPlan;
use crate::engine::convert::checkpoint_files::CheckpointFolder;
use crate::engine::convert::hf_config::{HfConfig, TokenIds};
use crate::engine::error::{LoadError, escaped};
use crate::engine::gguf::NewValue;
use serde::Deserialize;
use serde_json::Value;

const GENERATION: &str = "generation_config.json";
const MAP: &str = "special_tokens_map.json";

/// The tokens that `tokenizer_config.json` and `special_tokens_map.json` name.
#[derive(Deserialize, Default)]
struct NamedTokens {
    bos_token: Option<TokenRef>,
    eos_token: Option<TokenRef>,
    unk_token: Option<TokenRef>,
    pad_token: Option<TokenRef>,
    additional_special_tokens: Option<Value>,
    extra_special_tokens: Option<Value>,
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

/// The keys of `generation_config.json` that are read.
#[derive(Deserialize, Default)]
struct GenerationConfig {
    bos_token_id: Option<u32>,
    eos_token_id: Option<TokenIds>,
}

/// The ids of the tokens that a file names.
struct NamedIds {
    bos: Option<u32>,
    eos: Option<u32>,
    unknown: Option<u32>,
    padding: Option<u32>,
}

impl NamedIds {
    /// Reads them, and checks that the vocabulary has every token of the file.
    fn read(folder: &CheckpointFolder, file: &str, vocabulary: &Vocabulary) -> Result<Self, LoadError> {
        let tokens: NamedTokens = folder.json(file)?.unwrap_or_default();
        let id = |key: &str, token: &Option<TokenRef>| {
            let token = token.as_ref().map(TokenRef::text);
            token.map(|text| required_id(vocabulary, file, key, text)).transpose()
        };
        let lists = [
            ("additional_special_tokens", &tokens.additional_special_tokens),
            ("extra_special_tokens", &tokens.extra_special_tokens),
        ];
        for (key, list) in lists {
            for text in list.as_ref().map_or(Ok(Vec::new()), |list| texts(file, key, list))? {
                required_id(vocabulary, file, key, text)?;
            }
        }
        Ok(NamedIds {
            bos: id("bos_token", &tokens.bos_token)?,
            eos: id("eos_token", &tokens.eos_token)?,
            unknown: id("unk_token", &tokens.unk_token)?,
            padding: id("pad_token", &tokens.pad_token)?,
        })
    }
}

/// The texts of a list or an object of tokens, each a text or an object with one.
fn texts<'a>(file: &str, key: &str, tokens: &'a Value) -> Result<Vec<&'a str>, LoadError> {
    let fail = || LoadError::new(format!("{file}: {key}"), "holds what is no token; the file is damaged");
    let text = |token: &'a Value| token.as_str().or_else(|| token["content"].as_str()).ok_or_else(fail);
    match tokens {
        Value::Array(all) => all.iter().map(text).collect(),
        Value::Object(all) => all.values().map(text).collect(),
        _ => Err(fail()),
    }
}

/// Adds the ids of special tokens to a plan; returns that of the token that begins texts.
pub(super) fn add(
    folder: &CheckpointFolder,
    config: &HfConfig,
    vocabulary: &Vocabulary,
    plan: &mut ConvertPlan,
) -> Result<Option<u32>, LoadError> {
    let generation: GenerationConfig = folder.json(GENERATION)?.unwrap_or_default();
    let named = NamedIds::read(folder, CONFIG, vocabulary)?;
    let map = NamedIds::read(folder, MAP, vocabulary)?;
    let bos = beginning(config, &generation, &named, &map, plan)?;
    let ends = end_ids(config, &generation, &named, &map);
    let eos = ends.first().copied();
    // The end of a turn besides the end of a text.
    let id = |text: &str| vocabulary.id(text);
    let eot = id("<|eot_id|>").or_else(|| id("<|im_end|>")).or_else(|| ends.get(1).copied());
    let ids = [
        ("bos", bos),
        ("eos", eos),
        ("eot", eot),
        ("unknown", agreed("unk_token", named.unknown, map.unknown)?),
        // Prompts are not padded: which of two is written changes nothing.
        ("padding", named.padding.or(map.padding)),
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
        plan.draft.set(&format!("tokenizer.ggml.{name}_token_id"), NewValue::U32(inside(name, id)?));
    }
    // GGUF has a key for each of these two; the list has all of them.
    if ends.iter().any(|end| ![eos, eot].contains(&Some(*end))) {
        let all = ends.iter().map(|end| inside("eos", *end).map(u32::cast_signed));
        plan.draft.set("tokenizer.ggml.eos_token_ids", NewValue::Integers(all.collect::<Result<_, _>>()?));
    }
    Ok(bos)
}

/// The token that begins texts: the tokenizer's own, or else the model's.
fn beginning(
    config: &HfConfig,
    generation: &GenerationConfig,
    named: &NamedIds,
    map: &NamedIds,
    plan: &mut ConvertPlan,
) -> Result<Option<u32>, LoadError> {
    let own = agreed("bos_token", named.bos, map.bos)?;
    let others = [own, config.bos];
    if let Some(id) = generation.bos_token_id
        && others != [None, None]
        && !others.contains(&Some(id))
    {
        let other = others.into_iter().flatten().next().unwrap_or(id);
        let message = format!("is {id}, where the other files name token {other}; correct the wrong one");
        return Err(LoadError::new(format!("{GENERATION}: bos_token_id"), message));
    }
    // It matters to transformers only where there is no prompt at all.
    if let (Some(own), Some(other)) = (own, config.bos.filter(|other| Some(*other) != own)) {
        plan.note(format!("config.json: bos_token_id {other} left out: the tokenizer's own is {own}"));
    }
    Ok(own.or(config.bos).or(generation.bos_token_id))
}

/// The id of a token that two files may name.
fn agreed(key: &str, named: Option<u32>, map: Option<u32>) -> Result<Option<u32>, LoadError> {
    match (named, map) {
        (Some(named), Some(map)) if named != map => {
            let message = format!("is token {map}, and {CONFIG} names token {named}; correct the wrong one");
            Err(LoadError::new(format!("{MAP}: {key}"), message))
        }
        _ => Ok(named.or(map)),
    }
}

/// All tokens that end an answer: the tokenizer's own first, then those of the other files, each once.
fn end_ids(config: &HfConfig, generation: &GenerationConfig, named: &NamedIds, map: &NamedIds) -> Vec<u32> {
    let own = [named.eos, map.eos].into_iter().flatten();
    let others = generation.eos_token_id.iter().flat_map(TokenIds::all);
    let mut ends = Vec::new();
    for id in own.chain(config.eos.iter().copied()).chain(others.copied()) {
        if !ends.contains(&id) {
            ends.push(id);
        }
    }
    ends
}

/// The id of a token that a file names.
fn required_id(vocabulary: &Vocabulary, file: &str, key: &str, text: &str) -> Result<u32, LoadError> {
    vocabulary.id(text).ok_or_else(|| {
        let message = format!("\"{}\" is no token of the vocabulary", escaped(text));
        LoadError::new(format!("{file}: {key}"), message)
    })
}
