//! `tokenizer.json`: a pair encoding, of bytes or of SentencePiece's pieces.

use super::{BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Vocabulary, fill};
use crate::engine::convert::folder::Folder;
use crate::engine::error::{LoadError, shown};
use serde::Deserialize;
use serde_json::Value;
use std::collections::HashMap;

pub(super) const FILE: &str = "tokenizer.json";

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

/// The vocabulary of a folder, in a model of `rows` tokens; `None` where it has no such file.
pub(super) fn read(folder: &Folder, rows: usize) -> Result<Option<Vocabulary>, LoadError> {
    let raw: Option<Raw> = folder.json(FILE)?;
    raw.map(|raw| vocabulary(&raw, rows)).transpose()
}

fn vocabulary(raw: &Raw, rows: usize) -> Result<Vocabulary, LoadError> {
    if let Some(kind) = raw.model.kind.as_deref().filter(|kind| *kind != "BPE") {
        let said = format!("\"{}\" is not read by this version; BPE is", shown(kind));
        return Err(place("model.type", said));
    }
    let sentence_piece = raw.model.byte_fallback;
    let unknown = |text: &String| sentence_piece && raw.model.unk_token.as_ref() == Some(text);
    let plain = raw.model.vocab.iter().map(|(text, id)| {
        let byte = sentence_piece && text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
        let kind = if byte { BYTE } else { NORMAL };
        (*id, text, if unknown(text) { UNKNOWN } else { kind })
    });
    let added = raw.added_tokens.iter().filter(|added| sentence_piece || !added.is_bytes(&raw.model));
    let added = added.map(|added| {
        let kind = if added.special { CONTROL } else { USER_DEFINED };
        (added.id, &added.content, if unknown(&added.content) { UNKNOWN } else { kind })
    });
    let (tokens, kinds) = fill(FILE, rows, plain.chain(added))?;
    let scores = sentence_piece.then(|| scores(&raw.model, &tokens)).transpose()?;
    Ok(Vocabulary {
        model: if sentence_piece { "llama" } else { "gpt2" },
        pre: if sentence_piece { "default" } else { pre_tokenizer(raw.pre_tokenizer.as_ref())? },
        adds_space: adds_space(raw),
        merges: merges(&raw.model)?,
        begins_with: begins_with(raw),
        tokens,
        kinds,
        scores,
    })
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

/// What the post-processor puts before a text; `None` where there is none.
fn begins_with(raw: &Raw) -> Option<Vec<u64>> {
    let processor = raw.post_processor.as_ref()?;
    let parts = processor["processors"].as_array().map_or(std::slice::from_ref(processor), Vec::as_slice);
    let template = parts.iter().find(|part| part["type"] == "TemplateProcessing")?;
    let first = template["single"][0]["SpecialToken"]["id"].as_str()?;
    let ids = template["special_tokens"][first]["ids"].as_array()?;
    Some(ids.iter().filter_map(Value::as_u64).collect())
}
