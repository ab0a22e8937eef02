//! A checkpoint's vocabulary as the metadata of a GGUF file: `tokenizer.json`, or `tokenizer.model`
//! where there is none, and their companions.
//!
//! Deliberately cuts no text: whether the result can be used is the tokenizer's to say.

mod json;
mod pieces;

use super::config::{Config, Ids};
use super::folder::Folder;
use crate::engine::error::{LoadError, shown};
use crate::engine::gguf::{Datum, Draft};
use serde::Deserialize;

const CONFIG: &str = "tokenizer_config.json";
const TEMPLATE: &str = "chat_template.jinja";

/// GGUF's token types.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// What is read of `tokenizer_config.json`.
#[derive(Deserialize, Default)]
struct Companion {
    bos_token: Option<Named>,
    eos_token: Option<Named>,
    unk_token: Option<Named>,
    pad_token: Option<Named>,
    add_bos_token: Option<bool>,
    add_eos_token: Option<bool>,
    chat_template: Option<Templates>,
}

/// A token by its text, or by an object with its text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Named {
    Text(String),
    Token { content: String },
}

impl Named {
    fn text(&self) -> &str {
        match self {
            Named::Text(content) | Named::Token { content } => content,
        }
    }
}

/// One template, or several by name.
#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Many(Vec<Template>),
}

#[derive(Deserialize)]
struct Template {
    name: String,
    template: String,
}

/// What is read of `generation_config.json`.
#[derive(Deserialize, Default)]
struct Generation {
    eos_token_id: Option<Ids>,
}

/// Tokens by id, and how text is cut into them.
struct Vocabulary {
    /// GGUF's name of the kind.
    model: &'static str,
    /// GGUF's name of the way text is cut into words.
    pre: &'static str,
    tokens: Vec<String>,
    kinds: Vec<i32>,
    /// Of pieces.
    scores: Option<Vec<f32>>,
    /// Whether a space is put before a text; of pieces.
    adds_space: bool,
    merges: Vec<String>,
    /// Ids that are put before a text, where that is said.
    begins_with: Option<Vec<u64>>,
}

impl Vocabulary {
    /// The id of a text, of a token with a part to play rather than of another.
    fn id(&self, text: &str) -> Option<u32> {
        let with = |kinds: &[i32]| {
            let mut all = self.tokens.iter().zip(&self.kinds);
            all.position(|(token, kind)| token == text && kinds.contains(kind)).map(|id| id as u32)
        };
        with(&[CONTROL, USER_DEFINED]).or_else(|| with(&[NORMAL, UNKNOWN]))
    }
}

/// Tokens and their kinds in a model of `rows`; those that no entry names are called something too.
fn fill<'a>(
    file: &str,
    rows: usize,
    entries: impl Iterator<Item = (u32, &'a String, i32)>,
) -> Result<(Vec<String>, Vec<i32>), LoadError> {
    let mut tokens = vec![None; rows];
    for (id, text, kind) in entries {
        let token = tokens.get_mut(id as usize).ok_or_else(|| {
            let said = format!("\"{}\" has id {id}, and config.json says {rows} tokens", shown(text));
            LoadError::new(format!("{file}: vocab"), said)
        })?;
        *token = Some((text.clone(), kind));
    }
    let named = tokens.into_iter().enumerate();
    Ok(named.map(|(id, token)| token.unwrap_or_else(|| (format!("[PAD{id}]"), UNUSED))).unzip())
}

