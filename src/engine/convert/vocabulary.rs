//! `tokenizer.json` and its companions as the metadata of a GGUF file.

use super::config::{Config, Ids};
use super::folder::Folder;
use crate::engine::error::{LoadError, shown};
use crate::engine::gguf::{Datum, Draft};
use serde::Deserialize;
use serde_json::Value;
use std::collections::HashMap;

const FILE: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";
const TEMPLATE: &str = "chat_template.jinja";

/// GGUF's token types.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    added_tokens: Vec<Added>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
}

impl Added {
    /// Whether it is a token of the byte-level vocabulary all the same, such as the line break of
    /// Falcon3, which is written `\u{10a}`: its text means bytes, as decoding takes it.
    fn is_bytes(&self, model: &Model) -> bool {
        // What stands for bytes that do not print.
        let stands_for_byte = |c| ('\u{100}'..='\u{143}').contains(&c);
        !self.special
            && self.content.contains(stands_for_byte)
            && model.vocab.get(&self.content) == Some(&self.id)
    }
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: HashMap<String, u32>,
    #[serde(default)]
    merges: Vec<Merge>,
    #[serde(default)]
    byte_fallback: bool,
    unk_token: Option<String>,
}

/// Two tokens that become one; older files have them in one text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Text(String),
    Pair(String, String),
}

impl Merge {
    /// The two, where there are two.
    fn pair(&self) -> Option<(&str, &str)> {
        match self {
            Merge::Text(text) => text.split_once(' '),
            Merge::Pair(left, right) => Some((left, right)),
        }
    }
}

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

/// Adds the vocabulary of a folder to a draft.
pub(super) fn add(folder: &Folder, config: &Config, draft: &mut Draft) -> Result<(), LoadError> {
    let raw: Option<Raw> = folder.json(FILE)?;
    let raw = raw.ok_or_else(|| {
        let said = "missing; make it from tokenizer.model with transformers' AutoTokenizer.save_pretrained";
        LoadError::new(FILE, said)
    })?;
    let companion: Companion = folder.json(CONFIG)?.unwrap_or_default();
    let vocabulary = Vocabulary::read(&raw, config)?;
    draft.set("tokenizer.ggml.model", vocabulary.model);
    draft.set("tokenizer.ggml.pre", vocabulary.pre);
    draft.set("tokenizer.ggml.tokens", Datum::Texts(vocabulary.tokens));
    if let Some(scores) = vocabulary.scores {
        draft.set("tokenizer.ggml.scores", Datum::Floats(scores));
        draft.set("tokenizer.ggml.add_space_prefix", Datum::Bool(adds_space(&raw)));
    }
    draft.set("tokenizer.ggml.token_type", Datum::Integers(vocabulary.kinds));
    draft.set("tokenizer.ggml.merges", Datum::Texts(merges(&raw.model)?));
    add_special(folder, config, &raw, &companion, draft)?;
    if let Some(template) = template(folder, companion.chat_template)? {
        draft.set("tokenizer.chat_template", template.as_str());
    }
    Ok(())
}

/// Tokens by id, and how text is cut into them.
struct Vocabulary {
    model: &'static str,
    pre: &'static str,
    tokens: Vec<String>,
    scores: Option<Vec<f32>>,
    kinds: Vec<i32>,
}

impl Vocabulary {
    fn read(raw: &Raw, config: &Config) -> Result<Self, LoadError> {
        if let Some(kind) = raw.model.kind.as_deref().filter(|kind| *kind != "BPE") {
            let said = format!("\"{}\" is not read by this version; BPE is", shown(kind));
            return Err(place("model.type", said));
        }
        let mut tokens = vec![None; config.vocab];
        let mut put = |id: u32, text: &str, kind: i32| match tokens.get_mut(id as usize) {
            Some(token) => {
                *token = Some((text.to_owned(), kind));
                Ok(())
            }
            None => {
                let said = format!("\"{}\" has id {id}, and config.json says {}", shown(text), config.vocab);
                Err(place("vocab", format!("{said} tokens")))
            }
        };
        let sentence_piece = raw.model.byte_fallback;
        for (text, id) in &raw.model.vocab {
            let byte = sentence_piece && text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
            let unknown = raw.model.unk_token.as_ref() == Some(text);
            put(
                *id,
                text,
                if byte {
                    BYTE
                } else if unknown {
                    UNKNOWN
                } else {
                    NORMAL
                },
            )?;
        }
        let added = raw.added_tokens.iter().filter(|added| sentence_piece || !added.is_bytes(&raw.model));
        for added in added {
            let unknown = sentence_piece && raw.model.unk_token.as_ref() == Some(&added.content);
            let kind = if added.special { CONTROL } else { USER_DEFINED };
            put(added.id, &added.content, if unknown { UNKNOWN } else { kind })?;
        }
        // Rows of the embedding beyond the vocabulary need a name too.
        let named = tokens.into_iter().enumerate();
        let named = named.map(|(id, token)| token.unwrap_or_else(|| (format!("[PAD{id}]"), UNUSED)));
        let (tokens, kinds): (Vec<String>, Vec<i32>) = named.unzip();
        let scores = sentence_piece.then(|| scores(&raw.model, &tokens)).transpose()?;
        let (model, pre) = if sentence_piece {
            ("llama", "default")
        } else {
            ("gpt2", pre_tokenizer(raw.pre_tokenizer.as_ref())?)
        };
        Ok(Vocabulary { model, pre, tokens, scores, kinds })
    }
}

/// The order of merges as scores of the tokens they make, the first the highest: `tokenizer.json`
/// was made from scores by the same rule. Tokens that no merge makes are never asked for theirs.
fn scores(model: &Model, tokens: &[String]) -> Result<Vec<f32>, LoadError> {
    let mut ranks: HashMap<String, usize> = HashMap::with_capacity(model.merges.len());
    for (rank, merge) in model.merges.iter().enumerate() {
        let (left, right) = pair(merge)?;
        ranks.entry(format!("{left}{right}")).or_insert(rank);
    }
    let last = model.merges.len();
    Ok(tokens.iter().map(|token| -(*ranks.get(token).unwrap_or(&last) as f32)).collect())
}

fn pair(merge: &Merge) -> Result<(&str, &str), LoadError> {
    merge.pair().ok_or_else(|| place("model.merges", "holds what is no pair; the file is damaged"))
}

fn merges(model: &Model) -> Result<Vec<String>, LoadError> {
    let text = |merge| pair(merge).map(|(left, right)| format!("{left} {right}"));
    model.merges.iter().map(text).collect()
}

fn place(what: &str, said: impl Into<String>) -> LoadError {
    LoadError::new(format!("{FILE}: {what}"), said)
}

/// How Llama 3's tokenizer cuts text into words. Source: `tokenizer.json` of Meta-Llama-3-8B.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The name GGUF has for a way to cut text, told by its patterns. Names of models say less: they
/// change hands.
fn pre_tokenizer(given: Option<&Value>) -> Result<&'static str, LoadError> {
    let (mut kinds, mut patterns) = (Vec::new(), Vec::new());
    collect(given, &mut kinds, &mut patterns);
    match (kinds.as_slice(), patterns.as_slice()) {
        (["Split", "ByteLevel"], [LLAMA3]) => Ok("llama-bpe"),
        _ => {
            let (kinds, patterns) = (shown(&kinds.join(", ")), shown(&patterns.join(", ")));
            let said = format!("[{kinds}] with the patterns [{patterns}] has no name in GGUF that we know");
            Err(place("pre_tokenizer", format!("{said}; use a model that cuts text as Llama 3 does")))
        }
    }
}

/// Types and patterns of a pre-tokenizer, in order; one level of sequence, as all files have.
fn collect<'a>(given: Option<&'a Value>, kinds: &mut Vec<&'a str>, patterns: &mut Vec<&'a str>) {
    let Some(given) = given else { return };
    match given["type"].as_str() {
        Some("Sequence") => {
            for part in given["pretokenizers"].as_array().into_iter().flatten().take(16) {
                kinds.extend(part["type"].as_str());
                patterns.extend(part["pattern"]["Regex"].as_str());
            }
        }
        kind => {
            kinds.extend(kind);
            patterns.extend(given["pattern"]["Regex"].as_str());
        }
    }
}

/// Whether a space is put before a text: by a normalizer, or by the step that marks spaces.
fn adds_space(raw: &Raw) -> bool {
    let prepends = |value: &Value| {
        value["type"] == "Prepend"
            || value["prepend_scheme"] == "first"
            || value["prepend_scheme"] == "always"
            || value["add_prefix_space"] == true
    };
    let parts = [(&raw.normalizer, "normalizers"), (&raw.pre_tokenizer, "pretokenizers")];
    parts.iter().any(|(value, list)| match value {
        None => false,
        Some(value) => prepends(value) || value[list].as_array().is_some_and(|all| all.iter().any(prepends)),
    })
}

/// Ids of tokens with a part to play.
fn add_special(
    folder: &Folder,
    config: &Config,
    raw: &Raw,
    companion: &Companion,
    draft: &mut Draft,
) -> Result<(), LoadError> {
    let generation: Generation = folder.json("generation_config.json")?.unwrap_or_default();
    let id = |text: &str| {
        let added = raw.added_tokens.iter().find(|added| added.content == text).map(|added| added.id);
        added.or_else(|| raw.model.vocab.get(text).copied())
    };
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
            return Err(place("special tokens", said));
        }
        draft.set(&format!("tokenizer.ggml.{name}_token_id"), Datum::U32(id));
    }
    let begins = companion.add_bos_token.or_else(|| begins_with(raw, bos));
    // Bare Llama 3 forms have no processor, and begin every text all the same.
    draft.set("tokenizer.ggml.add_bos_token", Datum::Bool(begins.unwrap_or(bos.is_some())));
    if let Some(add) = companion.add_eos_token {
        draft.set("tokenizer.ggml.add_eos_token", Datum::Bool(add));
    }
    Ok(())
}

/// Whether the post-processor puts the first token before a text; `None` where there is none.
fn begins_with(raw: &Raw, bos: Option<u32>) -> Option<bool> {
    let processor = raw.post_processor.as_ref()?;
    let parts = processor["processors"].as_array().map_or(std::slice::from_ref(processor), Vec::as_slice);
    let template = parts.iter().find(|part| part["type"] == "TemplateProcessing")?;
    let first = template["single"][0]["SpecialToken"]["id"].as_str()?;
    let ids = template["special_tokens"][first]["ids"].as_array()?;
    Some(bos.is_some_and(|bos| ids.iter().any(|id| *id == bos)))
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

/// The chat template that BitNet b1.58 was trained on. Source: `tokenizer_config.json` of
/// microsoft/bitnet-b1.58-2B-4T, in words of our own.
pub(super) const BITNET_TEMPLATE: &str = "{% for message in messages %}\
    {% if loop.first %}{{ bos_token }}{% endif %}\
    {{ message['role'] | capitalize + ': ' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}\
    {% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}";