/// Adds the vocabulary of a folder to a draft.
pub(super) fn add(folder: &Folder, config: &Config, draft: &mut Draft) -> Result<(), LoadError> {
    let vocabulary = match json::read(folder, config.vocab)? {
        Some(vocabulary) => vocabulary,
        None => pieces::read(folder, config.vocab)?,
    };
    let companion: Companion = folder.json(CONFIG)?.unwrap_or_default();
    draft.set("tokenizer.ggml.model", vocabulary.model);
    draft.set("tokenizer.ggml.pre", vocabulary.pre);
    draft.set("tokenizer.ggml.tokens", Datum::Texts(vocabulary.tokens.clone()));
    if let Some(scores) = &vocabulary.scores {
        draft.set("tokenizer.ggml.scores", Datum::Floats(scores.clone()));
        draft.set("tokenizer.ggml.add_space_prefix", Datum::Bool(vocabulary.adds_space));
    }
    draft.set("tokenizer.ggml.token_type", Datum::Integers(vocabulary.kinds.clone()));
    if !vocabulary.merges.is_empty() {
        draft.set("tokenizer.ggml.merges", Datum::Texts(vocabulary.merges.clone()));
    }
    add_special(folder, config, &vocabulary, &companion, draft)?;
    if let Some(template) = template(folder, companion.chat_template)? {
        draft.set("tokenizer.chat_template", template.as_str());
    }
    Ok(())
}

/// Ids of tokens with a part to play.
fn add_special(
    folder: &Folder,
    config: &Config,
    vocabulary: &Vocabulary,
    companion: &Companion,
    draft: &mut Draft,
) -> Result<(), LoadError> {
    let generation: Generation = folder.json("generation_config.json")?.unwrap_or_default();
    let id = |text: &str| vocabulary.id(text);
    let named = |token: &Option<Named>| token.as_ref().and_then(|token| id(token.text()));
    let mut ends = config.eos.clone();
    ends.extend(generation.eos_token_id.iter().flat_map(Ids::all));
    let bos = named(&companion.bos_token).or(config.bos);
    let eos = named(&companion.eos_token).or(ends.first().copied());
    // A turn's end besides the text's end.
    let eot = id("<|eot_id|>")
        .or_else(|| id("<|im_end|>"))
        .or_else(|| ends.iter().copied().find(|end| Some(*end) != eos));
    let ids = [
        ("bos", bos),
        ("eos", eos),
        ("eot", eot),
        ("unknown", named(&companion.unk_token)),
        ("padding", named(&companion.pad_token)),
    ];
    for (name, id) in ids {
        let Some(id) = id else { continue };
        if id as usize >= config.vocab {
            let said = format!("{name} token {id} is outside the vocabulary of {}", config.vocab);
            return Err(LoadError::new("special tokens", said));
        }
        draft.set(&format!("tokenizer.ggml.{name}_token_id"), Datum::U32(id));
    }
    let begins = vocabulary.begins_with.as_ref();
    let begins = begins.map(|ids| bos.is_some_and(|bos| ids.contains(&bos.into())));
    let begins = companion.add_bos_token.or(begins);
    // Bare Llama 3 forms have no processor, and begin every text all the same.
    draft.set("tokenizer.ggml.add_bos_token", Datum::Bool(begins.unwrap_or(bos.is_some())));
    if let Some(add) = companion.add_eos_token {
        draft.set("tokenizer.ggml.add_eos_token", Datum::Bool(add));
    }
    Ok(())
}

/// The chat template: a file of its own, or one of those in `tokenizer_config.json`.
fn template(folder: &Folder, given: Option<Templates>) -> Result<Option<String>, LoadError> {
    let text = match folder.read(TEMPLATE)? {
        Some(bytes) => Some(match std::str::from_utf8(&bytes) {
            Ok(text) => text.to_owned(),
            Err(_) => return Err(LoadError::new(TEMPLATE, "is not UTF-8; the file is damaged")),
        }),
        None => given.and_then(|given| match given {
            Templates::One(text) => Some(text),
            Templates::Many(all) => all.into_iter().find(|one| one.name == "default").map(|one| one.template),
        }),
    };
    // What this engine reads back.
    const MOST: usize = 1 << 20;
    match text {
        Some(text) if text.len() > MOST => {
            let said = format!("a chat template of {} bytes, where {MOST} are allowed", text.len());
            Err(LoadError::new(TEMPLATE, said))
        }
        text => Ok(text),
    }
}
